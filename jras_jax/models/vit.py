"""DINOv2's vision transformer (Oquab et al., arXiv 2304.07193); RAD-DINO (arXiv 2401.10815) is its ViT-B/14.

Pre-norm blocks with layer scale, exact GELU (SwiGLU in the giant), layer norm epsilon 1e-6, and learnt position
embeddings of the pre-training grid, interpolated bicubically to the image's own, as `transformers` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jras_jax import kernels
from jras_jax.errors import UserError
from jras_jax.models.layers import TRUNCATED, Attention, LayerNorm, Linear, PatchEmbedding, resize_positions

# position_grid: 518 / 14 = 37 patches a side in pre-training; `tiny` is ours, for demonstrations.
VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {"width": 64, "depth": 4, "heads": 2, "patch": 8, "position_grid": 8},
    "vits14": {"width": 384, "depth": 12, "heads": 6},
    "vitb14": {"width": 768, "depth": 12, "heads": 12},
    "vitl14": {"width": 1024, "depth": 24, "heads": 16},
    "vitg14": {"width": 1536, "depth": 40, "heads": 24, "mlp": "swiglu"},
}


class Mlp(nn.Module):
    """Two linear maps with an exact GELU between, or SwiGLU (arXiv 2002.05202), at `hidden` channels."""

    hidden: int
    kind: Literal["gelu", "swiglu"] = "gelu"
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        width = x.shape[-1]
        if self.kind == "swiglu":
            gate, y = jnp.split(Linear(2 * self.hidden, dtype=self.dtype, name="fc1")(x), 2, -1)
            y = nn.silu(gate) * y
        else:
            y = kernels.gelu(Linear(self.hidden, dtype=self.dtype, name="fc1")(x))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = Linear(width, dtype=self.dtype, name="fc2")(y)
        return nn.Dropout(self.dropout, deterministic=not train)(y)


class Block(nn.Module):
    """x + scale1 * attention(norm1(x)), then x + scale2 * mlp(norm2(x)); (B, T, D) -> (B, T, D).

    `layer_scale` is the scales' first value; None leaves the scales out (the original ViT).
    """

    heads: int
    mlp_hidden: int
    mlp: Literal["gelu", "swiglu"] = "gelu"
    layer_scale: float | None = 1.0
    lora_rank: int = 0
    lora_targets: Sequence[str] = ("query", "key", "value")
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def scaled(name: str, branch: jax.Array) -> jax.Array:
            if self.layer_scale is None:
                return branch
            init = nn.initializers.constant(self.layer_scale)
            return branch * self.param(name, init, (branch.shape[-1],), jnp.float32).astype(self.dtype)

        attention = Attention(
            self.heads,
            lora_rank=self.lora_rank,
            lora_targets=tuple(self.lora_targets),
            dropout=self.dropout,
            dtype=self.dtype,
            name="attention",
        )
        mlp = Mlp(self.mlp_hidden, kind=self.mlp, dropout=self.dropout, dtype=self.dtype, name="mlp")
        x = x + scaled("scale1", attention(LayerNorm(dtype=self.dtype, name="norm1")(x), None, train))
        return x + scaled("scale2", mlp(LayerNorm(dtype=self.dtype, name="norm2")(x), train))


class ViT(nn.Module):
    """DINOv2's encoder. T = (H // patch) * (W // patch) patch tokens follow the CLS token.

    Attributes:
      width: D. depth: number of blocks. heads: of attention, a divisor of D.
      patch: side in pixels. position_grid: side of the stored position embeddings, in patches.
      mlp: "gelu" (4 D hidden) or "swiglu" (two thirds of that, rounded up to a multiple of 8).
      lora_rank: 0, or the rank of LoRA on `lora_targets` of every block (parameters lora_a, lora_b).
      dropout: after attention and in the MLP (stream "dropout"); 0 in DINOv2.
      remat: recompute the blocks in the backward pass instead of storing their insides.
      dtype: of the computation and of the returned states; parameters stay float32.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 14
    position_grid: int = 37
    mlp: Literal["gelu", "swiglu"] = "gelu"
    layer_scale: float | None = 1.0
    lora_rank: int = 0
    lora_targets: Sequence[str] = ("query", "key", "value")
    dropout: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.patch_embedding = PatchEmbedding(self.width, self.patch, self.dtype)
        self.cls = self.param("cls", TRUNCATED, (1, 1, self.width), jnp.float32)
        # Position 0 belongs to the CLS token.
        self.positions = self.param("positions", TRUNCATED, (1, 1 + self.position_grid**2, self.width), jnp.float32)
        hidden = 4 * self.width
        if self.mlp == "swiglu":
            hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        self.block = [
            block(
                self.heads,
                mlp_hidden=hidden,
                mlp=self.mlp,
                layer_scale=self.layer_scale,
                lora_rank=self.lora_rank,
                lora_targets=tuple(self.lora_targets),
                dropout=self.dropout,
                dtype=self.dtype,
            )
            for _ in range(self.depth)
        ]
        self.norm = LayerNorm(dtype=self.dtype)

    def embed_patches(self, images: jax.Array) -> jax.Array:
        """(B, H, W, channels), normalised as in pre-training -> CLS and patch tokens with positions (B, 1+T, D)."""
        x = self.patch_embedding(images)
        batch, rows, columns, _ = x.shape
        if not rows * columns:
            raise UserError(f"images of {images.shape[1]}x{images.shape[2]} are smaller than one patch ({self.patch})")
        grid = self.positions[:, 1:].reshape(1, self.position_grid, self.position_grid, self.width)
        positions = resize_positions(grid, (rows, columns)).reshape(1, rows * columns, self.width)
        x = x.reshape(batch, rows * columns, self.width) + positions.astype(self.dtype)
        cls = jnp.broadcast_to(self.cls + self.positions[:, :1], (batch, 1, self.width)).astype(self.dtype)
        return jnp.concatenate([cls, x], axis=1)

    def prefix(self, images: jax.Array, blocks: int, train: bool = False) -> jax.Array:
        """(B, H, W, 3) -> the states (B, 1+T, D) after the first `blocks` blocks."""
        x = self.embed_patches(images)
        for block in self.block[:blocks]:
            x = block(x, train)
        return x

    def suffix(self, states: jax.Array, blocks: int, train: bool = False) -> jax.Array:
        """The blocks from number `blocks` on and the final layer norm: (B, 1+T, D) -> (B, 1+T, D)."""
        x = states.astype(self.dtype)
        for block in self.block[blocks:]:
            x = block(x, train)
        return self.norm(x)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """(B, H, W, 3) -> the last hidden state (B, 1+T, D), the CLS token first."""
        return self.suffix(self.prefix(images, self.depth, train), self.depth, train)


def create(variant: str, **options: Any) -> ViT:
    """The ViT of a variant's name; `options` are fields of `ViT` and win over the variant's."""
    if variant not in VARIANTS:
        raise UserError(f"unknown ViT {variant!r}: it is one of {', '.join(VARIANTS)}")
    if isinstance(options.get("dtype"), str):
        options["dtype"] = jnp.dtype(options["dtype"])
    unknown = sorted(set(options) - set(ViT.__dataclass_fields__))
    if unknown:
        raise UserError(f"the ViT {variant!r} has no option {', '.join(map(repr, unknown))}")
    return ViT(**{**VARIANTS[variant], **options})
