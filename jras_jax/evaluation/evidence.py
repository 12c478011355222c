"""What the report shows of single cases: slices, masks and guides, one compressed numpy file a case."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import tempfile
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from jras_jax import files, threads
from jras_jax.data import Volume
from jras_jax.data.grid import grey
from jras_jax.data.resampling import winners
from jras_jax.data.slice_table import SliceTable
from jras_jax.inference.predictions import VolumePrediction

PACKERS = 2  # threads that compress


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A scored case, whose arrays wait in a temporary file."""

    case: str
    dice: float
    file: pathlib.Path


class EvidenceWriter:
    """Keeps the slices and guides of some cases, or of all.

    Which ones is known only when all are scored. Until then the arrays of each case, without its guides' images, wait
    in a temporary folder of the system, so that memory does not grow with the number of cases.

    Args:
      cases: how many to keep, evenly over the ranking by Dice, the worst and the best among them; 0 keeps none.
      table: the gallery's slices; None for a run without retrieval.
      channels: of the data set's images.
      named: the cases to keep instead, by name.
    """

    def __init__(self, cases: int, table: SliceTable | None, named: Collection[str] | None, channels: int):
        self._cases, self._table, self._named, self._channels = cases, table, named, channels
        self._seen: list[_Seen] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def check(self, volumes: Iterable[Volume]) -> None:
        """Raises FileError, before the evaluation, for a case that no file can be named after."""
        for volume in volumes if self._cases else ():
            files.safe_name(volume.case, "case")

    def packed(self, volume: Volume, prediction: VolumePrediction, dice: float) -> bytes:
        """The compressed arrays of a scored case, which a thread may make for `add`; b'' if it is not wanted."""
        if volume.case not in self._named if self._named is not None else not self._cases:
            return b""
        assert prediction.masks is not None
        arrays = {
            "image": grey(prediction.images, 3, self._channels),
            "truth": prediction.masks,
            "prediction": winners(prediction.slices.probabilities)[0],
            "dice": np.float32(dice),
        }
        if prediction.located is not None:
            arrays |= {"wholes": prediction.located.wholes, "corners": prediction.located.corners}
        if self._table is not None:
            slices = prediction.slices
            arrays |= {"indices": slices.indices, "weights": slices.weights, "similarity": slices.similarity}
        return _compressed(arrays)

    def add(self, case: str, dice: float, packed: bytes) -> None:
        """Takes a scored case; raises FileError if the temporary folder cannot be written."""
        if not packed:
            return
        try:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="jras_evidence_")
            file = pathlib.Path(self._folder.name) / f"{len(self._seen)}.npz"
            file.write_bytes(packed)
        except OSError as e:
            raise files.FileError(
                f"the evidence of {case} cannot wait in {tempfile.gettempdir()} ({e.strerror or e}): free space "
                "there, set TMPDIR to another folder, or keep none with --config.eval.evidence_cases=0"
            ) from e
        self._seen.append(_Seen(case, dice, file))

    def _kept(self) -> list[_Seen]:
        ranked = sorted(self._seen, key=lambda seen: (seen.dice, seen.case))
        if self._named is not None or len(ranked) <= self._cases:
            return ranked
        places = np.rint(np.linspace(0, len(ranked) - 1, self._cases)).astype(int)
        return [ranked[place] for place in places]

    @property
    def names(self) -> list[str]:
        """The cases that are kept, the lowest Dice first."""
        return [seen.case for seen in self._kept()]

    def write(self, folder: pathlib.Path) -> None:
        """Writes CASE.npz of every case that is kept; raises FileError."""
        kept = self._kept()
        for seen, packed in zip(kept, threads.in_order(self._whole, kept, threads=PACKERS, ahead=PACKERS), strict=True):
            with files.replacing(folder / f"{files.safe_name(seen.case, 'case')}.npz") as temporary:
                temporary.write_bytes(packed)

    def close(self) -> None:
        """Removes the temporary folder."""
        if self._folder is not None:
            self._folder.cleanup()

    def _whole(self, seen: _Seen) -> bytes:
        with np.load(seen.file) as waiting:
            return _compressed(self._with_guides(dict(waiting)))

    def _with_guides(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Looks the guides of each slice up in the gallery's table."""
        found = dict(arrays)
        if self._table is None:
            return found
        rows = found.pop("indices")
        return found | {
            "guide_images": grey(self._table.images[rows], 4, self._channels),
            "guide_masks": self._table.masks[rows],
            "guide_names": np.array([[_name(self._table, r) for r in row] for row in rows]),
        }


def _compressed(arrays: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _name(table: SliceTable, row: int) -> str:
    """'patient012 ED slice 3' of a gallery row; slices count from 1, as in the report."""
    patient, case = table.patients[table.patient[row]], table.cases[table.case[row]]
    phase = case.removeprefix(patient).lstrip("_")
    return " ".join(filter(None, (patient, phase, f"slice {table.slice_index[row] + 1}")))
