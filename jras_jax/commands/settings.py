"""Lists every setting: type, default, rule, unit and source, and when it may change.

jras settings            all of them
jras settings gallery    those whose name or meaning contains "gallery"
"""

from __future__ import annotations

import argparse

from jras_jax import config as configs
from jras_jax.errors import UserError


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    p.add_argument("word", nargs="?", default="", help="list only the settings whose name or meaning contains this")


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Prints the list; returns the exit status."""
    text = configs.listing(args.word)
    if not text:
        raise UserError(f"no setting contains {args.word!r}")
    print(text)
    return 0
