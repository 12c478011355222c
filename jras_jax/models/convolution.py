"""3x3 convolutions, dense and depthwise, whose gradients are fast on CPU as well.

XLA's CPU backend runs a dense convolution close to the matrix product's peak, but the gradient of its kernel at a fifth
to two thirds of that, that of its input at a third where the stride is 2, and grouped convolutions at a fraction of it;
figures in docs/lab-notes. On other platforms everything is left to XLA. Axes as in `layers`.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

HE_LEAKY = nn.initializers.variance_scaling(2.0 / (1.0 + 0.01**2), "fan_in", "normal")
BAND = 32768  # output pixels an image times channels of one band: its patches stay in the caches
BANDED = 4096  # output pixels an image from which bands are faster than one product
ODD = range(3, 16, 2)  # channels of an image, as against a feature map, that go faster with one more
SCATTERED = 256  # output pixels an image up to which the input's gradient is fastest as one product, at stride 1
TILED = (1024, 96)  # 2x2 tiles of a batch, and channels on the narrower side, from which Winograd's form is faster

Shape = tuple[int, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """3x3 convolution with padding 1: (B, H, W, C), (3, 3, C, F) -> (B, ceil(H / stride), ceil(W / stride), F)."""
    on_cpu, plain = (functools.partial(f, stride=stride) for f in (_convolved_even, _convolved))
    if x.shape[-1] in ODD:
        return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)
    return plain(x, kernel)


def _convolved_even(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """With a channel of zeros more: XLA's CPU backend is two to four times slower where the channels are odd."""
    more = ((0, 0), (0, 0), (0, 0), (0, 1))
    return _convolved(jnp.pad(x, more), jnp.pad(kernel, (*more[:2], (0, 1), (0, 0))), stride)


def _convolved(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (stride, stride), [(1, 1), (1, 1)], dimension_numbers=numbers
    )


