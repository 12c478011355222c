"""The one way to find scans and masks in folders, for every command.

Links are followed, the case of suffixes does not matter, and hidden files (.DS_Store, the ._NAME that a Mac leaves) and
hidden folders (and __MACOSX) are ignored without a word. Whatever else looks like a scan but is not read is named with
the reason. Of one scan there may be one file: NAME.nii beside NAME.nii.gz is refused.
"""

from __future__ import annotations

import os
import pathlib
import stat
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from jras_jax.errors import ScanError, UserError

SUFFIXES = (".nii.gz", ".nii")
# Other formats of scans, and what is left of a NIfTI file that was moved or packed.
_FOREIGN = (".hdr", ".img", ".mha", ".mhd", ".nrrd", ".dcm", ".mgz", ".mgh")


class Found(NamedTuple):
    """NIfTI files, sorted; and what was passed over: (path, reason)."""

    files: list[pathlib.Path]
    skipped: list[tuple[pathlib.Path, str]]

    def lines(self) -> list[str]:
        """'PATH: passed over, REASON' for whatever was skipped."""
        return [f"{path}: passed over, {reason}" for path, reason in self.skipped]


def suffix(path: pathlib.Path) -> str:
    """The NIfTI suffix of a file's name as it is written there; '' if it has none."""
    name = path.name
    return next((name[len(name) - len(s) :] for s in SUFFIXES if name.lower().endswith(s)), "")


def stem(path: pathlib.Path) -> str:
    """A NIfTI file's name without .nii or .nii.gz, in whatever case."""
    return path.name[: len(path.name) - len(suffix(path))]


def is_hidden(name: str) -> bool:
    """Whether a name is one that a user does not see or did not make: .DS_Store, ._scan.nii, __MACOSX."""
    return name.startswith((".", "__MACOSX"))


def find(folder: pathlib.Path, leave_out: Callable[[pathlib.Path], bool] = lambda _: False) -> Found:
    """Every NIfTI file of a folder and its subfolders.

    Args:
      folder: where to look.
      leave_out: says of a subfolder that it is not to be entered; the caller says why.

    Raises:
      UserError: no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    files: list[pathlib.Path] = []
    skipped: list[tuple[pathlib.Path, str]] = []
    entered: dict[tuple[int, int], pathlib.Path] = {}
    # Links are entered after all plain folders, so that a folder is known by its own path and not by a link's.
    folders, links = deque([folder]), deque[pathlib.Path]()
    while folders or links:
        current = (folders or links).popleft()
        try:
            status = current.stat()
            before = entered.setdefault((status.st_dev, status.st_ino), current)
            if before is not current:
                skipped.append((current, f"it leads to {before} again, which is read already"))
                continue
            names = sorted(os.listdir(current))
        except OSError as e:
            if current is folder:
                raise UserError(f"{folder}: cannot be read ({e.strerror or e})") from e
            skipped.append((current, f"the folder cannot be read ({e.strerror or e})"))
            continue
        for path in (current / name for name in names if not is_hidden(name)):
            if path.is_dir():
                if suffix(path):
                    skipped.append((path, "it is a folder, not a file (the scans in it are read)"))
                if not leave_out(path):
                    (links if path.is_symlink() else folders).append(path)
            elif suffix(path) and not fault(path):
                files.append(path)
            elif reason := fault(path):
                skipped.append((path, reason))
    return Found(sorted(files), sorted(skipped))


def fault(path: pathlib.Path) -> str:
    """Why a path that looks like a scan is none; '' if it is one, or looks like something else altogether."""
    try:
        mode = path.stat().st_mode
    except OSError as e:
        if path.is_symlink():
            return f"it is a link to a file that is not there, {os.readlink(path)} (git annex get?)"
        return f"it cannot be read ({e.strerror or e})" if suffix(path) else ""
    if suffix(path):
        if stat.S_ISDIR(mode):
            return "it is a folder, not a file; move the scan out of it"
        return "" if stat.S_ISREG(mode) else "it is no regular file"
    name = path.name.lower()
    if ".nii" in name or name.endswith(_FOREIGN):
        return "it is no .nii or .nii.gz file; convert or rename it"
    return ""


def check_stems(files: Iterable[pathlib.Path]) -> None:
    """Raises ScanError if two files are one scan, such as x.nii and x.nii.gz; the text names both."""
    first: dict[pathlib.Path, pathlib.Path] = {}
    for path in files:
        other = first.setdefault(path.with_name(stem(path)), path)
        if other is not path:
            raise ScanError(path, f"{other.name} is beside it, and only one of the two can be {stem(path)}; keep one")


def files_of(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    """The files NAME.nii and NAME.nii.gz of a folder, suffixes in any case, links that lead nowhere among them."""
    likely = [folder / f"{name}{s}" for s in SUFFIXES]
    there = [path for path in likely if path.exists() or path.is_symlink()]
    try:
        others = [folder / n for n in os.listdir(folder) if n.startswith(name) and not is_hidden(n)]
    except OSError:
        return there
    return sorted({*there, *(p for p in others if suffix(p) and stem(p) == name)})


def one_of(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file NAME.nii.gz or NAME.nii of a folder, its suffix in any case.

    Raises:
      ScanError: there is none, more than one, or it is no file that can be read; the text says which.
    """
    found = files_of(folder, name)
    if not found:
        raise ScanError(folder / f"{name}.nii.gz", "the file is missing")
    check_stems(found)
    if reason := fault(found[0]):
        raise ScanError(found[0], reason)
    return found[0]
