"""SegFormer: equal to transformers' on any image size, stage by stage; sizes, odd images, the fused decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax import models
from jras_jax.errors import UserError
from jras_jax.models import segformer
from tests import reference_parity as parity

SMALL = {"depths": (1, 2, 1, 1), "widths": (8, 12, 20, 24), "heads": (1, 2, 5, 4), "decoder_width": 16}


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("variant", "parameters"),
    # transformers' counts with 150 classes (ADE20K): the papers' 3.8, 13.7, 27.5, 47.3, 64.1 and 84.7 million.
    [
        ("b0", 3_752_694),
        ("b1", 13_715_798),
        ("b2", 27_461_974),
        ("b3", 47_337_814),
        ("b4", 64_108_374),
        ("b5", 84_708_694),
    ],
)
def test_parameter_count(variant, parameters):
    model = models.create("segformer", variant=variant, num_classes=150)
    assert models.parameter_count(models.abstract_variables(model, (1, 64, 64, 3))["params"]) == parameters


@pytest.mark.parametrize("size", [(64, 64), (37, 50)])
def test_shapes(size):
    model = models.create("segformer", **SMALL, num_classes=5, dtype="bfloat16")
    variables = models.abstract_variables(model, (1, 64, 64, 7))
    x = jnp.zeros((2, *size, 7))
    maps = jax.eval_shape(lambda v: model.apply(v, x, method="encode"), variables)
    ceil = [tuple(-(-n // stride) for n in size) for stride in (4, 8, 16, 32)]
    assert [m.shape for m in maps] == [(2, *c, w) for c, w in zip(ceil, SMALL["widths"], strict=True)]
    assert [ceil[level] for level in model.fusion_levels] == ceil[:2]
    logits = jax.eval_shape(lambda v: model.apply(v, x), variables)
    assert logits.shape == (2, *size, 5) and logits.dtype == jnp.float32


def test_training_moves_the_batch_statistics_and_drops_at_random():
    model = models.create("segformer", **SMALL, drop_path=0.5)
    x = images(2, 32, 32, 3)
    variables = parity.filled(model, (1, 32, 32, 3))
    step = jax.jit(lambda v, key: model.apply(v, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}))
    (a, stats), (b, _) = (step(variables, jax.random.key(i)) for i in (1, 2))
    assert np.abs(a - b).max() > 1e-4
    before, after = variables["batch_stats"]["decoder"]["norm"]["mean"], stats["batch_stats"]["decoder"]["norm"]["mean"]
    assert np.abs(before - after).max() > 1e-6


def test_the_decoder_drops_whole_channels():
    """As in the authors' code: the logits of a constant image stay constant, whichever channels are dropped."""
    decoder = segformer.Decoder(3, 16, dropout=0.5)
    levels = jnp.array([1.0, -1.0])[:, None, None, None]  # an image each, or the batch norm would leave nothing
    features = [levels * jnp.ones((2, n, n, 4)) for n in (8, 4, 2, 1)]
    variables = decoder.init(jax.random.key(0), features)
    logits = [
        decoder.apply(variables, features, True, rngs={"dropout": jax.random.key(i)}, mutable=["batch_stats"])[0]
        for i in range(2)
    ]
    evaluated = decoder.apply(variables, features)
    np.testing.assert_allclose(evaluated, np.broadcast_to(evaluated[:, :1, :1], evaluated.shape), atol=1e-6)
    for one in logits:  # one mask an image: every pixel of it sees the same channels
        np.testing.assert_allclose(one, np.broadcast_to(one[:, :1, :1], one.shape), atol=1e-6)
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_too_small_an_image_is_an_error():
    model = models.create("segformer", **SMALL)
    with pytest.raises(UserError, match="31x40"):
        model.init(jax.random.key(0), jnp.zeros((1, 31, 40, 3)))


# Parity with transformers.


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    torch, transformers = parity.torch_and_transformers()
    config = transformers.SegformerConfig(
        depths=list(SMALL["depths"]),
        hidden_sizes=list(SMALL["widths"]),
        num_attention_heads=list(SMALL["heads"]),
        decoder_hidden_size=SMALL["decoder_width"],
        num_labels=5,
        attn_implementation="eager",
    )
    theirs = parity.randomise(torch, transformers.SegformerForSemanticSegmentation(config))
    folder = tmp_path_factory.mktemp("segformer")
    ours = models.create("segformer", **SMALL, num_classes=5)
    return torch, theirs, ours, parity.converted(theirs, "segformer", folder)


@pytest.mark.parametrize("size", [(64, 64), (67, 45), (50, 96)])
def test_stages_and_logits_equal_transformers(reference, size):
    torch, theirs, ours, variables = reference
    x = images(2, *size, 3)
    with torch.no_grad():
        expected = theirs(parity.channels_first(torch, x), output_hidden_states=True)
        full = torch.nn.functional.interpolate(expected.logits, size, mode="bilinear", align_corners=False)

    def parts(model):
        maps = model.encode(x)
        return maps, model.decoder(maps), model(x)

    maps, coarse, logits = jax.jit(lambda v: ours.apply(v, method=parts))(variables)
    for mine, stage in zip(maps, expected.hidden_states, strict=True):
        parity.assert_close(mine, parity.channels_last(stage))
    parity.assert_close(coarse, parity.channels_last(expected.logits))
    parity.assert_close(logits, parity.channels_last(full))


def test_gradients_equal_transformers(reference, tmp_path):
    torch, theirs, ours, variables = reference
    x, weights = images(1, 40, 50, 3), images(1, 10, 13, 5, seed=1)
    theirs.zero_grad()
    logits = theirs(parity.channels_first(torch, x)).logits
    (logits * parity.channels_first(torch, weights)).sum().backward()
    expected = parity.converted_gradients(torch, theirs, name="segformer", folder=tmp_path)

    def loss(params):
        def coarse(model):
            return model.decoder(model.encode(x))

        return (ours.apply({**variables, "params": params}, method=coarse) * weights).sum()

    parity.assert_trees_close(jax.jit(jax.grad(loss))(variables["params"]), expected)
