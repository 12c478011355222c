"""Shared layers: interpolation, upsampling and attention equal to torch's; LoRA, stochastic depth, norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax.kernels import resampling
from jras_jax.models import layers
from tests import reference_parity as parity


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def torch_module():
    return parity.torch_and_transformers()[0]


def apply(module, x, variables=None, seed=0):
    """Variables with values that matter, and the output."""
    if variables is None:
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.asarray(x)))
        leaves, tree = jax.tree.flatten(shapes)
        variables = jax.tree.unflatten(tree, [images(*leaf.shape, seed=seed + i) for i, leaf in enumerate(leaves)])
    return variables, jax.jit(module.apply)(variables, x)


# Interpolation.

SIZES = [((5, 7), (5, 7)), ((5, 7), (10, 14)), ((5, 7), (3, 4)), ((4, 9), (9, 4)), ((1, 6), (5, 1)), ((16, 3), (7, 11))]


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("channels", [3, resampling.WIDE])  # the two ways to multiply
def test_resize_equals_torch(old, new, method, align_corners, channels):
    torch = torch_module()
    x = images(2, *old, channels)
    expected = torch.nn.functional.interpolate(
        parity.channels_first(torch, x), new, mode=method, align_corners=align_corners
    )
    parity.assert_close(
        layers.resize(x, new, method=method, align_corners=align_corners), parity.channels_last(expected), 1e-5
    )


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("old", "new"), [(1, 1), (1, 5), (5, 1), (3, 8), (8, 3), (7, 7)])
def test_resize_matrix_is_an_average(method, align_corners, old, new):
    """Weights of each output sum to one (constants stay), bilinear ones are none below zero, mirroring commutes."""
    matrix = layers.resize_matrix(old, new, method=method, align_corners=align_corners)
    assert matrix.shape == (new, old) and matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(1), 1.0, atol=1e-6)
    if method == "bilinear":
        assert matrix.min() >= 0.0
    if new > 1 or not align_corners:  # torch takes the first sample where there is but one output
        np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)
    if old == new:
        np.testing.assert_allclose(matrix, np.eye(old), atol=1e-7)


def test_aligned_corners_coincide_and_ramps_stay_ramps():
    ramp = np.linspace(0.0, 1.0, 5, dtype=np.float32)
    np.testing.assert_allclose(
        layers.resize_matrix(5, 9, method="bilinear", align_corners=True) @ ramp, np.linspace(0, 1, 9), atol=1e-6
    )
    assert (
        np.abs(layers.resize_matrix(5, 9, method="bilinear", align_corners=False) @ ramp - np.linspace(0, 1, 9)).max()
        > 0.02
    )


def test_resize_is_the_identity_on_its_own_size_and_keeps_the_dtype():
    x = jnp.asarray(images(1, 4, 6, 2), jnp.bfloat16)
    assert layers.resize(x, (4, 6)) is x
    y = layers.resize(x, (8, 3))
    assert y.dtype == jnp.bfloat16 and y.shape == (1, 8, 3, 2)


def test_pad_to_multiple():
    x = images(1, 5, 8, 2)
    padded = layers.pad_to_multiple(jnp.asarray(x), 4)
    assert padded.shape == (1, 8, 8, 2)
    np.testing.assert_array_equal(padded[:, :5], x)
    assert not np.any(padded[:, 5:])
    assert layers.pad_to_multiple(padded, 4) is padded


# Convolutions.


@pytest.mark.parametrize("use_bias", [True, False])
def test_upsample_equals_conv_transpose(use_bias):
    torch = torch_module()
    x = images(2, 3, 5, 4)
    variables, y = apply(layers.Upsample2x(6, use_bias), x)
    reference = torch.nn.ConvTranspose2d(4, 6, 2, 2, bias=use_bias)
    with torch.no_grad():
        # (in, 2, 2, out) -> torch's (in, out, 2, 2)
        reference.weight.copy_(torch.from_numpy(variables["params"]["kernel"].transpose(0, 3, 1, 2).copy()))
        if use_bias:
            reference.bias.copy_(torch.from_numpy(variables["params"]["bias"]))
    parity.assert_close(y, parity.channels_last(reference(parity.channels_first(torch, x))), 1e-5)


@pytest.mark.parametrize("size", [(8, 12), (11, 9)])
def test_patch_embedding_is_a_strided_convolution_and_cuts_the_remainder(size):
    x = images(2, *size, 3)
    variables, y = apply(layers.PatchEmbedding(5, 4), x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    expected = jax.lax.conv_general_dilated(x, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(y, expected + bias, atol=1e-4)


# Activations and tokens.


def test_linear_lora_starts_as_the_identity_and_its_gradient_does_not_vanish():
    x = images(3, 6)
    adapted, plain = layers.Linear(4, lora_rank=2), layers.Linear(4)
    variables = adapted.init(jax.random.key(0), x)
    assert {name: leaf.shape for name, leaf in variables["params"].items()} == {
        "kernel": (6, 4),
        "bias": (4,),
        "lora_a": (6, 2),
        "lora_b": (2, 4),
    }
    np.testing.assert_array_equal(adapted.apply(variables, x), plain.apply(variables, x))
    gradient = jax.grad(lambda v: jnp.square(adapted.apply(v, x)).sum())(variables)["params"]
    assert np.abs(gradient["lora_b"]).max() > 1e-4 and not np.any(gradient["lora_a"])


def test_linear_lora_adds_the_product():
    x = images(3, 6)
    variables, y = apply(layers.Linear(4, lora_rank=2), x)
    p = variables["params"]
    np.testing.assert_allclose(y, x @ (p["kernel"] + p["lora_a"] @ p["lora_b"]) + p["bias"], atol=1e-4)


def test_layer_norm_statistics_are_float32_even_in_bfloat16():
    """A large common offset would swallow the signal in bfloat16 or in a one-pass variance."""
    x = images(2, 64) + 1000.0
    module = layers.LayerNorm(dtype=jnp.bfloat16)
    y = module.apply(module.init(jax.random.key(0), x), x)
    expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(np.float32), expected, atol=0.02)


@pytest.mark.parametrize("inner", [None, 4])
def test_attention_equals_torch(inner):
    torch = torch_module()
    x, context, values = images(2, 3, 8), images(2, 5, 8, seed=1), images(2, 5, 8, seed=2)
    module = layers.Attention(heads=2, inner=inner)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x))
    leaves, tree = jax.tree.flatten(shapes)
    variables = jax.tree.unflatten(tree, [images(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)])
    p = jax.tree.map(torch.from_numpy, variables["params"])

    def linear(name, tensor):
        return tensor @ p[name]["kernel"] + p[name]["bias"]

    def heads(tensor):
        return tensor.unflatten(-1, (2, -1)).transpose(1, 2)

    given = zip(("query", "key", "value"), (x, context, values), strict=True)
    projected = [heads(linear(name, torch.from_numpy(tensor))) for name, tensor in given]
    attended = torch.nn.functional.scaled_dot_product_attention(*projected).transpose(1, 2).flatten(2)
    parity.assert_close(module.apply(variables, x, context, False, values), linear("output", attended))


def test_attention_defaults():
    """The context defaults to the tokens, the values to the context."""
    x, context = images(1, 3, 8), images(1, 4, 8, seed=1)
    module = layers.Attention(heads=2)
    variables = module.init(jax.random.key(0), x)
    np.testing.assert_array_equal(module.apply(variables, x), module.apply(variables, x, x, False, x))
    np.testing.assert_array_equal(
        module.apply(variables, x, context), module.apply(variables, x, context, False, context)
    )


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = np.ones((2000, 2, 3, 4), np.float32)
    module = layers.DropPath(0.25)
    y = np.asarray(module.apply({}, x, True, rngs={"dropout": jax.random.key(0)}))
    per_sample = y.reshape(len(y), -1)
    assert (per_sample == per_sample[:, :1]).all()
    np.testing.assert_allclose(np.unique(per_sample), [0.0, 1 / 0.75], rtol=1e-6)
    assert abs(y.mean() - 1.0) < 0.05  # 3.9 standard errors of 2,000 draws
    np.testing.assert_array_equal(module.apply({}, x, False), x)
    np.testing.assert_array_equal(layers.DropPath(0.0).apply({}, x, True), x)
