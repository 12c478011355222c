"""TransUNet (Chen et al., arXiv 2102.04306): convolutions, a transformer at stride 16, and a cascade of upsamplings.

The encoder is Google's hybrid of "An image is worth 16x16 words" (arXiv 2010.11929): a ResNet-50 of three stages with
weight-standardised convolutions and group norm, whose map of stride 16 gives one token a pixel to a ViT-B. `vit_b16`
has no convolutions before the transformer and therefore no skip connections.

| variant | parameters (3 input channels, 9 classes) |
|---|---|
| r50_vit_b16 | 105,277,081 |
| vit_b16 | 91,674,201 |
| tiny | 398,441 |

The counts are those of the published PyTorch code (github.com/Beckschen/TransUNet). Where that differs from Google's
(google-research/vision_transformer, vit_jax/models_resnet.py), the weights decide: they were trained with TensorFlow's
SAME padding (an even map is padded below and to the right only), 32 groups in every group norm, and 1e-5 added to a
kernel's deviation; timm's hybrid pads and groups alike. The published code pads the first convolution by 3 on every
side and its pooling not at all (then fills the skips up with zeros), and normalises the projections channel by channel.

From the published code come the missing class token, the linear interpolation of position embeddings between coinciding
corners, the exact GELU (timm's too; Google's is the tanh approximation) and the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jras_jax.errors import UserError
from jras_jax.models.layers import TRUNCATED, LayerNorm, PatchEmbedding, pad_to_multiple, resize
from jras_jax.models.vit import Block

# position_grid: 224 / 16 = 14 tokens a side in pre-training; `tiny` is ours, for demonstrations.
VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {
        "width": 64,
        "depth": 2,
        "heads": 2,
        "position_grid": 4,
        "stages": (1, 1, 1),
        "stem_width": 16,
        "groups": 8,
        "decoder_stem": 64,
        "decoder_widths": (32, 32, 16, 16),
    },
    "r50_vit_b16": {"stages": (3, 4, 9)},
    "vit_b16": {"stages": ()},
}
STRIDE = 16
HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class StdConv(nn.Module):
    """A SAME convolution whose kernel has mean 0 and deviation 1 per output channel (arXiv 1903.10520).

    (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), features). Parameters: kernel (k, k, C, features).
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", HE, shape, jnp.float32)
        kernel = kernel - kernel.mean((0, 1, 2))
        kernel = kernel / (jnp.sqrt(jnp.square(kernel).mean((0, 1, 2))) + 1e-5)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class Unit(nn.Module):
    """A bottleneck: 1x1, 3x3 (of the stride) and 1x1 convolutions beside the identity or a projection.

    (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), 4 * width).
    """

    width: int
    stride: int = 1
    groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def norm(name: str, y: jax.Array, scale: Any = nn.initializers.ones) -> jax.Array:
            return group_norm(self.groups, self.dtype, scale_init=scale, name=name)(y)

        residual = x
        if x.shape[-1] != 4 * self.width or self.stride != 1:
            residual = StdConv(4 * self.width, kernel_size=1, stride=self.stride, dtype=self.dtype, name="projection")(
                x
            )
            residual = norm("projection_norm", residual)
        y = nn.relu(norm("norm1", StdConv(self.width, dtype=self.dtype, name="conv1")(x)))
        y = nn.relu(
            norm("norm2", StdConv(self.width, kernel_size=3, stride=self.stride, dtype=self.dtype, name="conv2")(y))
        )
        # The last scale starts at zero, so that a new unit is the identity (arXiv 1706.02677).
        y = norm("norm3", StdConv(4 * self.width, dtype=self.dtype, name="conv3")(y), nn.initializers.zeros)
        return nn.relu(residual + y)


def group_norm(groups: int, dtype: Any, **options: Any) -> nn.GroupNorm:
    """Group norm with two-pass float32 statistics."""
    return nn.GroupNorm(groups, epsilon=1e-6, dtype=dtype, use_fast_variance=False, **options)


