"""Maps between the pixels of two grids against their definition, and the class of each pixel against argmax."""

import numpy as np
import pytest
from scipy import ndimage

from jras_jax.data import resampling


def turned(degrees, scale, shift, out):
    """An affine map of positions on a grid of `out` pixels, about its middle."""
    angle = np.deg2rad(degrees)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return lambda at: (at - (np.array(out) - 1) / 2) @ matrix.T + shift


def rows_and_columns(out):
    return np.stack(np.meshgrid(np.arange(out[0]), np.arange(out[1]), indexing="ij"), -1).reshape(-1, 2)


@pytest.mark.parametrize(
    ("degrees", "shift"), [(0, (14.0, 19.0)), (33, (14.5, 20.2)), (-140, (3.0, 31.0)), (90, (60, 60))]
)
def test_a_fine_grid_takes_bilinear_samples(degrees, shift):
    source, out = (29, 40), (24, 31)
    image = np.random.default_rng(0).random((1, *source))
    points = turned(degrees, 0.8, np.array(shift), out)
    way = resampling.sampling(out, source, points=points, step=0.8)
    at = points(rows_and_columns(out))
    inside = ((at >= -0.5) & (at <= np.array(source) - 0.5)).all(-1)
    wanted = np.where(inside, ndimage.map_coordinates(image[0], at.T, order=1, mode="nearest"), 0)
    np.testing.assert_allclose(resampling.sampled(way, image, out)[0].ravel(), wanted, atol=1e-6)


@pytest.mark.parametrize("step", [2.0, 3.1])
def test_a_coarse_grid_takes_the_mean_over_each_pixel(step):
    source, out = (61, 44), (24, 20)
    image = np.random.default_rng(1).random((1, *source))
    points = turned(20, step, np.array((28.0, 24.0)), out)
    side = round(step)
    parts = []
    for down in (np.arange(side) + 0.5) / side - 0.5:
        for right in (np.arange(side) + 0.5) / side - 0.5:
            at = points(rows_and_columns(out) + (down, right))
            inside = ((at >= -0.5) & (at <= np.array(source) - 0.5)).all(-1)
            parts.append(inside * ndimage.map_coordinates(image[0], at.T, order=1, mode="nearest"))
    found = resampling.sampled(resampling.sampling(out, source, points=points, step=step), image, out)
    np.testing.assert_allclose(found[0].ravel(), np.mean(parts, 0), atol=1e-6)
    assert (found == 0).any() and (found > 0).any(), "part of the grid is outside of the image"


def test_classes_are_sampled_one_by_one():
    source, out = (12, 17), (9, 8)
    images = np.random.default_rng(2).random((5, *source, 3)).astype(np.float32)
    way = resampling.sampling(out, source, points=turned(10, 1.4, np.array((6.0, 8.0)), out), step=1.4)
    together = resampling.sampled(way, images, out)
    assert together.shape == (5, *out, 3) and together.dtype == np.float32
    for label in range(3):
        np.testing.assert_array_equal(together[..., label], resampling.sampled(way, images[..., label], out))


@pytest.mark.parametrize("classes", [2, 4, 12])
def test_winners_are_those_of_argmax_the_first_of_equals(classes):
    shares = np.random.default_rng(3).integers(0, 4, (6, 7, 8, classes)).astype(np.float32)
    labels, best = resampling.winners(shares)
    np.testing.assert_array_equal(labels, shares.argmax(-1))
    np.testing.assert_array_equal(best, shares.max(-1))
    labels, _ = resampling.winners(np.swapaxes(shares, 0, 2))  # not as it lies in memory
    np.testing.assert_array_equal(labels, np.swapaxes(shares, 0, 2).argmax(-1))


def test_the_rest_of_a_pixel_is_background():
    shares = np.random.default_rng(4).dirichlet(np.ones(4), (3, 5, 6)).astype(np.float32)
    whole = resampling.with_background(shares[..., 1:])
    np.testing.assert_array_equal(whole[..., 1:], shares[..., 1:])
    np.testing.assert_allclose(whole, shares, atol=1e-6)
