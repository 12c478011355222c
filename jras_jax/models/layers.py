"""Layers that several models share.

Axes: B batch, H rows, W columns, C channels, T tokens, N heads, D width. Images are (B, H, W, C) everywhere. Parameters
are float32; `dtype` is the type of the computation; the statistics of every norm and every softmax are float32.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Method = Literal["bilinear", "bicubic"]
HE_LEAKY = nn.initializers.variance_scaling(2.0 / (1.0 + 0.01**2), "fan_in", "normal")
TRUNCATED = nn.initializers.truncated_normal(0.02)


@functools.lru_cache(maxsize=256)
def resize_matrix(old: int, new: int, method: Method = "bilinear", align_corners: bool = False) -> np.ndarray:
    """The (new, old) float32 matrix of one axis of `torch.nn.functional.interpolate` (no antialiasing).

    `bicubic` is the cubic convolution with a = -0.75 on clamped indices, which is what PyTorch has and what published
    position embeddings were trained with; `jax.image.resize` has a = -0.5 and renormalises at the border. With
    `align_corners` the first and the last samples of both grids coincide.
    """
    if align_corners:
        source = np.arange(new, dtype=np.float64) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    else:
        source = (np.arange(new, dtype=np.float64) + 0.5) * (old / new) - 0.5
    if method == "bilinear":
        source = np.clip(source, 0.0, old - 1.0)
    taps = (0, 1) if method == "bilinear" else (-1, 0, 1, 2)
    base = np.floor(source).astype(int)
    matrix = np.zeros((new, old), np.float64)
    for tap in taps:
        distance = np.abs(source - (base + tap))
        weight = np.maximum(1.0 - distance, 0.0) if method == "bilinear" else _cubic(distance)
        np.add.at(matrix, (np.arange(new), np.clip(base + tap, 0, old - 1)), weight)
    return matrix.astype(np.float32)


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' cubic convolution kernel (IEEE TASSP 1981) at distances in [0, 2]."""
    near = (a + 2.0) * distance**3 - (a + 3.0) * distance**2 + 1.0
    far = a * distance**3 - 5.0 * a * distance**2 + 8.0 * a * distance - 4.0 * a
    return np.where(distance <= 1.0, near, far)


def resize(x: jax.Array, size: tuple[int, int], method: Method = "bilinear", align_corners: bool = False) -> jax.Array:
    """Resizes (B, H, W, C) to (B, *size, C) as `torch.nn.functional.interpolate` does; two matrix products."""
    for axis, new in zip((1, 2), size, strict=True):
        if x.shape[axis] != new or align_corners:
            matrix = jnp.asarray(resize_matrix(x.shape[axis], new, method, align_corners), x.dtype)
            equation = "bhwc,oh->bowc" if axis == 1 else "bhwc,ow->bhoc"
            x = jnp.einsum(equation, x, matrix, precision=jax.lax.Precision.HIGHEST)
    return x


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    """Pads (B, H, W, C) with zeros below and to the right, so that `multiple` divides H and W."""
    bottom, right = (-x.shape[1]) % multiple, (-x.shape[2]) % multiple
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0))) if bottom or right else x


def resize_positions(positions: jax.Array, grid: tuple[int, int], method: Method = "bicubic") -> jax.Array:
    """Position embeddings (1, G, G, D) brought to (1, *grid, D) in float32; unchanged on their own grid."""
    return resize(positions.astype(jnp.float32), grid, method)


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(..., in) @ (in, out) -> (..., out), the leading axes taken together.

    The kernel's gradient is then one plain matrix product; as a contraction over several axes it is up to 5 times
    slower on CPU.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Linear(nn.Module):
    """y = x W + b, with an optional low-rank correction x A B (LoRA, arXiv 2106.09685, scale 1; B starts at zero).

    Parameters: kernel (in, features), bias (features,), and for lora_rank > 0 lora_a (in, r), lora_b (r, features).
    """

    features: int
    use_bias: bool = True
    lora_rank: int = 0
    dtype: Any = jnp.float32
    kernel_init: Any = TRUNCATED

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        x = x.astype(self.dtype)
        y = matmul(x, kernel.astype(self.dtype))
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        if self.lora_rank:
            down = self.param("lora_a", nn.initializers.he_uniform(), (x.shape[-1], self.lora_rank), jnp.float32)
            up = self.param("lora_b", nn.initializers.zeros, (self.lora_rank, self.features), jnp.float32)
            y = y + matmul(matmul(x, down.astype(self.dtype)), up.astype(self.dtype))
        return y


