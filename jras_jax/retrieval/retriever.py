"""The retriever: a DINOv2 ViT with a projection head, split into a frozen prefix and the blocks that train.

Axes: B slices, S model grid, T tokens after the CLS token, D width of the ViT, dim of the embedding.

Reference: the J-RAS paper, arXiv 2510.09953: CLS token of the last hidden state -> Linear 256 -> dropout 0.3 -> ReLU
-> Linear 128, cosine similarity.
"""

from __future__ import annotations

import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jras_jax.errors import UserError
from jras_jax.models import vit
from jras_jax.models.layers import Linear

PIXELS = "pixels"  # the variant that is a `PixelRetriever`
POOLS = ("cls", "grid")
GRID, GRID_CHANNELS = 8, 16  # tokens a side and channels a token that `pool='grid'` gives to the head


class Retriever(nn.Module):
    """Slices to embeddings.

    Attributes:
      variant: of `models.vit.VARIANTS`.
      image_size: side of the ViT's input in pixels; slices are resized to it.
      trained_blocks: -1 all trains; n: the last n blocks and the final norm train (0: the projection alone), what
        comes before is frozen, and `states` is constant.
      lora_rank: 0, or: of the blocks that train only LoRA matrices of this rank do (arXiv 2106.09685).
      pool: what the head sees: 'cls', the CLS token (the paper); 'grid', beside it the patch tokens, brought to 16
        channels on a grid of at most 8 x 8: the structures' positions, which a small ViT trained from scratch does not
        learn to bring into its CLS token.
      hidden, dim, dropout: of the projection head.
      dtype: of the computation.
    """

    variant: str = "tiny"
    image_size: int = 64
    trained_blocks: int = -1
    lora_rank: int = 0
    pool: str = "cls"
    hidden: int = 256
    dim: int = 128
    dropout: float = 0.3
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.encoder = vit.create(self.variant, lora_rank=self.lora_rank, dtype=self.dtype)
        if self.pool not in POOLS:
            raise UserError(f"config.retriever.pool={self.pool!r}: choose one of {', '.join(POOLS)}")
        if self.pool == "grid":
            self.narrow = Linear(GRID_CHANNELS, kernel_init=nn.initializers.lecun_normal())
        self.project1 = Linear(self.hidden, kernel_init=nn.initializers.lecun_normal())
        self.project2 = Linear(self.dim, kernel_init=nn.initializers.lecun_normal())
        self.drop = nn.Dropout(self.dropout)

    @property
    def frozen_blocks(self) -> int:
        """How many blocks the prefix holds."""
        return frozen_blocks(self.variant, self.trained_blocks)

    def states(self, images: jax.Array) -> jax.Array:
        """(B, S, S) or (B, S, S, 3) float in [0, 1] -> the prefix's states (B, 1+T, D) of type `dtype`.

        Each slice is brought to mean 0 and deviation 1, the moments that pixels have in DINOv2's pre-training; its
        fixed statistics would leave the scanner's scale in the embedding. A slice alone is shown as grey; three, of
        which the middle one is embedded, as red, green and blue.
        """
        size = (self.image_size, self.image_size)
        if images.shape[1:3] != size:
            shape = (images.shape[0], *size, *images.shape[3:])
            images = jax.image.resize(images, shape, "linear", antialias=True)
        mean, deviation = images.mean((1, 2), keepdims=True), images.std((1, 2), keepdims=True)
        pixels = (images - mean) / (deviation + 1e-3)
        pixels = pixels if pixels.ndim == 4 else jnp.repeat(pixels[..., None], 3, -1)
        return self.encoder.prefix(pixels, self.frozen_blocks)

    def project(self, states: jax.Array, train: bool = False) -> jax.Array:
        """States (B, 1+T, D) -> the head's output (B, dim) float32, of any norm."""
        x = self._pooled(self.encoder.suffix(states, self.frozen_blocks).astype(jnp.float32))
        x = nn.relu(self.drop(self.project1(x), deterministic=not train))
        return self.project2(x)

    def _pooled(self, tokens: jax.Array) -> jax.Array:
        """The last hidden state (B, 1+T, D) -> what the projection head takes."""
        cls, patches = tokens[:, 0], tokens[:, 1:]
        if self.pool == "cls":
            return cls
        side = self.image_size // self.encoder.patch
        patches = self.narrow(patches).reshape(tokens.shape[0], side, side, GRID_CHANNELS)
        if side > GRID:
            small = (tokens.shape[0], GRID, GRID, GRID_CHANNELS)
            patches = jax.image.resize(patches, small, "linear", antialias=True)
        return jnp.concatenate([cls, patches.reshape(tokens.shape[0], -1)], -1)

    def embed(self, states: jax.Array, train: bool = False) -> jax.Array:
        """States (B, 1+T, D) -> embeddings (B, dim) float32 of norm 1."""
        return unit(self.project(states, train))

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """(B, S, S) float in [0, 1] -> embeddings (B, dim) float32 of norm 1."""
        return self.embed(self._states_with_gradient(images), train)

    def project_images(self, images: jax.Array, train: bool = False) -> jax.Array:
        """(B, S, S) float in [0, 1] -> the head's output (B, dim): what un-normalised NT-Xent compares."""
        return self.project(self._states_with_gradient(images), train)

    def _states_with_gradient(self, images: jax.Array) -> jax.Array:
        states = self.states(images)
        return states if self.trained_blocks < 0 else jax.lax.stop_gradient(states)


