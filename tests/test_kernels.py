"""Each CPU form equals its reference in value and gradient; the switch between them; forward mode under `reference`."""

import contextlib
import functools
import importlib
import pkgutil
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jras_jax import kernels, mesh, models
from jras_jax.kernels import activation, attention, convolution, normalisation, resampling
from tests import reference_parity as parity
from tests.test_layers import images, torch_module

OPERATIONS = [
    importlib.import_module(f"jras_jax.kernels.{found.name}")
    for found in pkgutil.iter_modules(kernels.__path__)
    if found.name != "switch"
]
# Operation, what it is bound with, shapes of its arrays.
CASES = [
    ("gelu", {}, [(7,)]),
    ("gelu", {}, [(2, 5, 3)]),
    ("matmul", {}, [(5,), (5, 4)]),
    ("matmul", {}, [(2, 3, 1, 5), (5, 4)]),
    ("attend", {}, [(2, 5, 6, 4), (2, 3, 6, 4), (2, 3, 6, 4)]),
    ("attend", {}, [(1, 7, 3, 5), (1, 7, 3, 5), (1, 7, 3, 5), (1, 3, 7, 7)]),
    ("resample", {"axis": 1}, [(2, 5, 7, 3), (9, 5)]),
    ("resample", {"axis": 2}, [(2, 5, 7, 3), (4, 7)]),
    ("resample", {"axis": 1}, [(2, 5, 7, resampling.WIDE), (9, 5)]),
    ("resample", {"axis": 2}, [(2, 5, 7, resampling.WIDE + 1), (4, 7)]),
    ("upsample2x", {}, [(2, 3, 5, 4), (4, 2, 2, 3)]),
    ("upsample2x", {}, [(1, 4, 1, 1), (1, 2, 2, 6)]),
    ("norm_and_activation", {}, [(2, 6, 5, 3), (3,), (3,)]),
    ("norm_and_activation", {"epsilon": 0.1, "slope": 0.2}, [(1, 8, 8, 1), (1,), (1,)]),
    ("depthwise3x3", {}, [(2, 7, 6, 5), (3, 3, 5)]),
    ("depthwise3x3", {}, [(1, 1, 3, 4), (3, 3, 4)]),
    ("conv3x3", {"stride": 1}, [(2, 6, 5, 3), (3, 3, 3, 4)]),
    ("conv3x3", {"stride": 1}, [(1, 8, 8, 4), (3, 3, 4, 3)]),
    ("conv3x3", {"stride": 2}, [(2, 7, 8, 5), (3, 3, 5, 4)]),
    ("conv3x3", {"stride": 2}, [(1, 8, 9, 2), (3, 3, 2, 1)]),
    ("conv3x3", {"stride": 3}, [(1, 9, 10, 2), (3, 3, 2, 3)]),
]
# Parameters stay float32 if the computation is in half precision.
FLOAT32_PARAMETERS = ("norm_and_activation", "depthwise3x3", "conv3x3")
QUICK = {"xla_backend_optimization_level": 0}  # nearly all of the time is compilation
SMALL = {
    "unet": {"base_channels": 2, "levels": 2},
    "segformer": {"depths": (1, 1, 1, 1), "widths": (2, 2, 4, 4), "heads": (1, 1, 1, 1), "decoder_width": 4},
}


def arrays(name, shapes, dtype=jnp.float32, seed=0):
    x, *others = (jnp.asarray(images(*shape, seed=seed + i)) for i, shape in enumerate(shapes))
    return x.astype(dtype), *(y if name in FLOAT32_PARAMETERS else y.astype(dtype) for y in others)


def value_and_gradients(function, *given):
    """The value, and the gradients of its product with a cotangent without symmetry."""
    y, backward = jax.vjp(function, *given)
    return y, *backward(jnp.asarray(images(*y.shape, seed=9), y.dtype))


def assert_alike(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def test_every_operation_has_both_forms_and_is_under_test():
    public = {name for name in kernels.__all__ if name not in ("FORMS", "Form", "choose", "form", "using")}
    assert {name for name, _, _ in CASES} == public
    owners = {getattr(kernels, name).__module__ for name in public}
    assert owners == {module.__name__ for module in OPERATIONS}
    assert all(callable(module.reference) and callable(module.cpu) for module in OPERATIONS)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("name", "bound", "shapes"), CASES)
def test_cpu_form_equals_the_reference(name, bound, shapes, dtype):
    given = arrays(name, shapes, dtype)
    jitted = jax.jit(functools.partial(value_and_gradients, functools.partial(getattr(kernels, name), **bound)))
    results = {}
    for form in kernels.FORMS:
        with kernels.using(form):
            results[form] = jitted(*given)
    assert results["cpu"][0].dtype == dtype
    assert_alike(results["cpu"], results["reference"], 1e-5 if dtype == jnp.float32 else 2e-2)


