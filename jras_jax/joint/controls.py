"""Guides that are altered on purpose: blank ones in training, and the controls that evaluation scores.

Axes: B queries, K guides, S model grid, C classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jras_jax.retrieval.gallery import Guides


def blanked(guides: Guides, which: jax.Array) -> Guides:
    """The guides with images and masks all zero (background too) for the queries that `which` (B,) bool names.

    The weights stay. They change nothing there, and no gradient passes through them: concat and adapter see empty
    channels, a class prototype without pixels adds nothing, and cross-attention attends to K equal maps. What is left
    is the baseline with the fusion's learnt constants.
    """
    # A choice, not a product: the gradient of an empty image's standardisation is NaN, which a choice keeps out.
    pick = lambda x: jnp.where(_shaped(which, x), 0.0, x)  # noqa: E731
    return guides.replace(images=pick(guides.images), masks=pick(guides.masks))


def permuted(guides: Guides, which: jax.Array) -> Guides:
    """The guides with the foreground classes of their masks moved on by one (the last to the first) where `which`.

    `which` is (B,) bool. Images, background and weights stay, so that the guides show where hearts lie, but name every
    structure wrongly. With one foreground class nothing moves.
    """
    foreground = jnp.roll(guides.masks[..., 1:], 1, -1)
    moved = jnp.concatenate([guides.masks[..., :1], foreground], -1)
    return guides.replace(masks=jnp.where(_shaped(which, moved), moved, guides.masks))


def _shaped(which: jax.Array, like: jax.Array) -> jax.Array:
    """(B,) -> (B, 1, ..., 1), as many axes as `like` has."""
    return which.reshape(-1, *[1] * (like.ndim - 1))
