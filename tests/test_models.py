"""Backbones by name: the registry, its errors, and the contract that every backbone keeps."""

import jax
import jax.numpy as jnp
import pytest

from jras_jax import models
from jras_jax.errors import UserError

# Each at a size that a test can afford to trace; the real sizes are counted in the models' own tests.
SMALL = {
    "unet": {"levels": 4, "base_channels": 4},
    "segformer": {"depths": (1, 1, 1, 1), "widths": (4, 4, 8, 8), "heads": (1, 1, 1, 1), "decoder_width": 8},
    "sam": {"variant": "tiny", "depth": 1, "global_blocks": (0,)},
    "transunet": {"variant": "tiny"},
}


def create(name, **options):
    return models.create(name, **{**SMALL[name], **options})


def test_every_backbone_is_under_test():
    assert set(models.NAMES) == set(SMALL)


@pytest.mark.parametrize("name", models.NAMES)
@pytest.mark.parametrize("size", [(64, 64), (50, 71)])
def test_contract(name, size):
    """float32 logits at the image's size; encode then decode is the model; fusion levels exist; only float32 params."""
    model = create(name, num_classes=3, dtype="bfloat16")
    variables = models.abstract_variables(model, (1, 64, 64, 7))
    assert set(variables) <= {"params", "batch_stats"}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    x = jax.ShapeDtypeStruct((2, *size, 7), jnp.float32)
    maps = jax.eval_shape(lambda v, x: model.apply(v, x, method="encode"), variables, x)
    assert isinstance(maps, tuple) and all(m.ndim == 4 and m.dtype == jnp.bfloat16 for m in maps)
    heights = [m.shape[1] for m in maps]
    assert heights == sorted(heights, reverse=True)
    assert model.fusion_levels and all(level in range(len(maps)) for level in model.fusion_levels)
    decoded = jax.eval_shape(lambda v, maps: model.apply(v, maps, size, method="decode"), variables, maps)
    for logits in (decoded, jax.eval_shape(model.apply, variables, x)):
        assert logits.shape == (2, *size, 3) and logits.dtype == jnp.float32


@pytest.mark.parametrize("name", models.NAMES)
def test_training_needs_no_other_stream_than_dropout(name):
    model = create(name)
    variables = models.abstract_variables(model, (1, 64, 64, 3))
    mutable = [collection for collection in variables if collection != "params"]

    def forward(v, x):
        return model.apply(v, x, train=True, mutable=mutable, rngs={"dropout": jax.random.key(0)})

    _, changed = jax.eval_shape(forward, variables, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    assert set(changed) == set(mutable)


def test_variants_are_data_and_options_win_over_them():
    assert models.variants("segformer")[:2] == ("b0", "b1")
    assert models.variants("unet") == ()
    b1 = models.create("segformer", variant="b1")
    assert b1.widths == (64, 128, 320, 512)
    assert models.create("segformer", variant="b1", widths=(4, 4, 4, 4)).widths == (4, 4, 4, 4)
    assert models.create("segformer") == models.create("segformer", variant="b0") != b1
    assert models.create("sam").width == 768


def test_dtype_by_name():
    assert models.create("unet", dtype="bfloat16").dtype == jnp.bfloat16
    assert models.create("unet", dtype=jnp.float16).dtype == jnp.float16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet", {}), "unknown backbone 'resnet': it is one of unet, segformer"),
        (("segformer", {"variant": "b9"}), "no variant 'b9': it is one of b0, b1"),
        (("unet", {"variant": "large"}), "has no variants, but 'large'"),
        (("unet", {"levles": 3}), "no option 'levles': it has .*levels"),
        (("sam", {"wdith": 3, "dpeth": 4}), "no option 'dpeth', 'wdith'"),
        (("unet", {"parent": None}), "no option 'parent'"),
    ],
)
def test_errors_name_the_mistake_and_the_choice(arguments, message):
    name, options = arguments
    with pytest.raises(UserError, match=message):
        models.create(name, **options)


def test_variants_of_an_unknown_backbone():
    with pytest.raises(UserError, match="unknown backbone 'resnet'"):
        models.variants("resnet")


def test_abstract_variables_and_counts_are_those_of_the_real_ones():
    model = create("unet")
    real = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 2)))
    abstract = models.abstract_variables(model, (1, 16, 16, 2))
    assert jax.tree.structure(real) == jax.tree.structure(abstract)
    assert [leaf.shape for leaf in jax.tree.leaves(real)] == [leaf.shape for leaf in jax.tree.leaves(abstract)]
    assert models.parameter_count(real["params"]) == models.parameter_count(abstract["params"])
    assert models.parameter_count({"a": jnp.zeros((2, 3)), "b": {"c": jnp.zeros(())}}) == 7
