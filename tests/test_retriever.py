"""The retriever: embeddings of norm 1, blind to a scanner's scale, split exactly where it freezes."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax.errors import UserError
from jras_jax.retrieval import gallery_files, retriever

SMALL = {"image_size": 16, "hidden": 12, "dim": 8}


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).random((3, 32, 32)), jnp.float32)


@pytest.fixture(scope="module")
def variables(images):
    """For each way of pooling."""
    models = {pool: retriever.Retriever(pool=pool, **SMALL) for pool in retriever.POOLS}
    return {pool: jax.jit(m.init)(jax.random.key(0, impl="rbg"), images) for pool, m in models.items()}


@pytest.mark.parametrize("pool", retriever.POOLS)
@pytest.mark.parametrize("trained_blocks", [-1, 0, 1])
def test_states_then_embed_is_the_whole(images, variables, pool, trained_blocks):
    model = retriever.Retriever(pool=pool, trained_blocks=trained_blocks, **SMALL)
    whole = model.apply(variables[pool], images)
    states = model.apply(variables[pool], images, method="states")
    np.testing.assert_allclose(model.apply(variables[pool], states, method="embed"), whole, atol=1e-6)
    assert whole.shape == (3, 8) and whole.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    projected = model.apply(variables[pool], images, method="project_images")
    np.testing.assert_allclose(retriever.unit(projected), whole, atol=1e-6)


def test_brightness_and_contrast_of_a_scanner_do_not_matter(images, variables):
    model = retriever.Retriever(pool="grid", **SMALL)
    plain, other = (model.apply(variables["grid"], x) for x in (images, 0.3 * images + 0.2))
    assert (plain * other).sum(1).min() > 0.999


@pytest.mark.parametrize("trained_blocks", [0, 1, -1])
def test_gradients_reach_what_trains_and_nothing_that_is_frozen(images, variables, trained_blocks):
    model = retriever.Retriever(pool="grid", trained_blocks=trained_blocks, **SMALL)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=(3, 8)), jnp.float32)
    loss = lambda v: jnp.vdot(model.apply(v, images), direction)  # noqa: E731
    slopes = flax.traverse_util.flatten_dict(jax.jit(jax.grad(loss))(variables["grid"])["params"], sep="/")
    for name, slope in slopes.items():
        frozen = retriever.is_frozen(name, "tiny", trained_blocks)
        before_the_cut = frozen and not name.startswith("encoder/norm/")
        if before_the_cut:
            assert np.abs(slope).max() == 0, name
        if not frozen and name.endswith("kernel"):
            assert np.abs(slope).max() > 0, name
    assert any(retriever.is_frozen(n, "tiny", trained_blocks) for n in slopes) == (trained_blocks >= 0)


def test_unit_vectors_and_the_zero_vector():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(retriever.unit(x), [[0.6, 0.8], [0, 0]], atol=1e-6)
    assert np.isfinite(jax.grad(lambda y: retriever.unit(y).sum())(x)).all()


@pytest.mark.parametrize(("variant", "blocks"), [("huge", 1), ("tiny", 99), ("tiny", -2)])
def test_impossible_settings_are_refused(variant, blocks):
    with pytest.raises(UserError, match=r"config.retriever"):
        retriever.frozen_blocks(variant, blocks)
    with pytest.raises(UserError, match=r"retriever.pool='mean'"):
        retriever.Retriever(pool="mean", **SMALL).init(jax.random.key(0), jnp.zeros((1, 16, 16)))


def test_lora_leaves_the_blocks_own_weights_alone():
    last = "encoder/block_11/attention/query"
    assert retriever.is_frozen(f"{last}/kernel", "vitb14", 1, lora_rank=4)
    assert not retriever.is_frozen(f"{last}/lora_a", "vitb14", 1, lora_rank=4)
    assert retriever.is_frozen("encoder/block_3/attention/query/lora_a", "vitb14", 1, lora_rank=4)
    assert not retriever.is_frozen("project1/kernel", "vitb14", 0, lora_rank=4)


def test_the_fingerprint_changes_with_weights_and_with_what_shapes_embeddings(variables):
    settings = {
        "variant": "tiny", "image_size": 16, "pool": "grid", "hidden": 12, "dim": 8, "dropout": 0.3, "lora_rank": 0
    }  # fmt: skip
    params = jax.tree.map(np.asarray, variables["grid"]["params"])
    name = gallery_files.fingerprint(params, settings)
    assert len(name) == 64 and name == gallery_files.fingerprint(dict(reversed(params.items())), settings)
    assert name == gallery_files.fingerprint(params, settings | {"dropout": 0.0})
    assert name != gallery_files.fingerprint(params, settings | {"image_size": 24})
    other = jax.tree.map(np.copy, params)
    other["project2"]["bias"][0] = np.nextafter(other["project2"]["bias"][0], np.float32(1))
    assert name != gallery_files.fingerprint(other, settings)


def test_settings_of_the_config_are_those_of_the_module(tiny):
    fields = {f.name for f in dataclasses.fields(retriever.Retriever)} - {"parent", "name", "dtype"}
    assert fields == {f.name for f in dataclasses.fields(tiny.config().retriever)} - {"init_from"}


def test_pixels_are_compared_by_normalised_cross_correlation_at_the_side_that_fits(images):
    model = retriever.PixelRetriever(dim=18)  # 4 x 4 pixels, and two zeros
    assert not model.init(jax.random.key(0), images)
    found = model.apply({}, images)
    small = np.asarray(jax.image.resize(images, (3, 4, 4), "linear", antialias=True)).reshape(3, 16)
    np.testing.assert_allclose(found @ found.T, np.corrcoef(small), atol=1e-5)
    assert found.shape == (3, 18) and not found[:, 16:].any()
    np.testing.assert_allclose(model.apply({}, 0.3 * images + 0.2), found, atol=1e-5)
    states = model.apply({}, images, method="states")
    np.testing.assert_array_equal(model.apply({}, states, method="embed"), found)
    assert not model.apply({}, jnp.ones((1, 8, 8))).any()
