"""One training step as a pure function of state, batch and gallery, jitted once over the mesh.

Axes: B slices of the global batch, N gallery rows, K guides, S model grid.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jras_jax import config as configs
from jras_jax import joint, mesh
from jras_jax.config import Config
from jras_jax.data.augment import augment, milder
from jras_jax.joint import controls, losses
from jras_jax.retrieval import losses as retrieval_losses
from jras_jax.retrieval import measures
from jras_jax.retrieval.gallery import Gallery, HostRows, QueryKeys, allowed_rows, draw_rows
from jras_jax.retrieval.quantised import as_float
from jras_jax.retrieval.search import gather_embeddings, gather_rows, gather_shared
from jras_jax.training.passes import Passes
from jras_jax.training.skips import all_finite, chosen
from jras_jax.training.state import TrainState

# image, mask (B, S, S) uint8; patient, row (B,) int32; for a locator also whole, whole_mask (b, L, L) uint8
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
BLANK_STREAM = 100  # folded into the step's key; above 3, so that it is none of the keys that the step splits off
OVERLAP_STREAM = 101  # likewise, for the rows that the ranking by overlap draws
OVERLAP_GRID = 32  # pixels a side at which a step compares masks with the whole gallery's: a ranking needs no more


class Step(Protocol):
    """The training step, see `make_step`."""

    def __call__(
        self, state: TrainState, batch: Batch, gallery: Gallery | None, cache: jax.Array | None, contrast: bool = False
    ) -> tuple[TrainState, Metrics]: ...


class LossTerms(NamedTuple):
    """What the joint loss is made of: the model's passes and number of classes, parts of the config, and the mesh
    of the gallery."""

    passes: Passes
    num_classes: int
    augment: configs.Augment
    retrieval: configs.Retrieval
    loss: configs.Loss
    mesh: Mesh | None
    blank_share: float = 0.0


def make_step(
    model: joint.JointModel, tx: optax.GradientTransformation, config: Config, device_mesh: Mesh | None = None
) -> Step:
    """Builds the step: one update of backbone, fusion and retriever by the joint loss.

    Args:
      model: of `joint.build_model`.
      tx: of `state.build_optimizer`.
      config: the run.
      device_mesh: over whose data axis batch and gallery are split; None for one device.

    Raises:
      UserError: config.train.microbatches does not divide the batch.

    Returns:
      `train_step(state, batch, gallery, cache, contrast=False) -> (state, metrics)`, a pure function: `batch` is the
      global batch; `gallery` is this epoch's, None for the baseline; `cache` (N, T, D) holds the retriever's frozen
      states of every gallery row, None computes them; `contrast` adds the contrastive term over candidates
      (arXiv 2510.09953v3); the metrics are scalars. If loss, gradient or update is not finite, the step only counts:
      the state keeps all else, and the metric 'finite' is False.
    """
    passes = Passes.of(model.apply, config.train, device_mesh)
    terms = LossTerms(
        passes,
        model.num_classes,
        augment=config.augment,
        retrieval=config.retrieval,
        loss=config.loss,
        mesh=device_mesh,
        blank_share=config.blank_share,
    )
    seed, ema_decay = config.seed + 1, config.optim.ema_decay

    def train_step(
        state: TrainState, batch: Batch, gallery: Gallery | None, cache: jax.Array | None, contrast: bool = False
    ) -> tuple[TrainState, Metrics]:
        # The key depends on the seed and the step alone, so a resumed run draws what an uninterrupted one would.
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grad_fn = jax.value_and_grad(functools.partial(joint_loss, terms=terms, contrast=contrast), has_aux=True)
        (_, (metrics, extra)), grads = grad_fn(state.params, state.extra, batch, gallery, cache, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["grad_norm"] = optax.tree.norm(grads)
        finite = all_finite(metrics["loss"], metrics["grad_norm"], params, extra)
        kept = chosen(finite, (params, extra, opt_state), (state.params, state.extra, state.opt_state))
        params, extra, opt_state = kept
        ema = state.ema
        if ema is not None:
            # Early on the mean would be mostly initial values; min(decay, (1 + t) / (10 + t)) is the usual remedy.
            t = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1 + t) / (10 + t))
            # A skipped step weighs e with 1 and p with 0. A choice between two means would be fused with their
            # computation in another way, and round in another way.
            old, new_share = jnp.where(finite, decay, 1.0), jnp.where(finite, 1 - decay, 0.0)
            ema = jax.tree.map(lambda e, p: old * e + new_share * p, ema, params)
        new = state.replace(step=state.step + 1, params=params, extra=extra, opt_state=opt_state, ema=ema)
        return new, metrics | {"finite": finite}

    return train_step


def joint_loss(
    params: Any,
    extra: Any,
    batch: Batch,
    gallery: Gallery | None,
    cache: jax.Array | None,
    key: jax.Array,
    *,
    terms: LossTerms,
    contrast: bool,
) -> tuple[jax.Array, tuple[Metrics, Any]]:
    """The joint loss of a batch; returns it with (metrics, the model's updated mutable collections)."""
    k_augment, k_dropout, k_select, k_view = jax.random.split(key, 4)
    variables = {"params": params, **extra}
    plain, masks = batch["image"].astype(jnp.float32) / 255.0, batch["mask"].astype(jnp.int32)
    images, labels = augment(k_augment, plain, masks=masks, ranges=terms.augment)
    metrics: Metrics = {}
    guides = None
    embeddings: Any = None
    seen: Any = None
    queries = QueryKeys(patient=batch["patient"], row=batch["row"])
    if gallery is not None:
        embeddings, seen = _embedded(
            variables, plain, batch=batch, cache=cache, k_view=k_view, k_dropout=k_dropout, terms=terms
        )
        guides = joint.retrieve(
            embeddings,
            gallery,
            queries=queries,
            selection=joint.Selection.of(terms.retrieval),
            num_classes=terms.num_classes,
            scores=_overlap(seen, gallery.masks, terms) if terms.retrieval.strategy == "oracle" else None,
            key=k_select,
            mesh=terms.mesh,
        )
        metrics |= {"weight_entropy": _entropy(guides.weights), "similarity": guides.similarity.mean()}
        if terms.blank_share:
            draw = jax.random.bernoulli(jax.random.fold_in(key, BLANK_STREAM), terms.blank_share, images.shape[:1])
            guides = controls.blanked(guides, draw)
    logits, updated = terms.passes(variables, (images, guides), method="segment", key=k_dropout, mutable=list(extra))
    loss, parts = losses.segmentation_loss(logits, labels, **dataclasses.asdict(terms.loss))
    metrics |= parts
    if gallery is not None and terms.retrieval.overlap_weight:
        k_rows = jax.random.fold_in(key, OVERLAP_STREAM)
        term = overlap_term(embeddings, seen, gallery=gallery, queries=queries, key=k_rows, terms=terms)
        metrics["overlap_loss"] = term
        loss += terms.retrieval.overlap_weight * term
    if contrast and gallery is not None:
        term = _contrastive_term(
            variables, images, labels=labels, embeddings=embeddings, gallery=gallery, queries=queries, terms=terms
        )
        metrics["contrast_loss"] = term
        loss += terms.retrieval.contrast_weight * term
    if "whole" in batch:
        term = _locator_term(variables, batch, key=jax.random.fold_in(key, 1), terms=terms)
        metrics["locator_loss"] = term
        loss += term
    full = logits if isinstance(logits, jax.Array) else logits[0]
    metrics |= {"loss": loss, "dice": losses.hard_dice(jnp.argmax(full, -1), labels, terms.num_classes).mean()}
    return loss, (metrics, updated)


def _entropy(weights: jax.Array) -> jax.Array:
    """The mean entropy (nats) of the guides' weights (B, k)."""
    return -jnp.sum(weights * jnp.log(jnp.maximum(weights, 1e-12)), -1).mean()


def _embedded(
    variables: joint.Variables,
    plain: jax.Array,
    batch: Batch,
    cache: jax.Array | None,
    k_view: jax.Array,
    k_dropout: jax.Array,
    terms: LossTerms,
) -> tuple[jax.Array, jax.Array]:
    """Embeddings (B, dim) of the queries, and the masks (B, S, S) of the view that the retriever sees."""
    key = jax.random.fold_in(k_dropout, 1)
    if cache is not None:  # a frozen prefix, whose states of the plain slices are cached
        states = gather_rows(cache, batch["row"][:, None], mesh=terms.mesh)[:, 0]
        return terms.passes(variables, (states,), method="embed", key=key)[0], batch["mask"]
    # The retriever sees milder augmentation, closer to the unaugmented gallery slices.
    shown, seen = augment(k_view, plain, masks=batch["mask"].astype(jnp.int32), ranges=milder(terms.augment))
    return terms.passes(variables, (shown,), method="embed_images", key=key)[0], seen


def _overlap(seen: jax.Array, masks: Any, terms: LossTerms) -> jax.Array:
    """Overlap (B, M) of the queries' masks with masks (M, S, S) of the gallery."""
    return measures.overlap(seen, masks, OVERLAP_GRID, num_classes=terms.num_classes)


def overlap_term(
    embeddings: jax.Array,
    seen: jax.Array,
    gallery: Gallery,
    queries: QueryKeys,
    key: jax.Array,
    terms: LossTerms,
) -> jax.Array:
    """Pulls the query's embedding to where the gallery's masks overlap its own, under the leak rule.

    A gallery of more than `overlap_rows` rows, or in the host's memory, is ranked by the rows that the key draws. The
    draw is shared over the batch, so that a step fetches M masks rather than B M. It does not depend on the queries:
    the drawn rows that a query may be guided by are a uniform sample of all that it may be guided by.
    """
    r = terms.retrieval
    allowed = allowed_rows(gallery, queries, r.exclude)
    if 0 < r.overlap_rows < gallery.rows or isinstance(gallery.masks, HostRows):
        drawn = draw_rows(gallery, r.overlap_rows, key)
        allowed = allowed[:, drawn]
        rows = gather_shared(gallery.embeddings, drawn, mesh=terms.mesh)
        every = measures.stride(seen.shape[-1], OVERLAP_GRID)
        masks = gather_shared(gallery.masks, drawn, mesh=terms.mesh, every=every)
        seen = seen[:, ::every, ::every]
    else:
        rows, masks = as_float(gallery.embeddings), gallery.masks
    return retrieval_losses.overlap_loss(
        embeddings @ rows.T,
        _overlap(seen, masks, terms),
        allowed,
        temperature=r.temperature,
        sharpness=r.overlap_sharpness,
    )


def _locator_term(variables: joint.Variables, batch: Batch, key: jax.Array, terms: LossTerms) -> jax.Array:
    """The segmentation loss of whole slices, from which the locator alone learns."""
    wholes, masks = batch["whole"].astype(jnp.float32) / 255.0, batch["whole_mask"].astype(jnp.int32)
    images, labels = augment(key, wholes, masks=masks, ranges=terms.augment)
    return losses.segmentation_loss(terms.passes.apply(variables, images, method="locate"), labels)[0]


def _contrastive_term(
    variables: joint.Variables,
    images: jax.Array,
    labels: jax.Array,
    embeddings: jax.Array,
    gallery: Gallery,
    queries: QueryKeys,
    terms: LossTerms,
) -> jax.Array:
    """Pulls the query's embedding to candidates that lower its segmentation loss, away from those that raise it.

    Each of `contrast_candidates` nearest candidates guides alone, without gradient; their losses rank them.
    """
    r = terms.retrieval
    b, m = images.shape[0], r.contrast_candidates
    nearest = joint.Selection("top_k", m, temperature=r.temperature, exclude=r.exclude)
    found = joint.retrieve(
        jax.lax.stop_gradient(embeddings),
        gallery,
        queries=queries,
        selection=nearest,
        num_classes=terms.num_classes,
        mesh=terms.mesh,
    )
    alone = jax.tree.map(lambda x: x.reshape(b * m, 1, *x.shape[2:]), found).replace(weights=jnp.ones((b * m, 1)))
    repeated = jnp.repeat(images, m, 0)
    # In parts of as many slices as those of the batch have: each is repeated for its candidates.
    passes = terms.passes._replace(parts=terms.passes.parts * m if terms.passes.parts > 1 else 1)
    logits, _ = passes(jax.lax.stop_gradient(variables), (repeated, alone), method="segment", key=None)
    judged = losses.per_slice_loss(logits, jnp.repeat(labels, m, 0)).reshape(b, m)
    candidates = gather_embeddings(gallery, found.indices, mesh=terms.mesh)  # (B, m, dim)
    similarity = jnp.einsum("bd,bmd->bm", embeddings, candidates)
    return retrieval_losses.candidate_loss(
        similarity, jax.lax.stop_gradient(judged), temperature=r.contrast_temperature
    )


def compile_step(train_step: Step, shardings: TrainState, device_mesh: Mesh) -> Any:
    """`jax.jit` of a step of `make_step`; the old state is donated, `contrast` is static."""
    out = (shardings, mesh.replicated(device_mesh))
    return jax.jit(train_step, static_argnums=4, donate_argnums=0, out_shardings=out)
