"""The files of a run as the report reads them: every file but summary.json may be missing."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jras_jax import files
from jras_jax.data.description import CARDIAC, KNOWN, DatasetDescription
from jras_jax.errors import UserError
from jras_jax.evaluation.metrics import DISTANCES, POSITIONS, read_cases_csv
from jras_jax.run_folder.layout import RunFolder


class ReportError(UserError):
    """A run folder lacks what the report needs, or a file in it cannot be read."""


@dataclasses.dataclass(frozen=True)
class ReportedRun:
    """What the files of one run say.

    Attributes:
      path: the folder.
      evaluation: the name of the evaluation, such as 'test'; the files from `summary` to `evidence` are in its folder.
      config, facts, splits: config.json, run.json, splits.json; empty where the file is missing.
      metrics: metrics.csv, column -> list of (step, value), steps ascending, empty cells left out.
      summary: summary.json.
      cases: cases.csv as `jras_jax.evaluation.metrics.read_cases_csv` gives it, one mapping a structure of
        a case; empty where the file is missing; without distances where their units are mixed.
      positions: positions.csv, rows as `metrics.position_scores` gives them with patient and phase; empty
        where the file is missing.
      evidence: case name -> .npz file.
      description: of the data set.
      choices: evaluation/choices.json, which options validation chose; empty if they were not measured.
    """

    path: pathlib.Path
    evaluation: str
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    splits: Mapping[str, Any]
    metrics: Mapping[str, Sequence[tuple[int, float]]]
    summary: Mapping[str, Any]
    cases: Sequence[Mapping[str, Any]]
    positions: Sequence[Mapping[str, Any]]
    evidence: Mapping[str, pathlib.Path]
    choices: Mapping[str, Any]
    description: DatasetDescription = CARDIAC

    @property
    def name(self) -> str:
        """The config's name of the run, or the folder's."""
        return str(self.config.get("name") or self.path.resolve().name)

    @property
    def order(self) -> list[str]:
        """Names of structures, phases and slice positions in the order in which the page lists them."""
        return [*self.description.structures, *self.description.phases, *POSITIONS]

    @property
    def unit(self) -> str:
        """Of distances: 'mm', 'voxel' or 'mixed'."""
        return str(self.summary.get("unit") or next((c["unit"] for c in self.cases if c.get("unit")), "voxel"))

    @property
    def warnings(self) -> list[str]:
        """Of run.json and summary.json, each once."""
        both = [*self.facts.get("warnings", []), *self.summary.get("warnings", [])]
        return list(dict.fromkeys(str(w) for w in both))


def read(path: str | pathlib.Path, evaluation: str | None = None) -> ReportedRun:
    """Reads a run folder.

    Args:
      path: the folder.
      evaluation: the name of one of its evaluations; None is the last one made.

    Raises:
      ReportError: there is no such folder, it holds no such evaluation, or a file in it is not what its name says.
    """
    folder = RunFolder(path)
    if not folder.path.is_dir():
        raise ReportError(f"{path}: no such run folder; give the --workdir of a run")
    scores = folder.find_evaluation(evaluation)
    again = f"write it again with jras evaluate --workdir={path} --config.eval.split={scores.split}"
    optional = "restore it from a copy, or delete it to leave it out of the report"
    summary = files.read_json(scores.summary, remedy=again)
    _check(scores.summary, summary, kinds=_SUMMARY, remedy=again)
    cases = _cases(scores.cases)
    counted = (summary.get("mean") or {}).get("n")
    if cases and isinstance(counted, int) and counted != len(cases):
        raise ReportError(
            f"{scores.cases} has {len(cases)} rows, but {scores.summary} counts {counted}: one is not whole; {again}"
        )
    config = _json(folder.config, _CONFIG, optional)
    return ReportedRun(
        path=folder.path,
        evaluation=scores.name,
        config=config,
        facts=_json(folder.facts, _FACTS, optional),
        splits=_json(folder.splits, _SPLITS, optional),
        metrics=_metrics(folder.metrics, optional),
        summary=summary,
        cases=cases,
        positions=read_cases_csv(scores.positions) if scores.positions.is_file() else [],
        evidence={f.stem: f for f in sorted(scores.evidence.glob("*.npz"))},
        choices=_json(folder.choices, _CHOICES, f"make it again with jras choose --workdir={path}, or delete it"),
        description=_description(folder, config),
    )


def _description(folder: RunFolder, config: Mapping[str, Any]) -> DatasetDescription:
    """The description of the run's data set; runs of earlier versions, which wrote none, are all of the heart."""
    if folder.dataset.is_file():
        return folder.read_description("")
    return KNOWN.get(str((config.get("dataset") or {}).get("name")), CARDIAC)


# The kinds of those entries that the page takes apart; others it shows as they are.
_SUMMARY: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("mean", "by", "gallery", "retrieval", "paper_2d", "clinical", "uncertainty"), dict),
    "retrieval_certificate": dict,
    **dict.fromkeys(("split", "unit", "protocol", "name"), str),
    "warnings": list,
}
_FACTS = {"warnings": list, "versions": (dict, str), "earlier_starts": list, "parameters": dict}
_CHOICES = {"options": list, "chosen": dict, "patients": int, "rule": str}
_SPLITS = dict.fromkeys(("train", "validation", "test"), list)
_CONFIG = dict.fromkeys(("dataset", "backbone", "retrieval", "fusion"), dict) | {"name": str}


def _check(path: pathlib.Path, content: Mapping[str, Any], kinds: Mapping[str, Any], remedy: str) -> None:
    """Raises ReportError if an entry is there and of another kind."""
    for key, kind in kinds.items():
        if key in content and not isinstance(content[key], kind):
            raise ReportError(f"{path} is damaged ({key!r} is a {type(content[key]).__name__}): {remedy}")
    if not all(isinstance(option, dict) for option in content.get("options") or ()):
        raise ReportError(f"{path} is damaged ('options' holds other things than objects): {remedy}")


def _cases(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of cases.csv; where mm and voxels are mixed, without distances, which then cannot be averaged."""
    rows = read_cases_csv(path) if path.is_file() else []
    if len({row.get("unit") for row in rows}) > 1:
        rows = [row | dict.fromkeys(DISTANCES, math.nan) for row in rows]
    return rows


def case_name(row: Mapping[str, Any]) -> str:
    """The name of a row's case, as `jras_jax.data.Volume.case` gives it."""
    return f"{row['patient']}_{row['phase']}" if row["phase"] else str(row["patient"])


def _json(path: pathlib.Path, kinds: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """The content of a JSON file; {} if it is missing."""
    if not path.is_file():
        return {}
    content = files.read_json(path, remedy=remedy)
    _check(path, content, kinds=kinds, remedy=remedy)
    return content


def _metrics(path: pathlib.Path, remedy: str) -> dict[str, list[tuple[int, float]]]:
    if not path.is_file():
        return {}
    out: dict[str, list[tuple[int, float]]] = {}
    # The run may be training just now.
    for line, row in enumerate(files.read_rows(path, remedy=remedy, growing=True)[1], 2):
        step = row.pop("step", "")
        if not step.isdigit():
            raise ReportError(f"{path} line {line} column step: {step!r} is not a step: {remedy}")
        for column, cell in row.items():
            if cell and column:
                value = _float(cell, f"{path} line {line} column {column}", remedy)
                out.setdefault(column, []).append((int(step), value))
    return {column: sorted(points) for column, points in out.items()}


def _float(cell: str, where: str, remedy: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ReportError(f"{where}: {cell!r} is not a number: {remedy}") from None
