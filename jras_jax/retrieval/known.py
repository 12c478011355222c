"""Recognises scans of a gallery's own patients, so that the leak rule also holds for new files."""

from __future__ import annotations

import numpy as np

from jras_jax.data import pairs
from jras_jax.data.slice_table import SliceTable
from jras_jax.errors import UserError


class KnownPatients:
    """The patients of a gallery, recognised by the scan's name or by a slice that equals one of theirs pixel by pixel.

    Args:
      table: the gallery's slices.
    """

    def __init__(self, table: SliceTable):
        self._table = table
        # An empty slice could be anybody's.
        self._rows = {image.tobytes(): row for row, image in enumerate(table.images) if image.min() < image.max()}

    def find(self, name: str, images: np.ndarray) -> tuple[int, np.ndarray]:
        """The gallery's number of a scan's patient, and the gallery rows that are its slices; -1 if not there.

        Args:
          name: of the scan, such as patient001_frame12.
          images: (Z, S, S) uint8, its slices on the model grid.

        Returns:
          The number, and (Z,) int32.
        """
        rows = np.array([self._rows.get(image.tobytes(), -1) for image in images], np.int32)
        patient = pairs.patient_of(name)
        if patient in self._table.patients:
            return self._table.patients.index(patient), rows
        return (int(self._table.patient[rows.max()]) if rows.max(initial=-1) >= 0 else -1), rows

    def check(self, patient: int, k: int) -> None:
        """Raises UserError if fewer than k slices of other patients are left to guide a gallery patient's scan."""
        left = int((self._table.patient != patient).sum())
        if left < k:
            raise UserError(
                f"the gallery holds {left} slices of patients other than {self._table.patients[patient]}, whose scan "
                f"this is, but {k} guides are retrieved: add other patients' cases to the gallery"
            )