class PixelRetriever(nn.Module):
    """Slices to embeddings without a parameter: the slice itself, small. What a learnt retriever must beat.

    The cosine of two embeddings is the normalised cross-correlation of the slices at the largest whole side whose
    square is at most `dim`: 32 x 32 pixels for 1024. Of three slices (`data.grid.stacked`) each has a third of `dim`.

    Attributes:
      dim: of the embedding.
    """

    dim: int = 1024

    def states(self, images: jax.Array) -> jax.Array:
        """(B, S, S) or (B, S, S, 3) float in [0, 1] -> the small slices (B, 1, pixels)."""
        several = images.shape[3:]
        side = math.isqrt(self.dim // math.prod(several))
        small = jax.image.resize(images, (images.shape[0], side, side, *several), "linear", antialias=True)
        return small.reshape(images.shape[0], 1, -1)

    def embed(self, states: jax.Array, train: bool = False) -> jax.Array:
        """States (B, 1, pixels) -> embeddings (B, dim) float32 of norm 1 (an even slice: 0)."""
        x = states[:, 0].astype(jnp.float32)
        x -= x.mean(-1, keepdims=True)
        flat = jnp.abs(x).max(-1, keepdims=True) < 1e-4  # a fortieth of a grey value: rounding, not a picture
        x = jnp.where(flat, 0.0, unit(x))
        return jnp.pad(x, ((0, 0), (0, self.dim - x.shape[-1])))

    def project_images(self, images: jax.Array, train: bool = False) -> jax.Array:
        """(B, S, S) float in [0, 1] -> embeddings (B, dim)."""
        return self.embed(self.states(images), train)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """(B, S, S) float in [0, 1] -> embeddings (B, dim) float32 of norm 1."""
        return self.embed(self.states(images), train)


def unit(x: jax.Array) -> jax.Array:
    """Vectors brought to norm 1; the zero vector stays (and its gradient is finite)."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))


def frozen_blocks(variant: str, trained_blocks: int) -> int:
    """Number of blocks before those that train; 0 where all trains.

    Raises:
      UserError: no such variant, or it has fewer blocks.
    """
    if variant not in vit.VARIANTS:
        raise UserError(f"config.retriever.variant={variant!r}: choose one of {', '.join(vit.VARIANTS)}")
    depth = vit.VARIANTS[variant]["depth"]
    if trained_blocks > depth or trained_blocks < -1:
        raise UserError(
            f"config.retriever.trained_blocks={trained_blocks}: {variant} has {depth} blocks; -1 trains everything"
        )
    return 0 if trained_blocks < 0 else depth - trained_blocks


def is_frozen(name: str, variant: str, trained_blocks: int, lora_rank: int = 0) -> bool:
    """Whether a parameter of the retriever ('encoder/block_3/mlp/fc1/kernel') does not train."""
    if not name.startswith("encoder/"):
        return False
    block = re.match(r"encoder/block_(\d+)/", name)
    lora = name.endswith(("/lora_a", "/lora_b"))
    if block:
        return int(block[1]) < frozen_blocks(variant, trained_blocks) or (lora_rank > 0 and not lora)
    if name.startswith("encoder/norm/"):
        return trained_blocks == 0
    return trained_blocks >= 0 or lora_rank > 0  # patch and position embeddings, the CLS token
