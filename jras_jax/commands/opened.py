"""The options of every command that opens a trained run."""

from __future__ import annotations

import argparse

from jras_jax.errors import UserError
from jras_jax.run_folder.layout import RunFolder


def add_workdir(p: argparse.ArgumentParser) -> None:
    """The options of every command that opens a trained run."""
    p.add_argument("--workdir", help="folder of a trained run")
    p.add_argument("--config", help=argparse.SUPPRESS)


def trained_folder(args: argparse.Namespace, command: str) -> RunFolder:
    """The run's folder; raises UserError if there is no --workdir, or a --config, which the run itself has."""
    if not args.workdir:
        raise UserError(f"{command} needs --workdir=FOLDER of a trained run")
    if args.config:
        raise UserError(f"{command} reads the run's own settings from --workdir; leave --config out")
    return RunFolder(args.workdir)
