"""Dense and depthwise 3x3 convolutions and their gradients, equal to torch's and to XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax import mesh
from jras_jax.models import convolution
from tests import reference_parity as parity
from tests.test_layers import apply, images, torch_module


def test_depthwise_convolution_equals_the_grouped_one():
    torch = torch_module()
    x = images(2, 4, 7, 5)
    module = convolution.DepthwiseConv3x3()
    variables, y = apply(module, x)
    weight = torch.from_numpy(variables["params"]["kernel"].transpose(2, 0, 1)[:, None].copy()).requires_grad_()
    bias = torch.from_numpy(variables["params"]["bias"])
    expected = torch.nn.functional.conv2d(parity.channels_first(torch, x), weight, bias, padding=1, groups=5)
    parity.assert_close(y, parity.channels_last(expected), 1e-5)
    expected.square().sum().backward()
    gradient = jax.jit(jax.grad(lambda v: jnp.square(module.apply(v, x)).sum()))(variables)["params"]["kernel"]
    parity.assert_close(gradient.transpose(2, 0, 1)[:, None], weight.grad, 1e-3)


def test_depthwise_convolution_equals_jax_grouped_convolution():
    x = images(1, 3, 3, 4)
    variables, y = apply(convolution.DepthwiseConv3x3(), x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    numbers = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(
        x, kernel[:, :, None], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=4
    )
    np.testing.assert_allclose(y, expected + bias, atol=1e-5)


WAYS = {
    "one product": [((6, 5), 1, 3, 5), ((7, 8), 2, 3, 5), ((32, 32), 1, 63, 70), ((9, 12), 2, 4, 7)],
    "bands": [((64, 64), 1, 3, 5), ((66, 70), 1, 3, 5), ((129, 130), 2, 3, 5), ((65, 64), 1, 64, 64)],
    "tiles": [((48, 46), 1, 96, 98), ((64, 64), 1, 102, 96)],
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("way", "sizes"), [(way, sizes) for way in WAYS for sizes in WAYS[way]])
def test_3x3_convolution_and_its_gradients_equal_jax_convolution(monkeypatch, way, sizes, dtype):
    taken = []
    for name in ("_by_tiles", "_by_bands"):
        original = getattr(convolution, name)
        monkeypatch.setattr(convolution, name, lambda *a, f=original, name=name: taken.append(name) or f(*a))
    size, stride, channels, features = sizes
    x = jnp.asarray(images(2, *size, channels), dtype)
    module = convolution.Conv3x3(features, stride, dtype)
    variables, y = apply(module, x)
    kernel = variables["params"]["kernel"]
    weights = jnp.asarray(images(*y.shape))  # a cotangent without symmetry

    def plain(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel.astype(dtype), (stride, stride), [(1, 1), (1, 1)], dimension_numbers=numbers
        )

    ours = lambda x, kernel: module.apply({"params": {"kernel": kernel}}, x)  # noqa: E731
    np.testing.assert_array_equal(y, jax.jit(plain)(x, kernel))
    got, expected = (
        jax.jit(jax.grad(lambda x, k, f=f: (f(x, k) * weights).sum(), (0, 1)))(x, kernel) for f in (ours, plain)
    )
    if dtype == jnp.float32:  # sums of shifted maps would lose digits in bfloat16: no tiles there
        assert taken == {"one product": [], "bands": ["_by_bands"], "tiles": ["_by_tiles"]}[way]
    else:
        assert "_by_tiles" not in taken
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def test_3x3_convolution_sums_its_kernel_gradient_over_a_batch_split_over_devices():
    rows = mesh.by_rows(mesh.make_mesh(4, 1))
    x = images(4, 64, 64, 3)
    module = convolution.Conv3x3(5)
    variables, _ = apply(module, x)
    gradient = jax.jit(jax.grad(lambda v, x: jnp.square(module.apply(v, x)).sum()))
    one, four = gradient(variables, jnp.asarray(x)), gradient(variables, jax.device_put(x, rows))
    one, four = (np.asarray(g["params"]["kernel"]) for g in (one, four))
    np.testing.assert_allclose(four, one, atol=1e-4 * np.abs(one).max())
    compiled = gradient.lower(variables, jax.device_put(x, rows)).compile().as_text()
    assert compiled.count(" all-reduce(") == 1  # behind the loop over bands, not in it
