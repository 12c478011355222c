"""Tells LV from RV by anatomy: of the two cavities, it is the LV that myocardium surrounds.

The masks of ACDC and M&Ms hold the same values with LV and RV the other way round, so that values alone show nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from jras_jax.data.description import CARDIAC, DatasetDescription

_MARGIN = 0.1  # shares that differ by less say nothing


def rims(mask: np.ndarray, description: DatasetDescription = CARDIAC) -> np.ndarray:
    """Counts how much of each cavity's rim borders on myocardium.

    Args:
      mask: (X, Y, Z) or (X, Y, Z, T) project labels, X and Y in the image plane.
      description: says which structures are meant, by its `enclosure`.

    Returns:
      (2, 2) float64: for LV and RV the rim voxels beside myocardium, and all rim voxels.
    """
    assert description.enclosure is not None
    wall, *inner = description.labels_of(description.enclosure)
    padded = np.pad(mask, [(1, 1), (1, 1)] + [(0, 0)] * (mask.ndim - 2))
    around = [np.roll(padded, shift, axis) for axis in (0, 1) for shift in (1, -1)]
    myocardium = np.any([a == wall for a in around], axis=0)
    counts = np.zeros((2, 2))
    for row, label in zip(counts, inner, strict=True):
        rim = (padded == label) & np.any([a != padded for a in around], axis=0)
        row[:] = (rim & myocardium).sum(), rim.sum()
    return counts


def exchanged(counts: np.ndarray) -> tuple[float, float] | None:
    """The shares of the rim of what is called LV and RV that border on myocardium, if they seem exchanged; else None.

    Args:
      counts: of `rims`, summed over masks.
    """
    left, right = (float(beside / max(rim, 1.0)) for beside, rim in counts)
    return (left, right) if left + _MARGIN < right else None


def seem_exchanged(
    masks: Iterable[np.ndarray], description: DatasetDescription = CARDIAC
) -> tuple[float, float] | None:
    """`exchanged` for masks in project labels."""
    return exchanged(sum((rims(mask, description) for mask in masks), np.zeros((2, 2))))
