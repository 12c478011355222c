"""What the report shows of single cases: slices, masks and guides, one compressed numpy file a case."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from jras_jax import files
from jras_jax.data import Volume
from jras_jax.data.grid import grey
from jras_jax.data.slice_table import SliceTable
from jras_jax.inference.segmenter import VolumePrediction


class EvidenceWriter:
    """Keeps the slices and guides of the worst and the best cases, half of each.

    Args:
      cases: how many to keep; 0 keeps none.
      table: the gallery's slices; None for a run without retrieval.
    """

    def __init__(self, cases: int, table: SliceTable | None):
        self._cases, self._table = cases, table
        self._kept: list[tuple[float, str, dict[str, Any]]] = []

    def check(self, volumes: Iterable[Volume]) -> None:
        """Raises FileError, before the evaluation, for a case that no file can be named after."""
        for volume in volumes if self._cases else ():
            files.safe_name(volume.case, "case")

    def add(self, volume: Volume, prediction: VolumePrediction, dice: float) -> None:
        """Keeps a case, and drops a middling one if there are more than wanted."""
        if not self._cases:
            return
        assert prediction.masks is not None
        arrays = {
            "image": grey(prediction.images, 3),
            "truth": prediction.masks,
            "prediction": np.argmax(prediction.slices.probabilities, -1).astype(np.uint8),
            "dice": np.float32(dice),
        }
        if prediction.located is not None:
            arrays |= {"wholes": prediction.located.wholes, "corners": prediction.located.corners}
        if self._table is not None:
            rows = prediction.slices.indices
            arrays |= {
                "guide_images": grey(self._table.images[rows], 4),
                "guide_masks": self._table.masks[rows],
                "weights": prediction.slices.weights,
                "similarity": prediction.slices.similarity,
                "guide_names": np.array([[_name(self._table, r) for r in row] for row in rows]),
            }
        self._kept.append((dice, volume.case, arrays))
        if len(self._kept) > self._cases:
            self._kept.sort(key=lambda entry: entry[:2])
            del self._kept[self._cases // 2]

    @property
    def names(self) -> list[str]:
        """The cases that are kept."""
        return [case for _, case, _ in self._kept]

    def write(self, folder: pathlib.Path) -> None:
        """Writes CASE.npz of every case that is kept; raises FileError."""
        for _, case, arrays in self._kept:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)
            with files.replacing(folder / f"{files.safe_name(case, 'case')}.npz") as temporary:
                temporary.write_bytes(buffer.getvalue())


def _name(table: SliceTable, row: int) -> str:
    """'patient012 ED slice 3' of a gallery row; slices count from 1, as in the report."""
    if table.phase[row] < 0:
        return f"{table.cases[table.case[row]]} slice {table.slice_index[row] + 1}"
    patient, _, phase = table.cases[table.case[row]].rpartition("_")
    return f"{patient} {phase} slice {table.slice_index[row] + 1}"
