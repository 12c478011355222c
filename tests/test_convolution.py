"""Modules of 3x3 convolutions: depthwise equal to torch's and XLA's; dense on a batch split over devices."""

import jax
import jax.numpy as jnp
import numpy as np

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
