"""Linear maps between the pixels of two grids, and the class of each pixel: what every volume passes through twice.

A map along the axes is two small matrices (`along_axes`). One that turns is a sparse matrix (`sampling`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import scipy.sparse

Points = Callable[[np.ndarray], np.ndarray]


@functools.lru_cache(maxsize=512)
def resampling(size_out: int, size_in: int, scale: float) -> np.ndarray:
    """(size_out, size_in) float32 matrix: linear resampling about the common centre, low-passed when it shrinks."""
    centres = (np.arange(size_out) - (size_out - 1) / 2) / scale + (size_in - 1) / 2
    distance = np.abs(centres[:, None] - np.arange(size_in)[None])
    weights = np.maximum(0.0, 1.0 - distance * min(scale, 1.0))
    total = weights.sum(1, keepdims=True)
    inside = (centres >= -0.5) & (centres <= size_in - 0.5)
    weights = np.where(inside[:, None], weights / np.maximum(total, 1e-12), 0.0).astype(np.float32)
    weights.setflags(write=False)
    return weights


def along_axes(a: np.ndarray, b: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """Applies `a` along axis 1 and `b` along axis 2 of (Z, rows, columns[, C]); float32."""
    if slices.ndim == 4:
        return np.stack([along_axes(a, b, slices[..., c]) for c in range(slices.shape[-1])], -1)
    depth, rows, cols = slices.shape
    across = slices.astype(np.float32, order="C").reshape(depth * rows, cols) @ b.T
    return np.matmul(a, across.reshape(depth, rows, len(b)))


def sampling(out: tuple[int, int], source: tuple[int, int], points: Points, step: float) -> scipy.sparse.csr_array:
    """The map that samples an image (source) at one place for each pixel of another (out).

    Each pixel is the mean of bilinear samples spread over its own area, so that a coarse grid does not alias.

    Args:
      out, source: heights and widths.
      points: an affine map; takes positions (n, 2) in pixels of `out`, returns them in pixels of `source`.
      step: pixels of `source` from one pixel of `out` to the next, along the axis where it is larger.

    Returns:
      (out[0] * out[1], source[0] * source[1]) float32; a sample outside the source has no weight.
    """
    import scipy.sparse  # a tenth of a second, which whole slices need not wait for

    side, last = max(1, round(step)), np.array(source) - 1
    offsets = (np.arange(side) + 0.5) / side - 0.5
    grid = np.stack(np.meshgrid(np.arange(out[0]), np.arange(out[1]), indexing="ij"), -1).reshape(-1, 2)
    middle = points(grid)
    near = np.flatnonzero(((middle >= -1 - step) & (middle <= last + 1 + step)).all(-1))  # others have no sample inside
    columns, weights = [], []
    for down in offsets:
        for right in offsets:
            at = points(grid[near] + (down, right))
            inside = ((at >= -0.5) & (at <= last + 0.5)).all(-1) / side**2
            at = np.clip(at, 0, last)
            low = np.minimum(at.astype(np.int32), np.maximum(last - 1, 0))
            part = at - low
            high = np.minimum(low + 1, last)
            for row, weight in ((low[:, 0], 1 - part[:, 0]), (high[:, 0], part[:, 0])):
                for column, share in ((low[:, 1], 1 - part[:, 1]), (high[:, 1], part[:, 1])):
                    columns.append(row * source[1] + column)
                    weights.append(inside * weight * share)
    values = np.stack(weights, -1).astype(np.float32)
    used = values != 0
    starts = np.zeros(len(grid) + 1, np.int32)
    starts[near + 1] = used.sum(1)
    entries = (values[used], np.stack(columns, -1)[used].astype(np.int32), np.cumsum(starts, dtype=np.int32))
    return scipy.sparse.csr_array(entries, shape=(len(grid), source[0] * source[1]))


def sampled(way: scipy.sparse.csr_array, images: np.ndarray, out: tuple[int, int]) -> np.ndarray:
    """Applies a map of `sampling` to (Z, H, W[, C]) -> (Z, *out[, C]) float32, each class contiguous in memory."""
    planes = np.moveaxis(images[..., None] if images.ndim == 3 else images, -1, 0)
    result = np.empty((*planes.shape[:2], *out), np.float32)
    for plane, place in zip(planes, result, strict=True):
        for one, there in zip(plane, place, strict=True):  # faster than all at once, which needs them pixel by pixel
            there[:] = (way @ one.astype(np.float32).ravel()).reshape(out)
    return result[0] if images.ndim == 3 else np.moveaxis(result, 0, -1)


def with_background(shares: np.ndarray) -> np.ndarray:
    """(..., C - 1) shares of the classes -> (..., C): the rest of each pixel is background; contiguous by class."""
    planes = np.empty((shares.shape[-1] + 1, *shares.shape[:-1]), np.float32)
    planes[1:] = np.moveaxis(shares, -1, 0)
    planes[0] = 1.0 - planes[1:].sum(0)
    return np.moveaxis(planes, 0, -1)


def winners(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The class with the largest share of each pixel, and that share: (..., C) -> (...) uint8 and (...) float32.

    The first of equals, as `argmax` has it, which is several times slower along a short axis.
    """
    best = np.copy(shares[..., 0])
    labels = np.zeros_like(best, np.uint8)
    for label in range(1, shares.shape[-1]):
        np.copyto(labels, label, where=shares[..., label] > best)
        np.maximum(best, shares[..., label], out=best)
    return labels, best
