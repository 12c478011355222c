"""Errors meant for users: what is wrong, in which file or config key, and what to do."""

from __future__ import annotations

import os
import pathlib


class UserError(Exception):
    """A mistake in the user's data, config or command line; the programs print its text without a traceback."""


def printable(name: object) -> str:
    """A file's or a patient's name as it goes into a message: one line, whatever characters it is made of."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))


class ScanError(UserError):
    """A scan, mask or table that breaks a rule; the text names the file and the rule."""

    def __init__(self, path: str | os.PathLike[str], rule: str):
        super().__init__(f"{printable(os.fspath(path))}: {rule}")
        self.path = pathlib.Path(path)
        self.rule = rule


class Stopped(Exception):
    """A run was asked to stop, has saved itself and ends; the programs print its text.

    Attributes:
      status: exit status of the program: 0 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status
