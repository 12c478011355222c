"""Segmentation losses, pure functions of logits and labels.

References:
  Milletari et al., "V-Net", 3DV 2016 (soft Dice); Isensee et al., "nnU-Net", Nature Methods 2021 (Dice + cross-entropy,
  deep supervision); the J-RAS paper, arXiv 2510.09953 (Dice over all four classes, background included).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from jras_jax.data.dice import dice


def soft_dice(
    probabilities: jax.Array, onehot: jax.Array, *, batch: bool = True, weights: jax.Array | None = None
) -> jax.Array:
    """1 - mean over classes of 2 sum(p t) / (sum p + sum t); 0 for a perfect match, towards 1 for a disjoint one.

    Args:
      probabilities: (B, H, W, C) float.
      onehot: (B, H, W, C) float.
      batch: sums run over the batch too (one Dice per class); False: one per slice and class, then averaged.
      weights: (B,) float, share of each slice; None: all 1.

    Returns:
      Scalar float32. A class absent from both sides counts as perfect.
    """
    p, t = probabilities.astype(jnp.float32), onehot.astype(jnp.float32)
    if weights is not None:
        p, t = p * weights[:, None, None, None], t * weights[:, None, None, None]
    axes = (0, 1, 2) if batch else (1, 2)
    # One voxel's worth of smoothing: small enough to leave real structures alone, and 0/0 becomes 1.
    overlap = (2.0 * jnp.sum(p * t, axes) + 1.0) / (jnp.sum(p, axes) + jnp.sum(t, axes) + 1.0)
    return 1.0 - overlap.mean()


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Mean cross-entropy over pixels; logits (B, H, W, C), labels (B, H, W) integers, weights (B,) or None."""
    loss = _pixel_entropy(logits, labels).mean((1, 2))
    if weights is None:
        return loss.mean()
    return jnp.sum(loss * weights) / jnp.maximum(weights.sum(), 1e-6)


def _pixel_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of each pixel (B, H, W) float32; with one-hot labels, whose gradient needs no scatter."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), jax.nn.one_hot(labels, logits.shape[-1]))


def segmentation_loss(
    logits: jax.Array | Sequence[jax.Array],
    labels: jax.Array,
    *,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    dice_batch: bool = True,
    deep_weight: float = 0.5,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`dice_weight` x soft Dice + `ce_weight` x cross-entropy, over one or several outputs.

    Args:
      logits: (B, H, W, C), or a sequence of them, full size first (deep supervision); labels are brought to the
        coarser sizes by nearest neighbour.
      labels: (B, H, W) integers.
      dice_weight, ce_weight, dice_batch: see above and `soft_dice`.
      deep_weight: output number i counts deep_weight ** i; the weights are normalised to sum 1.

    Returns:
      The loss, and {'dice_loss', 'ce_loss'} of the full-size output.
    """
    outputs = [logits] if isinstance(logits, jax.Array) else list(logits)
    shares = [deep_weight**i for i in range(len(outputs))]
    total, parts = jnp.zeros(()), {}
    for i, (output, share) in enumerate(zip(outputs, shares, strict=True)):
        size = output.shape[1:3]
        target = labels if size == labels.shape[1:] else jax.image.resize(labels, (len(labels), *size), "nearest")
        onehot = jax.nn.one_hot(target, output.shape[-1])
        overlap_loss = soft_dice(jax.nn.softmax(output.astype(jnp.float32)), onehot, batch=dice_batch)
        ce = cross_entropy(output, target)
        total += share / sum(shares) * (dice_weight * overlap_loss + ce_weight * ce)
        if i == 0:
            parts = {"dice_loss": overlap_loss, "ce_loss": ce}
    return total, parts


def per_slice_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Dice + cross-entropy of each slice on its own, (B, H, W, C) and (B, H, W) -> (B,) float32."""

    def one(x: jax.Array, t: jax.Array) -> jax.Array:
        return soft_dice(jax.nn.softmax(x.astype(jnp.float32))[None], jax.nn.one_hot(t, x.shape[-1])[None])

    ce = _pixel_entropy(logits, labels).mean((1, 2))
    return jax.vmap(one)(logits, labels) + ce


def hard_dice(prediction: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Dice of each foreground class over the whole batch, (B, H, W) integers twice -> (C - 1,) float32; 1 if absent."""
    p = jax.nn.one_hot(prediction, num_classes)[..., 1:]
    t = jax.nn.one_hot(labels, num_classes)[..., 1:]
    size = p.sum((0, 1, 2)) + t.sum((0, 1, 2))
    return dice((p * t).sum((0, 1, 2)), size)
