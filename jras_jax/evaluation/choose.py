"""Measures on validation whether post-processing and test-time augmentation help, never on the test set."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from jras_jax import files
from jras_jax.data import Volume
from jras_jax.data.load import RunData
from jras_jax.evaluation import evaluator, metrics, statistics
from jras_jax.inference.postprocess import postprocessed
from jras_jax.inference.predictions import VolumePrediction
from jras_jax.inference.trained_run import TrainedRun
from jras_jax.run_folder import provenance

PLAIN: dict[str, Any] = {"postprocess": "none", "tta": False}
OPTIONS: tuple[dict[str, Any], ...] = tuple(
    {"postprocess": rule, "tta": tta} for tta in (False, True) for rule in ("none", "largest_component")
)
RULE = (
    "the chosen option has the highest mean Dice among those whose gain over using neither has a 95% bootstrap "
    "interval (over patients) above 0; if there is none, neither is used"
)
UNMEASURED = (
    "post-processing or test-time augmentation is on, but jras choose did not choose it on the validation fold for "
    "this checkpoint: do not pick it by these test scores"
)

Row = Mapping[str, Any]


def choose(
    run: TrainedRun,
    data: RunData,
    *,
    progress: Callable[[str, Sequence[Volume]], Iterable[Volume]] = lambda title, volumes: volumes,
) -> dict[str, Any]:
    """Scores the validation fold with and without largest components and test-time augmentation.

    Args:
      run: the run; it writes evaluation/choices.json in its folder. eval.split, eval.postprocess and eval.tta change
        nothing here.
      data: its data set, with the run's own splits.
      progress: wraps the volumes to show how far it is.

    Returns:
      What was written: 'options', one dict each (postprocess, tta, means, gains over neither with their intervals),
      'chosen', 'rule', 'warnings', 'split', 'patients', 'unit', 'checkpoint_step'.

    Raises:
      UserError: the file cannot be written.
    """
    volumes = data.part("validation")
    gallery = evaluator.gallery_of(run, data, "validation")
    table = gallery.table if gallery else None
    scored: list[list[Row]] = [[] for _ in OPTIONS]
    for tta in (False, True):
        ways = [i for i, option in enumerate(OPTIONS) if option["tta"] == tta]
        segmenter = run.segmenter(gallery.arrays if gallery else None, tta=tta)
        title = f"validation, {'with' if tta else 'without'} test-time augmentation"
        rules = [OPTIONS[i]["postprocess"] for i in ways]

        def score(volume: Volume, prediction: VolumePrediction, rules: list[str] = rules) -> list[list[Row]]:
            return [[*evaluator.case_rows(volume, postprocessed(prediction, rule))] for rule in rules]

        predicted = evaluator.predictions(segmenter, volumes, table, progress=functools.partial(progress, title))
        for _, _, rows_by_rule in evaluator.beside(predicted, score):
            for i, rows in zip(ways, rows_by_rule, strict=True):
                scored[i] += rows
    options = [option | _figures(rows, scored[0]) for option, rows in zip(OPTIONS, scored, strict=True)]
    units = {row["unit"] for row in scored[0]}
    result = {
        "split": "validation",
        "patients": len({v.patient for v in volumes}),
        "checkpoint_step": run.step,
        "unit": units.pop() if len(units) == 1 else "mixed",
        "options": options,
        "rule": RULE,
        "warnings": provenance.leaks(run.config) + provenance.data_changes(run.folder.facts, data),
        "chosen": best(options),
    }
    if jax.process_index() == 0:
        files.write_json(run.folder.choices, result)
    return result


def best(options: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The option that `RULE` chooses."""
    better = [o for o in options if o["dice_gain_low"] is not None and o["dice_gain_low"] > 0]
    winner = max(better, key=lambda o: o["dice"], default=PLAIN)
    return {key: winner[key] for key in PLAIN}


def unmeasured(run: TrainedRun) -> bool:
    """Whether a run's evaluation uses an option that validation did not choose for its checkpoint."""
    used = {"postprocess": run.config.eval.postprocess, "tta": run.config.eval.tta}
    if used == PLAIN:
        return False
    try:
        known = files.read_json(run.folder.choices, remedy="make it with jras choose")
    except files.FileError:
        return True
    return known.get("chosen") != used or known.get("checkpoint_step") != run.step


def _figures(rows: Sequence[Row], plain: Sequence[Row]) -> dict[str, Any]:
    """Means of an option, and its gains over plain on the same structures; distances where both have one."""
    out: dict[str, Any] = {}
    means = metrics.aggregate(rows)["mean"]
    for key in ("dice", "hd95"):
        gains = [float(a[key]) - float(b[key]) for a, b in zip(rows, plain, strict=True)]
        if means[key] is None:
            gains = [math.nan] * len(gains)
        found = statistics.summarise(gains, [r["patient"] for r in rows])
        values = {key: means[key], f"{key}_gain": found.mean, f"{key}_gain_low": found.low}
        values |= {f"{key}_gain_high": found.high}
        out |= {k: None if v is None or math.isnan(v) else v for k, v in values.items()}
    return out
