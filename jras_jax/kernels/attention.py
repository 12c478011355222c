"""Attention of several heads (Vaswani et al., arXiv 1706.03762)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jras_jax.kernels import switch

SCORES = 540_000  # float32 scores that stay in the caches


def attend(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """softmax(query key^T / sqrt(D) + bias) value for each head; scores and softmax are float32.

    Args:
      query: (B, T, N, D).
      key, value: (B, S, N, D).
      bias: (B, N, T, S), or None.

    Returns:
      (B, T, N, D), in the query's dtype.
    """
    return switch.choose(reference, cpu)(query, key, value, bias)


def reference(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`jax.nn.dot_product_attention`."""
    return jax.nn.dot_product_attention(query, key, value, bias)


def cpu(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Equivalent to `dot_product_attention`, 1.1 to 2.2x faster on CPU.

    Processes heads in groups and normalises after multiplying by the values. A group has whole heads, since a batch may
    be split over devices, and its heads are evenly spaced, so that heads may be split too.
    """
    batch, tokens, heads, width = query.shape
    each = batch * tokens * key.shape[1]
    together = max(n for n in range(1, heads + 1) if heads % n == 0 and (n == 1 or n * each <= SCORES))
    groups = heads // together

    def grouped(x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32).reshape(batch, together, groups, *x.shape[2:])

    queries, keys, values = (grouped(x.transpose(0, 2, 1, 3)) for x in (query, key, value))
    queries *= width**-0.5
    biases = None if bias is None else grouped(bias)

    def attended(group: int) -> jax.Array:
        q, k, v = (x[:, :, group] for x in (queries, keys, values))
        scores = q @ k.transpose(0, 1, 3, 2)
        if biases is not None:
            scores += biases[:, :, group]
        powers = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        return (powers @ v) / powers.sum(-1, keepdims=True)

    y = jnp.stack([attended(group) for group in range(groups)], 2).reshape(batch, heads, tokens, -1)
    return y.transpose(0, 2, 1, 3).astype(query.dtype)
