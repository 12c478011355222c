"""The frame of the heart: where it lies in a volume, how large it is and which way it is turned.

A network that sees every heart at the same place, size and angle learns more from few cases, and slices of different
patients can be compared pixel by pixel (measured: docs/STUDY.md). A frame comes from a mask: from the true one for
labelled cases, from the locator's for scans to segment. It holds for a whole volume.

Axes: Z slices, H W rows and columns of the scan in the radiological view (see `data.grid`), C classes.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from jras_jax.data.resampling import winners

# Slices count whose section of the body is at least this share of the largest: near the apex centre and size wander.
LARGE = 0.5
# The crop's centre is this many radii from the body's centre towards the structure that gives the direction.
SHIFT = 0.55
# A frame without this many pixels of the body is none.
LEAST = 4.0


class FrameRule(NamedTuple):
    """What makes the frame, from the data set's description.

    Attributes:
      body: the labels that together are the body, whose centre and radius count: left ventricle and myocardium.
      direction: the label towards which the crop is turned, the right ventricle; None: no rotation.
      radius: the body's radius on the model grid, as a share of the grid's side.
    """

    body: tuple[int, ...]
    direction: int | None
    radius: float


class Frame(NamedTuple):
    """A frame on the scan's pixels.

    Attributes:
      row, column: the crop's centre, in units of length from the centre of the scan's first pixel.
      radius: of the body, in units of length.
      angle: radians by which the direction is turned from the left of the image, 0 if it is not known.

    The unit of length is mm if the scan's spacing is known, else the pixel.
    """

    row: float
    column: float
    radius: float
    angle: float


def far(a: Frame, b: Frame) -> bool:
    """Whether two frames of one volume differ by more than 0.1 radii, 8% or 10 degrees.

    These bounds are a little above the locator's mean errors on ACDC. A second pass beyond them gains as much as
    one for every volume (docs/STUDY.md).
    """
    turn = (a.angle - b.angle + np.pi) % (2 * np.pi) - np.pi
    moved = np.hypot(a.row - b.row, a.column - b.column) / max(a.radius, 1e-6)
    return bool(moved > 0.1 or abs(np.log(b.radius / max(a.radius, 1e-6))) > 0.08 or abs(turn) > np.deg2rad(10))


def frame_of(shares: np.ndarray, sizes: tuple[float, float], rule: FrameRule) -> Frame | None:
    """The frame of a volume.

    Args:
      shares: (Z, H, W, C) probabilities of the classes, or a one-hot mask; C counts the background.
      sizes: height and width of a pixel in units of length.
      rule: what makes the frame.

    Returns:
      The frame, None if the body is not there.
    """
    import scipy.ndimage  # a tenth of a second, which whole slices need not wait for

    foreground = scipy.ndimage.label(winners(shares)[0], np.ones((3, 3, 3)))[0]
    if not foreground.any():
        return None
    kept = foreground == 1 + np.argmax(np.bincount(foreground.ravel())[1:])
    body = np.sum([shares[..., label] for label in rule.body], 0) * kept
    area = body.sum((1, 2))
    large = np.flatnonzero((area >= LARGE * area.max()) & (area > 0))
    if area.max() < LEAST:
        return None
    centre = np.median([_centroid(body[z]) for z in large], 0) * sizes
    radius = float(np.sqrt(np.median(area[large]) * sizes[0] * sizes[1] / np.pi))
    angle = 0.0
    if rule.direction is not None:
        pointer = shares[..., rule.direction] * kept
        towards = [pointer[z].sum() * (_centroid(pointer[z]) - _centroid(body[z])) for z in large if pointer[z].any()]
        if towards:
            down, right = np.sum(towards, 0) * sizes
            angle = float(np.arctan2(down, -right))
            centre = centre + SHIFT * radius * np.array([np.sin(angle), -np.cos(angle)])
    return Frame(float(centre[0]), float(centre[1]), radius=radius, angle=angle)


def _centroid(weights: np.ndarray) -> np.ndarray:
    """The mean position (row, column) in pixels of weights (H, W), which are not all 0."""
    total = weights.sum()
    rows = weights.sum(1) @ np.arange(weights.shape[0]) / total
    return np.array([rows, weights.sum(0) @ np.arange(weights.shape[1]) / total])


class Placement(NamedTuple):
    """The similarity that takes pixels of a grid to pixels of a scan: scan = matrix @ (grid - middle) + centre.

    Attributes:
      matrix: (2, 2) float64.
      centre: (2,) float64, scan pixel under the middle of the grid.
      middle: the grid's middle, in its pixels along both axes.
    """

    matrix: np.ndarray
    centre: np.ndarray
    middle: float

    def inverse(self) -> Placement:
        """The way back; its `centre` is the grid's middle, and its `middle` is not used."""
        return Placement(np.linalg.inv(self.matrix), np.full(2, self.middle), 0.0)

    def corners(self) -> np.ndarray:
        """(4, 2) scan pixels of the corners of the grid, clockwise from its first pixel."""
        m = self.middle + 0.5
        return np.array([[-m, -m], [-m, m], [m, m], [m, -m]]) @ self.matrix.T + self.centre


def placement(frame: Frame, sizes: tuple[float, float], image_size: int, rule: FrameRule) -> Placement:
    """Where the model grid of `image_size` pixels a side is on a scan whose pixels have these `sizes`."""
    unit = frame.radius / (rule.radius * image_size)  # length of a grid pixel
    cos, sin = np.cos(frame.angle), np.sin(frame.angle)
    # The direction, (sin, -cos) on the scan, is (0, -1) on the grid.
    turned = np.array([[cos, -sin], [sin, cos]])
    matrix = unit * turned / np.array(sizes)[:, None]
    return Placement(matrix, np.array([frame.row, frame.column]) / sizes, (image_size - 1) / 2)


@dataclasses.dataclass(frozen=True)
class Located:
    """What became of a volume's frame.

    Attributes:
      frame: None if none was found; the model then sees the whole slice.
      wholes: (Z, L, L) uint8, the whole slices that the locator sees.
      corners: (4, 2) the crop's corners in pixels of `wholes`, clockwise; empty without a frame.
    """

    frame: Frame | None
    wholes: np.ndarray
    corners: np.ndarray
