"""The gallery: no way around a leak rule, and the same answers on any number of devices and from either memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax import mesh
from jras_jax.data.slice_table import SliceTable
from jras_jax.errors import UserError
from jras_jax.retrieval import selection
from jras_jax.retrieval.gallery import (
    HostRows,
    QueryKeys,
    allowed_rows,
    check_candidates,
    gallery_from_table,
    with_embeddings,
    with_rows,
)
from jras_jax.retrieval.search import fetch, gather_rows, mix, search

ROWS, DIM, SIDE, BATCH, K, CLASSES, PATIENTS = 37, 8, 4, 8, 5, 4, 9
STRATEGIES = selection.STRATEGIES
FEW = [s for s in STRATEGIES if s != "softmax"]
DEVICES = (1, 2, 8)


def table(rows=ROWS, patients=PATIENTS, seed=0):
    rng = np.random.default_rng(seed)
    patient = np.sort(np.arange(rows, dtype=np.int32) % patients)
    return SliceTable(
        images=rng.integers(0, 256, (rows, SIDE, SIDE), np.uint8),
        masks=rng.integers(0, CLASSES, (rows, SIDE, SIDE), np.uint8),
        case=patient,
        patient=patient,
        phase=np.zeros(rows, np.int32),
        slice_index=np.arange(rows, dtype=np.int32),
        position=np.linspace(0, 1, rows, dtype=np.float32),
        vendor=np.zeros(rows, np.int32),
        neighbours=np.full((rows, 2), -1, np.int32),
        cases=tuple(f"p{i}_ED" for i in range(patients)),
        patients=tuple(f"p{i}" for i in range(patients)),
        vendors=("v",),
    )


def unit(rng, *shape):
    x = rng.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def over(devices):
    return None if devices == 0 else mesh.make_mesh(devices, 1, jax.devices()[:devices])


def gallery_on(device_mesh, rows=None, embeddings=None, memory="device"):
    rows = table() if rows is None else rows
    embeddings = unit(np.random.default_rng(1), len(rows), DIM) if embeddings is None else embeddings
    empty = gallery_from_table(rows, DIM, device_mesh, memory=memory)
    return with_embeddings(empty, embeddings, device_mesh)


@functools.cache
def retrieval(devices, strategy, exclude, k=K, recall_target=1.0):
    """A compiled (gallery, embeddings, queries, scores, key) -> (indices, weights, similarity, images, masks)."""
    device_mesh = over(devices)

    @jax.jit
    def run(gallery, embeddings, queries, scores, key):
        found = search(
            gallery, embeddings, queries, strategy=strategy, k=k, temperature=0.1, exclude=exclude,
            recall_target=recall_target, scores=scores if strategy == "oracle" else None, key=key, mesh=device_mesh,
        )  # fmt: skip
        if strategy == "softmax":
            guides = mix(gallery, found[1], similarity=found[2], num_classes=CLASSES, chunk=8)
        else:
            guides = fetch(gallery, *found, CLASSES, mesh=device_mesh)
        return *found, guides.images, guides.masks

    return run


def asked(seed, rows=None):
    """Queries: mostly slices of the gallery itself, one from outside; scores for the oracle."""
    rows = table() if rows is None else rows
    rng = np.random.default_rng(seed)
    row = rng.integers(0, len(rows), BATCH).astype(np.int32)
    patient = rows.patient[row].copy()
    row[-1], patient[-1] = -1, -1
    return QueryKeys(jnp.asarray(patient), jnp.asarray(row)), rng


def scores_for(gallery, rng):
    return jnp.asarray(rng.random((BATCH, len(gallery))).astype(np.float32))


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("exclude", ["patient", "slice"])
def test_no_strategy_gets_round_a_leak_rule(devices, strategy, exclude):
    """Queries are gallery slices; half of the time every embedding and score is alike or best at the own patient's."""
    rows = table()
    for seed in range(4):
        queries, rng = asked(seed)
        embeddings = unit(rng, ROWS, DIM)
        if seed % 2:
            embeddings[:] = embeddings[0]  # duplicates of the query everywhere
        gallery = gallery_on(over(devices), rows, embeddings)
        own = np.where(queries.row < 0, 0, queries.row)
        scores = np.array(scores_for(gallery, rng))
        mine = np.asarray(queries.patient)[:, None] == np.asarray(gallery.patient)[None]
        scores[mine] += 5.0  # the forbidden ones would be best
        found = retrieval(devices, strategy, exclude)(
            gallery, embeddings[own], queries, jnp.asarray(scores), jax.random.key(seed)
        )
        indices, weights = (np.asarray(x) for x in found[:2])
        weighty = weights > 0 if strategy == "softmax" else np.ones_like(weights, bool)
        assert indices[weighty].max() < ROWS  # no padding
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
        patient = np.append(rows.patient, [-9] * 8)[indices]
        if exclude == "patient":
            assert not ((patient == np.asarray(queries.patient)[:, None]) & weighty).any()
        if exclude == "slice":
            assert not ((indices == np.asarray(queries.row)[:, None]) & weighty).any()


