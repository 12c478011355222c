"""Augmentation: off is the identity, labels stay labels, image and mask move together, the key alone decides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax.config import Augment
from jras_jax.data.augment import augment, milder

OFF = Augment(
    enabled=True, rotate_deg=0.0, scale=0.0, shift=0.0, retriever_share=0.33, flip=False, gamma=0.0, contrast=0.0,
    brightness=0.0, noise_std=0.0, probability=0.5,
)  # fmt: skip
GEOMETRY = dataclasses.replace(OFF, rotate_deg=30.0, scale=0.2, shift=0.1)


def slices(n=4, size=48):
    y, x = np.mgrid[:size, :size]
    mask = ((np.hypot(y - 20, x - 28) < 11).astype(np.int32)) * 3
    return jnp.asarray(np.repeat(mask[None] / 3.0, n, 0), jnp.float32), jnp.asarray(np.repeat(mask[None], n, 0))


def test_zero_ranges_are_the_identity():
    images, masks = slices()
    out, labels = augment(jax.random.key(0), images, masks=masks, ranges=OFF)
    np.testing.assert_allclose(out, jnp.clip(images, 1e-6, 1), atol=1e-5)
    np.testing.assert_array_equal(labels, masks)
    same, _ = augment(jax.random.key(0), images, masks=masks, ranges=dataclasses.replace(GEOMETRY, enabled=False))
    assert same is images


def test_image_and_mask_move_together():
    images, masks = slices(8)
    out, labels = augment(jax.random.key(1), images, masks=masks, ranges=GEOMETRY)
    assert set(np.unique(labels)) == {0, 3}
    assert not np.array_equal(labels, masks)
    # the image is the mask, so after the same warp it is above one half exactly where the mask is (but for the rim)
    assert np.mean((np.asarray(out) > 0.5) != (np.asarray(labels) == 3)) < 0.01
    assert len({int(m.sum()) for m in labels}) > 1  # slices draw for themselves


def test_intensity_stays_in_range_and_leaves_masks():
    images, masks = slices(8)
    ranges = dataclasses.replace(OFF, gamma=0.3, contrast=0.3, brightness=0.2, noise_std=0.1, probability=1.0)
    out, labels = augment(jax.random.key(2), images, masks=masks, ranges=ranges)
    assert out.min() >= 0 and out.max() <= 1 and not np.allclose(out, images, atol=0.01)
    np.testing.assert_array_equal(labels, masks)


def test_the_key_decides():
    images, masks = slices()
    a, b, c = (augment(jax.random.key(k), images, masks=masks, ranges=GEOMETRY)[0] for k in (3, 3, 4))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_flip_mirrors_columns():
    images, masks = slices(32)
    _, labels = augment(jax.random.key(5), images, masks=masks, ranges=dataclasses.replace(OFF, flip=True))
    kinds = {tuple(np.argwhere(np.asarray(m)).mean(0).round(1)) for m in labels}
    assert len(kinds) == 2


def test_the_milder_view_shrinks_the_geometry_alone():
    ranges = dataclasses.replace(OFF, rotate_deg=30.0, scale=0.2, shift=0.1, flip=True, gamma=0.3)
    mild = milder(ranges)
    assert (mild.rotate_deg, mild.scale, mild.shift) == pytest.approx((0.33 * 30, 0.33 * 0.2, 0.33 * 0.1))
    assert not mild.flip and mild.gamma == ranges.gamma
