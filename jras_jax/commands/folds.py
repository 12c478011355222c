"""All folds of a cross-validation in one command: `jras train --folds=all`, and what belongs to it.

WORKDIR/fold_0, fold_1, ... are runs like any other. A stopped command resumes in the fold it was in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import rich.console
import rich.table

from jras_jax.commands.terminal import say
from jras_jax.config import Config
from jras_jax.errors import UserError
from jras_jax.evaluation import folds
from jras_jax.run_folder.layout import RunFolder


def numbers(text: str, count: int) -> list[int]:
    """'all' or '0,2' -> the folds; raises UserError for anything else."""
    if text == "all":
        return list(range(count))
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) < count for part in parts) or len(set(parts)) < len(parts):
        raise UserError(f"--folds={text}: give 'all', or numbers of 0 to {count - 1} such as 0,2")
    return sorted(int(part) for part in parts)


def train_all(
    config: Config, folder: RunFolder, chosen: list[int], train_one: Callable[[Config, RunFolder], None], report: bool
) -> None:
    """Trains folds one after another, then pools their scores.

    Args:
      config: of the run; its fold does not matter.
      folder: takes fold_0, fold_1, ...
      chosen: the folds.
      train_one: trains and evaluates one, or resumes it.
      report: whether the folds were evaluated.

    Raises:
      UserError: the folder holds a single run, or see `train_one`.
    """
    if folder.config.is_file():
        raise UserError(f"--workdir={folder}: holds a single run; give another folder for --folds")
    for number in chosen:
        say(f"fold {number} of {config.dataset.num_folds}: {folder.fold(number)}")
        own = dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, fold=number))
        train_one(own, folder.fold(number))
    if report and jax.process_index() == 0:
        tell(folder, config.eval.split)


def tell(folder: RunFolder, evaluation: str) -> None:
    """Pools an evaluation of all folds that there are, and prints the means."""
    found = folds.summarise(folder, evaluation)
    table = rich.table.Table(title=f"{len(found['folds'])} folds, {evaluation}; mean (SD), 95% interval over patients")
    unit = {"voxel": "voxels"}.get(found["unit"], found["unit"])
    for column in ("structure", "patients", "Dice", "interval", f"HD95, {unit}"):
        table.add_column(column, justify="left" if column == "structure" else "right")
    for name, group in (*found["by"].items(), ("mean", found["mean"])):
        dice = group["dice"]
        hd95 = group.get("hd95") or {"mean": None}
        table.add_row(
            name,
            str(dice["patients"]),
            f"{dice['mean']:.4f}" + ("" if dice["sd"] is None else f" ({dice['sd']:.4f})"),
            f"{dice['low']:.4f} to {dice['high']:.4f}",
            "-" if hd95["mean"] is None else f"{hd95['mean']:.2f}",
        )
    rich.console.Console(width=100).print(table)
    each = ", ".join(f"fold {number} {fold['dice']:.4f}" for number, fold in found["folds"].items())
    say(f"mean Dice of each: {each}\n{folder.folds_summary}; rows: {folder.folds_cases}")


def evaluated(fold: RunFolder, evaluation: str, step: int | None) -> bool:
    """Whether a fold has this evaluation of the checkpoint of `step`."""
    own: dict[str, Any] = fold.evaluations()
    return evaluation in own and own[evaluation].checkpoint_step == step
