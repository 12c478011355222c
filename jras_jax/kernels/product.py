"""A matrix applied to the last axis."""

from __future__ import annotations

import jax

from jras_jax.kernels import switch


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(..., C) @ (C, F) -> (..., F), in the operands' common dtype."""
    return switch.choose(reference, cpu)(x, kernel)


def reference(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The product as it is written."""
    return x @ kernel


def cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Equivalent to `x @ kernel`, its kernel's gradient up to 5x faster on CPU: joins the leading axes first.

    That gradient is then one plain matrix product instead of a contraction over several axes.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])