class LayerNorm(nn.Module):
    """Layer norm over the last axis with two-pass float32 statistics. Parameters: scale (C,), bias (C,)."""

    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        return (centred * inverse * scale + bias).astype(self.dtype)


class Attention(nn.Module):
    """Multi-head attention of tokens (B, T, D) to a context (B, S, D) and its values (B, S, D) -> (B, T, D).

    The context is the tokens themselves, and the values are the context, where they are None. `inner` channels (D where
    None) are shared by the heads. Parameters: query, key, value, output (each a `Linear`); LoRA of rank `lora_rank` on
    those named in `lora_targets`.
    """

    heads: int
    lora_rank: int = 0
    lora_targets: Sequence[str] = ("query", "key", "value")
    dropout: float = 0.0
    dtype: Any = jnp.float32
    inner: int | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        train: bool = False,
        values: jax.Array | None = None,
    ) -> jax.Array:
        inner = self.inner or x.shape[-1]
        context = x if context is None else context
        values = context if values is None else values

        def project(name: str, inputs: jax.Array) -> jax.Array:
            rank = self.lora_rank if name in self.lora_targets else 0
            y = Linear(inner, lora_rank=rank, dtype=self.dtype, name=name)(inputs)
            return y.reshape(*y.shape[:2], self.heads, inner // self.heads)

        y = jax.nn.dot_product_attention(project("query", x), project("key", context), project("value", values))
        y = Linear(x.shape[-1], dtype=self.dtype, name="output")(y.reshape(*y.shape[:2], inner))
        return nn.Dropout(self.dropout, deterministic=not train)(y)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): a sample's whole branch is dropped with probability `rate`."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dropout(self.rate, broadcast_dims=tuple(range(1, x.ndim)), deterministic=not train)(x)


