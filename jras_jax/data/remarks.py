"""Remarks on files, told once: the same remark on many files is one line."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Iterable

_EACH = 5  # up to so many files are named by a line each


def summarised(lines: Iterable[str]) -> list[str]:
    """Lines 'FILE: remark', those with the same remark on more than five files as one line.

    Example:
      >>> summarised(f"scans/{n}.nii: its header gives no voxel size" for n in range(160))
      ['scans: its header gives no voxel size (0.nii, 1.nii and 158 other files)']
    """
    files: dict[str, list[str]] = {}
    for line in lines:
        file, _, remark = line.partition(": ")
        own = files.setdefault(remark, [])
        if file not in own:
            own.append(file)
    out = []
    for remark, names in files.items():
        if len(names) <= _EACH:
            out += [f"{name}: {remark}" if remark else name for name in names]
        else:
            folder = os.path.commonpath([os.path.dirname(name) or "." for name in names]) or "."
            shown = ", ".join(pathlib.PurePath(name).name for name in names[:2])
            out.append(f"{folder}: {remark} ({shown} and {len(names) - 2} other files)")
    return out


class Teller:
    """Prints remarks on stderr as they come: the same on the first five files, and then once more for the rest."""

    def __init__(self) -> None:
        self._files: dict[str, set[str]] = {}

    def __call__(self, line: str) -> None:
        """Takes a line 'FILE: remark'."""
        file, _, remark = line.partition(": ")
        own = self._files.setdefault(remark, set())
        if file in own or len(own) > _EACH:
            return
        own.add(file)
        name = file if len(own) <= _EACH else f"{file} and files after it"
        print(f"note: {name}: {remark}", file=sys.stderr, flush=True)


def tell(lines: Iterable[str]) -> None:
    """Prints remarks on stderr, each a line 'note: FILE: remark', summarised."""
    for line in summarised(lines):
        print(f"note: {line}", file=sys.stderr, flush=True)
