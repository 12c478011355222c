"""Scores folders of NIfTI masks against reference masks, matched by path and name.

    jras score REFERENCE_DIR PREDICTION_DIR --labels=LV:1,MYO:2,RV:3 --output=scores.csv
    jras score REFERENCE_DIR PREDICTION_DIR --reference_labels=LV:1,MYO:2,RV:3 --prediction_labels=RV:1,MYO:2,LV:3

M&Ms writes LV:1,MYO:2,RV:3, ACDC RV:1,MYO:2,LV:3; a folder whose LV and RV seem exchanged is warned about.

Subfolders count too. A case's two masks have the same path below their folders, or the same file name, or the same
patient and phase: patient101_ED.nii.gz is patient101_frame01_gt.nii.gz if the Info.cfg beside it calls frame 1 ED, and
CODE_sa_pred is CODE_sa_gt. If some files of the reference folder end in _gt, only those are references; if some of the
prediction folder end in _pred, only those are predictions (so one folder may hold both). Of 4-D masks every frame that
the reference labels is scored. Distances are in millimetres by the reference's header, and in voxels if the header has
no unit and only zooms of 1.

Exit status: 0; 1 if a case could not be scored or a file has no partner; 2 for a mistake in the command line or the
folders.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table

from jras_jax.data.pairs import parse_labels
from jras_jax.errors import UserError
from jras_jax.evaluation import metrics, statistics
from jras_jax.evaluation.folders import COLUMNS, LabelMaps, score_folders


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    p.add_argument("reference_dir", type=pathlib.Path, help="folder of the true masks")
    p.add_argument("prediction_dir", type=pathlib.Path, help="folder of the masks to score")
    p.add_argument("--labels", help="NAME:LABEL,... the structures to score, such as LV:1,MYO:2,RV:3")
    p.add_argument("--reference_labels", metavar="LABELS", help="the same for the reference folder alone")
    p.add_argument("--prediction_labels", metavar="LABELS", help="the same for the prediction folder alone")
    p.add_argument("--output", type=pathlib.Path, help="CSV file for a row per case and structure")


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Scores the folders; returns the exit status."""
    labels = label_maps(args)
    log = rich.console.Console(stderr=True)
    rows, faults, alone, warnings = score_folders(args.reference_dir, args.prediction_dir, labels=labels, log=log)
    if args.output:
        metrics.write_cases_csv(args.output, rows, COLUMNS)
    out = rich.console.Console()
    out = out if out.is_terminal else rich.console.Console(width=140)
    out.print(summary_table(rows, list(labels.reference)))
    for line in warnings:
        out.print(f"warning: {line}", markup=False, highlight=False, soft_wrap=True)
    if args.output:
        out.print(f"{len(rows)} rows written to {args.output}", markup=False, highlight=False, soft_wrap=True)
    counts = {"matched cases could not be scored": faults, "files have no partner in the other folder": alone}
    missing = [f"{count} {what}" for what, count in counts.items() if count]
    if missing:
        print(f"error: {' and '.join(missing)}; they are named above", file=sys.stderr)
    return 1 if missing else 0


def label_maps(args: argparse.Namespace) -> LabelMaps:
    """The labels of both folders; raises UserError if one has none, or they name different structures."""
    maps = []
    for option in ("reference_labels", "prediction_labels"):
        own = getattr(args, option)
        if not (own or args.labels):
            raise UserError(f"score needs --labels=NAME:LABEL,... for both folders, or --{option}=... too")
        maps.append(parse_labels(own, option=f"--{option}") if own else parse_labels(args.labels))
    reference, prediction = maps
    if reference.keys() != prediction.keys():
        raise UserError(
            f"--reference_labels name {', '.join(reference)}, --prediction_labels {', '.join(prediction)}: give the "
            "same structures for both folders"
        )
    return LabelMaps(reference, prediction)


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
