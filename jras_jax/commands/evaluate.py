"""Scores the best checkpoint of a trained run (and of the baseline inside it) and writes its report.

jras evaluate --workdir=runs/acdc --config.eval.split=test
"""

from __future__ import annotations

import argparse
from typing import Any

import jax

from jras_jax import report
from jras_jax.commands.dataset import data_of
from jras_jax.commands.terminal import enable_compilation_cache, print_scores, progress, say
from jras_jax.errors import UserError
from jras_jax.evaluation.evaluate import evaluate
from jras_jax.inference.trained_run import open_run
from jras_jax.run_folder import published
from jras_jax.run_folder.layout import RunFolder

_WRITE = ("evaluate", "choose")  # commands whose results go into the run's folder


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_workdir(p)
    p.add_argument(
        "--output", metavar="FOLDER", help="also write the split's masks as the challenge wants them submitted"
    )


def add_workdir(p: argparse.ArgumentParser) -> None:
    """The options of every command that opens a trained run."""
    p.add_argument("--workdir", help="folder of a trained run; also hf:org/name on the Hugging Face hub")
    p.add_argument("--config", help=argparse.SUPPRESS)


def trained_folder(args: argparse.Namespace, command: str) -> RunFolder:
    """The run's folder; raises UserError if there is no --workdir, or a --config, which the run itself has."""
    if not args.workdir:
        raise UserError(f"{command} needs --workdir=FOLDER of a trained run")
    if args.config:
        raise UserError(f"{command} reads the run's own settings from --workdir; leave --config out")
    if published.is_hub(args.workdir) and command in _WRITE:
        name = args.workdir.removeprefix("hf:").partition("@")[0]
        raise UserError(
            f"{command} writes into the run's folder: download it with hf download {name} --local-dir FOLDER and give "
            "--workdir=FOLDER"
        )
    return RunFolder(args.workdir)


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Evaluates; returns the exit status."""
    folder = trained_folder(args, "evaluate")
    enable_compilation_cache()
    evaluate_and_report(folder, overrides, args.output)
    return 0


def evaluate_and_report(folder: RunFolder, overrides: tuple[str, ...], submission: str | None = None) -> None:
    """Evaluates a run and the baseline inside it, prints the scores and writes the report."""
    before = {name: one.checkpoint_step for name, one in folder.evaluations().items()}
    summary = evaluate_one(folder, overrides, submission)
    baseline = evaluate_one(folder.baseline, overrides) if folder.baseline.config.is_file() else None
    if jax.process_index() != 0:
        return
    print_scores(summary, baseline)
    for warning in summary["warnings"]:
        say(f"note: {warning}")
    name = summary["evaluation"]
    if before.get(name) not in (None, summary["checkpoint_step"]):
        say(f"note: replaces the scores of step {before[name]} with those of step {summary['checkpoint_step']}")
    page = report.write_report(folder.path, split=name, baseline_dir=folder.baseline.path if baseline else None)
    say(f"scores: {folder.evaluation(name).summary}\nreport: {page}")
    if submission:
        say(f"masks in the challenge's layout: {submission}")


def evaluate_one(folder: RunFolder, overrides: tuple[str, ...], submission: str | None = None) -> dict[str, Any]:
    """Evaluates one run on its own data set; returns the summary."""
    run = open_run(folder.path, overrides)
    data = data_of(run)
    title = f"evaluating {run.config.eval.split}"
    return evaluate(run, data, submission=submission, progress=progress(title))
