"""What every part of the project agrees on about scans: labels, phases and the volume that travels between parts."""

from __future__ import annotations

import dataclasses

import numpy as np

CLASSES = ("background", "RV", "MYO", "LV")
NUM_CLASSES = len(CLASSES)
STRUCTURES = {"RV": 1, "MYO": 2, "LV": 3}
PHASES = ("ED", "ES")

# A data set's own label value for each of our classes (index = our label).
LABEL_CONVENTIONS = {
    "acdc": (0, 1, 2, 3),  # Bernard et al., IEEE TMI 2018: 1 RV, 2 myocardium, 3 LV
    "mnms": (0, 3, 2, 1),  # Campello et al., IEEE TMI 2021: 1 LV, 2 myocardium, 3 RV
}


@dataclasses.dataclass(frozen=True)
class Volume:
    """One patient at one phase, on the scan's native grid.

    Attributes:
      image: (X, Y, Z) float32, the scanner's intensities, axes as nibabel gives them; Z runs through the slices.
      mask: (X, Y, Z) uint8 in the project's labels (0 background, 1 RV, 2 MYO, 3 LV); None if there is none.
      affine: (4, 4) float64, voxel to world, RAS+ mm.
      spacing: (3,) float32, mm; ones (voxels) if `spacing_known` is False.
      spacing_known: whether the header gave a unit or a zoom other than 1.
      patient: the data set's own name of the patient.
      phase: "ED", "ES", or "" (unknown, a scan to segment).
      group: pathology group ("" if unknown).
      vendor, centre: scanner vendor and hospital ("" if unknown).
      frame: index of the time frame in the source file, from 0.
      source: the file it was read from.
    """

    image: np.ndarray
    mask: np.ndarray | None
    affine: np.ndarray
    spacing: np.ndarray
    spacing_known: bool
    patient: str
    phase: str = ""
    group: str = ""
    vendor: str = ""
    centre: str = ""
    frame: int = 0
    source: str = ""

    @property
    def case(self) -> str:
        """Name of the case: patient and phase, or patient and frame if the phase is unknown."""
        return f"{self.patient}_{self.phase or f'frame{self.frame:02d}'}"
