"""What every part of the project agrees on about scans: labels, phases and the volume that travels between parts."""

from __future__ import annotations

import dataclasses

import numpy as np

from jras_jax.data.description import CARDIAC, KNOWN, DatasetDescription

# Those of cardiac MRI. What serves any data set asks the volume's or the run's description instead.
CLASSES = CARDIAC.classes
NUM_CLASSES = CARDIAC.num_classes
STRUCTURES = CARDIAC.structures
PHASES = CARDIAC.phases

# A challenge's own label value for each of our classes (index = our label).
LABEL_CONVENTIONS = {name: KNOWN[name].values for name in ("acdc", "mnms")}


@dataclasses.dataclass(frozen=True)
class Volume:
    """One patient at one phase, on the scan's native grid.

    Attributes:
      image: (X, Y, Z) float32, the scanner's intensities, axes as nibabel gives them; Z runs through the slices. Of a
        data set of several channels (X, Y, Z, C).
      mask: (X, Y, Z) uint8 class numbers of `description`; None where there is none.
      affine: (4, 4) float64, voxel to world, RAS+ mm.
      spacing: (3,) float32, mm; ones (voxels) if `spacing_known` is False.
      spacing_known: whether the header gave a unit or a zoom other than 1.
      patient: the data set's own name of the patient.
      phase: "ED", "ES", or "" (unknown, a scan to segment).
      group: pathology group ("" if unknown).
      vendor, centre: scanner vendor and hospital ("" if unknown).
      frame: index of the time frame in the source file, from 0.
      source: the file it was read from.
      name: the data set's own name of the case; "" where patient and phase, or frame, name it.
      description: of the data set, which says what the mask's labels mean.
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
    name: str = ""
    description: DatasetDescription = CARDIAC

    @property
    def case(self) -> str:
        """Name of the case: its own, or patient and phase, or patient and frame where the phase is unknown."""
        return self.name or f"{self.patient}_{self.phase or f'frame{self.frame:02d}'}"
