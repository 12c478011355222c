"""Images of several channels on their way through the model: augmentation, fusion, and what the retriever sees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax.data.augment import augment
from jras_jax.data.description import CARDIAC
from jras_jax.data.grid import grey, to_uint8
from jras_jax.joint import build_model, fusion, init_variables
from jras_jax.joint.model import first_guides, standardise

THREE = dataclasses.replace(CARDIAC, name="three", channels=("a", "b", "c"), phases=())


def test_channels_share_geometry_and_not_intensity(tiny):
    ranges = tiny.config().augment
    image = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 8, 8)), jnp.float32)
    mask = (image > 0.5).astype(jnp.int32)
    both, key = jnp.stack([image, image], -1), jax.random.key(1, impl="rbg")
    plain = dataclasses.replace(ranges, probability=0.0)
    several, masks = jax.jit(lambda: augment(key, both, masks=mask, ranges=plain))()
    single, alone = jax.jit(lambda: augment(key, image, masks=mask, ranges=plain))()
    assert np.array_equal(masks, alone)
    np.testing.assert_allclose(several[..., 0], single, atol=1e-6)
    np.testing.assert_allclose(several[..., 1], several[..., 0], atol=1e-6)
    always = dataclasses.replace(ranges, probability=1.0)
    changed, _ = jax.jit(lambda: augment(key, both, masks=mask, ranges=always))()
    assert float(jnp.abs(changed[..., 0] - changed[..., 1]).max()) > 0.05


def test_each_channel_is_scaled_by_itself():
    image = np.stack([np.linspace(0, 1, 27), np.linspace(5, 900, 27)], -1).reshape(3, 3, 3, 2)
    scaled = to_uint8(image, (0.0, 100.0))
    assert np.abs(scaled[..., 0].astype(int) - scaled[..., 1]).max() <= 1 and scaled.max() == 255
    both = standardise(jnp.asarray(image[None, :, :, 0]), channels_last=True)
    np.testing.assert_allclose(both.mean((1, 2)), 0, atol=1e-5)
    assert grey(scaled, 3, channels=2).shape == (3, 3, 3) and grey(scaled[..., 0], 3, channels=1) is not None


@pytest.mark.parametrize("kind", sorted(fusion.KINDS))
def test_every_fusion_takes_guides_of_several_channels(tiny, kind):
    config = tiny.config(fusion__name=kind)
    model = build_model(config, THREE)
    shapes = jax.eval_shape(lambda: init_variables(model, config))
    guides = first_guides(2, config.retrieval.top_k, size=32, num_classes=4, channels=3)
    images = jnp.zeros((2, 32, 32, 3))
    logits = jax.eval_shape(lambda v: model.apply(v, images, guides, method="segment"), shapes)
    assert logits.shape == (2, 32, 32, 4)
    assert model.in_channels == 3 and model.channels == 3


def test_the_retriever_sees_the_mean_of_the_channels(tiny):
    config = tiny.config()
    several, single = build_model(config, THREE), build_model(config)
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 32, 32, 3)), jnp.float32)
    key = jax.random.key(0, impl="rbg")
    variables = jax.jit(lambda: several.init(key, images, method="embed_images"))()
    ours = several.apply(variables, images, method="embed_images")
    theirs = single.apply(variables, images.mean(-1), method="embed_images")
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