class ConvBatchNorm(nn.Module):
    """A 3x3 convolution without bias, batch norm, ReLU; (B, H, W, C) -> (B, H, W, features)."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv = nn.Conv(self.features, (3, 3), padding=1, use_bias=False, dtype=self.dtype, kernel_init=HE, name="conv")
        x = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, name="norm")(conv(x))
        return nn.relu(x)


class Decoder(nn.Module):
    """The cascaded upsampler: maps (finest first, the transformer's last) -> logits of 2**len(widths) times its size.

    Each step doubles the map, joins it to the next finer skip map if there is one, and convolves twice.
    """

    num_classes: int
    stem: int
    widths: Sequence[int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Sequence[jax.Array], train: bool = False) -> jax.Array:
        *skips, x = features
        x = ConvBatchNorm(self.stem, self.dtype, name="stem")(x.astype(self.dtype), train)
        for i, width in enumerate(self.widths):
            x = double(x)
            if skips:
                x = jnp.concatenate([x, skips.pop().astype(self.dtype)], -1)
            for j in range(2):
                x = ConvBatchNorm(width, self.dtype, name=f"up_{i}_{j}")(x, train)
        return nn.Conv(self.num_classes, (3, 3), padding=1, name="head")(x.astype(jnp.float32))


def double(x: jax.Array) -> jax.Array:
    """Bilinear upsampling (B, H, W, C) -> (B, 2H, 2W, C) with coinciding corners (`UpsamplingBilinear2d` of PyTorch).

    Output 2j is j / (2n - 1) before input j, output 2j + 1 is (n - 1 - j) / (2n - 1) after it: each is a weighted
    sum of two neighbours, so that neither a gather nor a dense matrix is needed.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        distance = (np.arange(n) / (2 * n - 1)).reshape([n if i == axis else 1 for i in range(x.ndim)])
        before, behind = (jnp.asarray(d, x.dtype) for d in (distance, np.flip(distance)))
        # What wraps around has weight 0.
        even, odd = (x + w * (jnp.roll(x, shift, axis) - x) for w, shift in ((before, 1), (behind, -1)))
        x = jnp.stack([even, odd], axis + 1).reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    return x


class TransUNet(nn.Module):
    """The backbone `transunet`.

    Attributes:
      num_classes: C of the logits.
      width: D of the transformer. depth: its number of blocks. heads: of attention, a divisor of D.
      position_grid: side of the stored position embeddings, in tokens.
      stages: units of the ResNet's stages at strides 4, 8 and 16; () for a plain ViT on patches of 16 pixels.
      stem_width: channels of the ResNet's first convolution; stage i has stem_width * 4 * 2**i. groups: of group norm.
      decoder_stem, decoder_widths: channels of the decoder, before and after each doubling.
      dropout: after the embedding, attention and in the MLP (stream "dropout").
      remat: recompute the encoder's units and blocks in the backward pass.
      dtype: of the computation; parameters and logits stay float32.
    Collections: params, batch_stats (of the decoder's batch norms).
    """

    num_classes: int = 4
    width: int = 768
    depth: int = 12
    heads: int = 12
    position_grid: int = 14
    stages: Sequence[int] = (3, 4, 9)
    stem_width: int = 64
    groups: int = 32
    decoder_stem: int = 512
    decoder_widths: Sequence[int] = (256, 128, 64, 16)
    dropout: float = 0.1
    remat: bool = False
    dtype: Any = jnp.float32

    @property
    def fusion_levels(self) -> tuple[int, ...]:
        """Indices into `encode`'s tuple at strides 4 and 8, or of the only map."""
        return (1, 2) if self.stages else (0,)

    def setup(self) -> None:
        if len(self.stages) not in (0, 3):
            raise UserError(f"transunet takes three stages, or none, not {tuple(self.stages)}")
        if self.stages:
            self.stem = StdConv(self.stem_width, kernel_size=7, stride=2, dtype=self.dtype)
            self.stem_norm = group_norm(self.groups, self.dtype)
            unit = nn.remat(Unit) if self.remat else Unit
            self.stage = [
                [
                    unit(self.stem_width * 2**i, stride=2 if i and not j else 1, groups=self.groups, dtype=self.dtype)
                    for j in range(units)
                ]
                for i, units in enumerate(self.stages)
            ]
        self.patch_embedding = PatchEmbedding(self.width, 1 if self.stages else STRIDE, self.dtype)
        shape = (1, self.position_grid, self.position_grid, self.width)
        self.positions = self.param("positions", TRUNCATED, shape, jnp.float32)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        self.block = [
            block(self.heads, 4 * self.width, layer_scale=None, dropout=self.dropout, dtype=self.dtype)
            for _ in range(self.depth)
        ]
        self.embedding_dropout = nn.Dropout(self.dropout)
        self.norm = LayerNorm(dtype=self.dtype)
        self.decoder = Decoder(
            self.num_classes, stem=self.decoder_stem, widths=tuple(self.decoder_widths), dtype=self.dtype
        )

    def encode(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        """(B, H, W, C) -> maps of strides 2, 4, 8 (the skips) and 16 (the transformer's), or the last alone.

        The image is padded with zeros, below and to the right, to a multiple of 16.
        """
        x = pad_to_multiple(x, STRIDE)
        skips = []
        if self.stages:
            x = nn.relu(self.stem_norm(self.stem(x)))
            skips.append(x)
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            for stage in self.stage:
                for unit in stage:
                    x = unit(x)
                skips.append(x)
            skips.pop()  # the transformer's input
        return (*skips, self._transform(self.patch_embedding(x), train))

    def _transform(self, x: jax.Array, train: bool) -> jax.Array:
        """Positions, blocks and the last norm, on a map (B, H, W, D)."""
        positions = self.positions
        if x.shape[1:3] != positions.shape[1:3]:
            positions = resize(positions, (x.shape[1], x.shape[2]), align_corners=True)
        y = (x + positions.astype(self.dtype)).reshape(x.shape[0], -1, self.width)
        y = self.embedding_dropout(y, deterministic=not train)
        for block in self.block:
            y = block(y, train)
        return self.norm(y).reshape(x.shape)

    def decode(self, features: tuple[jax.Array, ...], size: tuple[int, int], train: bool = False) -> jax.Array:
        """Logits (B, *size, num_classes) float32, from maps as `encode` gives them."""
        return self.decoder(features, train)[:, : size[0], : size[1]]

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """(B, H, W, C) -> logits (B, H, W, num_classes) float32."""
        return self.decode(self.encode(x, train), (x.shape[1], x.shape[2]), train)
