"""What may be done to a predicted label volume before scoring; an option: validation says whether it helps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

from jras_jax.data import STRUCTURES


def largest_component(labels: np.ndarray, structures: Iterable[int] = STRUCTURES.values()) -> np.ndarray:
    """Keeps the largest connected component of each structure; the rest of it becomes background.

    Voxels are connected through faces, edges and corners: slices are thick, and between two of them the thin
    structures (myocardium, RV at the apex) often touch at an edge only. Of equal components the one met first in
    memory order stays.

    Args:
      labels: (X, Y, Z) integer labels; not changed.
      structures: the labels to clean; other labels stay as they are.

    Returns:
      A new array like `labels`.
    """
    out = labels.copy()
    every_neighbour = np.ones((3,) * labels.ndim, bool)
    for label in structures:
        mask = labels == label
        components, count = ndimage.label(mask, every_neighbour)
        if count > 1:
            largest = 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
            out[mask & (components != largest)] = 0
    return out