# The switch.


def test_the_platform_chooses_and_using_overrides():
    assert jax.default_backend() == "cpu" and kernels.form() == "cpu"
    with kernels.using("reference"):
        assert kernels.form() == "reference"
        with kernels.using("cpu"):
            assert kernels.form() == "cpu"
        assert kernels.form() == "reference"
    with contextlib.suppress(KeyError), kernels.using("reference"):
        raise KeyError
    assert kernels.form() == "cpu"


def test_an_accelerator_runs_references(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert kernels.form() == "reference"
    with kernels.using("cpu"):
        assert kernels.form() == "cpu"


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="unknown form 'gpu': choose one of reference, cpu"):
        kernels.using("gpu")


def test_the_form_is_in_the_key_of_jits_cache():
    traced = []

    @jax.jit
    def f(x):
        traced.append(kernels.form())
        return kernels.gelu(x)

    x = jnp.ones(3)
    for _ in range(2):
        f(x)
        with kernels.using("reference"):
            f(x)
        with kernels.using("cpu"):
            f(x)
    # Once without an override, which is the CPU's form here, and once for each override.
    assert traced == ["cpu", "reference", "cpu"]
    with kernels.using("reference"):
        assert "erfc" in f.lower(x).as_text()
    assert "erfc" not in f.lower(x).as_text()


# Forward mode.


@pytest.mark.parametrize(("name", "bound", "shapes"), CASES)
def test_references_have_forward_mode(name, bound, shapes):
    """jvp agrees with the gradient; the Hessian along two directions is symmetric and finite."""
    function = functools.partial(getattr(kernels, name), **bound)
    given = arrays(name, shapes)
    directions = [arrays(name, shapes, seed=seed) for seed in (5, 10)]

    def loss(*given):
        return jnp.sin(function(*given)).sum()

    def along(t):
        return loss(*(x + t[0] * a + t[1] * b for x, a, b in zip(given, *directions, strict=True)))

    with kernels.using("reference"):
        _, slope = jax.jvp(loss, given, directions[0])
        gradients = jax.grad(loss, tuple(range(len(given))))(*given)
        hessian = jax.jit(jax.hessian(along))(jnp.zeros(2))
    expected = sum(jnp.vdot(g, d) for g, d in zip(gradients, directions[0], strict=True))
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-3, atol=1e-3 * np.abs(hessian).max())
    assert np.isfinite(hessian).all() and np.abs(hessian).max() > 0


@pytest.mark.parametrize("name", ["unet", pytest.param("segformer", marks=pytest.mark.slow)])
def test_models_have_forward_mode_with_references(name):
    model = models.create(name, num_classes=2, **SMALL[name])
    x = jnp.asarray(images(1, 32, 32, 1))
    variables = parity.filled(model, x.shape, 0)
    leaves, tree = jax.tree.flatten(variables["params"])
    drawn = [[0.1 * images(*leaf.shape, seed=i + seed) for i, leaf in enumerate(leaves)] for seed in (0, 99)]
    directions = [tree.unflatten(direction) for direction in drawn]

    def along(t):
        params = jax.tree.map(lambda p, a, b: p + t[0] * a + t[1] * b, variables["params"], *directions)
        return jnp.square(model.apply({**variables, "params": params}, x)).mean()

    def derivatives(t):
        slope = jax.jvp(along, (t,), (jnp.array([1.0, 0.0]),))[1]
        return slope, jax.grad(along)(t), jax.hessian(along)(t)

    t = jnp.zeros(2)
    with kernels.using("reference"):
        slope, gradient, hessian = jax.jit(derivatives).lower(t).compile(QUICK)(t)
    np.testing.assert_allclose(slope, gradient[0], rtol=1e-3, atol=1e-3 * np.abs(gradient).max())
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-3, atol=1e-3 * np.abs(hessian).max())
    assert np.isfinite(hessian).all() and np.abs(hessian).max() > 0


# What each CPU form promises.


def test_gelu_and_its_gradient_equal_torch():
    torch = torch_module()
    x = np.concatenate([np.linspace(-12.0, 12.0, 2001), [-40.0, 0.0, 40.0]]).astype(np.float32)
    reference = torch.from_numpy(x).requires_grad_()
    y = torch.nn.functional.gelu(reference)
    y.sum().backward()
    parity.assert_close(activation.cpu(jnp.asarray(x)), y.detach(), 2e-6)
    gradient = jax.jit(jax.grad(lambda x: activation.cpu(x).sum()))
    parity.assert_close(gradient(x), reference.grad, 2e-6)
    half = jnp.asarray(x, jnp.bfloat16)
    assert activation.cpu(half).dtype == gradient(half).dtype == jnp.bfloat16


