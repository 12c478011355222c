"""The training step: what each switch does, and that neither devices nor restarts change its numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax import mesh
from jras_jax.data.slice_table import SliceTable
from jras_jax.inference.embedder import Embedder
from jras_jax.joint.build import build_model
from jras_jax.retrieval.gallery import gallery_from_table, with_embeddings
from jras_jax.training import state, step

SIDE, PATIENTS, SLICES, BATCH = 32, 4, 4, 8
ROWS = PATIENTS * SLICES
# Compiling takes nearly all of the time here.
QUICK = {"xla_backend_optimization_level": 0}
SMALL = {"backbone__options__base_channels": 4, "retriever__hidden": 16, "retriever__dim": 8}


@functools.cache
def table():
    """Discs of three brightnesses around a shifting centre, in noise: slices that can be told apart and learnt."""
    y, x = np.mgrid[:SIDE, :SIDE]
    radius = np.hypot(y - 15.5, x - 8 - np.arange(ROWS)[:, None, None])
    masks = np.array([3, 2, 1, 0], np.uint8)[np.digitize(radius, (4, 7, 10))]
    noise = np.random.default_rng(0).integers(0, 40, masks.shape)
    index = np.arange(ROWS, dtype=np.int32)
    return SliceTable(
        images=(60 * masks + noise).astype(np.uint8),
        masks=masks,
        case=index // SLICES,
        patient=index // SLICES,
        phase=np.zeros(ROWS, np.int32),
        slice_index=index % SLICES,
        position=(index % SLICES / (SLICES - 1)).astype(np.float32),
        vendor=np.zeros(ROWS, np.int32),
        neighbours=np.full((ROWS, 2), -1, np.int32),
        cases=tuple("abcd"),
        patients=tuple("abcd"),
        vendors=("v",),
    )


class Ready:
    """A step, compiled on so many devices, with a fresh state and gallery."""

    def __init__(self, config, data=1, model=1, contrast=False, cached=False):
        self.config, self.contrast = config, contrast
        self.mesh = mesh.make_mesh(data, model, jax.devices()[: data * model])
        built = build_model(config)
        self.state, tx, shardings = state.create_state(built, config, self.mesh)
        self.before = jax.tree.map(np.array, self.state.params)
        self.refresher = Embedder(built, self.mesh, batch_size=ROWS, images=table().images)
        empty = gallery_from_table(table(), config.retriever.dim, self.mesh)
        start = self.refresher.embeddings(self.state.variables)
        self.gallery = with_embeddings(empty, start, self.mesh)
        self.cache = self.refresher.states(self.state.variables) if cached else None
        self.model = built
        jitted = step.compile_step(
            step.make_step(built, tx, config=config, device_mesh=self.mesh), shardings, self.mesh
        )
        arguments = (self.state, self.batch(0), self.gallery, self.cache)
        self.compiled = jitted.lower(*arguments, contrast).compile(QUICK)

    def batch(self, number):
        rows = np.random.default_rng(number).choice(ROWS, BATCH, replace=False).astype(np.int32)
        batch = {"image": table().images[rows], "mask": table().masks[rows], "patient": table().patient[rows]}
        return mesh.put_rows(self.mesh, batch | {"row": rows})

    def steps(self, n):
        """Metrics of n steps, a dict each."""
        history = []
        for number in range(n):
            self.state, metrics = self.compiled(self.state, self.batch(number), self.gallery, self.cache)
            history.append({name: float(value) for name, value in metrics.items()})
        return history

    @property
    def moved(self):
        """Parameter path -> largest change since the start."""
        change = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), self.state.params, self.before)
        return {mesh.path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(change)}


@pytest.fixture(scope="module")
def small(tiny):
    return lambda **changes: tiny.config(**(SMALL | changes))


@pytest.fixture(scope="module")
def single(small):
    """Three default steps on one device: (history, parameters, Ready)."""
    ready = Ready(small())
    return ready.steps(3), jax.tree.map(np.array, ready.state.params), ready


def test_a_default_step_trains_backbone_fusion_and_retriever(single):
    history, _, ready = single
    for metrics in history:
        assert all(np.isfinite(v) for v in metrics.values())
        assert {"loss", "dice", "overlap_loss", "weight_entropy", "similarity", "grad_norm"} <= set(metrics)
        parts = metrics["dice_loss"] + metrics["ce_loss"] + metrics["overlap_loss"]
        assert metrics["loss"] == pytest.approx(parts, rel=1e-5)
        assert 0 <= metrics["weight_entropy"] <= np.log(2) + 1e-6
    for part in ("backbone/", "fusion/", "retriever/"):
        assert any(change > 0 for name, change in ready.moved.items() if name.startswith(part)), part
    assert int(ready.state.step) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("data", "model"), [(8, 1), (2, 2)])
def test_loss_does_not_depend_on_the_devices(single, small, data, model):
    history, params, _ = single
    ready = Ready(small(), data=data, model=model)
    for ours, one in zip(ready.steps(3), history, strict=True):
        assert ours["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert ours["overlap_loss"] == pytest.approx(one["overlap_loss"], abs=1e-5)
    split = [x for x in jax.tree.leaves(ready.state.params) if not x.is_fully_replicated]
    assert bool(split) == (model > 1)
    # Adam's first steps are of size lr whatever the gradient, so rounding may show where a gradient is near 0.
    for a, b in zip(jax.tree.leaves(ready.state.params), jax.tree.leaves(params), strict=True):
        assert np.mean(np.abs(np.asarray(a) - b) > 1e-4) < 0.02


def test_seed_and_step_alone_fix_a_step(single, small):
    again = Ready(small())
    again.compiled = single[2].compiled
    assert again.steps(3) == single[0]


def test_the_state_is_donated(single):
    ready = single[2]
    old = jax.tree.leaves(ready.state.params)[0]
    ready.steps(1)
    assert old.is_deleted()
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(old)


def test_a_step_that_is_not_finite_changes_nothing_but_its_number(single):
    ready = single[2]
    poisoned = ready.gallery.replace(embeddings=ready.gallery.embeddings.at[0, 0].set(jnp.nan))
    before = jax.tree.map(np.array, ready.state)
    ready.state, metrics = ready.compiled(ready.state, ready.batch(7), poisoned, ready.cache)
    assert not bool(metrics["finite"]) and not np.isfinite(float(metrics["loss"]))
    assert int(ready.state.step) == int(before.step) + 1
    kept = ready.state.replace(step=before.step)
    jax.tree.map(np.testing.assert_array_equal, kept, before)
    ready.state, metrics = ready.compiled(ready.state, ready.batch(8), ready.gallery, ready.cache)
    assert bool(metrics["finite"]) and np.isfinite(float(metrics["loss"]))
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), ready.state.params, before.params)
    assert not all(jax.tree.leaves(same))


def test_without_retrieval_the_step_has_neither_retriever_nor_its_metrics(small):
    config = small(retrieval__enabled=False)
    built = build_model(config)
    device_mesh = mesh.make_mesh(1, 1, jax.devices()[:1])
    fresh, tx, shardings = state.create_state(built, config, device_mesh)
    assert set(fresh.params) == {"backbone"}
    jitted = step.compile_step(
        step.make_step(built, tx, config=config, device_mesh=device_mesh), shardings, device_mesh
    )
    batch = {"image": table().images[:BATCH], "mask": table().masks[:BATCH], "patient": table().patient[:BATCH]}
    batch = mesh.put_rows(device_mesh, batch | {"row": np.arange(BATCH, dtype=np.int32)})
    _, metrics = jitted.lower(fresh, batch, None, None, False).compile(QUICK)(fresh, batch, None, None)
    assert np.isfinite(float(metrics["loss"]))
    assert not {"overlap_loss", "similarity", "weight_entropy", "contrast_loss"} & set(metrics)


@pytest.mark.slow
def test_running_mean_deep_supervision_and_gumbel(small):
    ready = Ready(
        small(
            optim__ema_decay=0.9,
            backbone__options__deep_supervision=True,
            retrieval__strategy="gumbel_top_k",
            retrieval__overlap_weight=0.0,
            retriever__dropout=0.3,
        )
    )
    means = ready.before
    for t in range(3):
        metrics = ready.steps(1)[0]
        assert np.isfinite(metrics["loss"]) and "overlap_loss" not in metrics
        decay = min(0.9, (1 + t) / (10 + t))
        means = jax.tree.map(lambda m, p, d=decay: d * m + (1 - d) * np.asarray(p), means, ready.state.params)
    for ours, want in zip(jax.tree.leaves(ready.state.ema), jax.tree.leaves(means), strict=True):
        np.testing.assert_allclose(ours, want, atol=1e-6)
    assert jax.tree.leaves(ready.state.eval_variables["params"])[0] is jax.tree.leaves(ready.state.ema)[0]
    # Segmentation alone teaches the retriever: its gradient takes the way through the weights.
    assert any(change > 0 for name, change in ready.moved.items() if name.startswith("retriever/project"))


@pytest.mark.slow
def test_contrastive_term_over_candidates_teaches_the_retriever_alone(small):
    config = small(
        retrieval__strategy="random", retrieval__overlap_weight=0.0, retrieval__contrast_weight=1.0, seed=2,
        retrieval__contrast_candidates=3,
    )  # fmt: skip
    ready = Ready(config, contrast=True)
    history = ready.steps(2)
    # Fusion starts as the identity: all candidates are alike then, and teach nothing.
    assert history[0]["contrast_loss"] == 0 < history[1]["contrast_loss"]
    for metrics in history:
        parts = metrics["dice_loss"] + metrics["ce_loss"] + metrics["contrast_loss"]
        assert metrics["loss"] == pytest.approx(parts, rel=1e-5)
        assert metrics["weight_entropy"] == pytest.approx(np.log(2), rel=1e-5)  # random: equal weights
    # With random guides the weights are constants, so that only the contrastive term can have moved the retriever.
    assert any(change > 0 for name, change in ready.moved.items() if name.startswith("retriever/"))


def test_oracle_guides_overlap_more_and_frozen_parameters_do_not_move(small):
    frozen = r"backbone/.*kernel$"
    config = small(retrieval__strategy="oracle", backbone__frozen=f"({frozen!r},)", retriever__trained_blocks=1)
    ready = Ready(config)
    metrics = ready.steps(2)
    assert all(np.isfinite(v) for m in metrics for v in m.values())
    groups = state.parameter_groups(ready.before, config.backbone.frozen, config.retriever)
    groups = {mesh.path_name(path): g for path, g in jax.tree_util.tree_leaves_with_path(groups)}
    assert {"frozen", "backbone", "retriever"} == set(groups.values())
    assert any(name.startswith("retriever/encoder/block_0") for name, g in groups.items() if g == "frozen")
    moved = ready.moved
    assert all(moved[name] == 0 for name, group in groups.items() if group == "frozen")
    assert np.mean([moved[name] > 0 for name, group in groups.items() if group != "frozen"]) > 0.5


def test_half_precision_and_softmax_over_the_gallery(small):
    ready = Ready(small(train__dtype="bfloat16", retrieval__strategy="softmax"))
    for metrics in ready.steps(3):
        assert all(np.isfinite(v) for v in metrics.values())
    assert {x.dtype for x in jax.tree.leaves(ready.state.params)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_blank_guides_teach_the_backbone_and_not_the_retriever(small):
    """Mixed guides carry a gradient in their pixels too: where they are blank, it must not pass or become NaN."""
    off = {"optim__weight_decay": 0.0, "retrieval__overlap_weight": 0.0, "retrieval__strategy": "softmax"}
    ready = Ready(small(fusion__blank_share=1.0, **off))
    assert all(np.isfinite(v) for metrics in ready.steps(2) for v in metrics.values())
    moved = ready.moved
    assert all(change == 0 for name, change in moved.items() if name.startswith("retriever/"))
    assert np.mean([change > 0 for name, change in moved.items() if name.startswith("backbone/")]) > 0.9


def test_blank_guides_change_no_other_draw(small, single):
    """Fusion starts as the identity, so that the first step of a run with blanks is that of one without them."""
    first = Ready(small(fusion__blank_share=1.0)).steps(1)[0]
    for name in ("loss", "similarity", "weight_entropy", "overlap_loss"):
        assert first[name] == pytest.approx(single[0][0][name], rel=1e-6), name


@pytest.mark.slow
def test_kept_states_give_what_a_full_pass_gives(small):
    config = small(retriever__trained_blocks=1, augment__enabled=False)
    cached, whole = Ready(config, cached=True), Ready(config)
    assert cached.cache.dtype == jnp.bfloat16
    a, b = (r.refresher.embeddings(r.state.variables, r.cache) for r in (cached, whole))
    np.testing.assert_allclose((a * b).sum(1), 1, atol=2e-3)
    one, other = cached.steps(2), whole.steps(2)
    for ours, plain in zip(one, other, strict=True):
        assert ours["loss"] == pytest.approx(plain["loss"], rel=2e-2)
        assert ours["similarity"] == pytest.approx(plain["similarity"], abs=2e-2)


def test_parts_of_a_refresh_are_the_whole(single, small):
    ready = single[2]
    refresher = Embedder(ready.model, ready.mesh, batch_size=3, images=table().images)
    assert refresher.chunks == 6
    variables = ready.state.variables
    whole = refresher.embeddings(variables)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    rows, last = refresher.part(variables, 5)
    assert rows.tolist() == [15, 16, 17]
    np.testing.assert_array_equal(np.asarray(last)[:1], whole[15:])
    big = Embedder(ready.model, ready.mesh, batch_size=ROWS, images=table().images).embeddings(variables)
    np.testing.assert_allclose(whole, big, atol=1e-5)
