"""Measures of the retriever itself: how well retrieved masks match the truth, and how varied the choice is.

Axes: Q query slices, N gallery rows, K guides, S model grid.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jras_jax.data import NUM_CLASSES
from jras_jax.data.dice import dice, mean_over_present

GRID = 64  # side in pixels at which all queries are compared with all rows; finer grids are thinned to it
CHUNK = 256  # queries compared at once


def overlap(a: Any, b: Any, grid: int = GRID, *, num_classes: int = NUM_CLASSES) -> jax.Array:
    """Mean foreground Dice between every mask of (Q, S, S) and every mask of (N, S, S), integer labels -> (Q, N).

    Masks of more than `grid` pixels a side are thinned to about that. The mean runs over the structures that at least
    one of the two has; two empty masks agree fully.
    """
    step = stride(a.shape[-1], grid)
    a, b = (x[:, ::step, ::step].reshape(len(x), -1) for x in (a, b))
    total, present = jnp.zeros((len(a), len(b))), jnp.zeros((len(a), len(b)))
    for label in range(1, num_classes):
        p, t = (a == label).astype(jnp.float32), (b == label).astype(jnp.float32)
        size = p.sum(1)[:, None] + t.sum(1)[None]
        total += dice(p @ t.T, size, empty=0.0)
        present += size > 0
    return jnp.where(present > 0, total / jnp.maximum(present, 1.0), 1.0)


def stride(side: int, grid: int) -> int:
    """Every how many pixels a mask of `side` pixels is read to have about `grid`; 1 for what is thinned already."""
    return max(1, side // grid)


def pairwise_dice(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Like `overlap` for pairs: (Q, S, S) and (Q, S, S) labels -> (Q,) float64, at full resolution."""
    return mean_over_present(a, b, _labels(a, b))


