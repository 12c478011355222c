"""A matrix applied along the rows or the columns of a map, as interpolation does."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jras_jax.kernels import switch

WIDE = 32  # channels from which slabs are faster
PRECISE = jax.lax.Precision.HIGHEST


def resample(x: jax.Array, matrix: jax.Array, axis: int) -> jax.Array:
    """Each output row (axis 1) or column (axis 2) is a weighted sum of the map's, in full precision.

    Args:
      x: (B, H, W, C).
      matrix: (new, H) or (new, W) weights, in x's dtype.
      axis: 1 or 2.

    Returns:
      (B, new, W, C) or (B, H, new, C), in x's dtype.
    """
    return switch.choose(reference, cpu)(x, matrix, axis)


def reference(x: jax.Array, matrix: jax.Array, axis: int) -> jax.Array:
    """One contraction."""
    return jnp.einsum("bhwc,oh->bowc" if axis == 1 else "bhwc,ow->bhoc", x, matrix, precision=PRECISE)


def cpu(x: jax.Array, matrix: jax.Array, axis: int) -> jax.Array:
    """Equivalent to the contraction, up to 2x faster on CPU if x has many channels.

    Multiplies slab by slab, one product for each image (rows) or for each row (columns), which needs no transposed
    copy. With fewer than `WIDE` channels those products would be too narrow.
    """
    if x.shape[-1] < WIDE:
        return reference(x, matrix, axis)
    slabs = x.reshape(math.prod(x.shape[:axis]), x.shape[axis], -1)
    matrices = jnp.broadcast_to(matrix, (len(slabs), *matrix.shape))
    y = jnp.matmul(matrices, slabs, precision=PRECISE)
    return y.reshape(*x.shape[:axis], len(matrix), *x.shape[axis + 1 :])
