"""One training step as a pure function, and the gallery's refresh; both are jitted once, over the mesh.

Axes: B slices of the global batch, N gallery rows, K guides, S model grid.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jras_jax import joint, losses, mesh
from jras_jax.config import Config
from jras_jax.data import NUM_CLASSES
from jras_jax.data.augment import augment
from jras_jax.retrieval import contrastive
from jras_jax.retrieval import gallery as galleries
from jras_jax.retrieval.gallery import Gallery, QueryKeys
from jras_jax.training.state import TrainState

Batch = dict[str, jax.Array]  # image, mask (B, S, S) uint8; patient, row (B,) int32
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Step:
    """What stays the same from step to step. Called as `step(state, batch, gallery, cache)`."""

    model: joint.JointModel
    tx: optax.GradientTransformation
    config: Config
    mesh: Mesh | None = None

    @property
    def selection(self) -> joint.Selection:
        r = self.config.retrieval
        return joint.Selection(r.strategy, r.top_k, r.temperature, r.exclude)

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
    metrics["grad_norm"] = optax.global_norm(grads)
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
    config, model = setup.config, setup.model
    k_augment, k_dropout, k_select = jax.random.split(key, 3)
    variables = {"params": params, **state.extra}
    plain = batch["image"].astype(jnp.float32) / 255.0
    images, labels = augment(k_augment, plain, batch["mask"].astype(jnp.int32), config.augment)
    metrics: Metrics = {}
    guides, embeddings = None, None
    queries = QueryKeys(patient=batch["patient"], row=batch["row"])
    if gallery is not None:
        # The retriever sees the plain slice: what the gallery holds of it, and what a scan to segment will show.
        if cache is not None:
            states = jnp.take(cache, batch["row"], axis=0)
            embed = functools.partial(model.apply, method="embed")
        else:
            states, embed = plain, functools.partial(model.apply, method="embed_images")
        embeddings = embed(variables, states, True, rngs={"dropout": jax.random.fold_in(k_dropout, 1)})
        guides = joint.retrieve(
            embeddings, gallery, queries, setup.selection, NUM_CLASSES, key=k_select, mesh=setup.mesh
        )
        entropy = -jnp.sum(guides.weights * jnp.log(jnp.maximum(guides.weights, 1e-12)), -1).mean()
        metrics |= {"weight_entropy": entropy, "similarity": guides.similarity.mean()}
    logits, updated = model.apply(
        variables, images, guides, True, method="segment", rngs={"dropout": k_dropout}, mutable=list(state.extra)
    )
    loss, parts = losses.segmentation_loss(logits, labels, **dataclasses.asdict(config.loss))
    metrics |= parts
    if contrast and gallery is not None:
        term = _contrastive_term(variables, images, labels, embeddings, gallery, queries, setup)
        metrics["contrast_loss"] = term
        loss += config.retrieval.contrast_weight * term
    full = logits if isinstance(logits, jax.Array) else logits[0]
    dice = losses.hard_dice(jnp.argmax(full, -1), labels, NUM_CLASSES)
    metrics |= {"loss": loss, "dice": dice.mean()}
    return loss, (metrics, updated)


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
    r, model = setup.config.retrieval, setup.model
    b, m = images.shape[0], r.contrast_candidates
    nearest = joint.Selection("top_k", m, r.temperature, r.exclude)
    found = joint.retrieve(jax.lax.stop_gradient(embeddings), gallery, queries, nearest, NUM_CLASSES, mesh=setup.mesh)
    alone = jax.tree.map(lambda x: x.reshape(b * m, 1, *x.shape[2:]), found).replace(weights=jnp.ones((b * m, 1)))
    repeated = jnp.repeat(images, m, 0)
    logits = model.apply(jax.lax.stop_gradient(variables), repeated, alone, False, method="segment")
    judged = losses.per_slice_loss(logits, jnp.repeat(labels, m, 0)).reshape(b, m)
    candidates = galleries.gather_rows(gallery.embeddings, found.indices, mesh=setup.mesh)  # (B, m, dim)
    similarity = jnp.einsum("bd,bmd->bm", embeddings, candidates)
    return contrastive.candidate_loss(similarity, jax.lax.stop_gradient(judged), temperature=r.contrast_temperature)


def compile_step(setup: Step, shardings: TrainState, device_mesh: Mesh) -> Any:
    """`jax.jit` of the step with the state donated; `contrast` is static."""
    return jax.jit(
        setup,
        static_argnums=4,
        donate_argnums=0,
        out_shardings=(shardings, mesh.replicated(device_mesh)),
    )


class Refresher:
    """Recomputes gallery embeddings in batches of one shape.

    With a frozen prefix (`retriever.trained_blocks` >= 0) its states are computed once, kept as bfloat16, and a
    refresh runs the trained blocks only.
    """

    def __init__(self, model: joint.JointModel, device_mesh: Mesh, batch_size: int):
        self.mesh = device_mesh
        data = device_mesh.shape["data"]
        self.batch_size = -(-batch_size // data) * data
        rows, everywhere = mesh.by_rows(device_mesh), mesh.replicated(device_mesh)
        apply = functools.partial(jax.jit, in_shardings=(None, rows), out_shardings=everywhere)
        self._states = apply(lambda v, x: model.apply(v, x, method="states").astype(jnp.bfloat16))
        self._embed = apply(lambda v, x: model.apply(v, x, method="embed"))
        self._whole = apply(lambda v, x: model.apply(v, x.astype(jnp.float32) / 255.0, method="embed_images"))
        self._scale = lambda x: x.astype("float32") / 255.0

    def states(self, variables: joint.Variables, images: Any) -> jax.Array:
        """Frozen states (N, T, D) bfloat16 of images (N, S, S) uint8 (host)."""
        return self._batched(lambda v, x: self._states(v, self._scale(x)), variables, images)

    def embeddings(self, variables: joint.Variables, images: Any, cache: jax.Array | None = None) -> jax.Array:
        """Embeddings (N, dim) float32 of norm 1, of images (N, S, S) uint8 or of their cached states."""
        if cache is not None:
            return self._batched(lambda v, x: self._embed(v, x), variables, cache)
        return self._batched(self._whole, variables, images)

    def _batched(self, run: Any, variables: joint.Variables, rows: Any) -> jax.Array:
        import numpy as np

        n, size = len(rows), self.batch_size
        parts = []
        for start in range(0, n, size):
            chunk = rows[start : start + size]
            short = size - len(chunk)
            if short:
                pad = [(0, short)] + [(0, 0)] * (chunk.ndim - 1)
                chunk = np.pad(chunk, pad) if isinstance(chunk, np.ndarray) else jnp.pad(chunk, pad)
            parts.append(run(variables, chunk))
        return jnp.concatenate(parts)[:n]
