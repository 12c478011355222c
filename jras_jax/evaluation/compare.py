"""Compares two runs on the same cases: paired differences, intervals over patients, Wilcoxon's test, Holm's correction.

    python -m jras_jax.evaluation.compare RUN_A RUN_B [--metrics=dice,hd95] [--output=comparison.csv]

A run is its folder (evaluation/cases.csv in it is read) or a CSV file of scores. Cases are matched by patient, phase
and structure, and both runs must have the same ones. The difference is B - A; its interval is a bootstrap over
patients. Wilcoxon's signed-rank test compares one mean difference a patient, since the phases and structures of a
patient are not independent; Holm's correction is over the rows of one metric (each structure, and their mean).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table

from jras_jax.errors import UserError
from jras_jax.evaluation import metrics as scores
from jras_jax.evaluation import statistics

METRICS = ("dice", "jaccard", *scores.DISTANCES)
DEFAULT_METRICS = ("dice", *scores.DISTANCES)
_NAMED = 5  # cases named in a message, before "and so many more"

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two runs by one metric on one structure, or on all ('mean').

    Attributes:
      metric, structure: what is compared.
      n: pairs counted; n_missing: pairs left out because a run has no value there (a distance to an empty mask).
      n_patients: distinct patients among the n pairs.
      mean_a, mean_b: over the n pairs.
      difference: mean_b - mean_a; low, high: its 95% bootstrap interval over patients.
      p: Wilcoxon's signed-rank test over patients; p_holm: corrected over the structures and the mean of this metric.
    """

    metric: str
    structure: str
    n: int
    n_missing: int
    n_patients: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


def cases_file(run: pathlib.Path) -> pathlib.Path:
    """The table of scores of a run folder; a CSV file is its own.

    Raises:
      UserError: neither is there.
    """
    if run.is_file():
        return run
    file = run / "evaluation" / "cases.csv"
    if not run.exists():
        raise UserError(f"{run}: there is no such run folder or CSV file")
    if not file.is_file():
        raise UserError(f"{file} is missing: evaluate the run first (run.py --mode=evaluate --workdir={run})")
    return file


def match_rows(
    rows_a: Sequence[Row], rows_b: Sequence[Row], *, allow_partial: bool = False
) -> tuple[list[tuple[Row, Row]], int]:
    """Pairs of rows with the same patient, phase and structure, in A's order, and how many rows have no partner.

    Raises:
      UserError: a case stands twice in one run; the runs have different cases and `allow_partial` is off; they have
        none in common; or their distances are in different units.
    """
    a, b = _by_case(rows_a, "A"), _by_case(rows_b, "B")
    only_a, only_b = [k for k in a if k not in b], [k for k in b if k not in a]
    if (only_a or only_b) and not allow_partial:
        parts = [f"only run {name} has {_names(keys)}" for name, keys in (("A", only_a), ("B", only_b)) if keys]
        raise UserError(
            f"the runs were not scored on the same cases: {'; '.join(parts)}. Evaluate both on one split, or compare "
            f"the {len(a.keys() & b.keys())} rows they share with --allow_partial"
        )
    pairs = [(a[k], b[k]) for k in a if k in b]
    if not pairs:
        raise UserError("the runs have no case in common")
    for x, y in pairs:
        if x.get("unit", "") != y.get("unit", ""):
            raise UserError(
                f"{_names([_key(x)])}: distances are in {x.get('unit') or 'no named unit'} in run A, "
                f"in {y.get('unit') or 'no named unit'} in run B"
            )
    return pairs, len(only_a) + len(only_b)


def _key(row: Row) -> tuple[str, str, str]:
    return row["patient"], row["phase"], row["structure"]


def _by_case(rows: Sequence[Row], name: str) -> dict[tuple[str, str, str], Row]:
    found: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        if _key(row) in found:
            raise UserError(f"run {name} has {_names([_key(row)])} twice")
        found[_key(row)] = row
    return found


def _names(keys: Sequence[tuple[str, str, str]]) -> str:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return ", ".join(" ".join(part for part in key if part) for key in keys[:_NAMED]) + more


def compare(pairs: Sequence[tuple[Row, Row]], metrics: Sequence[str] = DEFAULT_METRICS) -> list[Comparison]:
    """Compares matched rows by each metric: each structure in the order met, then 'mean' over all.

    Raises:
      UserError: a run's table has no such column.
    """
    structures = list(dict.fromkeys(a["structure"] for a, _ in pairs))
    out: list[Comparison] = []
    for metric in metrics:
        for side, rows in zip("AB", zip(*pairs, strict=True), strict=True):
            if any(metric not in row for row in rows):
                raise UserError(f"the scores of run {side} have no column {metric}")
        found = [
            _compare_one([p for p in pairs if s in ("mean", p[0]["structure"])], metric, s)
            for s in [*structures, "mean"]
        ]
        corrected = statistics.holm([c.p for c in found])
        out += [dataclasses.replace(c, p_holm=float(p)) for c, p in zip(found, corrected, strict=True)]
    return out


