"""The model grid: geometry there and back, orientation, intensity."""

import itertools

import numpy as np
import pytest

from jras_jax.data import Volume
from jras_jax.data.grid import Grid, grid_map, orientation, to_uint8, volume_slices
from tests.volumes import blob, volume


def onehot(labels):
    return np.eye(4, dtype=np.float32)[labels]


def dice(a, b):
    return np.mean([2 * ((a == c) & (b == c)).sum() / max((a == c).sum() + (b == c).sum(), 1) for c in (1, 2, 3)])


@pytest.mark.parametrize("spacing_mm", [0.0, 1.0, 1.5])
def test_masks_survive_the_way_to_the_grid_and_back(spacing_mm):
    v = volume(blob())
    m = grid_map(v, Grid(128, spacing_mm, unknown_spacing="fit", percentiles=(0, 100)))
    there = m.labels_to_model(v.mask)
    assert there.shape == (4, 128, 128)
    back = m.to_native(onehot(there))
    assert back.shape == v.mask.shape
    assert dice(back, v.mask) > (0.999 if spacing_mm != 1.0 else 0.97)


def test_native_resolution_is_exact():
    v = volume(blob())
    m = grid_map(v, Grid(80, 0.0, unknown_spacing="fit", percentiles=(0, 100)))
    np.testing.assert_array_equal(m.to_native(onehot(m.labels_to_model(v.mask))), v.mask)


def test_what_the_grid_crops_is_background():
    v = volume(blob(shape=(100, 100, 2), centre=(8, 50)))
    m = grid_map(v, Grid(40, 0.0, unknown_spacing="fit", percentiles=(0, 100)))
    back = m.to_native(onehot(m.labels_to_model(v.mask)))
    assert back.shape == (100, 100, 2) and not back[:29].any() and v.mask[:29].any()


def test_resampling_keeps_millimetres():
    v = volume(blob(), spacing=(1.0, 2.0, 8.0))
    m = grid_map(v, Grid(128, 1.0, unknown_spacing="fit", percentiles=(0, 100)))
    there = m.labels_to_model(v.mask)[0]
    rows, cols = np.nonzero(there == 3)
    # 12 voxels of 2 mm along y (rows) and of 1 mm along x (columns)
    assert abs(np.ptp(rows) + 1 - 2 * (np.ptp(cols) + 1)) <= 3


def test_unknown_spacing_fits_or_crops():
    v = volume(blob(), known=False, spacing=(1, 1, 1))
    fit = grid_map(v, Grid(120, 1.4, unknown_spacing="fit", percentiles=(0, 100)))
    assert fit.scale == (2.0, 2.0)
    assert grid_map(v, Grid(120, 1.4, unknown_spacing="crop", percentiles=(0, 100))).scale == (1.0, 1.0)


def test_a_model_of_scans_without_spacing_sees_known_ones_at_its_own_scale():
    v = volume(blob())
    assert v.spacing_known
    resampled, fitted = (
        grid_map(v, Grid(120, 1.4, unknown_spacing="fit", percentiles=(0, 100), ignore_spacing=ignore))
        for ignore in (False, True)
    )
    assert fitted.scale == (120 / max(v.image.shape[:2]),) * 2 != resampled.scale
    assert (fitted.transpose, fitted.flip_rows) == (resampled.transpose, resampled.flip_rows)


def test_any_storage_order_looks_the_same_on_the_grid():
    """The same anatomy stored in all eight in-plane orders, each with its affine, gives the same slices."""
    v = volume(blob(shape=(60, 60, 3)), affine=np.diag([-1.5, -1.5, 8.0, 1.0]))
    reference, ref_mask, *_ = volume_slices(v, Grid(64, 1.5, unknown_spacing="fit", percentiles=(0, 100)))
    for transpose, fx, fy in itertools.product((False, True), repeat=3):
        image, mask, affine = v.image, v.mask, v.affine.copy()
        if transpose:
            image, mask = np.swapaxes(image, 0, 1), np.swapaxes(mask, 0, 1)
            affine[:, [0, 1]] = affine[:, [1, 0]]
        if fx:
            image, mask = image[::-1], mask[::-1]
            affine[:3, 3] += affine[:3, 0] * (image.shape[0] - 1)
            affine[:3, 0] *= -1
        if fy:
            image, mask = image[:, ::-1], mask[:, ::-1]
            affine[:3, 3] += affine[:3, 1] * (image.shape[1] - 1)
            affine[:3, 1] *= -1
        stored = Volume(image, mask, affine=affine, spacing=v.spacing, spacing_known=True, patient="p", phase="ED")
        images, masks, m, *_ = volume_slices(stored, Grid(64, 1.5, unknown_spacing="fit", percentiles=(0, 100)))
        np.testing.assert_array_equal(masks, ref_mask)
        np.testing.assert_array_equal(images, reference)
        np.testing.assert_array_equal(m.to_native(onehot(masks)), mask)


def test_orientation_is_radiological():
    # x to the left and y to the back already: rows are y, columns are x, nothing flipped
    assert orientation(np.diag([-1.0, -1.0, 1.0, 1.0])) == (True, False, False)
    assert orientation(np.diag([1.0, -1.0, 1.0, 1.0])) == (True, False, True)


def test_percentiles_map_to_the_ends():
    image = np.arange(1001, dtype=np.float32).reshape(1001, 1, 1)
    out = to_uint8(image, (10, 90))
    assert out[100] == 0 and out[900] == 255 and out[0] == 0 and out[1000] == 255
    assert (to_uint8(np.full((4, 4, 1), 7.0), (0.5, 99.5)) == 0).all()  # a constant volume does not divide by zero
