"""Optional clean-up of predicted label volumes; `jras choose` measures on validation whether it helps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from jras_jax.inference.predictions import VolumePrediction


def largest_component(labels: np.ndarray, structures: Iterable[int] | None = None) -> np.ndarray:
    """Keeps the largest connected component of each structure; the rest of it becomes background.

    Voxels are connected through faces, edges and corners: slices are thick, and between two of them the thin
    structures (myocardium, RV at the apex) often touch at an edge only. Of equal components the one met first in
    memory order stays.

    Args:
      labels: (X, Y, Z) integer labels; not changed.
      structures: the labels to clean, other labels stay as they are; None: every label but 0.

    Returns:
      A new array like `labels`.
    """
    from scipy import ndimage  # slow to import, and off by default

    out = labels.copy()
    every_neighbour = np.ones((3,) * labels.ndim, bool)
    for label in np.unique(labels[labels > 0]) if structures is None else structures:
        mask = labels == label
        components, count = ndimage.label(mask, every_neighbour)
        if count > 1:
            largest = 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
            out[mask & (components != largest)] = 0
    return out


def postprocessed(prediction: VolumePrediction, rule: str) -> VolumePrediction:
    """A prediction under config.eval.postprocess: 'none' | 'largest_component' of each structure."""
    return dataclasses.replace(prediction, labels=postprocessed_labels(prediction.labels, rule))


def postprocessed_labels(labels: np.ndarray, rule: str) -> np.ndarray:
    """Labels (X, Y, Z) under config.eval.postprocess, see `postprocessed`."""
    return labels if rule == "none" else largest_component(labels)
