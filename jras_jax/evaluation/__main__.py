"""Scores folders of NIfTI masks against reference masks, matched by file name.

    python -m jras_jax.evaluation REFERENCE_DIR PREDICTION_DIR --labels=LV:1,MYO:2,RV:3 --output=scores.csv

Subfolders count too. The suffixes _gt and _pred are not part of a case's name; where some files of the reference folder
end in _gt, only those are references, and where some of the prediction folder end in _pred, only those are predictions
(so both may lie in one folder). Of 4-D masks every frame is scored that the reference labels. Distances are in
millimetres by the reference's header, in voxels where it holds no unit and only zooms of 1.

Exit status: 0, 1 where a matched pair could not be scored, 2 for a mistake in the command line or the folders.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.progress
import rich.table

from jras_jax.data import nifti
from jras_jax.errors import UserError
from jras_jax.evaluation import metrics, statistics

COLUMNS = (
    ("case", "patient", "phase", "structure", "dice", "jaccard", *metrics.DISTANCES)
    + ("volume_ml", "reference_volume_ml", "voxels", "reference_voxels")
    + ("empty", "unit")
)
_SUFFIXES = ("_gt", "_pred")
_PHASE = re.compile(r"^(.+)_(ED|ES|frame\d+)$")
_SAME_ZOOM = 1e-3  # relative
_SAME_PLACE_MM = 0.1
_SAME_DIRECTION = 0.9  # cosine between the directions of one axis; a flip gives -1, a swap about 0


def parse_labels(text: str) -> dict[str, int]:
    """'LV:1,MYO:2,RV:3' -> {'LV': 1, 'MYO': 2, 'RV': 3}.

    Raises:
      UserError: not of that form, a label outside 1 to 255, or a name or label twice.
    """
    structures: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = (p.strip() for p in part.partition(":"))
        if not name or not value.isdecimal() or not 1 <= int(value) <= 255:
            raise UserError(f"--labels={text}: {part!r} is not NAME:LABEL with a label of 1 to 255, such as LV:1")
        if name in structures or int(value) in structures.values():
            raise UserError(f"--labels={text}: {part!r} names a structure or a label a second time")
        structures[name] = int(value)
    return structures


def find_masks(folder: pathlib.Path, role: str) -> dict[str, pathlib.Path]:
    """Case -> file of a folder's NIfTI masks, sorted; `role` is the suffix that is preferred, '_gt' or '_pred'.

    Raises:
      UserError: no such folder, no NIfTI file in it, or two files of one case.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    files = sorted(p for p in folder.rglob("*") if p.name.endswith((".nii", ".nii.gz")) and p.is_file())
    files = [p for p in files if _stem(p).endswith(role)] or files
    if not files:
        raise UserError(f"{folder}: holds no .nii or .nii.gz file")
    cases: dict[str, pathlib.Path] = {}
    for file in files:
        case = _stem(file)
        for suffix in _SUFFIXES:
            case = case.removesuffix(suffix)
        if case in cases:
            raise UserError(f"{folder}: {cases[case]} and {file} are both case {case}; keep one of them")
        cases[case] = file
    return dict(sorted(cases.items()))


def _stem(path: pathlib.Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


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
    if not found.spacing_known:
        return [f"{found.path}: its header holds no voxel size; the reference's is used"] if truth.spacing_known else []
    if truth.spacing_known and not np.allclose(truth.spacing, found.spacing, rtol=_SAME_ZOOM, atol=0):
        zooms = [" x ".join(f"{z:.4g}" for z in s.spacing) for s in (found, truth)]
        raise UserError(f"{found.path}: its voxels are {zooms[0]} mm, those of its reference {zooms[1]} mm; {hint}")
    apart = float(np.abs(truth.affine - found.affine).max())
    placed = all(int(s.header["sform_code"]) or int(s.header["qform_code"]) for s in (truth, found))
    if not placed or apart <= _SAME_PLACE_MM:
        return []
    axes = [s.affine[:3, :3] / np.linalg.norm(s.affine[:3, :3], axis=0) for s in (truth, found)]
    if ((axes[0] * axes[1]).sum(0) < _SAME_DIRECTION).any():
        raise UserError(f"{found.path}: its axes run in other directions than those of its reference; {hint}")
    return [f"{found.path}: its affine is up to {apart:.3g} mm off its reference's; compared voxel by voxel"]


def summary_table(rows: Sequence[Mapping[str, Any]], structures: Sequence[str]) -> rich.table.Table:
    """Means by structure, and over all, with what was left out."""
    unit = metrics.aggregate(rows)["mean"]["unit"]
    table = rich.table.Table(title=f"Mean (SD); distances in {unit if unit != 'mixed' else 'mm and voxels, mixed'}")
    table.add_column("structure", overflow="fold")
    for name in ("n", "Dice", "95% interval", "HD", "HD95", "ASSD", "empty", "no distance"):
        table.add_column(name, justify="right", overflow="fold")
    for name in [*structures, "mean"]:
        own = [r for r in rows if name in ("mean", r["structure"])]
        patients = [r["patient"] for r in own]
        found = {key: statistics.summarise([r[key] for r in own], patients) for key in ("dice", *metrics.DISTANCES)}
        dice, counts = found["dice"], metrics.aggregate(own)["mean"]
        distances = ["-" if unit == "mixed" else _mean_sd(found[key], 2) for key in metrics.DISTANCES]
        table.add_row(
            *(name, str(len(own)), _mean_sd(dice, 4), f"{dice.low:.4f} to {dice.high:.4f}"),
            *distances,
            *(str(counts["n_empty"]), str(counts["n_no_distance"])),
            end_section=name == structures[-1],
        )
    return table


def _mean_sd(summary: statistics.Summary, digits: int) -> str:
    if math.isnan(summary.mean):
        return "-"
    spread = "" if math.isnan(summary.sd) else f" ({summary.sd:.{digits}f})"
    return f"{summary.mean:.{digits}f}{spread}"


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
    truth, found = find_masks(references, "_gt"), find_masks(predictions, "_pred")
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
            remarks = [f"not scored: {e}"]
        else:
            rows += own
        for remark in remarks:
            log.print(remark, markup=False, soft_wrap=True)
    if not rows:
        raise UserError(f"none of the {len(matched)} cases could be scored; the reasons stand above")
    return rows, faults


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m jras_jax.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("reference_dir", type=pathlib.Path, help="folder of the true masks")
    p.add_argument("prediction_dir", type=pathlib.Path, help="folder of the masks to score")
    p.add_argument("--labels", required=True, help="NAME:LABEL,... the structures to score, such as LV:1,MYO:2,RV:3")
    p.add_argument("--output", type=pathlib.Path, help="CSV file for a row per case and structure")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status (see the module)."""
    args = parser().parse_args(argv)
    log = rich.console.Console(stderr=True)
    try:
        structures = parse_labels(args.labels)
        rows, faults = score_folders(args.reference_dir, args.prediction_dir, structures, log)
        if args.output:
            metrics.write_cases_csv(args.output, rows, COLUMNS)
    except (UserError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    out = rich.console.Console()
    out = out if out.is_terminal else rich.console.Console(width=140)
    out.print(summary_table(rows, list(structures)))
    if args.output:
        out.print(f"{len(rows)} rows written to {args.output}", markup=False, highlight=False, soft_wrap=True)
    if faults:
        print(f"error: {faults} matched cases could not be scored; they are named above", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