def summary(truth: np.ndarray, indices: np.ndarray, weights: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """How good the choice was.

    Args:
      truth: (Q, S, S) true labels of the queries.
      indices, weights: (Q, K) of their guides.
      masks: (N, S, S) labels of the gallery.

    Returns:
      'retrieval_dice_1': Dice of the heaviest guide's mask with the truth; 'retrieval_dice_k': soft Dice of the mean of
      the K one-hot masks by weight (see `mix_overlap`); 'weight_entropy' in nats; 'gallery_used': share of the rows
      that were a guide of any query. NaN where there are no queries.
    """
    return averages(*guide_dice(truth, indices, weights=weights, masks=masks), indices, weights, len(masks))


def guide_dice(
    truth: np.ndarray, indices: np.ndarray, weights: np.ndarray, masks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Dice of each query's heaviest guide and soft Dice of the mix of its guides, (Q,) float64 each; see `summary`."""
    if not len(truth):
        return np.zeros(0), np.zeros(0)
    first = masks[indices[np.arange(len(indices)), weights.argmax(1)]]
    mixed = [mix_overlap(t, masks[i], w) for t, i, w in zip(truth, indices, weights, strict=True)]
    return pairwise_dice(truth, first), np.array(mixed)


def mix_overlap(truth: np.ndarray, masks: np.ndarray, weights: np.ndarray) -> float:
    """Soft Dice of the weighted mean of a query's guide masks with its true mask.

    2 sum(m t) / (sum m + sum t) a structure, m being the share of the guides' weight that has the structure at a pixel;
    the mean over the structures that the truth or a guide of weight above 0 has. 1 if there are none.

    Args:
      truth: (S, S) labels. masks: (K, S, S) labels of the guides. weights: (K,) of sum 1.
    """
    scores = []
    for label in _labels(truth, masks):
        true, share = truth == label, np.tensordot(weights.astype(np.float64), masks == label, 1)
        total = share.sum() + true.sum()
        scores += [float(dice(share[true].sum(), total))] if total else []
    return float(np.mean(scores)) if scores else 1.0


def averages(
    first: np.ndarray, mixed: np.ndarray, indices: np.ndarray, weights: np.ndarray, rows: int
) -> dict[str, float]:
    """The measures of `summary` from the values of `guide_dice`, all queries' guides, and the gallery's size."""
    if not len(first):
        return dict.fromkeys(("retrieval_dice_1", "retrieval_dice_k", "weight_entropy", "gallery_used"), float("nan"))
    entropy = -(weights * np.log(np.maximum(weights, 1e-12))).sum(1)
    return {
        "retrieval_dice_1": float(first.mean()),
        "retrieval_dice_k": float(mixed.mean()),
        "weight_entropy": float(entropy.mean()),
        "gallery_used": len(np.unique(indices)) / rows,
    }


def controls(
    truth: np.ndarray, images: np.ndarray, allowed: np.ndarray, masks: np.ndarray, gallery_images: np.ndarray
) -> dict[str, float]:
    """What other ways of choosing one guide would give, in the same measure.

    Args:
      truth: (Q, S, S) true labels. images: (Q, S, S) uint8 queries.
      allowed: (Q, N) bool, rows that the leak rule leaves to each query.
      masks, gallery_images: (N, S, S) of the gallery.

    Returns:
      'retrieval_random': the expectation over the allowed rows; 'retrieval_pixel': the row whose image has the largest
      normalised cross-correlation; 'retrieval_oracle': the row with the largest overlap.
    """
    scores = Controls(masks, gallery_images)
    scores.add(truth, images, allowed)
    return scores.averages()


class Controls:
    """`controls` of queries that come one after another; at most `CHUNK` of them are kept, and their values.

    Args:
      masks, images: (N, S, S) of the gallery.
      num_classes: of the masks, the background among them.
    """

    NAMES = ("retrieval_random", "retrieval_pixel", "retrieval_oracle")

    def __init__(self, masks: np.ndarray, images: np.ndarray, num_classes: int = NUM_CLASSES):
        self._masks, self._rows = thinned(masks), _normalised(images)
        self._compare = jax.jit(functools.partial(overlap, num_classes=num_classes))
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._values: dict[str, list[np.ndarray]] = {name: [] for name in self.NAMES}

    def add(self, truth: np.ndarray, images: np.ndarray, allowed: np.ndarray) -> None:
        """Takes queries: see `controls`."""
        self._waiting += zip(thinned(truth), thinned(images), allowed, strict=True)
        # Always the same number of queries at once: one program, and sums that do not depend on how they came.
        while len(self._waiting) >= CHUNK:
            self._score(CHUNK)

    def averages(self) -> dict[str, float]:
        """The means over all queries; NaN if there were none."""
        if self._waiting:
            self._score(len(self._waiting))
        return {
            name: float(np.concatenate(values).mean()) if values else float("nan")
            for name, values in self._values.items()
        }

    def _score(self, count: int) -> None:
        truth, images, free = (np.stack(arrays) for arrays in zip(*self._waiting[:count], strict=True))
        del self._waiting[:count]
        scores = np.asarray(self._compare(truth, self._masks))
        similarity = np.where(free, _normalised(images) @ self._rows.T, -np.inf)
        values = (
            (scores * free).sum(1) / free.sum(1),
            np.take_along_axis(scores, similarity.argmax(1)[:, None], 1)[:, 0],
            np.where(free, scores, -1.0).max(1),
        )
        for name, own in zip(self.NAMES, values, strict=True):
            self._values[name].append(own)


@functools.partial(jax.jit, static_argnames="k")
def _neighbours(embeddings: jax.Array, patient: jax.Array, k: int) -> jax.Array:
    similarity = jnp.where(patient[:, None] == patient[None], -jnp.inf, embeddings @ embeddings.T)
    return jax.lax.top_k(similarity, k)[1]


def neighbour_drift(before: np.ndarray, after: np.ndarray, patient: np.ndarray, k: int = 5) -> float:
    """Share of the k nearest rows of other patients that changed between two sets of embeddings (N, D), in [0, 1]."""
    k = max(1, min(k, len(before) - 1))
    a, b = (np.asarray(_neighbours(e, patient, k)) for e in (before, after))
    kept = (a[:, :, None] == b[:, None, :]).any(-1).mean()
    return float(1.0 - kept)


def _labels(*masks: np.ndarray) -> range:
    """The labels of the structures that masks can hold, up to the largest there is."""
    return range(1, max(int(mask.max(initial=0)) for mask in masks) + 1)


def thinned(x: np.ndarray) -> np.ndarray:
    """(n, S, S[, C]) -> (n, T, T[, C]), at most about GRID pixels a side; a copy, so that the finer arrays can go."""
    step = stride(x.shape[1], GRID)
    return x[:, ::step, ::step].copy()


def _normalised(images: np.ndarray) -> np.ndarray:
    """(n, S, S[, C]) -> (n, P) float32 of mean 0 and norm 1, thinned to at most GRID pixels a side."""
    x = thinned(images).reshape(len(images), -1).astype(np.float32)
    x -= x.mean(1, keepdims=True)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
