"""The files of a run as the report reads them: every file but evaluation/summary.json may be missing."""

from __future__ import annotations

import csv
import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jras_jax import files
from jras_jax.errors import UserError
from jras_jax.evaluation.metrics import DISTANCES, read_cases_csv
from jras_jax.run_folder.layout import RunFolder


class ReportError(UserError):
    """A run folder lacks what the report needs, or a file in it cannot be read."""


@dataclasses.dataclass(frozen=True)
class ReportedRun:
    """What the files of one run say.

    Attributes:
      path: the folder.
      config, facts, splits: config.json, run.json, splits.json; empty where the file is missing.
      metrics: metrics.csv, column -> list of (step, value), steps ascending, empty cells left out.
      summary: evaluation/summary.json.
      cases: evaluation/cases.csv as `jras_jax.evaluation.metrics.read_cases_csv` gives it, one mapping a structure of
        a case; empty where the file is missing; without distances where their units are mixed.
      positions: evaluation/positions.csv, rows as `metrics.position_scores` gives them with patient and phase; empty
        where the file is missing.
      evidence: case name -> .npz file.
      choices: evaluation/choices.json, which options validation chose; empty where they were not measured.
    """

    path: pathlib.Path
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    splits: Mapping[str, Any]
    metrics: Mapping[str, Sequence[tuple[int, float]]]
    summary: Mapping[str, Any]
    cases: Sequence[Mapping[str, Any]]
    positions: Sequence[Mapping[str, Any]]
    evidence: Mapping[str, pathlib.Path]
    choices: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The config's name of the run, or the folder's."""
        return str(self.config.get("name") or self.path.resolve().name)

    @property
    def unit(self) -> str:
        """Of distances: 'mm', 'voxel' or 'mixed'."""
        return str(self.summary.get("unit") or next((c["unit"] for c in self.cases if c.get("unit")), "voxel"))

    @property
    def warnings(self) -> list[str]:
        """Of run.json and summary.json, each once."""
        both = [*self.facts.get("warnings", []), *self.summary.get("warnings", [])]
        return list(dict.fromkeys(str(w) for w in both))


def read(path: str | pathlib.Path) -> ReportedRun:
    """Reads a run folder.

    Raises:
      ReportError: there is no such folder, it holds no evaluation, or a file in it is not what its name says.
    """
    folder = RunFolder(path)
    if not folder.path.is_dir():
        raise ReportError(f"{path}: no such run folder; give the --workdir of a run")
    if not folder.summary.is_file():
        raise ReportError(
            f"{folder.summary} is missing: this run has not been evaluated. Evaluate it with: "
            f"jras evaluate --workdir={path}"
        )
    return ReportedRun(
        path=folder.path,
        config=_json(folder.config),
        facts=_json(folder.facts),
        splits=_json(folder.splits),
        metrics=_metrics(folder.metrics),
        summary=_json(folder.summary),
        cases=_cases(folder.cases),
        positions=read_cases_csv(folder.positions) if folder.positions.is_file() else [],
        evidence={f.stem: f for f in sorted(folder.evidence.glob("*.npz"))},
        choices=_json(folder.choices),
    )


def _cases(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of cases.csv; where mm and voxels are mixed, without distances, which then cannot be averaged."""
    rows = read_cases_csv(path) if path.is_file() else []
    if len({row.get("unit") for row in rows}) > 1:
        rows = [row | dict.fromkeys(DISTANCES, math.nan) for row in rows]
    return rows


def case_name(row: Mapping[str, Any]) -> str:
    """The name of a row's case, as `jras_jax.data.Volume.case` gives it."""
    return f"{row['patient']}_{row['phase']}" if row["phase"] else str(row["patient"])


def _json(path: pathlib.Path) -> dict[str, Any]:
    """The content of a JSON file; {} if it is missing."""
    if not path.is_file():
        return {}
    try:
        return files.read_json(path, remedy="write it again, or delete it to leave it out of the report")
    except files.FileError as e:
        raise ReportError(str(e)) from e


def _metrics(path: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    if not path.is_file():
        return {}
    out: dict[str, list[tuple[int, float]]] = {}
    with path.open(newline="") as f:
        for line, row in enumerate(csv.DictReader(f), 2):
            step = _float(row.pop("step", "") or "", f"{path} line {line} column step")
            for column, cell in row.items():
                if cell and column:
                    value = _float(cell, f"{path} line {line} column {column}")
                    out.setdefault(column, []).append((int(step), value))
    return {column: sorted(points) for column, points in out.items()}


def _float(cell: str, where: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ReportError(f"{where}: {cell!r} is not a number") from None
