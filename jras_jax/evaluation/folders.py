"""Scores folders of NIfTI masks against reference masks, matched by path and name."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.progress

from jras_jax.data import STRUCTURES, cavities, geometry, nifti
from jras_jax.data.remarks import summarised
from jras_jax.errors import UserError
from jras_jax.evaluation import matching, metrics

COLUMNS = (
    ("case", "patient", "phase", "structure", "dice", "jaccard", *metrics.DISTANCES)
    + ("volume_ml", "reference_volume_ml", "voxels", "reference_voxels")
    + ("empty", "unit")
)
_PHASE = re.compile(r"^(.+)_(ED|ES|frame\d+)$")


class LabelMaps(NamedTuple):
    """Structure -> label, for each of the two folders; both name the same structures."""

    reference: Mapping[str, int]
    prediction: Mapping[str, int]


class Scored(NamedTuple):
    """What came of two folders.

    Attributes:
      rows: with the columns `COLUMNS`.
      faults: number of matched pairs that could not be scored.
      alone: number of files without a partner in the other folder.
      warnings: lines that belong beside the scores.
    """

    rows: list[dict[str, Any]]
    faults: int
    alone: int
    warnings: list[str]


class CavityCheck:
    """Sees whether LV and RV are exchanged in the masks of a folder, if it is told LV, MYO and RV.

    Args:
      folder: for the message.
      structures: structure -> label of its masks.
      option: the option that gives them.
    """

    def __init__(self, folder: pathlib.Path, structures: Mapping[str, int], option: str):
        self._folder, self._structures, self._option = folder, structures, option
        self._total = np.zeros((2, 2))
        self._single: list[pathlib.Path] = []

    def add(self, scan: nifti.Scan) -> None:
        """Looks at a mask."""
        if not STRUCTURES.keys() <= self._structures.keys():
            return
        lookup = np.zeros(256, np.uint8)
        for name, ours in STRUCTURES.items():
            lookup[self._structures[name]] = ours
        counts = cavities.rims(lookup[scan.array])
        self._total += counts
        shares = cavities.exchanged(counts)
        if shares is not None and shares[0] < 0.5 < shares[1]:  # of one mask, which may be poor, only the clear case
            self._single.append(scan.path)

    def warnings(self) -> list[str]:
        """A line if LV and RV seem exchanged in the folder or in single masks of it."""
        if cavities.exchanged(self._total) is None and not self._single:
            return []
        mended = dict(self._structures) | {"LV": self._structures["RV"], "RV": self._structures["LV"]}
        labels = ",".join(f"{name}:{value}" for name, value in mended.items())
        where = f"{self._folder}: "
        if cavities.exchanged(self._total) is None:
            where += f"in {len(self._single)} of its masks, such as {self._single[0].name}, "
        surrounded = f"of the two cavities, myocardium surrounds what {self._option} calls RV"
        return [f"{where}LV and RV seem exchanged: {surrounded}; if so, give {self._option}={labels}"]


def score_pair(
    case: str,
    reference: pathlib.Path,
    prediction: pathlib.Path,
    structures: Mapping[str, int],
    predicted: Mapping[str, int] | None = None,
    checks: tuple[CavityCheck, ...] = (),
) -> tuple[list[dict[str, Any]], list[str]]:
    """Scores one pair of files.

    Args:
      case: its name.
      reference, prediction: 3-D or 4-D masks on one grid.
      structures: name -> label of the reference; other labels are ignored, and named among the remarks.
      predicted: name -> label of the prediction; None: as `structures`.
      checks: the reference's and the prediction's, which look at the masks too.

    Returns:
      Rows with the columns `COLUMNS`, one a structure (and labelled frame); remarks for the user.

    Raises:
      UserError: a file cannot be read, the geometries differ, or no frame of a 4-D reference is labelled.
    """
    truth, found = nifti.read_labels(reference), nifti.read_labels(prediction)
    remarks = _check_geometry(truth, found)
    for scan, labels in ((truth, structures), (found, predicted or structures)):
        foreign = sorted(set(np.unique(scan.array).tolist()) - {0, *labels.values()})
        if foreign:
            remarks.append(f"{scan.path}: labels {foreign} are not in --labels and count as background")
    for check, scan in zip(checks, (truth, found), strict=False):
        check.add(scan)
    if predicted is not None and dict(predicted) != dict(structures):
        found = dataclasses.replace(found, array=_relabelled(found.array, predicted, structures))
    spacing = truth.spacing if truth.spacing_known else None
    unit = "voxel" if spacing is None else "mm"
    rows: list[dict[str, Any]] = []
    for name, patient, phase, a, b in _volumes(case, truth, found):
        shared = {"case": name, "patient": patient, "phase": phase, "unit": unit}
        for structure, scores in metrics.score_structures(a, b, spacing=spacing, structures=structures).items():
            rows.append(shared | {"structure": structure} | dataclasses.asdict(scores))
    return rows, remarks


def _relabelled(array: np.ndarray, old: Mapping[str, int], new: Mapping[str, int]) -> np.ndarray:
    """Labels of one map -> those of another; what neither names becomes background."""
    lookup = np.zeros(256, np.uint8)
    for name, value in old.items():
        lookup[value] = new[name]
    return lookup[array]


def _volumes(case: str, truth: nifti.Scan, found: nifti.Scan) -> list[tuple[str, str, str, np.ndarray, np.ndarray]]:
    """(name, patient, phase, reference, prediction) of each volume to score."""
    a, b = truth.array, found.array
    if a.ndim == 3:
        match = _PHASE.match(case)
        patient, phase = match.groups() if match else (case, "")
        return [(case, patient, phase, a, b)]
    frames = np.flatnonzero(a.any((0, 1, 2)))
    if not len(frames):
        raise UserError(f"{truth.path}: none of its {a.shape[3]} frames is labelled, so there is nothing to score")
    return [(f"{case}_t{t:02d}", case, f"t{t:02d}", a[..., t], b[..., t]) for t in frames]


def _check_geometry(truth: nifti.Scan, found: nifti.Scan) -> list[str]:
    """Remarks on what differs without harm.

    Raises:
      UserError: the two masks are not on one grid.
    """
    hint = "write predictions on the grid of their scan, with its header"
    if truth.array.shape != found.array.shape:
        raise UserError(
            f"{found.path}: its shape {found.array.shape} is not {truth.array.shape} of its reference; {hint}"
        )
    remarks = [f"{found.path}: {line}" for line in geometry.compare(found, truth, role="reference", hint=hint)]
    return remarks + [f"{s.path}: {line}" for s in (truth, found) for line in s.remarks]


def score_folders(
    references: pathlib.Path, predictions: pathlib.Path, labels: LabelMaps, log: rich.console.Console
) -> Scored:
    """Scores every matched pair, naming on `log` whatever is not scored.

    Raises:
      UserError: see `matching.match`; or no case has both files, or none could be scored.
    """
    matched, alone, notes = matching.match(references, predictions)
    for line in alone:
        log.print(f"not scored: {line}", markup=False, soft_wrap=True)
    if not matched:
        raise UserError(f"{references} and {predictions} have no case in common; the files without a partner are above")
    same = dict(labels.reference) == dict(labels.prediction)
    options = ("--labels", "--labels") if same else ("--reference_labels", "--prediction_labels")
    checks = tuple(CavityCheck(*side) for side in zip((references, predictions), labels, options, strict=True))
    rows: list[dict[str, Any]] = []
    faults = 0
    for pair in rich.progress.track(matched, "scoring", console=log, transient=True):
        try:
            own, remarks = score_pair(*pair, labels.reference, labels.prediction, checks)
        except UserError as e:
            faults += 1
            log.print(f"not scored: {e}", markup=False, soft_wrap=True)
        else:
            rows += own
            notes += remarks
    for line in summarised(notes):
        log.print(line, markup=False, soft_wrap=True)
    if not rows:
        raise UserError(f"none of the {len(matched)} cases could be scored; the lines above say why")
    warnings = [line for check in checks for line in check.warnings()]
    for line in warnings:
        log.print(f"warning: {line}", markup=False, soft_wrap=True)
    return Scored(rows, faults, alone=len(alone), warnings=warnings)
