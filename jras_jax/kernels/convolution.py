"""The dense 3x3 convolution with padding 1.

XLA's CPU backend runs the convolution at close to a matrix product's peak, but its kernel's gradient at a fifth to two
thirds of that, and at stride 2 its input's gradient at a third (benchmarks/RESULTS.md). The CPU form computes both
gradients by matrix products, in the way that is fastest for their sizes on two cores.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jras_jax.kernels import switch

BAND = 32768  # output pixels per image times C of one band, so that its patches stay in the caches
BANDED = 4096  # output pixels per image from which bands are faster than one product
ODD = range(3, 16, 2)  # channel counts of images, as opposed to feature maps, that are faster with one more channel
SCATTERED = 256  # output pixels per image up to which one product is fastest for the input's gradient at stride 1
TILED = (1024, 96)  # 2x2 tiles per batch, and min(C, F), from which Winograd's form is faster

Shape = tuple[int, ...]


def conv3x3(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves with padding 1.

    Args:
      x: (B, H, W, C).
      kernel: (3, 3, C, F); converted to x's dtype.
      stride: of rows and columns.

    Returns:
      (B, ceil(H / stride), ceil(W / stride), F), in x's dtype.
    """
    return switch.choose(reference, cpu)(x, kernel, stride)


def reference(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """XLA's convolution."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (stride, stride), [(1, 1), (1, 1)], dimension_numbers=numbers
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def cpu(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Equivalent to XLA's convolution, with faster gradients on CPU; see the module's docstring.

    Adds a channel of zeros if the channels are few and odd: XLA's CPU backend is 2 to 4x slower on those.
    """
    if x.shape[-1] not in ODD:
        return reference(x, kernel, stride)
    more = ((0, 0), (0, 0), (0, 0), (0, 1))
    return reference(jnp.pad(x, more), jnp.pad(kernel, (*more[:2], (0, 1), (0, 0))), stride)


def _input_gradient(shape: Shape, stride: int, gradient: jax.Array, kernel: jax.Array) -> jax.Array:
    """The gradient (B, H', W', F) of the output and the kernel -> (B, H, W, C), which is `shape`."""
    _, height, width, _ = gradient.shape
    if stride == 1 and height * width > SCATTERED:
        return jax.vjp(lambda x: reference(x, kernel, stride), jnp.zeros(shape, gradient.dtype))[1](gradient)[0]
    return _scattered(shape, stride, gradient=gradient, kernel=kernel)


def _scattered(shape: Shape, stride: int, gradient: jax.Array, kernel: jax.Array) -> jax.Array:
    """The input's gradient: one matrix product gives each output pixel's share for its 3x3 inputs, which are summed.

    Output row (y + 1 - i) / stride sees input row y through row i of the kernel, if that quotient is an integer. Rows
    with the same remainder, a phase, have the same taps, so each phase is a sum of shifted maps.
    """
    batch, height, width, features = gradient.shape
    flat, taps = gradient.reshape(-1, features), kernel.astype(gradient.dtype).reshape(-1, features)
    given = jnp.einsum("pf,nf->pn", flat, taps, preferred_element_type=jnp.float32)
    given = given.reshape(batch, height, width, 3, 3, shape[-1])

    def phase(row: int, column: int) -> jax.Array:
        total: Any = 0.0
        for i, j in itertools.product(range(3), range(3)):
            (up, i_seen), (left, j_seen) = divmod(row + 1 - i, stride), divmod(column + 1 - j, stride)
            if not i_seen and not j_seen:
                edges = ((0, 0, 0), (-up, up, 0), (-left, left, 0), (0, 0, 0))
                total = total + jax.lax.pad(given[:, :, :, i, j], jnp.float32(0), edges)
        return total

    rows = [jnp.stack([phase(row, column) for column in range(stride)], 3) for row in range(stride)]
    whole = jnp.stack(rows, 2).reshape(batch, stride * height, stride * width, shape[-1])
    return whole[:, : shape[1], : shape[2]].astype(gradient.dtype)


def _kernel_gradient(x: jax.Array, gradient: jax.Array, stride: int) -> jax.Array:
    """(B, H, W, C) and the gradient (B, H', W', F) of the output -> (3, 3, C, F) float32."""
    batch, height, width, features = gradient.shape
    tiles, channels = TILED
    even = stride == 1 and height % 2 == width % 2 == 0
    large = batch * height * width >= 4 * tiles and min(x.shape[-1], features) >= channels
    if even and large and x.dtype == jnp.float32:
        return _by_tiles(x, gradient)
    if height * width >= BANDED:
        return _by_bands(x, gradient, stride)
    seen, g = (a.reshape(-1, a.shape[-1]) for a in _patches(_padded(x), gradient, stride=stride, first=0, rows=height))
    total = jnp.einsum("pc,pf->cf", seen, g, preferred_element_type=jnp.float32)
    return total.reshape(3, 3, x.shape[-1], features)


def _padded(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _patches(
    padded: jax.Array, gradient: jax.Array, stride: int, first: jax.Array | int, rows: int
) -> tuple[jax.Array, jax.Array]:
    """The inputs (B, pixels, 9 C) that `rows` output rows from `first` on see, and their gradient (B, pixels, F)."""
    batch, _, width, features = gradient.shape
    tall, wide = (rows - 1) * stride + 1, (width - 1) * stride + 1
    seen = jax.lax.dynamic_slice_in_dim(padded, first * stride, tall + 2, 1)
    shifts = [seen[:, i : i + tall : stride, j : j + wide : stride] for i in range(3) for j in range(3)]
    patches = jnp.concatenate(shifts, -1).reshape(batch, rows * width, -1)
    return patches, jax.lax.dynamic_slice_in_dim(gradient, first, rows, 1).reshape(batch, rows * width, features)


def _by_bands(x: jax.Array, gradient: jax.Array, stride: int) -> jax.Array:
    """The kernel's gradient: one matrix product per band of rows, of gradient (pixels, F) and patches (pixels, 9 C).

    It is fast because the few channels form the product's narrow side and the nine shifts its wide side. The batch
    remains a separate axis, so that a batch split over devices is summed once, after the loop.
    """
    batch, height, width, features = gradient.shape
    row = width * x.shape[-1]
    rows = max(r for r in range(1, height + 1) if height % r == 0 and (r == 1 or r * row <= BAND))
    padded = _padded(x)

    def add(band: jax.Array, total: jax.Array) -> jax.Array:
        patches, g = _patches(padded, gradient, stride=stride, first=band * rows, rows=rows)
        return total + jnp.einsum("bpf,bpc->bfc", g, patches, preferred_element_type=jnp.float32)

    start = jnp.zeros((batch, features, 9 * x.shape[-1]), jnp.float32)
    total = jax.lax.fori_loop(0, height // rows, add, start).sum(0)
    return total.reshape(features, 3, 3, -1).transpose(1, 2, 3, 0)


# Winograd's F(3, 2) (Lavin and Gray, arXiv 1509.09308): three outputs of a two-tap filter from four inputs and four
# products. In one dimension, product k is (sum of INPUT[k] over a tile of 4) * (sum of OUTER[k] over a tile of 2), both
# with terms (place, factor); the three outputs are PRODUCTS @ products.
INPUT = (((0, 1), (2, -1)), ((1, 1), (2, 1)), ((2, 1), (1, -1)), ((3, 1), (1, -1)))
OUTER = (((0, 1.0),), ((0, 0.5), (1, 0.5)), ((0, 0.5), (1, -0.5)), ((1, 1.0),))
PRODUCTS = np.array([[1, 1, 1, 0], [0, 1, -1, 0], [0, 1, 1, 1]], np.float32)


def _by_tiles(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """The kernel's gradient in Winograd's form, for even H and W: 16 matrix products over tiles of 2x2 outputs.

    It needs 2.25 times fewer operations. The output's gradient takes the part of F(3, 2)'s filter, and the kernel's
    rows that of its three outputs. Each of the sixteen sums of shifted maps has a quarter of the pixels. If a batch is
    split over devices, each product is summed separately: 16 all-reduces instead of one.
    """
    _, height, width, features = gradient.shape
    # Without the barrier XLA would recompute in each of the sixteen whatever produces the two maps.
    padded, gradient = jax.lax.optimization_barrier((_padded(x), gradient))

    def product(row: int, column: int) -> jax.Array:
        ours, theirs = itertools.product(INPUT[row], INPUT[column]), itertools.product(OUTER[row], OUTER[column])
        seen = sum((a * b) * padded[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for (i, a), (j, b) in ours)
        outer = sum((a * b) * gradient[:, i::2, j::2] for (i, a), (j, b) in theirs)
        return jnp.einsum("pc,pf->cf", jnp.reshape(seen, (-1, x.shape[-1])), jnp.reshape(outer, (-1, features)))

    products = jnp.stack([product(row, column) for row in range(4) for column in range(4)])
    products = products.reshape(4, 4, *products.shape[1:])
    precise = jax.lax.Precision.HIGHEST
    return jnp.einsum("ia,jb,abcf->ijcf", PRODUCTS, PRODUCTS, products, precision=precise)


def _backward(stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    of_x = _input_gradient(x.shape, stride, gradient=gradient, kernel=kernel)
    return of_x, _kernel_gradient(x, gradient, stride).astype(kernel.dtype)


cpu.defvjp(lambda x, kernel, stride: (cpu(x, kernel, stride), (x, kernel)), _backward)
