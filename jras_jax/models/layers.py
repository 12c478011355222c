"""Layers that several models share.

Axes: B batch, H rows, W columns, C channels, T tokens, N heads, D width. Images are (B, H, W, C) everywhere. Parameters
are float32; `dtype` is the type of the computation; the statistics of every norm and every softmax are float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Method = Literal["bilinear", "bicubic"]
TRUNCATED = nn.initializers.truncated_normal(0.02)
WIDE = 32  # channels from which `resize` works slab by slab
SCORES = 540_000  # attention's scores that stay in the caches on CPU, float32


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
    """Resizes (B, H, W, C) to (B, *size, C) as `torch.nn.functional.interpolate` does; two matrix products.

    With many channels each is one product an image (rows) or a row (columns), which needs no transposed copy: up to
    twice as fast on CPU. With few channels those products would be too narrow.
    """
    precise = jax.lax.Precision.HIGHEST
    for axis, new in zip((1, 2), size, strict=True):
        if x.shape[axis] == new and not align_corners:
            continue
        matrix = jnp.asarray(resize_matrix(x.shape[axis], new, method, align_corners), x.dtype)
        if x.shape[-1] < WIDE:
            x = jnp.einsum("bhwc,oh->bowc" if axis == 1 else "bhwc,ow->bhoc", x, matrix, precision=precise)
            continue
        slabs = x.reshape(math.prod(x.shape[:axis]), x.shape[axis], -1)
        matrices = jnp.broadcast_to(matrix, (len(slabs), *matrix.shape))
        x = jnp.matmul(matrices, slabs, precision=precise).reshape(*x.shape[:axis], new, *x.shape[axis + 1 :])
    return x


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    """Pads (B, H, W, C) with zeros below and to the right, so that `multiple` divides H and W."""
    bottom, right = (-x.shape[1]) % multiple, (-x.shape[2]) % multiple
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0))) if bottom or right else x


def resize_positions(positions: jax.Array, grid: tuple[int, int], method: Method = "bicubic") -> jax.Array:
    """Position embeddings (1, G, G, D) brought to (1, *grid, D) in float32; unchanged on their own grid."""
    return resize(positions.astype(jnp.float32), grid, method)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution's function at x (arXiv 1606.08415), by erf as PyTorch has it; of any shape.

    `jax.nn.gelu` takes erfc, with its two branches, and keeps three arrays for the backward pass; here it is `x` alone.
    """
    return (x * _normal_cdf(x)).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x.astype(jnp.float32) * math.sqrt(0.5))


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) * (1.0 / math.sqrt(2.0 * math.pi))
    return ((gradient * (_normal_cdf(x) + wide * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


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


def attend(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """softmax(query key^T / sqrt(d) + bias) value for each head: (B, T, N, d), twice (B, S, N, d) -> (B, T, N, d).

    The bias is (B, N, T, S). Scores and softmax are float32.
    """
    given = (query, key, value) if bias is None else (query, key, value, bias)
    return jax.lax.platform_dependent(*given, cpu=attend_on_cpu, default=jax.nn.dot_product_attention)


def attend_on_cpu(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """The same, 1.1 to 2.2 times as fast there: some heads at a time, and the values' sums divided, not the scores.

    Whole heads, since a batch may be split over devices; a group's heads are spread evenly, so that heads may be too.
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

        y = attend(project("query", x), project("key", context), project("value", values))
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
