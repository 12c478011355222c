"""Augmentation of slices in JAX, inside the train step: one affine warp and a few intensity changes per slice."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp


class Ranges(Protocol):
    """The ranges of `config.augment`; see jras_jax/config/sections_data.py for the units."""

    @property
    def enabled(self) -> bool: ...

    @property
    def rotate_deg(self) -> float: ...

    @property
    def scale(self) -> float: ...

    @property
    def shift(self) -> float: ...

    @property
    def retriever_share(self) -> float: ...

    @property
    def flip(self) -> bool: ...

    @property
    def gamma(self) -> float: ...

    @property
    def contrast(self) -> float: ...

    @property
    def brightness(self) -> float: ...

    @property
    def noise_std(self) -> float: ...

    @property
    def probability(self) -> float: ...


def milder(ranges: Any) -> Any:
    """The ranges (a dataclass) with the geometric ones at `retriever_share` of themselves and no flips."""
    share = ranges.retriever_share
    names = ("rotate_deg", "scale", "shift")
    return dataclasses.replace(ranges, flip=False, **{n: share * getattr(ranges, n) for n in names})


def augment(key: jax.Array, images: jax.Array, masks: jax.Array, ranges: Ranges) -> tuple[jax.Array, jax.Array]:
    """Random geometry and intensity, a different draw for each slice.

    Args:
      key: PRNG key.
      images: (B, S, S) float32 in [0, 1], or (B, S, S, C): the channels share geometry, not the changes of intensity.
      masks: (B, S, S) integer labels; warped by nearest neighbour.
      ranges: what to draw from.

    Returns:
      Images like `images`, float32 in [0, 1] and masks (B, S, S), equal to the input where `ranges.enabled` is False.
    """
    if not ranges.enabled:
        return images, masks
    keys = jax.random.split(key, images.shape[0])

    def one(key: jax.Array, image: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        geometry, intensity = jax.random.split(key)
        affine = _affine(geometry, image.shape[0], ranges)
        if image.ndim == 2:
            image, mask = _warp(image, mask, *affine)
            return _intensity(intensity, image, ranges), mask
        channels = jnp.moveaxis(image, -1, 0)
        warped, masks = jax.vmap(lambda channel: _warp(channel, mask, *affine))(channels)
        changed = jax.vmap(lambda key, channel: _intensity(key, channel, ranges))
        return jnp.moveaxis(changed(jax.random.split(intensity, len(channels)), warped), 0, -1), masks[0]

    return jax.vmap(one)(keys, images, masks)


def _affine(key: jax.Array, size: int, r: Ranges) -> tuple[jax.Array, jax.Array]:
    """Matrix (2, 2) and offset (2,) from output to input pixels, about the slice's centre."""
    u = jax.random.uniform(key, (5,), minval=-1.0, maxval=1.0)
    angle, scale = jnp.deg2rad(u[0] * r.rotate_deg), 1.0 + u[1] * r.scale
    cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    mirror = jnp.where((u[4] > 0) & r.flip, -1.0, 1.0)
    matrix = jnp.array([[cos, -sin], [sin, cos]]) * jnp.array([1.0, mirror])
    return matrix, u[2:4] * r.shift * size


def _warp(image: jax.Array, mask: jax.Array, matrix: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Bilinear for the image, nearest for the mask, 0 outside. The weights are computed here rather than in
    map_coordinates so that the two share their coordinates and the gather is one flat take."""
    size = image.shape[0]
    centre = (size - 1) / 2
    grid = jnp.stack(jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij"), -1) - centre
    # A multiply-add per axis: as a matrix product an accelerator might round the coordinates to bf16.
    source = grid[..., :1] * matrix[:, 0] + grid[..., 1:] * matrix[:, 1] + centre + shift
    low = jnp.floor(source)
    frac = source - low
    low = low.astype(jnp.int32)

    def take(table: jax.Array, at: jax.Array) -> jax.Array:
        inside = jnp.all((at >= 0) & (at < size), -1)
        safe = jnp.clip(at, 0, size - 1)
        return jnp.where(inside, table.reshape(-1)[safe[..., 0] * size + safe[..., 1]], 0)

    out = jnp.zeros_like(image)
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (frac[..., 0] if dy else 1 - frac[..., 0]) * (frac[..., 1] if dx else 1 - frac[..., 1])
            out += weight * take(image, low + jnp.array([dy, dx]))
    return out, take(mask, jnp.round(source).astype(jnp.int32)).astype(mask.dtype)


def _intensity(key: jax.Array, image: jax.Array, r: Ranges) -> jax.Array:
    draw, noise = jax.random.split(key)
    u = jax.random.uniform(draw, (4,), minval=-1.0, maxval=1.0)
    use = jax.random.bernoulli(jax.random.fold_in(draw, 1), r.probability, (4,)).astype(image.dtype)
    image = jnp.clip(image, 1e-6, 1.0) ** jnp.exp(use[0] * u[0] * r.gamma)
    mean = image.mean()
    image = (image - mean) * (1 + use[1] * u[1] * r.contrast) + mean + use[2] * u[2] * r.brightness
    sigma = use[3] * jnp.abs(u[3]) * r.noise_std
    return jnp.clip(image + sigma * jax.random.normal(noise, image.shape), 0.0, 1.0)
