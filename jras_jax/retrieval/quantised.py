"""Embeddings as int8 with one scale a row, and the product that ranks them.

Axes: B queries, N gallery rows, D embedding.

A row x is kept as `values` = round(x / scale), scale = max|x| / 127, in D + 4 bytes in place of 4 D. The ranking
quantises the queries in the same way and multiplies integers, so that it is exact and equal on any number of devices.
Only the ranking sees integers: whatever has a gradient takes rows through `as_float`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = 127  # of the values: symmetric, -128 is not used


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Rows:
    """N quantised embeddings. values (N, D) int8; scale (N,) float32, 0 for a row of zeros."""

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        return self.values.shape


def quantised(rows: Any) -> Int8Rows:
    """Embeddings (N, D) float -> int8; numpy stays numpy. A row that is not finite gets a scale that is not."""
    xp: Any = np if isinstance(rows, np.ndarray) else jnp
    scale = (abs(rows).max(1) / LARGEST).astype(xp.float32)
    usable = xp.isfinite(scale) & (scale > 0)
    values = xp.where(usable[:, None], rows, 0) / xp.where(usable, scale, 1)[:, None]
    return Int8Rows(xp.rint(values).astype(xp.int8), scale)


def as_float(rows: Any) -> Any:
    """Embeddings (..., D) float32 of a gallery's rows, dequantised if they are `Int8Rows`; numpy stays numpy."""
    if not isinstance(rows, Int8Rows):
        return rows
    return rows.values.astype(np.float32) * rows.scale[..., None]


def like(rows: Any, new: Any) -> Any:
    """`new` (n, D) float32 in the form of `rows`: quantised if these are."""
    return quantised(new) if isinstance(rows, Int8Rows) else new


def rank_scores(queries: jax.Array, rows: Any) -> jax.Array:
    """Similarities (B, N) float32 to rank rows by, without a gradient.

    Args:
      queries: (B, D) float32.
      rows: (N, D) float32, or `Int8Rows`: then the integers' product times both scales.
    """
    if not isinstance(rows, Int8Rows):
        return jnp.matmul(queries, rows.T, precision=jax.lax.Precision.HIGHEST)
    ours = quantised(queries)
    along = (((1,), (1,)), ((), ()))
    product = jax.lax.dot_general(ours.values, rows.values, along, preferred_element_type=jnp.int32)
    return product.astype(jnp.float32) * ours.scale[:, None] * rows.scale
