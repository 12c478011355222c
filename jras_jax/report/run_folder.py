"""A run folder as the report reads it: every file but evaluation/summary.json may be missing."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jras_jax.errors import UserError
from jras_jax.evaluation.metrics import DISTANCES, read_cases_csv

SUMMARY = pathlib.PurePosixPath("evaluation/summary.json")
CASES = pathlib.PurePosixPath("evaluation/cases.csv")
POSITIONS = pathlib.PurePosixPath("evaluation/positions.csv")
CHOICES = pathlib.PurePosixPath("evaluation/choices.json")
EVIDENCE = pathlib.PurePosixPath("evaluation/evidence")


class ReportError(UserError):
    """A run folder lacks what the report needs, or a file in it cannot be read."""


@dataclasses.dataclass(frozen=True)
class Run:
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


def read(path: str | pathlib.Path) -> Run:
    """Reads a run folder.

    Raises:
      ReportError: there is no such folder, it holds no evaluation, or a file in it is not what its name says.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise ReportError(f"{path}: no such run folder; give the --workdir of a run")
    if not (path / SUMMARY).is_file():
        raise ReportError(
            f"{path / SUMMARY} is missing: this run has not been evaluated. "
            f"Make it with: python run.py --mode=evaluate --workdir={path}"
        )
    return Run(
        path=path,
        config=_json(path / "config.json"),
        facts=_json(path / "run.json"),
        splits=_json(path / "splits.json"),
        metrics=_metrics(path / "metrics.csv"),
        summary=_json(path / SUMMARY),
        cases=_cases(path / CASES),
        positions=read_cases_csv(path / POSITIONS) if (path / POSITIONS).is_file() else [],
        evidence={f.stem: f for f in sorted((path / EVIDENCE).glob("*.npz"))},
        choices=_json(path / CHOICES),
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
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as e:
        raise ReportError(f"{path} is not readable JSON ({e}); write it again, or delete it to leave it out") from e
    if not isinstance(content, dict):
        raise ReportError(f"{path} holds a {type(content).__name__} where an object is expected")
    return content


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
