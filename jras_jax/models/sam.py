"""SAM (Kirillov et al., ICCV 2023; arXiv 2304.02643) as a segmentation backbone without prompts.

The image encoder is SAM's: a ViT with window attention, a few global blocks and decomposed relative positions, then the
neck. The mask decoder follows SAMed (Zhang and Liu, arXiv 2304.13785): it gets no prompt but the default dense
embedding, and has one mask token and one small hypernetwork per class, whose masks are the logits. SAM's estimate of
the masks' quality is left out; its token stays, since the others attend to it. Both equal `transformers`' SamModel.

Image size is free: images are padded to a multiple of the patch, position embeddings are interpolated bilinearly (as
SAMed does) and relative positions linearly (as SAM does). Maps are padded to whole windows, so that sides of 224 pixels
(14 patches of 16) and their multiples waste nothing. Pre-trained encoders expect 3 channels.

Training: everything; or a frozen encoder; or LoRA, which is SAMed's way (rank 4 on query and value). Give the backbone
`lora_rank` where wanted and the optimiser the patterns of `FROZEN`. The last two freeze the patch embedding as well: an
input widened by the guides' channels then reads them through weights that never train, so that these two go with fusion
of features, or with a patch embedding left out of the patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jras_jax import kernels
from jras_jax.models.layers import (
    TRUNCATED,
    Attention,
    LayerNorm,
    Linear,
    PatchEmbedding,
    Upsample2x,
    pad_to_multiple,
    resize,
    resize_matrix,
    resize_positions,
)
from jras_jax.models.vit import Mlp

# `tiny` is ours, for demonstrations.
VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {
        "width": 64,
        "depth": 4,
        "heads": 2,
        "global_blocks": (1, 3),
        "window": 4,
        "position_grid": 8,
        "neck": 64,
        "decoder_hidden": 128,
    },
    "vit_b": {"width": 768, "depth": 12, "heads": 12, "global_blocks": (2, 5, 8, 11)},
    "vit_l": {"width": 1024, "depth": 24, "heads": 16, "global_blocks": (5, 11, 17, 23)},
    "vit_h": {"width": 1280, "depth": 32, "heads": 16, "global_blocks": (7, 15, 23, 31)},
}
# Regular expressions of the parameters that do not train, by way of training. The frequencies are constants in SAM.
FROZEN: dict[str, tuple[str, ...]] = {
    "full": (r"decoder/position_frequencies",),
    "frozen": (r"decoder/position_frequencies", r"\bencoder/"),
    "lora": (r"decoder/position_frequencies", r"\bencoder/(?!.*/lora_[ab]$)"),
}
DECODER_DEPTH = 2


class RelativeAttention(nn.Module):
    """Self-attention over a map (B, H, W, D) with decomposed relative positions (arXiv 2112.01526, section 4).

    To the logit of query (h, w) and key (i, j) come q . rows[h - i] and q . columns[w - j], with the unscaled query.
    Parameters: query, key, value, output; rows and columns (2 * side - 1, D / heads), interpolated to the map's own
    size.
    """

    heads: int
    side: int
    lora_rank: int = 0
    lora_targets: Sequence[str] = ("query", "value")
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        split = (batch, height, width, self.heads, channels // self.heads)

        def project(name: str) -> jax.Array:
            rank = self.lora_rank if name in self.lora_targets else 0
            return Linear(channels, lora_rank=rank, dtype=self.dtype, name=name)(x).reshape(split)

        query, key, value = project("query"), project("key"), project("value")
        rows, columns = (self._table(name, n, split[-1]) for name, n in (("rows", height), ("columns", width)))
        bias_rows = jnp.einsum("bhwnc,hic->bnhwi", query, rows)
        bias_columns = jnp.einsum("bhwnc,wjc->bnhwj", query, columns)
        bias = bias_rows[..., :, None] + bias_columns[..., None, :]
        tokens = height * width
        query, key, value = (y.reshape(batch, tokens, *split[3:]) for y in (query, key, value))
        y = kernels.attend(query, key, value=value, bias=bias.reshape(batch, self.heads, tokens, tokens))
        return Linear(channels, dtype=self.dtype, name="output")(y.reshape(batch, height, width, channels))

    def _table(self, name: str, size: int, channels: int) -> jax.Array:
        """(size, size, channels): the embedding of each query's and key's distance along one axis."""
        stored = self.param(name, nn.initializers.zeros, (2 * self.side - 1, channels), jnp.float32)
        if size != self.side:
            matrix = resize_matrix(2 * self.side - 1, 2 * size - 1)
            stored = jnp.matmul(matrix, stored, precision=jax.lax.Precision.HIGHEST)
        distance = np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1
        return stored[distance].astype(self.dtype)


class Block(nn.Module):
    """Attention in windows of `window` tokens a side (0: over the whole map), then the MLP, on (B, H, W, D)."""

    heads: int
    window: int
    position_grid: int
    lora_rank: int = 0
    lora_targets: Sequence[str] = ("query", "value")
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        attention = RelativeAttention(
            self.heads,
            side=self.window or self.position_grid,
            lora_rank=self.lora_rank,
            lora_targets=tuple(self.lora_targets),
            dtype=self.dtype,
            name="attention",
        )
        y = LayerNorm(dtype=self.dtype, name="norm1")(x)
        y = _windowed(attention, y, self.window) if self.window else attention(y)
        x = x + y
        return x + Mlp(4 * x.shape[-1], dtype=self.dtype, name="mlp")(LayerNorm(dtype=self.dtype, name="norm2")(x))


def _windowed(attention: nn.Module, x: jax.Array, window: int) -> jax.Array:
    """Applies attention in each window of a map padded with zeros, which take part in it as in SAM."""
    batch, height, width, channels = x.shape
    x = pad_to_multiple(x, window)
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.reshape(batch, rows, window, columns, window, channels).transpose(0, 1, 3, 2, 4, 5)
    x = attention(x.reshape(batch * rows * columns, window, window, channels))
    x = x.reshape(batch, rows, columns, window, window, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * window, columns * window, channels)[:, :height, :width]


class Encoder(nn.Module):
    """SAM's image encoder: (B, H, W, C), H and W multiples of the patch -> (B, H / patch, W / patch, neck)."""

    width: int
    depth: int
    heads: int
    global_blocks: Sequence[int]
    window: int
    patch: int
    position_grid: int
    neck: int
    lora_rank: int
    lora_targets: Sequence[str]
    remat: bool
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = PatchEmbedding(self.width, self.patch, self.dtype, name="patch_embedding")(images)
        shape = (1, self.position_grid, self.position_grid, self.width)
        positions = self.param("positions", TRUNCATED, shape, jnp.float32)
        x = x + resize_positions(positions, (x.shape[1], x.shape[2]), "bilinear").astype(self.dtype)
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            window = 0 if i in self.global_blocks else self.window
            x = block(
                self.heads,
                window=window,
                position_grid=self.position_grid,
                lora_rank=self.lora_rank,
                lora_targets=tuple(self.lora_targets),
                dtype=self.dtype,
                name=f"block_{i}",
            )(x)
        x = Linear(self.neck, use_bias=False, dtype=self.dtype, name="neck_conv1")(x)
        x = LayerNorm(dtype=self.dtype, name="neck_norm1")(x)
        x = nn.Conv(self.neck, (3, 3), padding=1, use_bias=False, dtype=self.dtype, name="neck_conv2")(x)
        return LayerNorm(dtype=self.dtype, name="neck_norm2")(x)


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, the image attends to the tokens (arXiv 2304.02643, appendix A).

    tokens (B, T, D) and image (B, S, D), with their positions of the same shapes -> the two, updated. In the first
    block the tokens are their own positions, and self-attention replaces them.
    """

    heads: int
    hidden: int
    first: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: jax.Array, image: jax.Array, token_positions: jax.Array, image_positions: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def attend(name: str, x: jax.Array, context: jax.Array, values: jax.Array, halve: bool = True) -> jax.Array:
            inner = x.shape[-1] // 2 if halve else None
            return Attention(self.heads, inner=inner, dtype=self.dtype, name=name)(x, context, values=values)

        def norm(name: str, x: jax.Array) -> jax.Array:
            return LayerNorm(dtype=self.dtype, name=name)(x)

        if self.first:
            tokens = attend("self_attention", tokens, tokens, values=tokens, halve=False)
        else:
            placed = tokens + token_positions
            tokens = tokens + attend("self_attention", placed, placed, values=tokens, halve=False)
        tokens = norm("norm1", tokens)
        tokens = tokens + attend("token_to_image", tokens + token_positions, image + image_positions, values=image)
        tokens = norm("norm2", tokens)
        y = nn.relu(Linear(self.hidden, dtype=self.dtype, name="fc1")(tokens))
        tokens = norm("norm3", tokens + Linear(tokens.shape[-1], dtype=self.dtype, name="fc2")(y))
        image = image + attend("image_to_token", image + image_positions, tokens + token_positions, values=tokens)
        return tokens, norm("norm4", image)


class Decoder(nn.Module):
    """SAM's mask decoder without prompts: the embedding (B, H, W, D) -> logits (B, 4H, 4W, num_classes) float32."""

    num_classes: int
    heads: int
    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, embedding: jax.Array) -> jax.Array:
        batch, height, width, channels = embedding.shape
        no_mask = self.param("no_mask", TRUNCATED, (channels,), jnp.float32)
        quality = self.param("quality_token", TRUNCATED, (1, channels), jnp.float32)
        classes = self.param("class_tokens", TRUNCATED, (self.num_classes, channels), jnp.float32)
        start = jnp.concatenate([quality, classes]).astype(self.dtype)
        start = jnp.broadcast_to(start, (batch, *start.shape))
        image = (embedding.astype(self.dtype) + no_mask.astype(self.dtype)).reshape(batch, -1, channels)
        positions = self._positions(height, width, channels).reshape(1, -1, channels).astype(self.dtype)
        tokens = start
        for i in range(DECODER_DEPTH):
            block = TwoWayBlock(self.heads, hidden=self.hidden, first=i == 0, dtype=self.dtype, name=f"block_{i}")
            tokens, image = block(tokens, image, token_positions=start, image_positions=positions)
        last = Attention(self.heads, inner=channels // 2, dtype=self.dtype, name="token_to_image")
        tokens = tokens + last(tokens + start, image + positions, values=image)
        tokens = LayerNorm(1e-5, self.dtype, name="norm")(tokens)
        x = Upsample2x(channels // 4, dtype=self.dtype, name="up1")(image.reshape(batch, height, width, channels))
        x = kernels.gelu(LayerNorm(dtype=self.dtype, name="up_norm")(x))
        x = kernels.gelu(Upsample2x(channels // 8, dtype=self.dtype, name="up2")(x))
        per_class = [
            Hypernetwork(channels, channels // 8, name=f"hyper_{i}")(tokens[:, 1 + i]) for i in range(self.num_classes)
        ]
        return jnp.einsum("bhwc,bkc->bhwk", x.astype(jnp.float32), jnp.stack(per_class, 1))

    def _positions(self, height: int, width: int, channels: int) -> jax.Array:
        """(H, W, D) float32: random Fourier features (arXiv 2006.10739) of the pixels' centres (x, y) in [-1, 1]."""
        init = nn.initializers.normal(1.0)
        frequencies = self.param("position_frequencies", init, (2, channels // 2), jnp.float32)
        y, x = ((np.arange(n, dtype=np.float32) + 0.5) * (2.0 / n) - 1.0 for n in (height, width))
        places = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), -1)
        angles = 2.0 * np.pi * jnp.matmul(places, frequencies, precision=jax.lax.Precision.HIGHEST)
        return jax.lax.stop_gradient(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1))


class Hypernetwork(nn.Module):
    """A class token (B, D) -> the kernel of the class (B, features) float32: three linear maps with ReLU between."""

    hidden: int
    features: int

    @nn.compact
    def __call__(self, token: jax.Array) -> jax.Array:
        x = token.astype(jnp.float32)
        x = nn.relu(Linear(self.hidden, name="fc1")(x))
        x = nn.relu(Linear(self.hidden, name="fc2")(x))
        return Linear(self.features, name="fc3")(x)


class SAM(nn.Module):
    """The backbone `sam`.

    Attributes:
      num_classes: C of the logits.
      width, depth, heads: of the encoder's ViT. global_blocks: numbers of the blocks that attend to the whole map.
      window: side of the other blocks' windows, in patches. patch: in pixels. position_grid: side of the stored
      positions. neck: channels of the image embedding. decoder_heads, decoder_hidden: of the mask decoder.
      lora_rank: 0, or the rank of LoRA on `lora_targets` of every encoder block (see `FROZEN`).
      remat: recompute the encoder's blocks in the backward pass.
      dtype: of the computation; parameters and logits stay float32.
    """

    num_classes: int = 4
    width: int = 768
    depth: int = 12
    heads: int = 12
    global_blocks: Sequence[int] = (2, 5, 8, 11)
    window: int = 14
    patch: int = 16
    position_grid: int = 64
    neck: int = 256
    decoder_heads: int = 8
    decoder_hidden: int = 2048
    lora_rank: int = 0
    lora_targets: Sequence[str] = ("query", "value")
    remat: bool = False
    dtype: Any = jnp.float32

    fusion_levels = (0,)  # the only map there is, at the patch's stride

    def setup(self) -> None:
        self.encoder = Encoder(
            self.width,
            depth=self.depth,
            heads=self.heads,
            global_blocks=tuple(self.global_blocks),
            window=self.window,
            patch=self.patch,
            position_grid=self.position_grid,
            neck=self.neck,
            lora_rank=self.lora_rank,
            lora_targets=tuple(self.lora_targets),
            remat=self.remat,
            dtype=self.dtype,
        )
        self.decoder = Decoder(self.num_classes, heads=self.decoder_heads, hidden=self.decoder_hidden, dtype=self.dtype)

    def encode(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        """(B, H, W, C) -> the image embedding, alone: ((B, ceil(H / patch), ceil(W / patch), neck),)."""
        del train
        return (self.encoder(pad_to_multiple(x, self.patch)),)

    def decode(self, features: tuple[jax.Array, ...], size: tuple[int, int], train: bool = False) -> jax.Array:
        """Logits (B, *size, num_classes) float32: the decoder's, upsampled bilinearly to the padded image, cropped."""
        del train
        (embedding,) = features
        logits = self.decoder(embedding)
        padded = (embedding.shape[1] * self.patch, embedding.shape[2] * self.patch)
        return resize(logits, padded)[:, : size[0], : size[1]]

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """(B, H, W, C) -> logits (B, H, W, num_classes) float32."""
        return self.decode(self.encode(x, train), (x.shape[1], x.shape[2]), train)
