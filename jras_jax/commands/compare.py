"""Compares two evaluated runs, case by case: paired differences, intervals over patients and tests.

    jras compare RUN_A RUN_B --metrics=dice,hd95 --output=comparison.csv

A run is its folder or a CSV file of scores. If a run has several evaluations, --split says which (a folder in its
evaluation/, such as test). Both must have the same cases. The difference is B - A with a bootstrap interval over
patients; p is Wilcoxon's signed-rank test on one mean difference per patient, Holm-corrected over the structures and
their mean of one metric.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import math
import pathlib
import sys
from collections.abc import Sequence

import rich.console
import rich.table

from jras_jax import files
from jras_jax.errors import UserError
from jras_jax.evaluation import metrics as scores
from jras_jax.evaluation.compare import DEFAULT_METRICS, METRICS, Comparison, cases_file, compare, match_rows


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    p.add_argument("run_a", type=pathlib.Path, help="folder of run A, or a CSV file of scores")
    p.add_argument("run_b", type=pathlib.Path, help="folder of run B, or a CSV file of scores")
    p.add_argument("--split", metavar="NAME", help="which evaluation, such as test (default: the only one)")
    p.add_argument("--metrics", default=",".join(DEFAULT_METRICS), help=f"some of {', '.join(METRICS)}")
    p.add_argument("--output", type=pathlib.Path, help="CSV file for the table, with every digit")
    p.add_argument("--allow_partial", action="store_true", help="if the runs' cases differ, compare those they share")


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Compares the runs; returns the exit status."""
    metrics = _metric_names(args.metrics)
    sources = [cases_file(folder, args.split) for folder in (args.run_a, args.run_b)]
    rows = [scores.read_cases_csv(source) for source in sources]
    pairs, unmatched = match_rows(*rows, allow_partial=args.allow_partial)
    if not pairs:
        raise UserError("the runs have no case in common")
    units = {a.get("unit", "") for a, _ in pairs}
    if len(units) > 1 and set(metrics) & set(scores.DISTANCES):
        print("note: some cases are in mm and some in voxels; distances are left out", file=sys.stderr)
        metrics = [m for m in metrics if m not in scores.DISTANCES]
    comparisons = compare(pairs, metrics)
    if args.output:
        files.write_text(args.output, as_csv(comparisons))
    out = rich.console.Console()
    out = out if out.is_terminal else rich.console.Console(width=140)
    for name, source in zip("AB", sources, strict=True):
        out.print(f"{name}: {source}", markup=False, highlight=False, soft_wrap=True)
    if unmatched:
        out.print(f"{unmatched} rows that only one run has are left out", highlight=False)
    out.print(comparison_table(comparisons, "mixed units" if len(units) > 1 else next(iter(units))))
    if args.output:
        out.print(f"written to {args.output}", markup=False, highlight=False, soft_wrap=True)
    return 0


def as_csv(comparisons: Sequence[Comparison]) -> str:
    """One line a comparison, with every digit."""
    columns = [f.name for f in dataclasses.fields(Comparison) if f.name != "per_patient"]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(columns)
    writer.writerows([getattr(c, name) for name in columns] for c in comparisons)
    return buffer.getvalue()


def comparison_table(comparisons: Sequence[Comparison], unit: str) -> rich.table.Table:
    """The comparison as a table; `unit` is that of the distances."""
    table = rich.table.Table(
        title=f"B - A, 95% bootstrap interval over patients; distances in {unit or 'unknown units'}"
    )
    for name in ("metric", "structure"):
        table.add_column(name, overflow="fold")
    for name in ("patients", "pairs", "left out", "A", "B", "B - A", "95% interval", "Wilcoxon p", "Holm p"):
        table.add_column(name, justify="right", overflow="fold")
    for c in comparisons:
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


def _metric_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UserError(f"--metrics={text}: {', '.join(unknown)} is not one of {', '.join(METRICS)}")
    return list(dict.fromkeys(names))
