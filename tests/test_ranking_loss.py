"""The loss that ranks the gallery: whole, drawn and from the host's memory; the same target, the same leak rule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax import config as configs
from jras_jax.retrieval.gallery import Gallery, HostRows, QueryKeys
from jras_jax.training import step

ROWS, SIDE, DIM, BATCH = 60, 72, 8, 4


def squares(n, seed):
    """(n, S, S) uint8: a square of label 1 somewhere."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, SIDE, SIDE), np.uint8)
    for mask, (y, x) in zip(masks, rng.integers(0, SIDE // 2, (n, 2)), strict=True):
        mask[y : y + SIDE // 2, x : x + SIDE // 2] = 1
    return masks


def gallery(memory="device"):
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(ROWS, DIM)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    masks = squares(ROWS, 1)
    pixels = HostRows(masks) if memory == "host" else jnp.asarray(masks)
    patient = jnp.arange(ROWS, dtype=jnp.int32) // 10
    return Gallery(jnp.asarray(embeddings), pixels, masks=pixels, patient=patient, valid=jnp.ones(ROWS, bool))


def loss(embeddings, rows, memory="device", seed=0):
    retrieval = dataclasses.replace(configs.parse(configs.defaults()).retrieval, overlap_rows=rows)
    terms = step.LossTerms(passes=None, num_classes=2, augment=None, retrieval=retrieval, loss=None, mesh=None)
    queries = QueryKeys(patient=jnp.array([0, 1, 2, -1]), row=jnp.array([0, 10, 20, -1]))
    seen = jnp.asarray(squares(BATCH, 2))
    key = jax.random.key(seed)
    return step._overlap_term(embeddings, seen, gallery(memory), queries=queries, key=key, terms=terms)


@pytest.fixture(scope="module")
def embeddings():
    return jnp.asarray(np.random.default_rng(3).normal(size=(BATCH, DIM)) / np.sqrt(DIM), jnp.float32)


def test_all_rows_drawn_are_the_whole_gallery_also_from_the_hosts_memory(embeddings):
    whole = loss(embeddings, 10**9)
    assert whole > 0.1
    np.testing.assert_allclose(loss(embeddings, ROWS, memory="host"), whole, atol=1e-6)
    np.testing.assert_allclose(loss(embeddings, 10**9, memory="host"), whole, atol=1e-6)


def test_drawn_rows_depend_on_the_key_alone_and_point_the_same_way(embeddings):
    slope = jax.jit(jax.grad(lambda e, key: loss(e, 20, seed=key)), static_argnums=1)
    assert np.array_equal(slope(embeddings, 1), slope(embeddings, 1))
    assert not np.array_equal(slope(embeddings, 1), slope(embeddings, 2))
    whole = jax.grad(lambda e: loss(e, 10**9))(embeddings)
    mean = np.mean([slope(embeddings, key) for key in range(12)], 0)
    assert (
        np.vdot(mean, whole) / np.linalg.norm(mean) / np.linalg.norm(whole) > 0.8
    )  # of a third of the rows, whose best is not the gallery's


def test_rows_are_drawn_once_each_and_all_about_as_often():
    draw = jax.jit(step.drawn_rows, static_argnums=(1, 2))
    every = np.stack([draw(jax.random.key(i), 10, 4) for i in range(600)])
    assert all(len(set(rows)) == 4 and list(rows) == sorted(rows) for rows in every.tolist())
    share = np.bincount(every.ravel(), minlength=10) / len(every)
    assert np.abs(share - 0.4).max() < 0.15 and share.sum() == pytest.approx(4)
    np.testing.assert_array_equal(draw(jax.random.key(0), 7, 7), np.arange(7))
    rows = np.asarray(draw(jax.random.key(0), 10**6, 16_384))
    assert rows.min() >= 0 and rows.max() < 10**6 and len(set(rows.tolist())) == 16_384


def test_the_query_s_own_patient_teaches_nothing(embeddings):
    """Whatever the rows of the query's own patient hold, the loss is the same."""
    own = dataclasses.replace(configs.parse(configs.defaults()).retrieval, overlap_rows=30)
    terms = step.LossTerms(passes=None, num_classes=2, augment=None, retrieval=own, loss=None, mesh=None)
    queries = QueryKeys(patient=jnp.zeros(BATCH, jnp.int32), row=jnp.zeros(BATCH, jnp.int32))
    seen, plain = jnp.asarray(squares(BATCH, 2)), gallery()
    other = plain.replace(masks=plain.masks.at[:10].set(0), embeddings=plain.embeddings.at[:10].set(0.5))
    options = {"queries": queries, "key": jax.random.key(0), "terms": terms}
    first, second = (step._overlap_term(embeddings, seen, g, **options) for g in (plain, other))
    assert first == second