class PatchEmbedding(nn.Module):
    """Non-overlapping patches to tokens: (B, H, W, C) -> (B, H // p, W // p, D); the remainder of H and W is cut off.

    The same function as a convolution of kernel and stride p, written as one matrix product.
    Parameters: kernel (p, p, C, D), bias (D,).
    """

    width: int
    patch: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        batch, height, columns, channels = images.shape
        p, rows, columns = self.patch, height // self.patch, columns // self.patch
        kernel = self.param("kernel", TRUNCATED, (p, p, channels, self.width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        x = images[:, : rows * p, : columns * p].astype(self.dtype)
        x = x.reshape(batch, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, rows, columns, p * p * channels)
        return matmul(x, kernel.reshape(-1, self.width).astype(self.dtype)) + bias.astype(self.dtype)


@jax.custom_vjp
def depthwise3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Nine shifted multiply-adds: a 3x3 depthwise convolution with padding 1. (B, H, W, C), (3, 3, C) -> (B, H, W, C).

    On CPU the grouped convolution's backward is 14 to 34 times slower than this sum, and the kernel's gradient by
    automatic differentiation is 2 to 9 times slower than the loop below.
    """
    return _nine_shifts(x, kernel)


def _nine_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [(i, j) for i in range(3) for j in range(3)]
    return functools.reduce(
        jnp.add, (padded[:, i : i + height, j : j + width] * kernel[i, j].astype(x.dtype) for i, j in shifts)
    )


def _depthwise_kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """Sums over B, H, W of the nine shifted products, (3, 3, C) float32, for whoever fuses reductions well."""
    _, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    sums = [jnp.sum((shift * gradient).astype(jnp.float32), (0, 1, 2)) for shift in shifts]
    return jnp.stack(sums).reshape(3, 3, channels)


def _depthwise_kernel_gradient_by_rows(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """The same, row by row into sums of shape (B, 1, W, C).

    XLA's CPU backend would walk each of nine reductions column by column, and compute what produced `gradient` anew in
    each; the loop's body runs along memory, and its operands are computed once.
    """
    batch, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

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


BAND = 1024  # output pixels an image of one band: its patches stay in the caches
BANDED = 4096  # output pixels an image from which the bands below are faster than XLA's own (measured on two cores)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """3x3 convolution with padding 1: (B, H, W, C), (3, 3, C, F) -> (B, ceil(H / stride), ceil(W / stride), F).

    On CPU the kernel's gradient of a large map is summed over bands of rows, see `_kernel_gradient_by_bands`: 1.2 to
    3 times faster than XLA's, and without its two transposed copies of the maps.
    """
    return _plain_conv3x3(x, kernel, stride)


def _plain_conv3x3(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (stride, stride), [(1, 1), (1, 1)], dimension_numbers=numbers
    )


def _kernel_gradient(x: jax.Array, gradient: jax.Array, stride: int) -> jax.Array:
    kernel = jnp.zeros((3, 3, x.shape[-1], gradient.shape[-1]), x.dtype)
    return jax.vjp(lambda k: _plain_conv3x3(x, k, stride), kernel)[1](gradient)[0].astype(jnp.float32)


def _kernel_gradient_by_bands(x: jax.Array, gradient: jax.Array, stride: int) -> jax.Array:
    """One matrix product a band of rows, of the gradient (pixels, F) and the patches (pixels, 9 C).

    The few channels stand on the product's narrow side and the nine shifts on its wide one, which is what makes it
    fast; the batch stays an axis of its own, so that a batch split over devices is summed once, behind the loop.
    """
    batch, height, width, features = gradient.shape
    rows = max(r for r in range(1, height + 1) if height % r == 0 and (r == 1 or r * width <= BAND))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    tall, wide = (rows - 1) * stride + 1, (width - 1) * stride + 1

    def add(band: jax.Array, total: jax.Array) -> jax.Array:
        seen = jax.lax.dynamic_slice_in_dim(padded, band * rows * stride, tall + 2, 1)
        shifts = [seen[:, i : i + tall : stride, j : j + wide : stride] for i in range(3) for j in range(3)]
        patches = jnp.concatenate(shifts, -1).reshape(batch, rows * width, -1)
        g = jax.lax.dynamic_slice_in_dim(gradient, band * rows, rows, 1).reshape(batch, rows * width, features)
        return total + jnp.einsum("bpf,bpc->bfc", g, patches, preferred_element_type=jnp.float32)

    start = jnp.zeros((batch, features, 9 * x.shape[-1]), jnp.float32)
    total = jax.lax.fori_loop(0, height // rows, add, start).sum(0)
    return total.reshape(features, 3, 3, -1).transpose(1, 2, 3, 0)


def _conv3x3_backward(
    stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    (of_x,) = jax.vjp(lambda x: _plain_conv3x3(x, kernel, stride), x)[1](gradient)
    plain = functools.partial(_kernel_gradient, stride=stride)
    banded = functools.partial(_kernel_gradient_by_bands, stride=stride)
    if gradient.shape[1] * gradient.shape[2] < BANDED:
        return of_x, plain(x, gradient).astype(kernel.dtype)
    of_kernel = jax.lax.platform_dependent(x, gradient, cpu=banded, default=plain)
    return of_x, of_kernel.astype(kernel.dtype)


conv3x3.defvjp(lambda x, kernel, stride: (_plain_conv3x3(x, kernel, stride), (x, kernel)), _conv3x3_backward)


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


class Upsample2x(nn.Module):
    """The transposed convolution of kernel 2 and stride 2: (B, H, W, C) -> (B, 2H, 2W, features).

    One matrix product and a depth-to-space: the same function and the same weights as `ConvTranspose2d(C, features, 2,
    2)`, whose backward is several times slower in XLA on CPU. Parameters: kernel (C, 2, 2, features), bias (features,).
    """

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=(1, 2, 3))
        kernel = self.param("kernel", init, (channels, 2, 2, self.features), jnp.float32).astype(self.dtype)
        y = matmul(x.astype(self.dtype), kernel.reshape(channels, -1))
        y = y.reshape(batch, height, width, 2, 2, self.features).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(batch, 2 * height, 2 * width, self.features)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return y
