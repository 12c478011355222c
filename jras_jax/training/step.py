"""One training step as a pure function, and the gallery's refresh; both are jitted once, over the mesh.

Axes: B slices of the global batch, N gallery rows, K guides, S model grid.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jras_jax import joint, losses, mesh
from jras_jax.config import Config
from jras_jax.data import NUM_CLASSES
from jras_jax.data.augment import augment, milder
from jras_jax.retrieval import contrastive, measures
from jras_jax.retrieval import gallery as galleries
from jras_jax.retrieval.gallery import Gallery, QueryKeys
from jras_jax.training.state import TrainState

Batch = dict[str, jax.Array]  # image, mask (B, S, S) uint8; patient, row (B,) int32
Metrics = dict[str, jax.Array]
CPU_REFRESH = 8  # slices a device: their attention stays in the caches (time a slice by batch: docs/lab-notes)
OVERLAP_GRID = 32  # pixels a side at which a step compares masks with the whole gallery's: a ranking needs no more


@dataclasses.dataclass(frozen=True)
class Step:
    """What stays the same from step to step. Called as `step(state, batch, gallery, cache)`."""

    model: joint.JointModel
    tx: optax.GradientTransformation
    config: Config
    mesh: Mesh | None = None

    @property
    def apply(self) -> Any:
        """The model's `apply`."""
        return self.model.apply

    @property
    def selection(self) -> joint.Selection:
        return joint.Selection.of(self.config.retrieval)

    def __call__(
        self,
        state: TrainState,
        batch: Batch,
        gallery: Gallery | None,
        cache: jax.Array | None,
        contrast: bool = False,
    ) -> tuple[TrainState, Metrics]:
        """See `train_step`."""
        return train_step(state, batch, gallery, cache, setup=self, contrast=contrast)


def train_step(
    state: TrainState,
    batch: Batch,
    gallery: Gallery | None,
    cache: jax.Array | None,
    *,
    setup: Step,
    contrast: bool = False,
) -> tuple[TrainState, Metrics]:
    """One update of backbone, fusion and retriever by the joint loss.

    Args:
      state: before.
      batch: the global batch.
      gallery: of this epoch; None for the baseline.
      cache: (N, T, D) the retriever's frozen states of every gallery row, or None to compute them here.
      setup: model, optimiser, config.
      contrast: add the contrastive term over candidates (arXiv 2510.09953v3) in this step.

    Returns:
      The state after, and scalar metrics.
    """
    # The key depends on the seed and the step alone, so a resumed run draws what an uninterrupted one would.
    key = jax.random.fold_in(jax.random.key(setup.config.seed + 1), state.step)
    grad_fn = jax.value_and_grad(functools.partial(_loss, setup=setup, contrast=contrast), has_aux=True)
    (_, (metrics, extra)), grads = grad_fn(state.params, state, batch, gallery, cache, key)
    updates, opt_state = setup.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        # Early on the mean would be mostly initial values; min(decay, (1 + t) / (10 + t)) is the usual remedy.
        t = state.step.astype(jnp.float32)
        decay = jnp.minimum(setup.config.optim.ema_decay, (1 + t) / (10 + t))
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params)
    metrics["grad_norm"] = optax.tree.norm(grads)
    new = state.replace(step=state.step + 1, params=params, extra=extra, opt_state=opt_state, ema=ema)
    return new, metrics


