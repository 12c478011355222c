"""Checksums of a checkpoint's files, in a manifest beside it: Orbax restores most flipped bits without a word."""

from __future__ import annotations

import pathlib

from jras_jax import files
from jras_jax.errors import UserError

REMEDY = "restore it from a copy, or move the checkpoint that it belongs to out of the folder"


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another model."""


def sign(folder: pathlib.Path, manifest: pathlib.Path) -> None:
    """Writes the SHA-256 checksum of every file below `folder`; raises FileError if the disk refuses."""
    there = sorted(p for p in folder.rglob("*") if p.is_file())
    files.write_json(manifest, {str(p.relative_to(folder)): files.sha256(p) for p in there})


def sign_file(folder: pathlib.Path, manifest: pathlib.Path, name: str) -> None:
    """Adds one new file to a manifest; the other checksums stay as they are."""
    files.write_json(manifest, files.read_json(manifest, remedy=REMEDY) | {name: files.sha256(folder / name)})


def check(folder: pathlib.Path, manifest: pathlib.Path, only: str = "") -> None:
    """Compares every file of a checkpoint with its manifest, or (`only`) a single one.

    Raises:
      CheckpointError: there is no manifest, it is damaged, or a file is missing or differs.
    """
    try:
        listed = files.read_json(manifest, remedy=REMEDY)
    except files.FileError as e:
        raise CheckpointError(str(e)) from e
    if not listed:
        raise CheckpointError(f"{manifest} is empty: {REMEDY}")
    for name in [only] if only else listed:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: the checkpoint is damaged")
        try:
            same = files.sha256(path) == listed.get(name)
        except OSError as e:
            raise CheckpointError(f"{path} cannot be read ({e.strerror or e}): the checkpoint is damaged") from e
        if not same:
            raise CheckpointError(f"{path} does not match its checksum: the checkpoint is damaged")
