"""The depthwise 3x3 convolution with padding 1."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jras_jax.kernels import switch


def depthwise3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each channel with its 3x3 kernel: (B, H, W, C), (3, 3, C) -> (B, H, W, C), in x's dtype."""
    return switch.choose(reference, cpu)(x, kernel)


def reference(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's convolution of C groups."""
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None].astype(x.dtype),
        (1, 1),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@jax.custom_vjp
def cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Equivalent to the grouped convolution, whose backward pass is 14 to 34x slower on CPU: sums nine shifted maps.

    The kernel's gradient is a loop over rows, 2 to 9x faster than automatic differentiation of that sum.
    """
    return _nine_shifts(x, kernel)


def _nine_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    _, height, width, _ = x.shape
    padded = _padded(x)
    shifts = [(i, j) for i in range(3) for j in range(3)]
    return functools.reduce(
        jnp.add, (padded[:, i : i + height, j : j + width] * kernel[i, j].astype(x.dtype) for i, j in shifts)
    )


def _padded(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """Sums over B, H, W of the nine shifted products, (3, 3, C) float32, row by row into sums of shape (B, 1, W, C).

    XLA's CPU backend would run each of nine reductions column by column, and would recompute in each of them whatever
    produces `gradient`. The loop's body follows the memory layout, and its operands are computed once.
    """
    batch, height, width, channels = x.shape
    padded = _padded(x)

    def add(row: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
        g = jax.lax.dynamic_slice_in_dim(gradient, row, 1, 1)
        rows = jax.lax.dynamic_slice_in_dim(padded, row, 3, 1)
        shifts = (rows[:, i : i + 1, j : j + width] for i in range(3) for j in range(3))
        return [total + (shift * g).astype(jnp.float32) for total, shift in zip(sums, shifts, strict=True)]

    zeros = [jnp.zeros((batch, 1, width, channels), jnp.float32)] * 9
    sums = jax.lax.fori_loop(0, height, add, zeros)
    return jnp.stack([total.sum((0, 1, 2)) for total in sums]).reshape(3, 3, channels)


def _backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return _nine_shifts(gradient, kernel[::-1, ::-1]), _kernel_gradient(x, gradient).astype(kernel.dtype)


cpu.defvjp(lambda x, kernel: (_nine_shifts(x, kernel), (x, kernel)), _backward)
