"""Scores the best checkpoint of a trained run (and of the baseline inside it) and writes its report.

jras evaluate --workdir=runs/acdc --config.eval.split=test
"""

from __future__ import annotations

import argparse
from typing import Any

import jax

from jras_jax import report
from jras_jax.commands import folds
from jras_jax.commands.dataset import load_data
from jras_jax.commands.opened import add_workdir, trained_folder
from jras_jax.commands.terminal import enable_compilation_cache, print_scores, progress, say
from jras_jax.errors import UserError
from jras_jax.evaluation.evaluate import evaluate
from jras_jax.inference.trained_run import open_run
from jras_jax.run_folder.layout import RunFolder


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_workdir(p)
    p.add_argument(
        "--output", metavar="FOLDER", help="also write the split's masks as the challenge wants them submitted"
    )


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Evaluates; returns the exit status."""
    folder = trained_folder(args, "evaluate")
    enable_compilation_cache()
    if there := folder.folds():
        if args.output:
            raise UserError(f"--workdir={folder}: holds folds; --output writes the masks of one: name its folder")
        names = {evaluate_and_report(fold, overrides) for fold in there.values()}
        if jax.process_index() == 0:
            folds.tell(folder, *names)
        return 0
    evaluate_and_report(folder, overrides, args.output)
    return 0


def evaluate_and_report(folder: RunFolder, overrides: tuple[str, ...], submission: str | None = None) -> str:
    """Evaluates a run and the baseline inside it, prints scores, writes the report; returns the evaluation's name."""
    before = {name: one.checkpoint_step for name, one in folder.evaluations().items()}
    summary = evaluate_one(folder, overrides, submission)
    baseline = evaluate_one(folder.baseline, overrides) if folder.baseline.config.is_file() else None
    name = str(summary["evaluation"])
    if jax.process_index() != 0:
        return name
    print_scores(summary, baseline)
    for warning in summary["warnings"]:
        say(f"note: {warning}")
    if before.get(name) not in (None, summary["checkpoint_step"]):
        say(f"note: replaces the scores of step {before[name]} with those of step {summary['checkpoint_step']}")
    page = report.write_report(folder.path, split=name, baseline_dir=folder.baseline.path if baseline else None)
    say(f"scores: {folder.evaluation(name).summary}\nreport: {page}")
    if submission:
        say(f"masks in the challenge's layout: {submission}")
    return name


def evaluate_one(folder: RunFolder, overrides: tuple[str, ...], submission: str | None = None) -> dict[str, Any]:
    """Evaluates one run on its own data set; returns the summary."""
    run = open_run(folder.path, overrides)
    data = load_data(run.config.dataset, run.splits)
    title = f"evaluating {run.config.eval.split}"
    return evaluate(run, data, submission=submission, progress=progress(title))
