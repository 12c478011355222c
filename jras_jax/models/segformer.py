"""SegFormer B0 to B5 (Xie et al., NeurIPS 2021; arXiv 2105.15203), equal to `transformers`' semantic segmentation
model.

Four stages at strides 4, 8, 16 and 32; in each, attention to a spatially reduced context and a feed-forward net with a
depthwise 3x3 convolution in place of position embeddings. The decoder is linear up to its batch norm, so that its maps
are applied before the upsampling: the same function at a fraction of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jras_jax import kernels
from jras_jax.errors import UserError
from jras_jax.models.convolution import DepthwiseConv3x3
from jras_jax.models.layers import (
    Attention,
    DropPath,
    LayerNorm,
    Linear,
    PatchEmbedding,
    resize,
)

_WIDE = {"widths": (64, 128, 320, 512)}
VARIANTS: dict[str, dict[str, Any]] = {
    "b0": {"depths": (2, 2, 2, 2), "widths": (32, 64, 160, 256), "decoder_width": 256},
    "b1": {"depths": (2, 2, 2, 2), **_WIDE, "decoder_width": 256},
    "b2": {"depths": (3, 4, 6, 3), **_WIDE, "decoder_width": 768},
    "b3": {"depths": (3, 4, 18, 3), **_WIDE, "decoder_width": 768},
    "b4": {"depths": (3, 8, 27, 3), **_WIDE, "decoder_width": 768},
    "b5": {"depths": (3, 6, 40, 3), **_WIDE, "decoder_width": 768},
}
STAGES = 4
EPSILON = 1e-5
SMALLEST = 32  # below it the last stage, or the reduced context, would be empty
CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class MixMlp(nn.Module):
    """Linear, depthwise 3x3, GELU, linear; (B, H, W, C) -> (B, H, W, C), `hidden` channels between."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = Linear(self.hidden, dtype=self.dtype, name="fc1")(x)
        y = kernels.gelu(DepthwiseConv3x3(self.dtype, name="depthwise")(y))
        return Linear(x.shape[-1], dtype=self.dtype, name="fc2")(y)


class Block(nn.Module):
    """Attention to the map reduced by `reduction` a side, then the mixed feed-forward net; (B, H, W, C) stays."""

    heads: int
    reduction: int
    drop_path: float = 0.0
    mlp_ratio: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        batch, height, width, channels = x.shape
        y = LayerNorm(EPSILON, self.dtype, name="norm1")(x)
        context = y
        if self.reduction > 1:
            context = PatchEmbedding(channels, self.reduction, self.dtype, name="reduction")(y)
            context = LayerNorm(EPSILON, self.dtype, name="reduction_norm")(context)
        attention = Attention(self.heads, dtype=self.dtype, name="attention")
        y = attention(y.reshape(batch, height * width, channels), context.reshape(batch, -1, channels))
        x = x + DropPath(self.drop_path)(y.reshape(x.shape), train)
        y = MixMlp(self.mlp_ratio * channels, self.dtype, name="mlp")(LayerNorm(EPSILON, self.dtype, name="norm2")(x))
        return x + DropPath(self.drop_path)(y, train)


class Stage(nn.Module):
    """Overlapping patches of `kernel` at `stride`, then blocks, then layer norm; H and W become ceil(/ stride)."""

    width: int
    kernel: int
    stride: int
    heads: int
    reduction: int
    drop_paths: Sequence[float]
    mlp_ratio: int = 4
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(
            self.width,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            padding=self.kernel // 2,
            dtype=self.dtype,
            kernel_init=CONV_INIT,
            name="patch",
        )(x)
        x = LayerNorm(EPSILON, self.dtype, name="patch_norm")(x)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for index, rate in enumerate(self.drop_paths):
            settings = {"mlp_ratio": self.mlp_ratio, "dtype": self.dtype, "name": f"block_{index}"}
            x = block(self.heads, reduction=self.reduction, drop_path=rate, **settings)(x, train)
        return LayerNorm(EPSILON, self.dtype, name="norm")(x)