def _loss(
    params: Any,
    state: TrainState,
    batch: Batch,
    gallery: Gallery | None,
    cache: jax.Array | None,
    key: jax.Array,
    *,
    setup: Step,
    contrast: bool,
) -> tuple[jax.Array, tuple[Metrics, Any]]:
    config, apply = setup.config, setup.apply
    k_augment, k_dropout, k_select, k_view = jax.random.split(key, 4)
    variables = {"params": params, **state.extra}
    plain = batch["image"].astype(jnp.float32) / 255.0
    images, labels = augment(k_augment, plain, batch["mask"].astype(jnp.int32), config.augment)
    metrics: Metrics = {}
    guides, overlap = None, None
    embeddings: Any = None
    queries = QueryKeys(patient=batch["patient"], row=batch["row"])
    if gallery is not None:
        # The retriever has a milder view than the backbone, nearer to the plain slices of the gallery that it is
        # compared with; with a frozen prefix, whose states are cached, the plain slice itself.
        if cache is not None:
            seen, shown = batch["mask"], galleries.gather_rows(cache, batch["row"][:, None], mesh=setup.mesh)[:, 0]
            embed = functools.partial(apply, method="embed")
        else:
            shown, seen = augment(k_view, plain, batch["mask"].astype(jnp.int32), milder(config.augment))
            embed = functools.partial(apply, method="embed_images")
        embeddings = embed(variables, shown, True, rngs={"dropout": jax.random.fold_in(k_dropout, 1)})
        if config.retrieval.overlap_weight or config.retrieval.strategy == "oracle":
            overlap = measures.overlap(seen, gallery.masks, OVERLAP_GRID)
        guides = joint.retrieve(
            embeddings, gallery, queries, setup.selection, NUM_CLASSES, scores=overlap, key=k_select, mesh=setup.mesh
        )
        entropy = -jnp.sum(guides.weights * jnp.log(jnp.maximum(guides.weights, 1e-12)), -1).mean()
        metrics |= {"weight_entropy": entropy, "similarity": guides.similarity.mean()}
    logits, updated = apply(
        variables, images, guides, True, method="segment", rngs={"dropout": k_dropout}, mutable=list(state.extra)
    )
    loss, parts = losses.segmentation_loss(logits, labels, **dataclasses.asdict(config.loss))
    metrics |= parts
    if gallery is not None and overlap is not None and config.retrieval.overlap_weight:
        term = _overlap_term(embeddings, overlap, gallery, queries, config)
        metrics["overlap_loss"] = term
        loss += config.retrieval.overlap_weight * term
    if contrast and gallery is not None:
        term = _contrastive_term(variables, images, labels, embeddings, gallery, queries, setup)
        metrics["contrast_loss"] = term
        loss += config.retrieval.contrast_weight * term
    full = logits if isinstance(logits, jax.Array) else logits[0]
    dice = losses.hard_dice(jnp.argmax(full, -1), labels, NUM_CLASSES)
    metrics |= {"loss": loss, "dice": dice.mean()}
    return loss, (metrics, updated)


def _overlap_term(
    embeddings: jax.Array, overlap: jax.Array, gallery: Gallery, queries: QueryKeys, config: Config
) -> jax.Array:
    """Pulls the query's embedding to where the gallery's masks overlap its own, under the leak rule."""
    r = config.retrieval
    return contrastive.overlap_loss(
        embeddings @ gallery.embeddings.T,
        overlap,
        galleries.allowed_rows(gallery, queries, r.exclude),
        temperature=r.temperature,
        sharpness=r.overlap_sharpness,
    )


def _contrastive_term(
    variables: joint.Variables,
    images: jax.Array,
    labels: jax.Array,
    embeddings: jax.Array,
    gallery: Gallery,
    queries: QueryKeys,
    setup: Step,
) -> jax.Array:
    """Pulls the query's embedding to candidates that lower its segmentation loss, away from those that raise it.

    Each of `contrast_candidates` nearest candidates guides alone, without gradient; their losses rank them.
    """
    r = setup.config.retrieval
    b, m = images.shape[0], r.contrast_candidates
    nearest = joint.Selection("top_k", m, r.temperature, r.exclude)
    found = joint.retrieve(jax.lax.stop_gradient(embeddings), gallery, queries, nearest, NUM_CLASSES, mesh=setup.mesh)
    alone = jax.tree.map(lambda x: x.reshape(b * m, 1, *x.shape[2:]), found).replace(weights=jnp.ones((b * m, 1)))
    repeated = jnp.repeat(images, m, 0)
    logits = setup.apply(jax.lax.stop_gradient(variables), repeated, alone, False, method="segment")
    judged = losses.per_slice_loss(logits, jnp.repeat(labels, m, 0)).reshape(b, m)
    candidates = galleries.gather_rows(gallery.embeddings, found.indices, mesh=setup.mesh)  # (B, m, dim)
    similarity = jnp.einsum("bd,bmd->bm", embeddings, candidates)
    return contrastive.candidate_loss(similarity, jax.lax.stop_gradient(judged), temperature=r.contrast_temperature)


