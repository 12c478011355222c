"""DINOv2: equal to transformers' on any image size, cut anywhere into prefix and suffix; sizes, LoRA, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax import models
from jras_jax.errors import UserError
from jras_jax.models import vit
from tests import reference_parity as parity

SMALL = {"width": 24, "depth": 3, "heads": 3, "patch": 14, "position_grid": 4}


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def small():
    model = vit.ViT(**SMALL)
    return model, model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 3)))


@pytest.mark.parametrize(
    ("variant", "parameters"),
    # transformers' counts for facebook/dinov2-{small,base,large,giant}, without the mask token (D numbers).
    [
        ("tiny", 217_152),
        ("vits14", 22_056_576 - 384),
        ("vitb14", 86_580_480 - 768),
        ("vitl14", 304_368_640 - 1024),
        ("vitg14", 1_136_480_768 - 1536),
    ],
)
def test_parameter_count(variant, parameters):
    variables = models.abstract_variables(vit.create(variant), (1, 28, 28, 3))
    assert models.parameter_count(variables["params"]) == parameters


@pytest.mark.parametrize("size", [(28, 28), (43, 30)])
def test_state_shape(small, size):
    model, variables = small
    states = jax.eval_shape(model.apply, variables, jnp.zeros((2, *size, 3)))
    assert states.shape == (2, 1 + (size[0] // 14) * (size[1] // 14), 24)


def test_cut_anywhere_is_the_same_function(small):
    model, variables = small
    x = images(1, 28, 42, 3)
    whole = model.apply(variables, x)
    for blocks in (0, 2, 3):
        states = model.apply(variables, x, blocks, method="prefix")
        np.testing.assert_allclose(model.apply(variables, states, blocks, method="suffix"), whole, atol=1e-6)


def test_block_parameters_are_named_by_number(small):
    assert {name for name in small[1]["params"] if name.startswith("block")} == {"block_0", "block_1", "block_2"}


def test_lora_starts_as_the_identity_and_moves_only_its_targets(small):
    model, variables = small
    lora = vit.ViT(**SMALL, lora_rank=2, lora_targets=("query", "value"))
    x = images(1, 28, 28, 3)
    adapted = lora.init(jax.random.key(1), x)
    attention = adapted["params"]["block_1"]["attention"]
    assert attention["query"]["lora_a"].shape == (24, 2)
    assert "lora_a" not in attention["key"] and "lora_a" not in attention["output"]
    merged = jax.tree.map(lambda leaf: leaf, adapted)
    for name, value in variables["params"].items():
        _copy(merged["params"][name], value) if isinstance(value, dict) else merged["params"].update({name: value})
    np.testing.assert_allclose(lora.apply(merged, x), model.apply(variables, x), atol=1e-6)
    merged["params"]["block_1"]["attention"]["query"]["lora_b"] += 1.0
    assert np.abs(lora.apply(merged, x) - model.apply(variables, x)).max() > 1e-3


def _copy(target, source):
    for name, value in source.items():
        _copy(target[name], value) if isinstance(value, dict) else target.update({name: value})


def test_remat_changes_neither_values_nor_gradients(small):
    model, variables = small
    remat = vit.ViT(**SMALL, remat=True)
    x = images(1, 28, 28, 3)

    def loss(module):
        return lambda v: jnp.square(module.apply(v, x)).mean()

    (a, da), (b, db) = (jax.jit(jax.value_and_grad(loss(m)))(variables) for m in (model, remat))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, atol=1e-5), da, db)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters(small):
    model, variables = small
    half = vit.create("tiny", **SMALL, dtype="bfloat16")
    x = images(1, 28, 28, 3)
    y = half.apply(variables, x)
    assert y.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half.init(jax.random.key(0), x)))
    np.testing.assert_allclose(y.astype(np.float32), model.apply(variables, x), atol=0.15)


def test_errors_name_the_mistake(small):
    with pytest.raises(UserError, match="vitb14"):
        vit.create("vitb16")
    with pytest.raises(UserError, match="'widht'"):
        vit.create("tiny", widht=3)
    with pytest.raises(UserError, match="smaller than one patch"):
        small[0].apply(small[1], jnp.zeros((1, 10, 28, 3)))


# Parity with transformers.


@pytest.fixture(scope="module", params=["gelu", "swiglu"])
def reference(request, tmp_path_factory):
    torch, transformers = parity.torch_and_transformers()
    config = transformers.Dinov2Config(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=56,
        patch_size=14,
        use_swiglu_ffn=request.param == "swiglu",
        attn_implementation="eager",
    )
    theirs = parity.randomise(torch, transformers.Dinov2Model(config))
    folder = tmp_path_factory.mktemp("dinov2")
    ours = vit.ViT(**SMALL, mlp=request.param)
    return torch, theirs, ours, parity.converted(theirs, "dinov2", folder), folder


# The stored grid; larger, smaller, odd, oblong; the same grid from an oblong image.
@pytest.mark.parametrize("size", [(56, 56), (70, 84), (29, 43), (14, 57), (57, 56)])
def test_states_equal_transformers_block_by_block(reference, size):
    torch, theirs, ours, variables, _ = reference
    x = images(2, *size, 3)
    with torch.no_grad():
        expected = theirs(parity.channels_first(torch, x), output_hidden_states=True)
    for blocks, states in enumerate(expected.hidden_states):
        parity.assert_close(ours.apply(variables, x, blocks, method="prefix"), states)
    parity.assert_close(ours.apply(variables, x), expected.last_hidden_state)


def test_gradients_equal_transformers(reference, tmp_path):
    torch, theirs, ours, variables, _ = reference
    x, weights = images(1, 42, 56, 3), images(1, 13, 24, seed=1)
    theirs.zero_grad()
    (theirs(parity.channels_first(torch, x)).last_hidden_state * torch.from_numpy(weights)).sum().backward()
    expected = parity.converted_gradients(torch, theirs, name="dinov2", folder=tmp_path)
    gradient = jax.jit(jax.grad(lambda p: (ours.apply({"params": p}, x) * weights).sum()))
    gradients = gradient(variables["params"])
    parity.assert_trees_close(gradients, expected)
