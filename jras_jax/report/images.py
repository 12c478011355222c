"""Pixels for the page: PNG data URIs, contours as SVG paths, error maps. Axes: Z slices, H rows, W columns."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import contourpy
import numpy as np
from PIL import Image

from jras_jax.data.description import DatasetDescription

# Error kinds of a pixel; 0 is none.
MISSED, ADDED, CONFUSED = 1, 2, 3
ERROR_NAMES = {MISSED: "missed", ADDED: "added", CONFUSED: "wrong structure"}


class Window(NamedTuple):
    """A square part of the model grid: first row, first column, side."""

    top: int
    left: int
    side: int

    def crop(self, slices: np.ndarray) -> np.ndarray:
        """(..., S, S) -> (..., side, side)."""
        return slices[..., self.top : self.top + self.side, self.left : self.left + self.side]


def window_around(masks: list[np.ndarray], margin: float = 0.2, smallest: int = 48) -> Window:
    """The square that holds every labelled pixel of (..., S, S) masks and a margin; the whole grid if there is none."""
    size = masks[0].shape[-1]
    found = np.zeros((size, size), bool)
    for mask in masks:
        found |= (mask > 0).reshape(-1, size, size).any(0)
    if not found.any():
        return Window(0, 0, size)
    rows, cols = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    extent = max(rows[-1] - rows[0], cols[-1] - cols[0]) + 1
    side = int(min(size, max(smallest, np.ceil(extent * (1 + 2 * margin)))))
    starts = [int(np.clip((line[0] + line[-1] + 1 - side) // 2, 0, size - side)) for line in (rows, cols)]
    return Window(starts[0], starts[1], side)


def shrink(image: np.ndarray, most: int) -> np.ndarray:
    """(H, W) uint8, made smaller by area averaging so that no side is over `most` pixels."""
    height, width = image.shape
    factor = most / max(height, width)
    if factor >= 1.0:
        return image
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def png(pixels: np.ndarray) -> bytes:
    """A grey PNG file of (H, W) uint8."""
    if pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise ValueError(f"png needs (H, W) uint8, not {pixels.shape} {pixels.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(png_bytes: bytes) -> str:
    """A PNG as an address that needs no network."""
    return "data:image/png;base64," + base64.b64encode(png_bytes).decode("ascii")


def errors(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Kind of error of every pixel: 0 none, MISSED (background predicted), ADDED (truth is background), CONFUSED."""
    kind = np.zeros(truth.shape, np.uint8)
    wrong = truth != prediction
    kind[wrong & (prediction == 0)] = MISSED
    kind[wrong & (truth == 0)] = ADDED
    kind[wrong & (truth > 0) & (prediction > 0)] = CONFUSED
    return kind


def regions(labels: np.ndarray, described: DatasetDescription) -> dict[int, np.ndarray]:
    """Label -> what is outlined for it: the structure; of a wall also what it encloses, so its outer edge alone."""
    found = {label: labels == label for label in described.structures.values()}
    if described.enclosure:
        wall, inside, _ = (described.structures[name] for name in described.enclosure)
        found[wall] = found[wall] | found[inside]
    return found


def outline_name(name: str, described: DatasetDescription) -> str:
    """What a structure's contour is called."""
    if described.enclosure and name == described.enclosure[0]:
        return f"{name}, its outer edge"
    return name


def contour_path(mask: np.ndarray) -> str:
    """The edge of a boolean (H, W) mask as the `d` of an SVG path, one closed line a region or hole; "" if empty.

    The line joins the middles of successive pixel edges, as marching squares at level 0.5 does, in units of half a
    pixel: draw it with `transform="scale(0.5)"` over an image of W x H units. Diagonal neighbours are separate.
    """
    # A rim of zeros closes the lines at the image's edge. Two pixels that share no more than a corner are apart.
    grid = contourpy.contour_generator(z=np.pad(np.asarray(mask, np.float32), 1))
    parts = []
    for line in grid.lines(0.5):
        # Pixel i of the padded grid has its centre at 2 (i - 1) + 1 half pixels; the last point repeats the first.
        points = np.rint(2 * np.asarray(line)[:-1] - 1).astype(int)
        steps = np.roll(points, -1, axis=0) - points
        points = points[np.any(steps != np.roll(steps, 1, axis=0), axis=1)]  # a point on a straight run says nothing
        (x, y), moves = points[0], np.diff(points, axis=0)
        parts.append(f"M{x} {y}" + "".join(f"l{dx} {dy}" for dx, dy in moves) + "z")
    return "".join(parts)