def input_gradient(shape: Shape, stride: int, gradient: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's own: the output's gradient (B, H', W', F) and the kernel -> (B, H, W, C), which is `shape`."""
    return jax.vjp(lambda x: _convolved(x, kernel, stride), jnp.zeros(shape, gradient.dtype))[1](gradient)[0]


def input_gradient_on_cpu(shape: Shape, stride: int, gradient: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same, by the way that was fastest on two cores for these sizes."""
    _, height, width, _ = gradient.shape
    if stride == 1 and height * width > SCATTERED:
        return input_gradient(shape, stride, gradient, kernel)
    return _scattered(shape, stride, gradient, kernel)


def _scattered(shape: Shape, stride: int, gradient: jax.Array, kernel: jax.Array) -> jax.Array:
    """One matrix product for what each output pixel gives to the 3x3 inputs that it saw, then the sum of those.

    Input row y is seen through the kernel's row i by output row (y + 1 - i) / stride, where that is whole: rows of
    the same remainder, a phase, have the same taps, so each phase is a sum of shifted maps.
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


def kernel_gradient(x: jax.Array, gradient: jax.Array, stride: int) -> jax.Array:
    """XLA's own: (B, H, W, C) and the output's gradient (B, H', W', F) -> (3, 3, C, F) float32."""
    kernel = jnp.zeros((3, 3, x.shape[-1], gradient.shape[-1]), x.dtype)
    return jax.vjp(lambda k: _convolved(x, k, stride), kernel)[1](gradient)[0].astype(jnp.float32)


def kernel_gradient_on_cpu(x: jax.Array, gradient: jax.Array, stride: int) -> jax.Array:
    """The same, by the way that was fastest on two cores for these sizes."""
    batch, height, width, features = gradient.shape
    tiles, channels = TILED
    even = stride == 1 and height % 2 == width % 2 == 0
    large = batch * height * width >= 4 * tiles and min(x.shape[-1], features) >= channels
    if even and large and x.dtype == jnp.float32:
        return _by_tiles(x, gradient)
    if height * width >= BANDED:
        return _by_bands(x, gradient, stride)
    seen, g = (a.reshape(-1, a.shape[-1]) for a in _patches(_padded(x), gradient, stride, 0, height))
    total = jnp.einsum("pc,pf->cf", seen, g, preferred_element_type=jnp.float32)
    return total.reshape(3, 3, x.shape[-1], features)


def _padded(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _patches(
    padded: jax.Array, gradient: jax.Array, stride: int, first: jax.Array | int, rows: int
) -> tuple[jax.Array, jax.Array]:
    """What `rows` output rows from `first` on have seen, (B, pixels, 9 C), and their gradient, (B, pixels, F)."""
    batch, _, width, features = gradient.shape
    tall, wide = (rows - 1) * stride + 1, (width - 1) * stride + 1
    seen = jax.lax.dynamic_slice_in_dim(padded, first * stride, tall + 2, 1)
    shifts = [seen[:, i : i + tall : stride, j : j + wide : stride] for i in range(3) for j in range(3)]
    patches = jnp.concatenate(shifts, -1).reshape(batch, rows * width, -1)
    return patches, jax.lax.dynamic_slice_in_dim(gradient, first, rows, 1).reshape(batch, rows * width, features)


def _by_bands(x: jax.Array, gradient: jax.Array, stride: int) -> jax.Array:
    """One matrix product a band of rows, of the gradient (pixels, F) and the patches (pixels, 9 C).

    The few channels stand on the product's narrow side and the nine shifts on its wide one, which is what makes it
    fast; the batch stays an axis of its own, so that a batch split over devices is summed once, behind the loop.
    """
    batch, height, width, features = gradient.shape
    row = width * x.shape[-1]
    rows = max(r for r in range(1, height + 1) if height % r == 0 and (r == 1 or r * row <= BAND))
    padded = _padded(x)

    def add(band: jax.Array, total: jax.Array) -> jax.Array:
        patches, g = _patches(padded, gradient, stride, band * rows, rows)
        return total + jnp.einsum("bpf,bpc->bfc", g, patches, preferred_element_type=jnp.float32)

    start = jnp.zeros((batch, features, 9 * x.shape[-1]), jnp.float32)
    total = jax.lax.fori_loop(0, height // rows, add, start).sum(0)
    return total.reshape(features, 3, 3, -1).transpose(1, 2, 3, 0)


# Winograd's F(3, 2) (Lavin and Gray, arXiv 1509.09308): three outputs of a two-tap filter from four inputs and four
# products. In one dimension, product k is (sum of INPUT[k] over a tile of 4) * (sum of OUTER[k] over a tile of 2), each
# as (place, factor); the three sums are PRODUCTS @ products.
INPUT = (((0, 1), (2, -1)), ((1, 1), (2, 1)), ((2, 1), (1, -1)), ((3, 1), (1, -1)))
OUTER = (((0, 1.0),), ((0, 0.5), (1, 0.5)), ((0, 0.5), (1, -0.5)), ((1, 1.0),))
PRODUCTS = np.array([[1, 1, 1, 0], [0, 1, -1, 0], [0, 1, 1, 1]], np.float32)


def _by_tiles(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """Winograd's form: 16 matrix products over tiles of 2x2 outputs, 2.25 times fewer operations; even H and W.

    The filter of F(3, 2) is here the output's gradient, and its three outputs are the kernel's rows. Each of the
    sixteen sums of shifted maps has a quarter of the pixels. Of a batch split over devices each product is summed by
    itself: 16 all-reduces in place of one, on CPU only.
    """
    _, height, width, features = gradient.shape
    # Without the barrier XLA would compute what produced the two maps anew in each of the sixteen.
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


def _conv3x3_backward(
    stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    on_cpu, plain = (functools.partial(f, x.shape, stride) for f in (input_gradient_on_cpu, input_gradient))
    of_x = jax.lax.platform_dependent(gradient, kernel, cpu=on_cpu, default=plain)
    on_cpu, plain = (functools.partial(f, stride=stride) for f in (kernel_gradient_on_cpu, kernel_gradient))
    of_kernel = jax.lax.platform_dependent(x, gradient, cpu=on_cpu, default=plain)
    return of_x, of_kernel.astype(kernel.dtype)


conv3x3.defvjp(lambda x, kernel, stride: (conv3x3(x, kernel, stride), (x, kernel)), _conv3x3_backward)


class Conv3x3(nn.Module):
    """`conv3x3` without bias, of one or several maps as if their channels stood side by side.

    Several are convolved one by one and summed, which saves the copy that joins them. Parameters: kernel (3, 3, C,
    features), C channels in all.
    """

    features: int
    stride: int = 1
    dtype: Any = jnp.float32
    kernel_init: Any = HE_LEAKY

    @nn.compact
    def __call__(self, *maps: jax.Array) -> jax.Array:
        ends = np.cumsum([0, *(x.shape[-1] for x in maps)])
        kernel = self.param("kernel", self.kernel_init, (3, 3, int(ends[-1]), self.features), jnp.float32)
        parts = (kernel[:, :, a:b] for a, b in itertools.pairwise(ends))
        convolved = (conv3x3(x.astype(self.dtype), part, self.stride) for x, part in zip(maps, parts, strict=True))
        return functools.reduce(jnp.add, convolved)


@jax.custom_vjp
def depthwise3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Nine shifted multiply-adds: a 3x3 depthwise convolution with padding 1. (B, H, W, C), (3, 3, C) -> (B, H, W, C).

    On CPU the grouped convolution's backward is 14 to 34 times slower than this sum, and the kernel's gradient by
    automatic differentiation is 2 to 9 times slower than the loop below.
    """
    return _nine_shifts(x, kernel)


def _nine_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    _, height, width, _ = x.shape
    padded = _padded(x)
    shifts = [(i, j) for i in range(3) for j in range(3)]
    return functools.reduce(
        jnp.add, (padded[:, i : i + height, j : j + width] * kernel[i, j].astype(x.dtype) for i, j in shifts)
    )


def _depthwise_kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """Sums over B, H, W of the nine shifted products, (3, 3, C) float32, for whoever fuses reductions well."""
    _, height, width, channels = x.shape
    padded = _padded(x)
    shifts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    sums = [jnp.sum((shift * gradient).astype(jnp.float32), (0, 1, 2)) for shift in shifts]
    return jnp.stack(sums).reshape(3, 3, channels)


def _depthwise_kernel_gradient_by_rows(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """The same, row by row into sums of shape (B, 1, W, C).

    XLA's CPU backend would walk each of nine reductions column by column, and compute what produced `gradient` anew in
    each; the loop's body runs along memory, and its operands are computed once.
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


def _depthwise3x3_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    of_kernel = jax.lax.platform_dependent(
        x, gradient, cpu=_depthwise_kernel_gradient_by_rows, default=_depthwise_kernel_gradient
    )
    return _nine_shifts(gradient, kernel[::-1, ::-1]), of_kernel.astype(kernel.dtype)


depthwise3x3.defvjp(lambda x, kernel: (_nine_shifts(x, kernel), (x, kernel)), _depthwise3x3_backward)


class DepthwiseConv3x3(nn.Module):
    """`depthwise3x3` and a bias. Parameters: kernel (3, 3, C), bias (C,)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=(0, 1), out_axis=2)
        kernel = self.param("kernel", init, (3, 3, x.shape[-1]), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return depthwise3x3(x.astype(self.dtype), kernel) + bias.astype(self.dtype)
