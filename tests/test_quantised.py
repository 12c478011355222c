"""int8 embeddings: their error, their recall, the same guides on any number of devices, and the gradient's way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.clustered import embeddings as clustered
from jras_jax import mesh
from jras_jax.retrieval import selection
from jras_jax.retrieval.gallery import QueryKeys, gallery_from_table, with_embeddings, with_rows
from jras_jax.retrieval.quantised import Int8Rows, as_float, quantised, rank_scores
from jras_jax.retrieval.search import search
from tests.test_gallery import table

ROWS, DIM, BATCH, K = 1000, 64, 8, 4


def unit(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def gallery_of(rows, devices=1, embeddings="int8"):
    """A gallery of given embeddings (N, D) and 20 patients, over simulated devices."""
    device_mesh = mesh.make_mesh(devices, 1, jax.devices()[:devices])
    empty = gallery_from_table(table(len(rows), 20), rows.shape[1], device_mesh, embeddings=embeddings)
    return with_embeddings(empty, rows, device_mesh), device_mesh


def found(gallery, device_mesh, queries, strategy="top_k", k=K):
    """Indices, weights and similarities of a search by queries (B, D), of patients 0, 1, ..."""
    keys = QueryKeys(jnp.arange(len(queries), dtype=jnp.int32), jnp.full(len(queries), -1, jnp.int32))
    run = jax.jit(
        functools.partial(search, strategy=strategy, k=k, temperature=0.1, exclude="patient", mesh=device_mesh)
    )
    return run(gallery, queries, keys, key=jax.random.key(0))


@pytest.mark.parametrize("form", [np.asarray, jnp.asarray])
def test_a_row_is_kept_to_half_a_step_and_zeros_stay_zeros(form):
    rows = unit(50, DIM)
    rows[7] = 0
    kept = quantised(form(rows))
    assert kept.values.dtype == np.int8 and kept.scale.dtype == np.float32 and kept.shape == (50, DIM)
    assert isinstance(kept.values, np.ndarray) == (form is np.asarray)
    steps = np.asarray(kept.scale)[:, None]
    assert (np.abs(np.asarray(as_float(kept)) - rows) <= steps * 0.5001).all()
    assert (np.abs(np.asarray(kept.values)).max(1) == np.where(rows.any(1), 127, 0)).all()
    again = quantised(as_float(kept))
    np.testing.assert_array_equal(again.values, kept.values)


def test_a_row_that_is_not_finite_is_not_hidden():
    rows = unit(3, DIM)
    rows[1, 5] = np.nan
    scores = np.asarray(rank_scores(jnp.asarray(unit(2, DIM)), quantised(jnp.asarray(rows))))
    assert np.isnan(scores[:, 1]).all() and np.isfinite(scores[:, [0, 2]]).all()


def test_it_takes_about_a_quarter_of_the_bytes():
    kept = quantised(unit(100, 128))
    assert sum(x.nbytes for x in jax.tree.leaves(kept)) == 100 * (128 + 4)


@pytest.mark.parametrize("strategy", [s for s in selection.STRATEGIES if s not in ("softmax", "oracle")])
def test_devices_find_the_same_guides(strategy):
    rows, queries = clustered(ROWS, DIM, seed=1), unit(BATCH, DIM, seed=2)
    one, eight = (found(*gallery_of(rows, devices), queries, strategy) for devices in (1, 8))
    np.testing.assert_array_equal(one[0], eight[0])
    for a, b in zip(one[1:], eight[1:], strict=True):
        # XLA rounds the softmax of a batch that is split over devices differently (JAX 0.12, one weight of 32).
        np.testing.assert_array_max_ulp(np.asarray(a), np.asarray(b), maxulp=2)


@pytest.mark.parametrize(("rows", "least"), [("random", 0.9), ("clustered", 0.85)])
def test_recall_against_float32(rows, least):
    make = clustered if rows == "clustered" else unit
    gallery, queries = make(20_000, DIM, seed=1), make(64, DIM, seed=2)
    exact, near = (np.asarray(found(*gallery_of(gallery, 1, form), queries, k=16)[0]) for form in ("float32", "int8"))
    recall = np.mean([len(np.intersect1d(a, b)) for a, b in zip(exact, near, strict=True)]) / 16
    assert least < recall <= 1
    # What is found in place of a nearest row is nearly as near.
    lost = np.sort(queries[:, None] @ gallery[exact].swapaxes(1, 2)) - np.sort(
        queries[:, None] @ gallery[near].swapaxes(1, 2)
    )
    assert 0 <= lost.mean() < 2e-4


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("strategy", ["top_k", "softmax", "sparsemax"])
def test_weights_and_gradient_are_those_of_the_dequantised_rows(devices, strategy):
    """With rows that int8 holds exactly, search and gradient equal float32's."""
    rows = np.asarray(as_float(quantised(clustered(ROWS, DIM, seed=1))))
    queries = jnp.asarray(clustered(BATCH, DIM, seed=2))
    value = jnp.asarray(np.random.default_rng(0).normal(size=1024).astype(np.float32))

    def loss(queries, gallery, device_mesh):
        indices, weights, similarity = found(gallery, device_mesh, queries, strategy)
        return jnp.sum(weights * value[indices]), (indices, weights, similarity)

    (ours, ours_found), slope = jax.value_and_grad(loss, has_aux=True)(queries, *gallery_of(rows, devices))
    (want, want_found), want_slope = jax.value_and_grad(loss, has_aux=True)(queries, *gallery_of(rows, 1, "float32"))
    assert np.abs(want_slope).max() > 0.01
    np.testing.assert_allclose(slope, want_slope, atol=2e-5)
    np.testing.assert_allclose(ours, want, atol=1e-5)
    for a, b in zip(ours_found, want_found, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_part_that_is_refreshed_equals_a_whole_refresh(devices):
    before, after = unit(37, DIM, seed=1), unit(37, DIM, seed=2)
    gallery, device_mesh = gallery_of(before, devices)
    placed = jax.tree.map(lambda x: x.sharding, gallery.embeddings)
    for start in (0, 16, 32):
        new = np.zeros((16, DIM), np.float32)
        new[: min(16, 37 - start)] = after[start : start + 16]
        gallery = with_rows(gallery, start + np.arange(16), jnp.asarray(new))
    assert isinstance(gallery.embeddings, Int8Rows)
    assert jax.tree.map(lambda x: x.sharding, gallery.embeddings) == placed
    want = with_embeddings(gallery, after, device_mesh).embeddings
    jax.tree.map(np.testing.assert_array_equal, gallery.embeddings, want)