@pytest.mark.parametrize("strategy", FEW)
@pytest.mark.parametrize("devices", DEVICES)
def test_a_rule_that_leaves_too_few_rows_still_holds(strategy, devices):
    """Eight rows, seven of them of the query's patient, five guides asked for: the one row left takes all weight."""
    rows = table(rows=8, patients=2)
    rows = dataclasses.replace(rows, patient=np.array([0] * 7 + [1], np.int32))
    gallery = gallery_on(over(devices), rows)
    queries = QueryKeys(jnp.zeros(BATCH, jnp.int32), jnp.zeros(BATCH, jnp.int32))
    rng = np.random.default_rng(0)
    found = retrieval(devices, strategy, "patient")(
        gallery, unit(rng, BATCH, DIM), queries, scores_for(gallery, rng), jax.random.key(0)
    )
    assert (np.asarray(found[0]) == 7).all()
    np.testing.assert_allclose(found[1].sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(found[3], np.broadcast_to(rows.images[7] / np.float32(255), found[3].shape), atol=1e-6)


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_search_and_fetch_equal_the_dense_result(devices, strategy):
    rows = table()
    queries, rng = asked(3)
    embeddings, key = unit(rng, BATCH, DIM), jax.random.key(11)
    gallery = gallery_on(over(devices))
    scores = rng.random((BATCH, ROWS)).astype(np.float32)
    padded = jnp.asarray(np.pad(scores, ((0, 0), (0, len(gallery) - ROWS)), constant_values=9))
    found = retrieval(devices, strategy, "patient")(gallery, embeddings, queries, padded, key)
    dense = embeddings @ np.asarray(gallery.embeddings)[:ROWS].T
    allowed = jnp.asarray(rows.patient[None] != np.asarray(queries.patient)[:, None])
    by = jnp.asarray(scores if strategy == "oracle" else dense)
    want = selection.select(by, allowed, strategy=strategy, k=K, temperature=0.1, key=key)
    indices, weights, similarity, images, masks = (np.asarray(x) for x in found)
    onehot = np.eye(CLASSES, dtype=np.float32)[rows.masks]
    if strategy == "softmax":
        np.testing.assert_allclose(weights[:, :ROWS], want.weights, atol=1e-6)
        assert (weights[:, ROWS:] == 0).all()
        np.testing.assert_allclose(images[:, 0], np.einsum("bn,nhw->bhw", want.weights, rows.images / 255), atol=1e-5)
        np.testing.assert_allclose(masks[:, 0], np.einsum("bn,nhwc->bhwc", want.weights, onehot), atol=1e-5)
        return
    np.testing.assert_array_equal(indices, want.indices)
    np.testing.assert_allclose(weights, want.weights, atol=1e-6)
    np.testing.assert_allclose(similarity, np.take_along_axis(dense, indices, 1), atol=1e-6)
    np.testing.assert_array_equal(np.rint(images * 255), rows.images[indices])
    np.testing.assert_allclose(images, rows.images[indices] / np.float32(255), atol=1e-7)
    np.testing.assert_array_equal(masks, onehot[indices])


@pytest.mark.parametrize("strategy", FEW)  # softmax sums over the gallery in another order on other devices
def test_devices_agree_bit_for_bit(strategy):
    queries, rng = asked(4)
    embeddings, scores = unit(rng, BATCH, DIM), rng.random((BATCH, ROWS)).astype(np.float32)
    results = []
    for devices in DEVICES:
        gallery = gallery_on(over(devices))
        padded = jnp.asarray(np.pad(scores, ((0, 0), (0, len(gallery) - ROWS))))
        found = retrieval(devices, strategy, "patient")(gallery, embeddings, queries, padded, jax.random.key(2))
        results.append([np.asarray(x) for x in found])
    for other in results[1:]:
        for name, a, b in zip(("indices", "weights", "similarity", "images", "masks"), results[0], other, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("strategy", ["top_k", "softmax", "gumbel_top_k", "sparsemax"])
def test_gradient_of_the_weights_equals_the_dense_one(devices, strategy):
    rows = table()
    queries, rng = asked(5)
    embeddings, key = jnp.asarray(unit(rng, BATCH, DIM)), jax.random.key(1)
    gallery = gallery_on(over(devices))
    value = jnp.asarray(rng.normal(size=len(gallery)).astype(np.float32))
    fixed = jnp.asarray(np.asarray(gallery.embeddings)[:ROWS])
    allowed = jnp.asarray(rows.patient[None] != np.asarray(queries.patient)[:, None])
    value_, search = np.asarray(value)[:ROWS], retrieval(devices, strategy, "patient")

    def sharded(e):
        indices, weights = search(gallery, e, queries, None, key)[:2]
        return jnp.sum(weights * value[indices])

    def dense(e):
        similarity = jnp.matmul(e, fixed.T, precision=jax.lax.Precision.HIGHEST)
        chosen = selection.select(similarity, allowed, strategy=strategy, k=K, temperature=0.1, key=key)
        return jnp.sum(chosen.weights * jnp.asarray(value_)[chosen.indices])

    ours, want = jax.grad(sharded)(embeddings), jax.grad(dense)(embeddings)
    assert np.abs(want).max() > 0.05
    np.testing.assert_allclose(ours, want, atol=2e-5)


@pytest.mark.parametrize("devices", DEVICES)
def test_a_gallery_in_host_memory_gives_the_same_guides(devices):
    queries, rng = asked(6)
    embeddings = unit(rng, BATCH, DIM)
    rows = table()
    near, far = (gallery_on(over(devices), rows, memory=memory) for memory in ("device", "host"))
    for held, own in ((far.images, rows.images), (far.masks, rows.masks)):
        assert isinstance(held, HostRows) and np.shares_memory(held.rows, own)  # no second copy of the pixels
    a, b = (retrieval(devices, "top_k", "patient")(g, embeddings, queries, None, None) for g in (near, far))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_softmax_over_a_host_gallery_is_refused():
    gallery = gallery_on(None, memory="host")
    with pytest.raises(UserError, match=r"gallery_memory='device'"):
        mix(gallery, jnp.ones((1, ROWS)) / ROWS, similarity=jnp.ones((1, ROWS)), num_classes=CLASSES)


@pytest.mark.parametrize("chunk", [8, 37, 256])
def test_mix_and_its_gradient_equal_one_dense_product(chunk):
    rows, rng = table(), np.random.default_rng(0)
    gallery = gallery_on(None)
    weights = jnp.asarray(rng.dirichlet(np.ones(ROWS), 3), jnp.float32)
    onehot = jnp.asarray(np.eye(CLASSES)[rows.masks], jnp.float32)
    images = jnp.asarray(rows.images / 255.0, jnp.float32)
    to_image, to_mask = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, SIDE, SIDE), (3, SIDE, SIDE, 4)))

    def ours(w):
        mixed = mix(gallery, w, similarity=w, num_classes=CLASSES, chunk=chunk)
        return jnp.sum(mixed.images[:, 0] * to_image) + jnp.sum(mixed.masks[:, 0] * to_mask)

    def dense(w):
        mixed = jnp.einsum("bn,nhw->bhw", w, images), jnp.einsum("bn,nhwc->bhwc", w, onehot)
        return jnp.sum(mixed[0] * to_image) + jnp.sum(mixed[1] * to_mask)

    np.testing.assert_allclose(ours(weights), dense(weights), rtol=1e-4)
    np.testing.assert_allclose(jax.grad(ours)(weights), jax.grad(dense)(weights), rtol=1e-4, atol=1e-4)
    mixed = mix(gallery, weights, similarity=weights, num_classes=CLASSES, chunk=chunk)
    np.testing.assert_array_equal(mixed.indices[:, 0], weights.argmax(1))
    np.testing.assert_array_equal(mixed.weights, np.ones((3, 1)))


