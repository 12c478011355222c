"""Writes the report of an evaluated run: one HTML page that needs no network.

    jras report RUN_DIR
    jras report RUN_DIR --split=validation
    jras report RUN_DIR --evidence=all

The page is about one evaluation, the last one made unless --split names another (a folder in RUN_DIR/evaluation). It is
written into that folder; the page of the last evaluation is RUN_DIR/report.html too.
"""

from __future__ import annotations

import argparse

from jras_jax.report import write_report


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    p.add_argument("run_dir", metavar="RUN_DIR", help="the --workdir of the run")
    p.add_argument("--split", metavar="NAME", help="which evaluation, such as test (default: the last one made)")
    p.add_argument(
        "--baseline", metavar="DIR", help="run to compare with (default: RUN_DIR/baseline if it is evaluated)"
    )
    p.add_argument("--output", metavar="FILE", help="write the page to this file alone")
    p.add_argument(
        "--evidence",
        metavar="all|CASE,CASE",
        help="cases to show slice by slice (default: the worst, the median and the best)",
    )


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Writes the page; returns the exit status."""
    shown = args.evidence.split(",") if args.evidence and args.evidence != "all" else args.evidence
    written = write_report(
        args.run_dir, split=args.split, baseline_dir=args.baseline, output=args.output, evidence=shown
    )
    print(f"{written} ({written.stat().st_size / 1e6:.1f} MB)")
    return 0
