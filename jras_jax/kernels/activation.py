"""The exact GELU (Hendrycks and Gimpel, arXiv 1606.08415)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jras_jax.kernels import switch


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution's function at x, computed in float32; any shape, x's dtype."""
    return switch.choose(reference, cpu)(x)


def reference(x: jax.Array) -> jax.Array:
    """`jax.nn.gelu`, not approximated."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


@jax.custom_vjp
def cpu(x: jax.Array) -> jax.Array:
    """Equivalent to `jax.nn.gelu`: uses erf, as PyTorch does, and keeps only x for the backward pass.

    `jax.nn.gelu` uses erfc, which has two branches, and keeps three arrays.
    """
    return (x * _normal_cdf(x)).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x.astype(jnp.float32) * math.sqrt(0.5))


def _backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) * (1.0 / math.sqrt(2.0 * math.pi))
    return ((gradient * (_normal_cdf(x) + wide * density)).astype(x.dtype),)


cpu.defvjp(lambda x: (cpu(x), x), _backward)
