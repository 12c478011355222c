"""Selection strategies: pure functions of a query's similarities to the gallery.

Axes: B queries, N gallery rows, K guides.

Every strategy takes similarity (B, N) float and allowed (B, N) bool and gives a `Selected`: indices (B, K) int32 of
allowed rows and weights (B, K) float32 that sum to 1 and are differentiable in the similarity. It has two halves, so
that a gallery split over devices can be searched: `ranking_noise`/`pick` say which rows (no gradient), and
`weigh` says how much each of the chosen rows counts (all of the gradient).

References:
  top_k: the J-RAS paper, arXiv 2510.09953, a softmax over the k best, zero elsewhere.
  gumbel_top_k: Kool et al., ICML 2019 (sampling without replacement by Gumbel noise); straight-through weights as
    Jang et al., ICLR 2017.
  sparsemax: Martins and Astudillo, ICML 2016, the Euclidean projection onto the simplex, here over the k best.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jras_jax.errors import UserError

STRATEGIES = ("top_k", "softmax", "gumbel_top_k", "sparsemax", "random", "oracle")
NEEDS_KEY = ("gumbel_top_k", "random")  # gumbel_top_k only in training: without a key it takes the best


class Selected(NamedTuple):
    """indices (B, K) int32 and weights (B, K) float32 of sum 1."""

    indices: jax.Array
    weights: jax.Array


class Selection(NamedTuple):
    """How guides are chosen; fields as in config.retrieval."""

    strategy: str
    top_k: int
    temperature: float
    exclude: str
    recall_target: float = 1.0

    @classmethod
    def of(cls, retrieval: Any) -> Selection:
        """The fields of the same names in config.retrieval."""
        return cls(*(getattr(retrieval, name) for name in cls._fields))


def select(
    similarity: jax.Array,
    allowed: jax.Array,
    *,
    strategy: str,
    k: int,
    temperature: float,
    key: jax.Array | None = None,
) -> Selected:
    """Chooses and weighs k rows for each query.

    Args:
      similarity: (B, N) float; for 'oracle' the true overlap.
      allowed: (B, N) bool; at least one row of each query (if there are fewer than k, the rest weighs 0).
      strategy: one of `STRATEGIES`; 'softmax' takes all N rows (k is not used).
      k: guides a query.
      temperature: of the softmax (of sparsemax, of the Gumbel noise).
      key: PRNG key; 'random' needs one.

    Raises:
      UserError: unknown strategy, or k above N.

    Example:
      >>> s = jnp.array([[0.9, 0.1, 0.8]])
      >>> select(s, s > -1, strategy="top_k", k=2, temperature=0.1).indices
      Array([[0, 2]], dtype=int32)
    """
    check(strategy, k, similarity.shape[1])
    if strategy == "softmax":
        rows = jnp.broadcast_to(jnp.arange(similarity.shape[1], dtype=jnp.int32), similarity.shape)
        return Selected(rows, jax.nn.softmax(masked(similarity / temperature, allowed)))
    queries, rows_ = similarity.shape
    noise = ranking_noise(strategy, queries=queries, rows=rows_, temperature=temperature, key=key)
    indices, present = settle(pick(similarity, allowed, noise=noise, strategy=strategy, k=k), allowed)
    near, drawn = (jnp.take_along_axis(x, indices, 1) for x in (similarity, noise))
    return Selected(indices, weigh(near, drawn, present, strategy=strategy, temperature=temperature))


def check(strategy: str, k: int, rows: int) -> None:
    """Raises UserError for an unknown strategy, or if there are fewer rows than guides."""
    if strategy not in STRATEGIES:
        raise UserError(f"config.retrieval.strategy={strategy!r}: choose one of {', '.join(STRATEGIES)}")
    if k > rows and strategy != "softmax":
        raise UserError(f"config.retrieval.top_k={k}: the gallery has {rows} slices only")


def masked(similarity: jax.Array, allowed: jax.Array) -> jax.Array:
    """-inf where a row is not allowed."""
    return jnp.where(allowed, similarity, -jnp.inf)


def ranking_noise(strategy: str, queries: int, rows: int, temperature: float, key: jax.Array | None) -> jax.Array:
    """What is added to the similarities (B, N) before ranking, in their own unit; zeros for most strategies.

    Drawn row by row of the gallery, so that padding it does not change the draw of the rows before.
    """
    if strategy not in NEEDS_KEY or (key is None and strategy != "random"):
        return jnp.zeros((queries, rows))
    if key is None:
        raise ValueError("the strategy 'random' needs a key")
    return temperature * jax.random.gumbel(key, (rows, queries)).T


def pick(similarity: jax.Array, allowed: jax.Array, noise: jax.Array, strategy: str, k: int) -> jax.Array:
    """The rows (B, k) int32, best first, ties to the lowest index; no gradient."""
    ranked = ranks(similarity, allowed=allowed, noise=noise, strategy=strategy)
    return jax.lax.top_k(jax.lax.stop_gradient(ranked), k)[1].astype(jnp.int32)


def ranks(similarity: jax.Array, allowed: jax.Array, noise: jax.Array, strategy: str) -> jax.Array:
    """What the rows are ranked by, (B, N); -inf where not allowed."""
    return masked(noise if strategy == "random" else similarity + noise, allowed)


def settle(indices: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keeps a leak rule that leaves a query fewer rows than guides: the best row replaces a forbidden one.

    Args:
      indices: (B, K), of `pick`, which runs out of allowed rows there.
      allowed: (B, N) bool.

    Returns:
      indices (B, K) of allowed rows, and (B, K) bool: False for a replacement, which must weigh nothing.
    """
    # Without the barrier XLA on CPU sees a slice of a top-k and sorts all N rows instead, 40 times slower at N = 1e4.
    indices = jax.lax.optimization_barrier(indices)
    present = jnp.take_along_axis(allowed, indices, 1)
    return jnp.where(present, indices, indices[:, :1]), present


def weigh(
    similarity: jax.Array, noise: jax.Array, present: jax.Array, *, strategy: str, temperature: float
) -> jax.Array:
    """Weights (B, K) float32 of sum 1 of the chosen rows, from their similarities (and noise) (B, K).

    Where `present` (B, K) is False the weight is 0; a query without any present row has weights NaN, never a leak.
    """
    logits = masked((similarity / temperature).astype(jnp.float32), present)
    equal = present / present.sum(1, keepdims=True)
    if strategy == "random":
        return equal
    if strategy == "sparsemax":
        return sparsemax(logits)
    if strategy == "gumbel_top_k":
        soft = jax.nn.softmax(logits + jax.lax.stop_gradient(noise) / temperature)
        return equal + (soft - jax.lax.stop_gradient(soft))  # in this order, so that the weights are exactly equal
    return jax.nn.softmax(logits)


def sparsemax(logits: jax.Array) -> jax.Array:
    """The point of the simplex nearest to the logits (..., K): weights of sum 1, some exactly 0."""
    ordered = -jnp.sort(-logits, axis=-1)
    count = jnp.arange(1, logits.shape[-1] + 1)
    excess = jnp.cumsum(ordered, -1) - 1.0
    support = jnp.sum(count * ordered > excess, -1, keepdims=True)  # rows that keep a weight above 0
    threshold = jnp.take_along_axis(excess, support - 1, -1) / support
    return jnp.maximum(logits - threshold, 0.0)