def compile_step(setup: Step, shardings: TrainState, device_mesh: Mesh) -> Any:
    """`jax.jit` of the step with the state donated; `contrast` is static."""
    return jax.jit(
        lambda *arguments: setup(*arguments),  # a function of its own: the config inside `setup` cannot be hashed
        static_argnums=4,
        donate_argnums=0,
        out_shardings=(shardings, mesh.replicated(device_mesh)),
    )


class Refresher:
    """Recomputes gallery embeddings in batches of one shape.

    With a frozen prefix (`retriever.trained_blocks` >= 0) its states are computed once, kept as bfloat16, and a
    refresh runs the trained blocks only.

    Args:
      model: of `state.build_model`.
      device_mesh: batches and states are split over its data axis.
      batch_size: slices a call, rounded up to the devices; on CPU fewer, see `CPU_REFRESH`.
      images: (N, S, S) uint8 of the gallery's slices, on the host.
    """

    def __init__(self, model: joint.JointModel, device_mesh: Mesh, batch_size: int, images: np.ndarray):
        data = device_mesh.shape["data"]
        self.mesh, self.images = device_mesh, images
        if device_mesh.devices.flat[0].platform == "cpu":
            batch_size = min(batch_size, CPU_REFRESH * data)
        self.batch_size = -(-batch_size // data) * data
        self.chunks = -(-len(images) // self.batch_size)
        rows = mesh.by_rows(device_mesh)
        apply: Any = model.apply
        everywhere = mesh.replicated(device_mesh)
        scaled = lambda x: x.astype(jnp.float32) / 255.0  # noqa: E731

        def states(v: joint.Variables, x: jax.Array) -> jax.Array:
            return apply(v, scaled(x), method="states").astype(jnp.bfloat16)

        def cached(v: joint.Variables, cache: jax.Array, start: jax.Array) -> jax.Array:
            part = jax.lax.dynamic_slice_in_dim(cache, start, self.batch_size)
            return apply(v, jax.lax.with_sharding_constraint(part, rows), method="embed")

        self._states = jax.jit(states, out_shardings=rows)
        self._join = jax.jit(lambda parts: jnp.concatenate(parts), out_shardings=rows)
        self._cached = jax.jit(cached, out_shardings=everywhere)
        self._whole = jax.jit(lambda v, x: apply(v, scaled(x), method="embed_images"), out_shardings=everywhere)

    def states(self, variables: joint.Variables) -> jax.Array:
        """The frozen states (at least N, T, D) bfloat16, split over the data axis by rows; padded at the end."""
        return self._join([self._states(variables, self._chunk(i)) for i in range(self.chunks)])

    def embeddings(self, variables: joint.Variables, cache: jax.Array | None = None) -> np.ndarray:
        """Embeddings (N, dim) float32 of norm 1 of all slices, from `cache` (of `states`) where it is given."""
        parts = [self.part(variables, i, cache)[1] for i in range(self.chunks)]
        return np.concatenate([np.asarray(p) for p in parts])[: len(self.images)]

    def part(
        self, variables: joint.Variables, chunk: int, cache: jax.Array | None = None
    ) -> tuple[np.ndarray, jax.Array]:
        """Row numbers (batch_size,) of one chunk, some beyond N in the last, and their embeddings, on every device."""
        start = chunk * self.batch_size
        rows = start + np.arange(self.batch_size)
        if cache is None:
            return rows, self._whole(variables, self._chunk(chunk))
        return rows, self._cached(variables, cache, start)

    def _chunk(self, number: int) -> jax.Array:
        start = number * self.batch_size
        images = self.images[start : start + self.batch_size]
        images = np.pad(images, [(0, self.batch_size - len(images)), (0, 0), (0, 0)])
        return mesh.put_whole(self.mesh, images)
