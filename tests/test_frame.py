"""The frame of the heart: from masks, on the crop, and back to the scan."""

import numpy as np
import pytest

from jras_jax.data import Volume
from jras_jax.data.frame import Frame, FrameRule, frame_of
from jras_jax.data.grid import FrameMap, Grid, located_frame, native_frame, true_frame, volume_slices

RULE = FrameRule(body=(2, 3), direction=1, radius=0.2)
GRID = Grid(64, 1.4, unknown_spacing="fit", percentiles=(0, 100), frame=RULE, whole_size=32)
MM = np.diag([-1.0, -1.0, 1.0, 1.0])  # the radiological view as it is stored: columns X, rows Y


def heart(shape=(140, 120), centre=(60.0, 70.0), radius=20.0, degrees=0.0, spacing=(1.0, 1.0), slices=4):
    """(X, Y, Z) labels of a round left ventricle with its myocardium, and an RV towards `degrees` from the left."""
    y, x = np.meshgrid(np.arange(shape[1]) * spacing[1], np.arange(shape[0]) * spacing[0], indexing="ij")
    angle = np.deg2rad(degrees)
    rv = (centre[0] - 1.3 * radius * np.cos(angle), centre[1] + 1.3 * radius * np.sin(angle))
    from_lv, from_rv = np.hypot(x - centre[0], y - centre[1]), np.hypot(x - rv[0], y - rv[1])
    mask = np.where(from_rv < 0.6 * radius, 1, 0)
    mask = np.where(from_lv < radius, 2, mask)
    mask = np.where(from_lv < 0.6 * radius, 3, mask).astype(np.uint8).T
    return np.repeat(mask[..., None], slices, 2)


def volume(mask, spacing=(1.0, 1.0, 8.0), known=True):
    affine = MM @ np.diag([*spacing, 1.0])
    return Volume(
        mask.astype(np.float32) * 60,
        mask,
        affine=affine,
        spacing=np.array(spacing, np.float32),
        spacing_known=known,
        patient="p",
    )


def overlap(a, b):
    return np.mean([2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in (1, 2, 3)])


@pytest.mark.parametrize("degrees", [0, 25, -70, 180])
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.5, 1.5), (1.0, 1.4)])
def test_centre_radius_and_angle_of_a_drawn_heart(degrees, spacing):
    mask = heart(degrees=degrees, spacing=spacing)
    frame = true_frame(volume(mask, (*spacing, 8.0)), GRID)
    assert frame.radius == pytest.approx(20, rel=0.03)
    assert (frame.angle * 180 / np.pi - degrees + 180) % 360 - 180 == pytest.approx(0, abs=2)
    towards = 0.55 * 20 * np.array([np.sin(np.deg2rad(degrees)), -np.cos(np.deg2rad(degrees))])
    np.testing.assert_allclose([frame.row, frame.column], np.array([70.0, 60.0]) + towards, atol=0.8)


def test_every_heart_has_the_same_place_size_and_angle_on_the_crop():
    reference = volume_slices(volume(heart()), GRID).masks
    radius = np.sqrt(np.isin(reference[0], (2, 3)).sum() / np.pi)
    assert radius == pytest.approx(0.2 * 64, rel=0.03)
    for centre, size, degrees in (((80.0, 50.0), 14.0, 40), ((45.0, 80.0), 26.0, -35), ((70.0, 60.0), 18.0, 170)):
        other = volume_slices(volume(heart(centre=centre, radius=size, degrees=degrees)), GRID)
        assert overlap(other.masks, reference) > 0.9
        assert other.located.frame is not None
    whole = GRID._replace(frame=None)
    apart = volume_slices(volume(heart(centre=(80.0, 50.0), radius=14.0, degrees=40)), whole).masks
    assert overlap(apart, volume_slices(volume(heart()), whole).masks) < 0.5


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_return_to_the_voxels_that_they_came_from(axis):
    mask = heart(degrees=33, spacing=(1.0, 1.3))
    v = volume(mask, (1.0, 1.3, 8.0))
    order = {0: (2, 0, 1), 1: (0, 2, 1), 2: (0, 1, 2)}[axis]
    stored = Volume(
        v.image.transpose(order),
        mask.transpose(order),
        affine=v.affine[:, [*order, 3]],
        spacing=v.spacing[list(order)],
        spacing_known=True,
        patient="p",
    )
    slices = volume_slices(stored, GRID._replace(image_size=128), axis)
    assert isinstance(slices.mapping, FrameMap)
    back = slices.mapping.to_native(np.eye(4, dtype=np.float32)[slices.masks])
    assert back.shape == stored.image.shape and overlap(back, stored.mask) > 0.97
    probabilities = slices.mapping.probabilities_to_native(np.full((4, 128, 128, 4), 0.25, np.float32))
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    far = np.argwhere(probabilities[..., 0] == 1.0)
    assert len(far) > 100, "outside the crop everything is background"


def test_the_frame_returns_from_the_grid_of_whole_slices():
    v = volume(heart(degrees=20, spacing=(1.0, 1.4)), (1.0, 1.4, 8.0))
    whole = volume_slices(v, GRID.whole._replace(image_size=128))
    found = located_frame(v, GRID, whole=whole.mapping, probabilities=np.eye(4)[whole.masks])
    np.testing.assert_allclose(found, true_frame(v, GRID), atol=1.0)
    crop = volume_slices(v, GRID)
    again = native_frame(v, GRID, crop.mapping, labels=crop.mapping.to_native(np.eye(4)[crop.masks]))
    np.testing.assert_allclose(again, true_frame(v, GRID), atol=0.6)


def test_without_a_heart_the_crop_is_the_whole_slice():
    v = volume(heart() * 0)
    framed, whole = volume_slices(v, GRID), volume_slices(v, GRID._replace(frame=None))
    np.testing.assert_array_equal(framed.images, whole.images)
    assert framed.located.frame is None and not len(framed.located.corners)
    assert framed.wholes.shape == (4, 32, 32)


def test_slices_without_heart_and_islands_do_not_move_the_frame():
    mask = heart(slices=6)
    expected = true_frame(volume(mask), GRID)
    mask[..., 0] = mask[..., 5] = 0
    mask[2:9, 2:9, 1] = 3  # an island far from the heart
    np.testing.assert_allclose(true_frame(volume(mask), GRID), expected, atol=1e-6)


def test_without_a_direction_there_is_no_rotation():
    mask = heart(degrees=60)
    frame = frame_of(np.eye(4)[np.moveaxis(mask, 2, 0)].swapaxes(1, 2), (1.0, 1.0), RULE._replace(direction=None))
    assert isinstance(frame, Frame) and frame.angle == 0
    np.testing.assert_allclose([frame.row, frame.column], [70, 60], atol=0.5)


def test_corners_are_where_the_crop_is_on_the_whole_slice():
    slices = volume_slices(volume(heart(degrees=45)), GRID)
    corners, side = slices.located.corners, np.linalg.norm(np.diff(slices.located.corners, axis=0), axis=1)
    scale = slices.located.wholes.shape[1] / 140  # the longer side is fitted
    np.testing.assert_allclose(side, 5 * 20 * scale, rtol=0.04)  # the radius is a fifth of the side
    assert corners.shape == (4, 2)
