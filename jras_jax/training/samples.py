"""Slices of a validation for TensorBoard: image, truth, prediction and guides side by side."""

from __future__ import annotations

import functools

import numpy as np

from jras_jax.data import Volume
from jras_jax.data.grid import grey
from jras_jax.data.slice_table import SliceTable
from jras_jax.inference.predictions import VolumePrediction

MOST = 4  # slices of a validation
GUIDES = 3  # beside each
SIDE = 128  # pixels of an image at most; finer grids are thinned


class Samples:
    """Takes the middle slice of the first volumes of a validation.

    Args:
      table: the gallery's slices; None for a run without retrieval.
    """

    def __init__(self, table: SliceTable | None):
        self._table = table
        self.images: dict[str, np.ndarray] = {}

    def add(self, volume: Volume, prediction: VolumePrediction) -> None:
        """Takes a slice if there is room."""
        if len(self.images) == MOST:
            return
        z = len(prediction.images) // 2
        description = volume.description
        shown = functools.partial(painted, colours=description.palette, channels=len(description.channels))
        panels = [shown(prediction.images[z], None)]
        if prediction.masks is not None:
            panels.append(shown(prediction.images[z], prediction.masks[z]))
        panels.append(shown(prediction.images[z], prediction.slices.probabilities[z].argmax(-1)))
        if self._table is not None:
            heaviest = np.argsort(-prediction.slices.weights[z], kind="stable")[:GUIDES]
            for row in prediction.slices.indices[z][heaviest]:
                panels.append(shown(self._table.images[row], self._table.masks[row]))
        self.images[f"validation/{len(self.images) + 1} {volume.case} (image, truth, prediction, guides)"] = (
            np.concatenate(panels, 1)
        )


def painted(image: np.ndarray, labels: np.ndarray | None, colours: np.ndarray, channels: int) -> np.ndarray:
    """(S, S[, C]) uint8, with labels (S, S) in `colours` over it -> (T, T, 3) uint8, T at most `SIDE` or so.

    `channels` are the data set's, see `grid.grey`.
    """
    step = -(-image.shape[0] // SIDE)
    plain = np.repeat(grey(image, 2, channels)[::step, ::step, None], 3, 2)
    if labels is None:
        return plain
    labels = labels[::step, ::step]
    return np.where((labels > 0)[..., None], plain // 2 + colours[labels] // 2, plain).astype(np.uint8)