@pytest.mark.parametrize("devices", DEVICES)
def test_approximate_search_reaches_its_recall_and_keeps_the_rule(devices):
    rows = table(rows=2000, patients=40)
    rng = np.random.default_rng(7)
    gallery = gallery_on(over(devices), rows)
    queries, _ = asked(8, rows)
    embeddings = unit(rng, BATCH, DIM)
    exact, near = (
        np.asarray(
            retrieval(devices, "top_k", exclude="patient", k=10, recall_target=target)(
                gallery, embeddings, queries, None, None
            )[0]
        )
        for target in (1.0, 0.9)
    )
    shared = np.mean([len(np.intersect1d(a, b)) for a, b in zip(exact, near, strict=True)]) / 10
    assert shared >= 0.9
    assert not (rows.patient[near] == np.asarray(queries.patient)[:, None]).any()


@pytest.mark.parametrize("devices", DEVICES)
def test_rows_beyond_the_end_are_left_out_when_part_is_refreshed(devices):
    gallery = gallery_on(over(devices))
    before = np.array(gallery.embeddings)
    sharding, length = gallery.embeddings.sharding, len(gallery)
    rows = np.arange(32, 32 + 16)
    new = unit(np.random.default_rng(9), 16, DIM)
    after = with_rows(gallery, rows, jnp.asarray(new)).embeddings
    np.testing.assert_array_equal(after[:32], before[:32])
    np.testing.assert_array_equal(after[32:length], new[: length - 32])
    assert after.sharding == sharding


