"""Recognises scans of a gallery's own patients, so that the leak rule also holds for new files.

A patient is recognised by content first: a slice that equals one of the gallery's pixel by pixel. The name counts too,
with the suffixes that `data.names` knows, because another acquisition of a patient has other pixels. Two hospitals may
both have a patient001: the name then leaves out slices that could have guided, which costs little, while a patient who
guides himself would make every figure wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jras_jax.data import names
from jras_jax.data.slice_table import SliceTable
from jras_jax.errors import UserError

PIXELS, NAME = "pixels", "name"


class Match(NamedTuple):
    """Who a scan's patient is.

    Attributes:
      patients: the gallery's number of each patient whom the scan may be of -> 'pixels' or 'name', what tells so;
        pixels first. Several if the gallery knows the person by several names, or name and pixels disagree.
      rows: for each volume (Z,) int32, the gallery rows that are its slices, -1 if not there.
    """

    patients: dict[int, str]
    rows: list[np.ndarray]

    @property
    def first(self) -> int:
        """The patient's number, -1 if the gallery does not have him."""
        return next(iter(self.patients), -1)


class KnownPatients:
    """The patients of a gallery, to be recognised.

    Args:
      table: the gallery's slices.
    """

    def __init__(self, table: SliceTable):
        self._table = table
        self._rows: dict[bytes, list[int]] = {}
        for row, image in enumerate(table.known_by):
            if image.min() < image.max():  # an empty slice could be anybody's
                self._rows.setdefault(image.tobytes(), []).append(row)
        self._keys: dict[str, list[int]] = {}
        for number in np.unique(table.patient):
            self._keys.setdefault(names.parse(table.patients[number]).key, []).append(int(number))

    def find(self, name: str, volumes: Iterable[np.ndarray]) -> Match:
        """Looks for the patient of a scan.

        Args:
          name: of the scan, such as patient001_frame12.
          volumes: its frames, each (Z, S, S) uint8, as `VolumeSlices.wholes`.
        """
        found = [[self._rows.get(image.tobytes(), []) for image in images] for images in volumes]
        patients = {int(self._table.patient[row]): PIXELS for frame in found for rows in frame for row in rows}
        for number in self._keys.get(names.parse(name).key, []):
            patients.setdefault(number, NAME)
        return Match(patients, [np.array([rows[-1] if rows else -1 for rows in frame], np.int32) for frame in found])

    def slices_of(self, match: Match) -> int:
        """How many slices the gallery has of the patients of a match."""
        return int(np.isin(self._table.patient, list(match.patients)).sum())

    def check(self, match: Match, k: int) -> None:
        """Raises UserError if fewer than k slices of other patients are left to guide a gallery patient's scan."""
        left = len(self._table) - self.slices_of(match)
        if match.patients and left < k:
            own = " and ".join(self._table.patients[number] for number in match.patients)
            raise UserError(
                f"the gallery holds {left} slices of patients other than {own}, whose scan this is, but {k} guides are "
                "retrieved: add other patients' cases to the gallery"
            )
