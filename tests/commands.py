"""Commands called as the command line calls them, except that a mistake of the user is raised and not printed."""

import argparse
import importlib
import pathlib
from typing import Any

from jras_jax.commands.evaluate import evaluate_one
from jras_jax.inference import scans
from jras_jax.run_folder.layout import RunFolder


def call(command: str, *arguments: str | pathlib.Path) -> int:
    """The exit status of `jras COMMAND ARGUMENTS`."""
    module = importlib.import_module(f"jras_jax.commands.{command}")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    module.add_arguments(parser)
    args, overrides = parser.parse_known_args([str(a) for a in arguments])
    return module.run(args, tuple(overrides))


def predict(workdir: pathlib.Path, source: pathlib.Path, output: pathlib.Path, *more: str) -> list[pathlib.Path]:
    """The masks that `jras predict` writes; `more` are further arguments."""
    assert call("predict", f"--workdir={workdir}", f"--input={source}", f"--output={output}", *more) == 0
    return [task.mask for task in scans.tasks(source, output)]


def evaluate(workdir: pathlib.Path, *overrides: str) -> dict[str, Any]:
    """The summary of a run that is scored as `jras evaluate` scores it."""
    return evaluate_one(RunFolder(workdir), overrides)
