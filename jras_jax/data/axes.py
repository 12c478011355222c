"""Which axis of a scan runs through its slices; scanners and converters do not always store it last."""

from __future__ import annotations

import numpy as np

_CLEARLY_THICKER = 1.5  # slice thickness over pixel size; short-axis cine has 3 or more
NAMES = ("first", "second", "third")


def slice_axis_to_read(spacing: np.ndarray, spacing_known: bool) -> int:
    """The axis along which prediction reads the slices: the one with clearly the largest spacing, or else the third.

    Args:
      spacing: (3,) voxel sizes along the axes as stored.
      spacing_known: without known sizes the third axis is believed.

    Returns:
      0, 1 or 2.
    """
    if not spacing_known:
        return 2
    thickest = int(np.argmax(spacing))
    pixels = np.delete(spacing, thickest)
    return thickest if float(spacing[thickest]) >= _CLEARLY_THICKER * float(pixels.max()) else 2


def slices_last(axis: int) -> list[int]:
    """The order of axes that brings the slices last: [1, 2, 0] for axis 0."""
    return [a for a in range(3) if a != axis] + [axis]
