"""Small files, written whole or not at all and read with errors a user can act on; checksums.

One writer and one reader serve every small file of a run, a gallery and a prepared data set.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import pathlib
import shutil
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from jras_jax.errors import UserError, printable

Path = str | os.PathLike[str]


_LONGEST_NAME = 200  # bytes; file systems allow 255, and suffixes follow


class FileError(UserError):
    """A file cannot be read or written; the text names it and says what to do."""


def expanded(path: Path) -> pathlib.Path:
    """A path as the user means it, `~` for the home folder; raises FileError for a user who has none."""
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as e:
        raise FileError(f"{os.fspath(path)}: {e}; write the whole path") from e


def safe_name(name: str, what: str = "name") -> str:
    """Gives back a name from the data that is to be part of a path, such as a patient's.

    Args:
      name: the name.
      what: what it is the name of, for the message.

    Raises:
      FileError: the name could lead out of its folder or hide the file: it is empty, begins with a dot, holds a
        separator or a control character, or is too long.
    """
    faults = {
        "is empty": not name.strip(),
        "begins with a dot": name.startswith("."),
        "holds a / or \\": "/" in name or "\\" in name,
        "holds a control character": any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name),
        f"has more than {_LONGEST_NAME} bytes": len(name.encode(errors="replace")) > _LONGEST_NAME,
    }
    for fault, present in faults.items():
        if present:
            raise FileError(f"the {what} {printable(name)[:60]!r} {fault}, so no file can be named after it: rename it")
    return name


def check_folder(path: Path, option: str) -> None:
    """Checks, before any work starts, that files can be written into a folder; the folder need not exist yet.

    Args:
      path: the folder; nothing is written.
      option: the command's option that gives it, for the message.

    Raises:
      FileError: a file is in the way, or there is no permission.
    """
    there = pathlib.Path(path)
    try:
        while not there.exists() and not there.is_symlink() and there != there.parent:
            there = there.parent
        folder = there.is_dir()
    except OSError as e:
        raise FileError(f"{option}={path} cannot be written ({e.strerror or e}): {remedy_of(e)}") from e
    if not folder:
        what = "a link to a folder that is not there" if there.is_symlink() and not there.exists() else "a file"
        raise FileError(f"{option}={path}: {there} is {what}, but a folder is needed there; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise FileError(f"{option}={path}: you have no permission to write in {there}; choose another folder")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[pathlib.Path]:
    """Gives the path of a temporary file that takes the place of `path` when the block succeeds.

    The folder of `path` is made if absent. After a failure nothing is left of the temporary file, and what was at
    `path` before is still there.

    Raises:
      FileError: the operating system refuses (no space, no permission, a folder in the way).
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name[-40:]}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # /dev/stdout would be replaced by a file
            raise FileError(f"{path} cannot be written: it is a device or a pipe; choose the path of a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as e:
        raise FileError(f"{path} cannot be written ({e.strerror or e}): {remedy_of(e)}") from e
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[pathlib.Path]:
    """Gives a temporary folder whose files move into `folder` when the block succeeds.

    Files of `folder` with other names stay. If the block fails, `folder` is as it was before.

    Raises:
      FileError: the operating system refuses.
    """
    folder = pathlib.Path(folder)
    temporary = folder.with_name(f".{folder.name[-100:]}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        yield temporary
        for file in sorted(p for p in temporary.rglob("*") if p.is_file()):
            target = folder / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    except OSError as e:
        raise FileError(f"{folder} cannot be written ({e.strerror or e}): {remedy_of(e)}") from e
    except FileError as e:
        raise FileError(str(e).replace(str(temporary), str(folder))) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file (UTF-8), whole or not at all; raises FileError."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, *, indent: int = 1) -> None:
    """Writes JSON, whole or not at all; raises FileError."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def read_json(path: Path, *, remedy: str, holds: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      path: the file.
      remedy: what the user can do if the file is missing or damaged; it ends the message.
      holds: entries that the object must have, and their types; others may be there too.

    Raises:
      FileError: the file is missing, cannot be read, holds no JSON object, or lacks an entry.
    """
    try:
        content = json.loads(_read(path, remedy))
    except (ValueError, RecursionError) as e:
        raise FileError(f"{path} is damaged ({e}): {remedy}") from e
    if not isinstance(content, dict):
        raise FileError(f"{path} holds a {type(content).__name__} instead of an object: {remedy}")
    for key, kind in (holds or {}).items():
        if not isinstance(content.get(key), kind):
            found = f"a {type(content[key]).__name__} instead of a {kind.__name__}" if key in content else "nothing"
            raise FileError(f"{path} is damaged (it holds {found} under {key!r}): {remedy}")
    return content


def read_rows(path: Path, *, remedy: str, growing: bool = False) -> tuple[list[str], list[dict[str, str]]]:
    """Reads a CSV table with a header; rows without any content are left out.

    Args:
      path: the file.
      remedy: what the user can do if the file is missing or damaged; it ends the message.
      growing: whether the file is written line by line, so that its last line may be incomplete; that line is left out.

    Returns:
      The columns, and one mapping for each row.

    Raises:
      FileError: the file is missing, cannot be read, is cut short, or a row has more or fewer cells than the header.
    """
    text = _read(path, remedy)
    if text and not text.endswith(("\n", "\r")):
        if not growing:
            raise FileError(f"{path} ends within a line, so it was cut short (a whole table ends with one): {remedy}")
        text = text[: max(text.rfind("\n"), text.rfind("\r")) + 1]
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as e:
        raise FileError(f"{path} is damaged ({e}): {remedy}") from e
    columns = lines[0] if lines else []
    if not any(columns) and not growing:
        raise FileError(f"{path} is empty: {remedy}")
    if len(set(columns)) < len(columns):
        raise FileError(f"{path} is damaged (two columns have the same name): {remedy}")
    rows = [(number, cells) for number, cells in enumerate(lines[1:], 2) if any(cells)]
    for number, cells in rows:
        if len(cells) != len(columns):
            raise FileError(
                f"{path} is damaged (row {number} has {len(cells)} cells, the header {len(columns)}): {remedy}"
            )
    return columns, [dict(zip(columns, cells, strict=True)) for _, cells in rows]


def _read(path: Path, remedy: str) -> str:
    """The text of a file (UTF-8, with or without a byte order mark)."""
    try:
        with pathlib.Path(path).open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except FileNotFoundError:
        raise FileError(f"{path} is missing: {remedy}") from None
    except OSError as e:
        raise FileError(f"{path} cannot be read ({e.strerror or e}): {remedy_of(e)}") from e
    except ValueError as e:  # not UTF-8
        raise FileError(f"{path} is damaged ({e}): {remedy}") from e


def save_tensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, whole or not at all, with the permissions of any new file in its folder."""
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        contiguous = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
        try:
            safetensors.numpy.save_file(contiguous, temporary, dict(metadata) if metadata else None)
        except safetensors.SafetensorError as e:  # how the library reports an error of the operating system
            raise OSError(str(e)) from e
        temporary.chmod(mode & 0o777)  # the library makes its files readable by their owner alone


def sha256(path: Path) -> str:
    """The SHA-256 checksum of a file's content, 64 hexadecimal digits; raises FileError if it cannot be read."""
    try:
        with pathlib.Path(path).open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise FileError(f"{path} cannot be read ({e.strerror or e}): {remedy_of(e)}") from e


def explained(error: OSError) -> str:
    """An error of the operating system in one line: which file, what is wrong, what to do."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    where = " and ".join(names) or "the operating system refuses"
    return f"{where}: {error.strerror or str(error) or type(error).__name__}: {remedy_of(error)}"


def concerns_every_file(error: BaseException) -> bool:
    """Whether an error of writing would come again with the next file: a full or read-only disk."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def remedy_of(error: OSError) -> str:
    """What the user can do about an error of the operating system."""
    known = {
        errno.ENOSPC: "free some space on this disk and run the command again",
        errno.EDQUOT: "your disk quota is used up; free some space and run the command again",
        errno.EACCES: "you have no permission there; choose another folder or change its permissions",
        errno.EPERM: "you have no permission there; choose another folder or change its permissions",
        errno.EROFS: "this disk is read-only; choose another folder",
        errno.ENOTDIR: "a file is in the way of a folder of that name; choose another path",
        errno.EEXIST: "a file is in the way of a folder of that name; choose another path",
        errno.EISDIR: "a folder is in the way of a file of that name; choose another path",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
        errno.ENOENT: "check the path; no such file or folder is there",
        errno.EMFILE: "too many files are open; raise the limit (ulimit -n) and run the command again",
        errno.EIO: "the disk reports a fault; check it, and restore the file from a copy",
    }
    return known.get(error.errno or 0, "check the path and the disk")
