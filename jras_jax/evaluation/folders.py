"""Scores folders of NIfTI masks against reference masks, matched by file name."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import rich.console
import rich.progress

from jras_jax.data import finder, geometry, nifti, pairs
from jras_jax.data.remarks import summarised
from jras_jax.errors import UserError
from jras_jax.evaluation import metrics

COLUMNS = (
    ("case", "patient", "phase", "structure", "dice", "jaccard", *metrics.DISTANCES)
    + ("volume_ml", "reference_volume_ml", "voxels", "reference_voxels")
    + ("empty", "unit")
)
_SUFFIXES = ("_gt", "_pred")
_PHASE = re.compile(r"^(.+)_(ED|ES|frame\d+)$")


def find_masks(folder: pathlib.Path, role: str, notes: list[str]) -> dict[str, pathlib.Path]:
    """Case -> file of a folder's NIfTI masks, sorted; `role` is the suffix that is preferred, '_gt' or '_pred'; what
    looks like a mask but is passed over goes to `notes`.

    Raises:
      UserError: no such folder, no NIfTI file in it, or two files of one case.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    found = finder.find(folder)
    files = [p for p in found.files if pairs.stem(p).lower().endswith(role)] or found.files
    finder.check_stems(files)
    notes += found.lines()
    if not files:
        raise UserError(f"{folder}: holds no .nii or .nii.gz file")
    cases: dict[str, pathlib.Path] = {}
    for file in files:
        case = pairs.stem(file)
        for suffix in _SUFFIXES:
            case = case.removesuffix(suffix)
        if case in cases:
            raise UserError(f"{folder}: {cases[case]} and {file} are both case {case}; keep one of them")
        cases[case] = file
    return dict(sorted(cases.items()))


def score_pair(
    case: str, reference: pathlib.Path, prediction: pathlib.Path, structures: Mapping[str, int]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Scores one pair of files.

    Args:
      case: its name.
      reference, prediction: 3-D or 4-D masks on one grid.
      structures: name -> label; other labels are ignored, and named among the remarks.

    Returns:
      Rows with the columns `COLUMNS`, one a structure (and labelled frame); remarks for the user.

    Raises:
      UserError: a file cannot be read, the geometries differ, or no frame of a 4-D reference is labelled.
    """
    truth, found = nifti.read_labels(reference), nifti.read_labels(prediction)
    remarks = _check_geometry(truth, found)
    for scan in (truth, found):
        foreign = sorted(set(np.unique(scan.array).tolist()) - {0, *structures.values()})
        if foreign:
            remarks.append(f"{scan.path}: labels {foreign} are not in --labels and count as background")
    spacing = truth.spacing if truth.spacing_known else None
    unit = "voxel" if spacing is None else "mm"
    rows: list[dict[str, Any]] = []
    for name, patient, phase, a, b in _volumes(case, truth, found):
        shared = {"case": name, "patient": patient, "phase": phase, "unit": unit}
        for structure, scores in metrics.score_structures(a, b, spacing, structures).items():
            rows.append(shared | {"structure": structure} | dataclasses.asdict(scores))
    return rows, remarks


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
      UserError: the two masks do not lie on one grid.
    """
    hint = "write predictions on the grid of their scan, with its header"
    if truth.array.shape != found.array.shape:
        raise UserError(
            f"{found.path}: its shape {found.array.shape} is not {truth.array.shape} of its reference; {hint}"
        )
    remarks = [f"{found.path}: {line}" for line in geometry.compare(found, truth, role="reference", hint=hint)]
    return remarks + [f"{s.path}: {line}" for s in (truth, found) for line in s.remarks]


def score_folders(
    references: pathlib.Path,
    predictions: pathlib.Path,
    structures: Mapping[str, int],
    log: rich.console.Console,
) -> tuple[list[dict[str, Any]], int]:
    """Scores every matched pair, naming on `log` whatever is not scored.

    Returns:
      Rows as of `score_pair`, and the number of matched pairs that could not be scored.

    Raises:
      UserError: see `find_masks`; or no case has both files, or none could be scored.
    """
    notes: list[str] = []
    truth, found = find_masks(references, "_gt", notes), find_masks(predictions, "_pred", notes)
    matched = [case for case in truth if case in found]
    for side, other, folder in ((truth, found, predictions), (found, truth, references)):
        for case in side.keys() - other.keys():
            log.print(f"not scored: {side[case]}: {folder} holds no mask of case {case}", markup=False, soft_wrap=True)
    if not matched:
        raise UserError(f"{references} and {predictions} have no case in common, such as {next(iter(truth))}")
    rows, faults = [], 0
    for case in rich.progress.track(matched, "scoring", console=log, transient=True):
        try:
            own, remarks = score_pair(case, truth[case], found[case], structures)
        except UserError as e:
            faults += 1
            log.print(f"not scored: {e}", markup=False, soft_wrap=True)
        else:
            rows += own
            notes += remarks
    for line in summarised(notes):
        log.print(line, markup=False, soft_wrap=True)
    if not rows:
        raise UserError(f"none of the {len(matched)} cases could be scored; the reasons stand above")
    return rows, faults
