"""Layers that several models share.

Axes: B batch, H rows, W columns, C channels, T tokens, N heads, D width. Images are (B, H, W, C) everywhere. Parameters
are float32; `dtype` is the type of the computation; the statistics of every norm and every softmax are float32.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jras_jax import kernels

PRODUCT = "product"  # results of convolutions, products and attention: what config.train.remat keeps
Method = Literal["bilinear", "bicubic"]
TRUNCATED = nn.initializers.truncated_normal(0.02)


def product(x: jax.Array) -> jax.Array:
    """Names the result of a product, see `PRODUCT`; the value is unchanged."""
    return checkpoint_name(x, PRODUCT)


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
        if x.shape[axis] == new and not align_corners:
            continue
        matrix = jnp.asarray(resize_matrix(x.shape[axis], new=new, method=method, align_corners=align_corners), x.dtype)
        x = kernels.resample(x, matrix, axis)
    return x


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    """Pads (B, H, W, C) with zeros below and to the right, so that `multiple` divides H and W."""
    bottom, right = (-x.shape[1]) % multiple, (-x.shape[2]) % multiple
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0))) if bottom or right else x


def resize_positions(positions: jax.Array, grid: tuple[int, int], method: Method = "bicubic") -> jax.Array:
    """Position embeddings (1, G, G, D) brought to (1, *grid, D) in float32; unchanged on their own grid."""
    return resize(positions.astype(jnp.float32), grid, method)


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
        y = kernels.matmul(x, kernel.astype(self.dtype))
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        if self.lora_rank:
            down = self.param("lora_a", nn.initializers.he_uniform(), (x.shape[-1], self.lora_rank), jnp.float32)
            up = self.param("lora_b", nn.initializers.zeros, (self.lora_rank, self.features), jnp.float32)
            y = y + kernels.matmul(kernels.matmul(x, down.astype(self.dtype)), up.astype(self.dtype))
        return product(y)


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

    If the context is None, it is the tokens themselves; if the values are None, they are the context. `inner` channels
    (D if None) are shared by the heads. Parameters: query, key, value, output (each a `Linear`); LoRA of rank
    `lora_rank` on those named in `lora_targets`.
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

        y = product(kernels.attend(project("query", x), project("key", context), project("value", values)))
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
        return kernels.matmul(x, kernel.reshape(-1, self.width).astype(self.dtype)) + bias.astype(self.dtype)


class Upsample2x(nn.Module):
    """`kernels.upsample2x` and a bias: (B, H, W, C) -> (B, 2H, 2W, features).

    Parameters: kernel (C, 2, 2, features), bias (features,).
    """

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=(1, 2, 3))
        kernel = self.param("kernel", init, (x.shape[-1], 2, 2, self.features), jnp.float32)
        y = kernels.upsample2x(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return product(y)
