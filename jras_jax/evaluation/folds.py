"""The folds of one cross-validation together: their scores pooled, with intervals over patients."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jras_jax import files
from jras_jax.errors import UserError
from jras_jax.evaluation import metrics, statistics
from jras_jax.run_folder.layout import RunFolder

MEASURES = ("dice", *metrics.DISTANCES)
RULE = (
    "each fold scores the patients that it did not train on, by its own best checkpoint; the mean is over all folds' "
    "rows, and the 95% interval is a bootstrap over patients. A fold's checkpoint is chosen on the patients that it is "
    "scored on, so that these means are slightly high; the test set has no such advantage"
)


def summarise(folder: RunFolder, evaluation: str) -> dict[str, Any]:
    """Pools one evaluation of every fold and writes folds.json and folds.csv into the folder of the folds.

    Args:
      folder: that holds fold_0, fold_1, ...
      evaluation: the name of the evaluation, such as 'validation'.

    Returns:
      What was written to folds.json: 'evaluation', 'folds' (number -> mean Dice, patients, step), 'mean' and 'by' with
      mean, sd, low, high and patients of each measure, and the rule.

    Raises:
      UserError: a fold lacks the evaluation.
    """
    rows: list[dict[str, Any]] = []
    folds: dict[str, Any] = {}
    for number, fold in folder.folds().items():
        own = fold.find_evaluation(evaluation)
        cases = metrics.read_cases_csv(own.cases)
        rows += [{"fold": number} | case for case in cases]
        dice = float(np.mean([case["dice"] for case in cases]))
        patients = len({case["patient"] for case in cases})
        folds[str(number)] = {"dice": dice, "patients": patients, "checkpoint_step": own.checkpoint_step}
    if not rows:
        raise UserError(f"{folder}: holds no folds; make them with jras train --folds=all --workdir={folder}")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(f"{row['structure']}/{row['phase']}".rstrip("/"), []).append(row)
    means = [fold["dice"] for fold in folds.values()]
    found = {
        "evaluation": evaluation,
        "folds": folds,
        "dice_sd_over_folds": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "mean": _summary(rows),
        "by": {name: _summary(own) for name, own in groups.items()},
        "unit": rows[0]["unit"] if len({row["unit"] for row in rows}) == 1 else "mixed",
        "rule": RULE,
    }
    files.write_json(folder.folds_summary, found)
    _write_csv(folder, rows)
    return found


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{measure: {mean, sd, low, high, n, patients}}; None for what cannot be told."""
    patients = [row["patient"] for row in rows]
    mixed = len({row["unit"] for row in rows}) > 1
    out = {}
    for measure in MEASURES:
        if mixed and measure in metrics.DISTANCES:
            continue
        s = statistics.summarise([float(row[measure]) for row in rows], patients)
        figures = {"mean": s.mean, "sd": s.sd, "low": s.low, "high": s.high}
        out[measure] = {k: None if np.isnan(v) else v for k, v in figures.items()} | {
            "n": s.n,
            "patients": s.n_patients,
        }
    return out


def _write_csv(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(dict.fromkeys(key for row in rows for key in row)), restval="")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(folder.folds_cases, buffer.getvalue())
