"""Scores the best checkpoint of a trained run (and of the baseline inside it) and writes its report.

jras evaluate --workdir=runs/acdc --config.eval.split=test
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import jax

from jras_jax import report
from jras_jax.commands import folds
from jras_jax.commands.dataset import data_of
from jras_jax.commands.opened import add_workdir, trained_folder
from jras_jax.commands.terminal import enable_compilation_cache, print_scores, progress, say
from jras_jax.config.limits import MAX_PATIENTS
from jras_jax.errors import UserError
from jras_jax.evaluation.certificate import sentence
from jras_jax.evaluation.evaluate import evaluate
from jras_jax.inference.trained_run import open_run
from jras_jax.run_folder.layout import RunFolder

Watched = Callable[[Iterable[Any]], Iterator[Any]]


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_workdir(p)
    p.add_argument(
        "--output", metavar="FOLDER", help="also write the split's masks as the challenge wants them submitted"
    )
    p.add_argument(
        "--evidence", choices=["all"], help="keep every case and show it slice by slice in the report (default: few)"
    )
    p.add_argument(
        "--gallery",
        metavar="FOLDER",
        help="guides from here, not from the training patients: a gallery of jras gallery, or labelled scans",
    )


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Evaluates; returns the exit status."""
    folder = trained_folder(args, "evaluate")
    enable_compilation_cache()
    every_case = args.evidence == "all"
    if there := folder.folds():
        if args.output:
            raise UserError(f"--workdir={folder}: holds folds; --output writes the masks of one: name its folder")
        options = {"every_case": every_case, "gallery": args.gallery}
        names = {evaluate_and_report(fold, overrides, **options) for fold in there.values()}
        if jax.process_index() == 0:
            folds.tell(folder, *names)
        return 0
    evaluate_and_report(folder, overrides, submission=args.output, every_case=every_case, gallery=args.gallery)
    return 0


def evaluate_and_report(
    folder: RunFolder,
    overrides: tuple[str, ...],
    *,
    submission: str | None = None,
    every_case: bool = False,
    gallery: str | None = None,
    watched: Watched = iter,
) -> str:
    """Evaluates a run and the baseline inside it, prints the scores and writes the report.

    Args:
      folder: of the run.
      overrides: `--config...` arguments.
      submission: folder for masks in the challenge's layout.
      every_case: whether to keep and show the evidence of every case.
      gallery: folder of the guides; None: the training patients.
      watched: goes over the volumes, and may end the evaluation by an exception; what it was writing is then not there.

    Returns:
      The name of the evaluation.
    """
    if every_case:
        overrides = (*overrides, f"--config.eval.evidence_cases={MAX_PATIENTS}")
    before = {name: one.checkpoint_step for name, one in folder.evaluations().items()}
    summary = evaluate_one(folder, overrides, submission=submission, gallery=gallery, watched=watched)
    baseline = None
    if folder.baseline.config.is_file():  # its masks of the same cases
        baseline = evaluate_one(folder.baseline, overrides, keep=summary["evidence"], watched=watched)
    name = str(summary["evaluation"])
    if jax.process_index() != 0:
        return name
    print_scores(summary, baseline)
    if certificate := summary.get("retrieval_certificate"):
        say(sentence(certificate))
    if summary.get("config_protocol") == "paper" and (figure := summary["paper_2d"]["dice_2d_background"]) is not None:
        say(f"the paper's own figure, 2-D Dice with background: {figure:.4f}")
    for warning in summary["warnings"]:
        say(f"note: {warning}")
    if before.get(name) not in (None, summary["checkpoint_step"]):
        say(f"note: replaces the scores of step {before[name]} with those of step {summary['checkpoint_step']}")
    page = report.write_report(
        folder.path,
        split=name,
        baseline_dir=folder.baseline.path if baseline else None,
        evidence="all" if every_case else None,
    )
    say(f"scores: {folder.evaluation(name).summary}\nreport: {page}")
    if submission:
        say(f"masks in the challenge's layout: {submission}")
    return name


def evaluate_one(
    folder: RunFolder,
    overrides: tuple[str, ...],
    *,
    submission: str | None = None,
    keep: Collection[str] | None = None,
    gallery: str | None = None,
    watched: Watched = iter,
) -> dict[str, Any]:
    """Evaluates one run on its own data set, keeping the evidence of the cases `keep`; returns the summary.

    Raises:
      UserError: `gallery` is given to a run without retrieval, or holds none; see `evaluate`.
    """
    run = open_run(folder.path, overrides)
    data = data_of(run)
    controls = run.config.retrieval.enabled and run.config.eval.certificate
    shown = progress(f"evaluating {run.config.eval.split}{', with control guides too' if controls else ''}")
    watch = lambda volumes: watched(shown(volumes))  # noqa: E731
    return evaluate(run, data, submission=submission, keep=keep, other=gallery, progress=watch)
