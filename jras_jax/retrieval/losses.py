"""Contrastive losses of the retriever, pure functions of embeddings and similarities.

Axes: B queries, M candidates, N gallery rows.

References: Chen et al., "SimCLR", ICML 2020 (NT-Xent); the J-RAS paper's third version, arXiv 2510.09953v3 (candidates
judged by the segmentation loss); Cao et al., "ListNet", ICML 2007 (a list of relevances as a target distribution).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def nt_xent(
    a: jax.Array, b: jax.Array, *, temperature: float, ignore: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """NT-Xent over pairs (a[i], b[i]); each of the 2 B views has its partner as the positive, the rest as negatives.

    Args:
      a, b: (B, D) float; normalise them beforehand for cosine similarity.
      temperature: divides the dot products.
      ignore: (B, B) bool, pairs (i, j) that are no negatives of each other (same patient); the diagonal does not
        matter.

    Returns:
      The mean loss over the 2 B views, and the share of views whose partner is the nearest of what is compared.
    """
    n = len(a)
    z = jnp.concatenate([a, b]).astype(jnp.float32)
    logits = z @ z.T / temperature
    partner = (jnp.arange(2 * n) + n) % (2 * n)
    positive = jax.nn.one_hot(partner, 2 * n, dtype=bool)
    out = jnp.eye(2 * n, dtype=bool)
    if ignore is not None:
        out |= jnp.tile(ignore, (2, 2)) & ~positive
    logits = jnp.where(out, -jnp.inf, logits)
    own = jnp.take_along_axis(logits, partner[:, None], 1)[:, 0]
    return (jax.nn.logsumexp(logits, -1) - own).mean(), (jnp.argmax(logits, -1) == partner).mean()


def candidate_loss(similarity: jax.Array, judged: jax.Array, *, temperature: float) -> jax.Array:
    """-log of the softmax mass on the candidates that help, a mean over queries.

    Args:
      similarity: (B, M) cosine similarity of each query and candidate; the gradient's way.
      judged: (B, M) segmentation loss with that candidate as the only guide. Positives: below the query's mean.
      temperature: of the softmax.

    Returns:
      Scalar; 0 for a query whose candidates are all alike.
    """
    helps = judged < judged.mean(-1, keepdims=True)
    logits = similarity.astype(jnp.float32) / temperature
    # The smallest number rather than -inf: a query without positives would have a NaN gradient.
    positive = jnp.where(helps, logits, jnp.finfo(jnp.float32).min)
    mass = jax.nn.logsumexp(positive, -1) - jax.nn.logsumexp(logits, -1)
    # Not all candidates can be below their mean, but rounding can make it look so if the losses are equal.
    told_apart = helps.any(-1) & ~helps.all(-1)
    return -jnp.where(told_apart, mass, 0.0).mean()


def overlap_loss(
    similarity: jax.Array, overlap: jax.Array, allowed: jax.Array, *, temperature: float, sharpness: float
) -> jax.Array:
    """Cross-entropy between the retriever's distribution over the gallery and that of the masks' overlap (ListNet).

    Of a sample of the gallery's rows, both distributions are those over the sample: a list of fewer candidates.

    Args:
      similarity: (B, N) cosine similarity; the gradient's way.
      overlap: (B, N) in [0, 1], Dice between the query's mask and each row's; the target.
      allowed: (B, N) bool, the rows that may be chosen; a query without any adds 0.
      temperature: of the softmax over similarities. sharpness: of the softmax over overlaps, in Dice.

    Returns:
      Scalar: Kullback-Leibler divergence from the target, 0 where both agree.
    """
    minus = jnp.finfo(jnp.float32).min
    target = jax.nn.log_softmax(jnp.where(allowed, overlap / sharpness, minus))
    ours = jax.nn.log_softmax(jnp.where(allowed, similarity.astype(jnp.float32) / temperature, minus))
    return jnp.sum(jnp.exp(target) * jnp.where(allowed, target - ours, 0.0), -1).mean()