class _Map(nn.Module):
    """The kernel (in, features) and bias of a linear map, for use in a product of maps."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, inputs: int) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (inputs, self.features), jnp.float32)
        if self.use_bias:
            return kernel, self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return kernel, jnp.zeros((self.features,), jnp.float32)


class Decoder(nn.Module):
    """The all-MLP decoder: four maps (B, Hi, Wi, Ci), finest first -> logits (B, H0, W0, num_classes) float32.

    The reference takes each map through linear_i to D channels, upsamples it, stacks the four (coarsest first) and
    applies a 1x1 convolution. Bilinear weights sum to one, so that upsampling commutes with affine maps: here each map
    goes through the product of its two maps at its own size, is upsampled and added.
    """

    num_classes: int
    width: int
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Sequence[jax.Array], train: bool = False) -> jax.Array:
        fuse, _ = _Map(self.width, use_bias=False, name="fuse")(STAGES * self.width)
        parts = fuse.reshape(STAGES, self.width, self.width)[::-1]
        total, size = None, (features[0].shape[1], features[0].shape[2])
        for index, (x, part) in enumerate(zip(features, parts, strict=True)):
            kernel, bias = _Map(self.width, name=f"linear_{index}")(x.shape[-1])
            precise = jax.lax.Precision.HIGHEST
            kernel, bias = (jnp.matmul(w, part, precision=precise).astype(self.dtype) for w in (kernel, bias))
            y = resize(kernels.matmul(x.astype(self.dtype), kernel) + bias, size)
            total = y if total is None else total + y
        x = nn.BatchNorm(not train, momentum=0.9, epsilon=EPSILON, dtype=self.dtype, name="norm")(total)
        # Whole channels, as in the authors' code (github.com/NVlabs/SegFormer); transformers drops single values.
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(nn.relu(x))
        return Linear(self.num_classes, name="classifier")(x.astype(jnp.float32))


class SegFormer(nn.Module):
    """The backbone `segformer`.

    Attributes:
      num_classes: C of the logits.
      depths, widths, heads, reductions: of the four stages, at strides 4, 8, 16, 32.
      decoder_width: channels of the decoder. mlp_ratio: hidden channels of the feed-forward nets over their width.
      drop_path: rate of stochastic depth at the last block, growing linearly from 0. dropout: of channels before the
        classifier.
      remat: recompute the blocks in the backward pass.
      dtype: of the computation; parameters and logits stay float32.
    Collections: params, batch_stats (of the decoder's batch norm).
    """

    num_classes: int = 4
    depths: Sequence[int] = (2, 2, 2, 2)
    widths: Sequence[int] = (32, 64, 160, 256)
    heads: Sequence[int] = (1, 2, 5, 8)
    reductions: Sequence[int] = (8, 4, 2, 1)
    decoder_width: int = 256
    mlp_ratio: int = 4
    drop_path: float = 0.1
    dropout: float = 0.1
    remat: bool = False
    dtype: Any = jnp.float32

    fusion_levels = (0, 1)

    def setup(self) -> None:
        blocks = sum(self.depths)
        rates = [self.drop_path * i / max(blocks - 1, 1) for i in range(blocks)]
        self.stage = [
            Stage(
                self.widths[i],
                kernel=7 if i == 0 else 3,
                stride=4 if i == 0 else 2,
                heads=self.heads[i],
                reduction=self.reductions[i],
                drop_paths=tuple(rates[sum(self.depths[:i]) : sum(self.depths[: i + 1])]),
                mlp_ratio=self.mlp_ratio,
                remat=self.remat,
                dtype=self.dtype,
            )
            for i in range(STAGES)
        ]
        self.decoder = Decoder(self.num_classes, width=self.decoder_width, dropout=self.dropout, dtype=self.dtype)

    def encode(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        """(B, H, W, C) -> the four stages' maps at ceil(size / 4), / 8, / 16 and / 32; H and W at least 32."""
        if min(x.shape[1:3]) < SMALLEST:
            height, width = x.shape[1:3]
            raise UserError(f"SegFormer takes images of {SMALLEST} pixels a side or more, not {height}x{width}")
        outputs = []
        for stage in self.stage:
            x = stage(x, train)
            outputs.append(x)
        return tuple(outputs)

    def decode(self, features: tuple[jax.Array, ...], size: tuple[int, int], train: bool = False) -> jax.Array:
        """Logits (B, *size, num_classes) float32: those of stride 4, upsampled bilinearly."""
        return resize(self.decoder(features, train), size)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """(B, H, W, C) -> logits (B, H, W, num_classes) float32."""
        return self.decode(self.encode(x, train), (x.shape[1], x.shape[2]), train)
