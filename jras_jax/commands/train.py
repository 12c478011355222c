"""Trains a run, or resumes it, then evaluates it and writes its report.

jras train --config=configs/demo.py --workdir=runs/demo --config.train.num_steps=500
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import time

import jax

from jras_jax import config as configs
from jras_jax import files, joint
from jras_jax.commands import folds
from jras_jax.commands.dataset import describe, load_data
from jras_jax.commands.evaluate import evaluate_and_report
from jras_jax.commands.terminal import enable_compilation_cache, say
from jras_jax.config import Config
from jras_jax.data import DatasetDescription
from jras_jax.errors import UserError
from jras_jax.run_folder import lock, run_log, trackers
from jras_jax.run_folder.checkpoints import Checkpoints
from jras_jax.run_folder.layout import RunFolder
from jras_jax.training import initial, joint_run
from jras_jax.training.stopping import Abandoned, StopSignal

STOPPED = "stopped by a signal"
AGAIN = "what is trained is saved, and the same command does the rest"


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_config_arguments(p)
    add_resume_argument(p)
    p.add_argument(
        "--folds",
        metavar="all|N,N",
        help="train folds of the cross-validation one after another, in WORKDIR/fold_N, and pool their scores",
    )
    p.add_argument("--no_report", action="store_true", help="stop after training, without evaluation and report")


def add_config_arguments(p: argparse.ArgumentParser) -> None:
    """The options of every command that starts from a config file."""
    p.add_argument(
        "--config", help="config file, or the name of one that comes with the package (demo, acdc_unet, ...)"
    )
    p.add_argument("--workdir", help="folder of the run (default: runs/NAME, the config's name)")


def add_resume_argument(p: argparse.ArgumentParser) -> None:
    """The option of every command that resumes a run."""
    p.add_argument(
        "--resume_with_changes",
        action="store_true",
        help="resume with other learning rates, weights of the loss, or length: "
        + ", ".join(sorted(configs.DECLARABLE)),
    )


def read_config(args: argparse.Namespace, overrides: tuple[str, ...]) -> tuple[Config, RunFolder]:
    """The settings of `--config` with their overrides, and the folder of the run.

    Raises:
      UserError: no --config, or anything wrong in it.
    """
    if not args.config:
        raise UserError("training needs --config=FILE, such as --config=configs/demo.py")
    config = _absolute(configs.parse(configs.override(configs.load(args.config), overrides)))
    folder = RunFolder(args.workdir or f"runs/{config.name}")
    if folder.path.exists() and not folder.path.is_dir():
        raise UserError(f"--workdir={folder}: a file of that name is there; choose another folder")
    trackers.check(config.train.trackers)
    return config, folder


def _absolute(config: Config) -> Config:
    """The data set's folders as absolute paths, so that the run can be evaluated from any other folder."""
    own = config.dataset
    manual, data = (str(files.expanded(path).absolute()) if path else "" for path in (own.manual_dir, own.data_dir))
    return dataclasses.replace(config, dataset=dataclasses.replace(own, manual_dir=manual, data_dir=data))


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Trains; returns the exit status."""
    config, folder = read_config(args, overrides)
    enable_compilation_cache()
    start = time.monotonic()
    if config.train.with_baseline and not config.retrieval.enabled:
        raise UserError(
            "config.train.with_baseline=True and config.retrieval.enabled=False exclude each other: leave one out"
        )
    if args.folds is not None:
        chosen = folds.numbers(args.folds, config.dataset.num_folds)
        train_one = functools.partial(_train_and_evaluate, args=args)
        folds.train_all(config, folder, chosen, train_one=train_one, report=not args.no_report)
    else:
        _train_and_evaluate(config, folder, args)
    if not args.no_report:
        say(f"took {(time.monotonic() - start) / 60:.1f} minutes")
    return 0


def _train_and_evaluate(config: Config, folder: RunFolder, args: argparse.Namespace) -> None:
    """Trains a run, and the same without retrieval if the config says so; then evaluates it."""
    train(config, folder, with_changes=args.resume_with_changes)
    with StopSignal() as stop:
        stop.leave = lambda: None  # the run is saved: leaving loses nothing
        if config.train.with_baseline:
            train(baseline_of(config), folder.baseline, with_changes=args.resume_with_changes, stop=stop)
        if not args.no_report and not _evaluated(config, folder, args):
            try:
                stop.raise_if_asked(f"{STOPPED} before the evaluation; {AGAIN}")
                evaluate_and_report(folder, (), watched=stop.watched)
            except Abandoned:
                stop.raise_if_asked(f"{STOPPED} during the evaluation; {AGAIN}")


def _evaluated(config: Config, folder: RunFolder, args: argparse.Namespace) -> bool:
    """Whether this is a fold whose best checkpoint is evaluated: an earlier start of the command did it."""
    return args.folds is not None and folds.evaluated(folder, config.eval.split, Checkpoints(folder).best())


def train(
    config: Config, folder: RunFolder, *, with_changes: bool = False, stop: StopSignal | None = None
) -> pathlib.Path:
    """Trains one run on its data set; returns its folder.

    Args:
      config, folder: the run.
      with_changes: as of `joint_run.train`.
      stop: whose signal, if it comes before the training handles signals itself, stops the run too.

    Raises:
      Stopped: a signal stopped the run, which is saved.
    """
    # All before the data set is built, which may take long.
    lock.check_free(folder)
    changes = joint_run.check_folder(config, folder, with_changes=with_changes)
    check_model(config, describe(config.dataset))
    say_changes(folder, changes)
    splits = folder.read_splits() if folder.splits.is_file() else None
    data = load_data(config.dataset, splits, config.protocol)
    if stop is not None:
        stop.raise_if_asked(f"{STOPPED} before {folder} was trained; {AGAIN}")
    with run_log.kept(folder):
        return joint_run.train(config, folder.path, data, with_changes=with_changes)


def say_changes(folder: RunFolder, changes: dict[str, tuple[str, str]]) -> None:
    """Lists the settings that differ from those of the run that is resumed."""
    if changes:
        listed = ", ".join(f"config.{key}: {before} -> {now}" for key, (before, now) in changes.items())
        say(f"{folder} resumes with other settings: {listed}")


def check_model(config: Config, description: DatasetDescription) -> None:
    """Raises UserError if the config describes no model or its weights are not there; computes nothing."""
    initial.check_sources(config)
    model = joint.build_model(config, description)
    try:
        jax.eval_shape(lambda: joint.init_variables(model, config))
    except UserError:
        raise
    except Exception as e:  # whatever an option of the wrong kind or size raises inside a layer
        options = {"backbone": config.backbone.options, "fusion": config.fusion.options}
        given = ", ".join(f"config.{part}.options={dict(o)}" for part, o in options.items() if o)
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UserError(
            f"the model cannot be built ({reason}): check {given or 'config.backbone and config.fusion'} and "
            f"config.dataset.image_size={config.dataset.image_size}"
        ) from e


def baseline_of(config: Config) -> Config:
    """The same run without retrieval."""
    off = dataclasses.replace(config.retrieval, enabled=False)
    alone = dataclasses.replace(config.train, with_baseline=False)
    return dataclasses.replace(config, name=f"{config.name}_baseline", retrieval=off, train=alone)
