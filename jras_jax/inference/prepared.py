"""A scan between reading and writing: its frames on the model grid, and who its patient is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jras_jax.data import Volume
from jras_jax.data.grid import VolumeSlices
from jras_jax.inference.predictions import SlicePredictions
from jras_jax.inference.segmenter import Segmenter
from jras_jax.retrieval.gallery import Gallery
from jras_jax.retrieval.known import Match


class Prepared(NamedTuple):
    """The frames of one scan, ready for the network.

    Attributes:
      volumes: the frames.
      slices: of each frame, on the model grid.
      match: who the patient is; None without a gallery.
      rows: for each frame (Z,) int32, the gallery rows that are its slices, -1 if not there.
      gallery: in place of the run's, if the patient has several names there.
    """

    volumes: list[Volume]
    slices: list[VolumeSlices]
    match: Match | None
    rows: list[np.ndarray]
    gallery: Gallery | None = None

    @property
    def patient(self) -> int:
        """The patient's number in the gallery; -1 if not there."""
        return self.match.first if self.match else -1

    def segmented(self, segmenter: Segmenter) -> tuple[Prepared, list[SlicePredictions]]:
        """The prediction of each frame, and this scan with the slices that it was made of."""
        pairs = zip(self.volumes, self.slices, self.rows, strict=True)
        done = [segmenter.settled(v, s, patient=self.patient, rows=rows) for v, s, rows in pairs]
        return self._replace(slices=[slices for slices, _ in done]), [predicted for _, predicted in done]

    def segmenter(self, shared: Segmenter) -> Segmenter:
        """The segmenter for this scan: `shared`, with this scan's own gallery if it has one."""
        return shared if self.gallery is None else shared.guided_by(self.gallery)