def _compare_one(pairs: Sequence[tuple[Row, Row]], metric: str, structure: str) -> Comparison:
    values = [(a["patient"], float(a[metric]), float(b[metric])) for a, b in pairs]
    known = [v for v in values if not (math.isnan(v[1]) or math.isnan(v[2]))]
    patients = [v[0] for v in known]
    differences = [v[2] - v[1] for v in known]
    per_patient = list(statistics.patient_means(patients, differences).values())
    low, high = statistics.bootstrap_mean(differences, patients)
    n = len(known)
    mean_a, mean_b = (sum(v[i] for v in known) / n if n else math.nan for i in (1, 2))
    return Comparison(
        metric=metric,
        structure=structure,
        n=n,
        n_missing=len(values) - n,
        n_patients=len(per_patient),
        mean_a=mean_a,
        mean_b=mean_b,
        difference=mean_b - mean_a,
        low=low,
        high=high,
        p=statistics.paired_wilcoxon(per_patient, [0.0] * len(per_patient)),
        p_holm=math.nan,
    )


def comparison_table(found: Sequence[Comparison], unit: str) -> rich.table.Table:
    """The comparison as a table; `unit` is that of the distances."""
    table = rich.table.Table(
        title=f"B - A, 95% bootstrap interval over patients; distances in {unit or 'unknown units'}"
    )
    for name in ("metric", "structure"):
        table.add_column(name, overflow="fold")
    for name in ("patients", "pairs", "left out", "A", "B", "B - A", "95% interval", "Wilcoxon p", "Holm p"):
        table.add_column(name, justify="right", overflow="fold")
    for c in found:
        digits = 2 if c.metric in scores.DISTANCES else 4
        table.add_row(
            *(c.metric, c.structure, str(c.n_patients), str(c.n), str(c.n_missing)),
            *(f"{x:.{digits}f}" for x in (c.mean_a, c.mean_b)),
            *(f"{c.difference:+.{digits}f}", f"{c.low:+.{digits}f} to {c.high:+.{digits}f}"),
            *(_p_text(c.p), _p_text(c.p_holm)),
            end_section=c.structure == "mean",
        )
    return table


def _p_text(p: float) -> str:
    return "-" if math.isnan(p) else "<0.0001" if p < 1e-4 else f"{p:.4f}"


def _write(path: pathlib.Path, found: Sequence[Comparison]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Comparison)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(c) for c in found)


def _metric_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UserError(f"--metrics={text}: {', '.join(unknown)} is not one of {', '.join(METRICS)}")
    return list(dict.fromkeys(names))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m jras_jax.evaluation.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("run_a", type=pathlib.Path, help="folder of run A, or a CSV file of scores")
    p.add_argument("run_b", type=pathlib.Path, help="folder of run B, or a CSV file of scores")
    p.add_argument("--metrics", default=",".join(DEFAULT_METRICS), help=f"of {', '.join(METRICS)}")
    p.add_argument("--output", type=pathlib.Path, help="CSV file for the table, with every digit")
    p.add_argument("--allow_partial", action="store_true", help="compare what the runs share where their cases differ")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2: a mistake of the user, printed without a traceback)."""
    args = parser().parse_args(argv)
    try:
        metrics = _metric_names(args.metrics)
        files = [cases_file(run) for run in (args.run_a, args.run_b)]
        pairs, unmatched = match_rows(*map(scores.read_cases_csv, files), allow_partial=args.allow_partial)
        units = {a.get("unit", "") for a, _ in pairs}
        if len(units) > 1 and set(metrics) & set(scores.DISTANCES):
            print("note: some cases are in mm and some in voxels; distances are left out", file=sys.stderr)
            metrics = [m for m in metrics if m not in scores.DISTANCES]
        found = compare(pairs, metrics)
        if args.output:
            _write(args.output, found)
    except (UserError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    out = rich.console.Console()
    out = out if out.is_terminal else rich.console.Console(width=140)
    for name, file in zip("AB", files, strict=True):
        out.print(f"{name}: {file}", markup=False, highlight=False, soft_wrap=True)
    if unmatched:
        out.print(f"{unmatched} rows that only one run has are left out", highlight=False)
    out.print(comparison_table(found, "mixed units" if len(units) > 1 else next(iter(units))))
    if args.output:
        out.print(f"written to {args.output}", markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
