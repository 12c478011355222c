"""Instance norm (Ulyanov et al., arXiv 1607.08022) followed by leaky ReLU."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jras_jax.kernels import switch


def norm_and_activation(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = 1e-5, slope: float = 0.01
) -> jax.Array:
    """Instance norm, scale, bias and leaky ReLU; the statistics, of each image and channel, are float32.

    Args:
      x: (B, H, W, C).
      scale, bias: (C,) float32.
      epsilon: added to the variance.
      slope: of leaky ReLU below zero.

    Returns:
      (B, H, W, C), in x's dtype.
    """
    return switch.choose(reference, cpu)(x, scale, bias, epsilon, slope)


def reference(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = 1e-5, slope: float = 0.01) -> jax.Array:
    """The definition, differentiated by JAX; mean and mean square need one pass over x, as in `flax.linen`'s norms."""
    return _forward(x, scale, bias=bias, epsilon=epsilon, slope=slope)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def cpu(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = 1e-5, slope: float = 0.01) -> jax.Array:
    """Equivalent to the reference: keeps only x for the backward pass, where JAX would keep x - mean as well."""
    return _forward(x, scale, bias=bias, epsilon=epsilon, slope=slope)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, slope: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    wide = x.astype(jnp.float32)
    mean = wide.mean((1, 2), keepdims=True)
    variance = jnp.maximum(jnp.square(wide).mean((1, 2), keepdims=True) - jnp.square(mean), 0.0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = jax.nn.leaky_relu((wide - mean) * (inverse * scale) + bias, slope)
    return y.astype(x.dtype), (x, mean, inverse, scale, bias)


def _backward(epsilon: float, slope: float, saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon
    x, mean, inverse, scale, bias = saved
    wide, gain = x.astype(jnp.float32), inverse * scale
    # Written without x - mean: XLA would recognise the forward pass's, and keep it.
    positive = wide * gain + (bias - mean * gain) >= 0
    g = gradient.astype(jnp.float32) * jnp.where(positive, 1.0, slope)
    of_bias = g.sum((1, 2), keepdims=True)
    of_scale = inverse * ((g * wide).sum((1, 2), keepdims=True) - mean * of_bias)
    pixels = x.shape[1] * x.shape[2]
    tilt = -gain * inverse * of_scale / pixels
    of_x = gain * g + tilt * wide - (gain * of_bias / pixels + tilt * mean)
    return of_x.astype(x.dtype), of_scale.sum((0, 1, 2)), of_bias.sum((0, 1, 2))


cpu.defvjp(_forward, _backward)
