"""The ranking by overlap over a sample of the gallery: what is drawn, what is fetched, where its gradient points."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax import mesh
from jras_jax.retrieval import search
from jras_jax.retrieval.gallery import QueryKeys, draw_rows, gallery_from_table, with_embeddings
from jras_jax.retrieval.quantised import quantised
from jras_jax.retrieval.search import gather_shared
from jras_jax.training import step
from tests.test_gallery import ROWS, gallery_on, over, table, unit

BATCH, DIM, SIDE = 8, 8, 64


@functools.cache
def slices():
    """ROWS slices of 9 patients whose masks are discs: row by row at other places and sizes."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:SIDE, :SIDE]
    centre, radius = rng.uniform(20, 44, (2, ROWS, 1, 1)), rng.uniform(6, 18, (ROWS, 1, 1))
    far = np.hypot(y - centre[0], x - centre[1]) / radius
    masks = np.select([far < 0.5, far < 0.8, far < 1], [3, 2, 1], 0).astype(np.uint8)
    return dataclasses.replace(table(), images=masks * 60, masks=masks)


def term_of(config, count, memory="device", devices=1, embeddings="float32"):
    """A jitted (embeddings, key) -> loss of 8 queries, slices of the gallery, ranked among `count` drawn rows."""
    device_mesh = mesh.make_mesh(devices, 1, jax.devices()[:devices])
    empty = gallery_from_table(slices(), DIM, device_mesh, memory=memory, embeddings=embeddings)
    gallery = with_embeddings(empty, unit(np.random.default_rng(1), ROWS, DIM), device_mesh)
    retrieval = dataclasses.replace(config.retrieval, overlap_rows=count, gallery_memory=memory)
    parts = {"augment": config.augment, "loss": config.loss, "mesh": device_mesh}
    terms = step.LossTerms(None, 4, retrieval=retrieval, **parts)
    rows = np.arange(0, ROWS, ROWS // BATCH)[:BATCH]
    queries = QueryKeys(jnp.asarray(slices().patient[rows]), jnp.asarray(rows))
    seen = jnp.asarray(slices().masks[rows])
    return jax.jit(
        lambda embeddings, key: step.overlap_term(embeddings, seen, gallery, queries=queries, key=key, terms=terms)
    )


@pytest.fixture(scope="module")
def asked():
    return jnp.asarray(unit(np.random.default_rng(2), BATCH, DIM))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("count", [5, ROWS, 1000])
def test_rows_are_drawn_once_each_and_no_padding_before_all_others(devices, count):
    gallery = gallery_on(over(devices))
    for seed in range(3):
        drawn = np.asarray(draw_rows(gallery, count, jax.random.key(seed)))
        assert len(drawn) == len(set(drawn)) == min(count, len(gallery))
        assert drawn[:ROWS].max() < ROWS
        np.testing.assert_array_equal(drawn[:ROWS], draw_rows(gallery_on(None), count, jax.random.key(seed)))


def test_every_row_is_drawn_equally_often():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: draw_rows(gallery_on(None), 10, key))(keys)
    share = np.bincount(np.asarray(drawn).ravel(), minlength=ROWS) / 4000
    expected = 10 / ROWS
    assert np.abs(share - expected).max() < 4 * np.sqrt(expected * (1 - expected) / 4000)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("memory", ["device", "host"])
@pytest.mark.parametrize("every", [1, 2])
def test_shared_rows_are_those_asked_for(devices, memory, every):
    device_mesh = over(devices)
    gallery = gallery_on(device_mesh, memory=memory)
    indices = jnp.asarray([36, 0, 5, 5, 17, 20, 1, 2, 3, 4, 35])
    found = jax.jit(lambda g, i: gather_shared(g.masks, i, mesh=device_mesh, every=every))(gallery, indices)
    np.testing.assert_array_equal(found, table().masks[np.asarray(indices), ::every, ::every])
    rows = jax.tree.map(functools.partial(mesh.put_whole, device_mesh), quantised(np.array(gallery.embeddings)))
    near = jax.jit(functools.partial(gather_shared, mesh=device_mesh))(rows, indices)
    np.testing.assert_allclose(near, np.asarray(gallery.embeddings)[np.asarray(indices)], atol=0.01)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("memory", ["device", "host"])
def test_a_sample_of_all_rows_gives_the_whole_loss(tiny, asked, memory, devices):
    """In host memory the rows are drawn and fetched even then, in another order."""
    whole = jax.value_and_grad(term_of(tiny.config(), 0))
    sampled = jax.value_and_grad(term_of(tiny.config(), ROWS, memory, devices))
    (want, want_slope), (ours, slope) = (f(asked, jax.random.key(3)) for f in (whole, sampled))
    assert want > 0.1 and np.abs(want_slope).max() > 0.01
    np.testing.assert_allclose(ours, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slope, want_slope, atol=1e-6)


def test_a_sample_does_not_depend_on_memory_or_devices(tiny, asked):
    key = jax.random.key(5)
    one, *others = (
        term_of(tiny.config(), 10, memory, devices)(asked, key)
        for memory, devices in (("device", 1), ("host", 1), ("device", 8), ("host", 8))
    )
    np.testing.assert_allclose(others, [one] * 3, rtol=1e-6)
    other = term_of(tiny.config(), 10)
    assert abs(other(asked, jax.random.key(6)) - one) > 1e-3
    np.testing.assert_allclose(term_of(tiny.config(), 10, embeddings="int8")(asked, key), one, rtol=0.05)


@pytest.mark.parametrize(("count", "least"), [(8, 0.7), (18, 0.9), (30, 0.97)])
def test_the_mean_gradient_of_samples_points_where_the_whole_ones_does(tiny, asked, count, least):
    """The more so the larger the sample: a short list asks for an order among fewer rows, which is another loss."""
    want = np.asarray(jax.grad(term_of(tiny.config(), 0))(asked, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), 300)
    mean = np.asarray(jax.vmap(jax.grad(term_of(tiny.config(), count)), (None, 0))(asked, keys)).mean(0)
    cosine = (mean * want).sum() / np.linalg.norm(mean) / np.linalg.norm(want)
    assert cosine > least


def test_a_sample_of_one_row_or_of_none_that_is_allowed_adds_nothing(tiny, asked):
    """The one drawn row is of some query's own patient: neither a list of one nor one of none has an order."""
    loss, slope = jax.value_and_grad(term_of(tiny.config(), 1))(asked, jax.random.key(0))
    assert loss == 0 and np.isfinite(slope).all() and not np.asarray(slope).any()


def test_only_drawn_masks_are_fetched_from_the_host_and_thinned_there(tiny, asked, monkeypatch):
    fetched, fetch = [], search._from_host
    monkeypatch.setattr(search, "_from_host", lambda *a, **k: fetched.append(fetch(*a, **k)) or fetched[-1])
    assert np.isfinite(term_of(tiny.config(), 10, "host")(asked, jax.random.key(0)))
    assert [x.shape for x in fetched] == [(1, 10, SIDE // 2, SIDE // 2)]  # one device's part