@pytest.mark.parametrize("devices", DEVICES)
def test_padding_is_marked_and_rows_are_split_over_the_devices(devices):
    gallery = gallery_on(over(devices))
    assert len(gallery) % devices == 0 and len(gallery) - ROWS < devices
    assert np.asarray(gallery.valid).sum() == ROWS and np.asarray(gallery.valid)[:ROWS].all()
    for name in ("embeddings", "images", "masks", "patient"):
        shards = {s.data.shape[0] for s in getattr(gallery, name).addressable_shards}
        assert shards == {len(gallery) // devices}, name


def test_gathered_batches_that_do_not_divide_are_whole_on_every_device():
    device_mesh = over(8)
    gallery = gallery_on(device_mesh)
    indices = jnp.asarray([[0, 36], [5, 6], [36, 1]])
    found = jax.jit(functools.partial(gather_rows, mesh=device_mesh))(gallery.images, indices)
    np.testing.assert_array_equal(found, table().images[np.asarray(indices)])


def test_too_few_candidates_are_found_before_training():
    rows = table()
    most = int(np.bincount(rows.patient).max())
    check_candidates(rows, "patient", ROWS - most)
    with pytest.raises(UserError, match=rf"leaves a query only {ROWS - most}"):
        check_candidates(rows, "patient", ROWS - most + 1)
    check_candidates(rows, "slice", ROWS - 1)
    with pytest.raises(UserError, match="top_k"):
        check_candidates(rows, "slice", ROWS)
    check_candidates(rows, "none", ROWS)


def test_an_unknown_leak_rule_is_refused_rather_than_ignored():
    queries, _ = asked(0)
    for check in (
        lambda: allowed_rows(gallery_on(None), queries, "patients"),
        lambda: check_candidates(table(), "patients", 2),
    ):
        with pytest.raises(UserError, match=r"exclude='patients'.*patient, slice, none"):
            check()


def test_an_empty_gallery_is_refused():
    whole = table()
    names = {f.name for f in dataclasses.fields(whole) if f.name not in ("cases", "patients", "vendors")}
    with pytest.raises(UserError, match="empty"):
        gallery_from_table(dataclasses.replace(whole, **{n: getattr(whole, n)[:0] for n in names}), DIM)