@pytest.mark.parametrize("together", [1, 2, 6])  # heads at a time
@pytest.mark.parametrize("biased", [False, True])
def test_attention_on_cpu_is_jaxs(together, biased, monkeypatch):
    query, key, value = images(2, 5, 6, 4), images(2, 3, 6, 4, seed=1), images(2, 3, 6, 4, seed=2)
    given = (query, key, value, *([images(2, 6, 5, 3, seed=3)] if biased else []))
    monkeypatch.setattr(attention, "SCORES", together * 2 * 5 * 3)
    expected, expected_backward = jax.vjp(jax.nn.dot_product_attention, *given)
    found, backward = jax.vjp(attention.cpu, *given)
    text = jax.jit(lambda *given: attention.cpu(*given)).lower(*given).as_text()
    assert text.count("stablehlo.exponential") == 6 // together
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for ours, jaxs in zip(backward(query), expected_backward(query), strict=True):
        np.testing.assert_allclose(ours, jaxs, atol=1e-5)


def test_attention_on_cpu_lets_batch_and_heads_be_split(monkeypatch):
    devices = mesh.make_mesh(2, 2, jax.devices()[:4])
    split = NamedSharding(devices, P("data", None, "model", None))
    given = [jax.device_put(images(2, 16, 8, 4, seed=i), split) for i in range(4)]
    monkeypatch.setattr(attention, "SCORES", 2 * 2 * 16 * 16)  # two of the eight heads at a time

    def both(attend, *given):
        y, backward = jax.vjp(attend, *given[:3])
        return y, *backward(given[3])

    compiled = jax.jit(lambda *given: both(attention.cpu, *given)).lower(*given).compile()
    assert not re.search("all-to-all|collective-permute|all-gather|all-reduce", compiled.as_text())
    for ours, jaxs in zip(compiled(*given), both(jax.nn.dot_product_attention, *given), strict=True):
        np.testing.assert_allclose(ours, jaxs, atol=1e-5)


def test_attention_survives_large_scores_and_keeps_half_precision():
    query = 100.0 * images(1, 4, 2, 8)
    value = jnp.asarray(images(1, 4, 2, 8, seed=1), jnp.bfloat16)
    found = kernels.attend(jnp.asarray(query, jnp.bfloat16), jnp.asarray(query, jnp.bfloat16), value)
    assert found.dtype == jnp.bfloat16
    # A token's own score is by far the largest: its own value comes back.
    np.testing.assert_allclose(found.astype(np.float32), value.astype(np.float32), atol=0.02)


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_norm_and_activation_are_flaxs_and_keep_one_map(offset):
    x, gradient = images(2, 6, 5, 3) + np.float32(offset), images(2, 6, 5, 3, seed=1)
    scale, bias = 1.0 + images(3, seed=2), images(3, seed=3)

    def plain(x, scale, bias):
        norm = nn.InstanceNorm(epsilon=1e-5)
        return nn.leaky_relu(norm.apply({"params": {"scale": scale, "bias": bias}}, x), 0.01)

    expected, expected_backward = jax.vjp(plain, x, scale, bias)
    found, backward = jax.vjp(normalisation.cpu, x, scale, bias)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for ours, flaxs in zip(backward(gradient), expected_backward(gradient), strict=True):
        np.testing.assert_allclose(ours, flaxs, rtol=1e-4, atol=1e-4)
    assert x.size <= sum(leaf.size for leaf in jax.tree.leaves(backward)) < 1.5 * x.size


def test_norm_and_activation_compute_in_float32():
    x = images(1, 8, 8, 2) + 30.0  # squares of which bfloat16 keeps two digits
    exact = normalisation.cpu(x, jnp.ones(2), jnp.zeros(2))
    rounded = jnp.asarray(x, jnp.bfloat16)
    found, backward = jax.vjp(normalisation.cpu, rounded, jnp.ones(2), jnp.zeros(2))
    assert found.dtype == backward(found)[0].dtype == jnp.bfloat16
    again = normalisation.cpu(rounded.astype(jnp.float32), jnp.ones(2), jnp.zeros(2))
    np.testing.assert_allclose(found.astype(np.float32), again, atol=0.02)
    np.testing.assert_allclose(again.mean(), exact.mean(), atol=0.02)


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
    kernel = jnp.asarray(images(3, 3, channels, features))
    ours = functools.partial(convolution.cpu, stride=stride)
    y = jax.jit(ours)(x, kernel)
    weights = jnp.asarray(images(*y.shape))  # a cotangent without symmetry

    plain = functools.partial(convolution.reference, stride=stride)
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
