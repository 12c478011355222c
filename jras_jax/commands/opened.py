"""The options of every command that opens a trained run."""

from __future__ import annotations

import argparse
import pathlib

from jras_jax.errors import UserError
from jras_jax.run_folder import published
from jras_jax.run_folder.layout import RunFolder

_WRITE = ("evaluate", "choose")  # commands whose results go into the run's folder


def add_workdir(p: argparse.ArgumentParser) -> None:
    """The options of every command that opens a trained run."""
    p.add_argument("--workdir", help="folder of a trained run; also hf:org/name on the Hugging Face hub")
    p.add_argument("--config", help=argparse.SUPPRESS)


def add_places(p: argparse.ArgumentParser, run: str, output: str) -> None:
    """A run and a folder to write, by position or as --workdir and --output, as other commands have them."""
    p.add_argument("places", nargs="*", metavar="WORKDIR OUTPUT", help=f"{run}; {output}")
    p.add_argument("--workdir", help="WORKDIR, given as an option")
    p.add_argument("--output", type=pathlib.Path, help="OUTPUT, given as an option")


def places(args: argparse.Namespace, command: str) -> tuple[str, pathlib.Path]:
    """The run and the folder to write; raises UserError if they are not exactly that."""
    given = list(args.places)
    workdir, output = (place or (given.pop(0) if given else None) for place in (args.workdir, args.output))
    if given or not workdir or not output:
        raise UserError(f"{command} needs a trained run and a folder to write: jras {command} WORKDIR OUTPUT")
    return str(pathlib.Path(workdir).expanduser()), pathlib.Path(output).expanduser()


def trained_folder(args: argparse.Namespace, command: str) -> RunFolder:
    """The run's folder; raises UserError if there is no --workdir, or a --config, which the run itself has."""
    if not args.workdir:
        raise UserError(f"{command} needs --workdir=FOLDER of a trained run")
    if args.config:
        raise UserError(f"{command} reads the run's own settings from --workdir; leave --config out")
    if published.is_hub(args.workdir) and command in _WRITE:
        name = args.workdir.removeprefix(published.HUB).partition("@")[0]
        raise UserError(
            f"{command} writes into the run's folder: download it with hf download {name} --local-dir FOLDER and give "
            "--workdir=FOLDER"
        )
    return RunFolder(args.workdir)
