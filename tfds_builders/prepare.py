"""Builds a data set whole or not at all, and only where the scans changed since the last time."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from jras_jax.errors import UserError

if TYPE_CHECKING:
    from tfds_builders.common import Inventory

NAMES = ("acdc", "mnms")
FINGERPRINT = "built_from.json"  # beside the records: what they were built from


def build(
    name: str,
    manual_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    say: Callable[[str], None] = print,
) -> pathlib.Path:
    """Prepares a data set, or finds it prepared from the very same files.

    The records are written in a temporary folder inside `data_dir` and moved to their place at the end; after a fault
    nothing is left of them. A data set that was built from other files (names, sizes, checksums of the zipped scans,
    content of the tables) is replaced, and that is said.

    Args:
      name: "acdc" or "mnms".
      manual_dir: the folder of the unpacked official download.
      data_dir: where prepared data sets are kept.
      say: takes the lines meant for the user.

    Returns:
      The folder of the prepared data set, `data_dir/name/version`.

    Raises:
      UserError: an unknown name, a folder that is missing or cannot be written, or a fault in the scans: the text names
        file and rule.
    """
    if name not in NAMES:
        raise UserError(f"no builder {name!r}; there are {' and '.join(NAMES)}")
    if not os.fspath(manual_dir):
        raise UserError("manual_dir is empty; give the folder of the unpacked official download")
    manual_dir, data_dir = pathlib.Path(manual_dir).expanduser(), pathlib.Path(data_dir).expanduser()
    builder_class = importlib.import_module(f"tfds_builders.{name}").Builder  # TFDS takes its time to import
    inventory = builder_class.inventory(manual_dir)
    for note in inventory.notes:
        say(note)
    final = data_dir.absolute() / name / str(builder_class.VERSION)
    fingerprint = _fingerprint(inventory)
    if _is_built_from(final, fingerprint):
        say(f"{final}: built already from these scans")
        return final
    if final.exists():
        say(f"{final}: was built from other scans or in another way, building it again from {manual_dir}")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _scratch(data_dir) as scratch:
            new = _generate(builder_class, manual_dir, scratch)
            (new / FINGERPRINT).write_text(json.dumps(fingerprint, indent=1) + "\n")
            _install(new, final, scratch / "replaced", fingerprint)
    except OSError as e:
        raise UserError(f"{data_dir}: the data set cannot be written there ({e})") from e
    counts = ", ".join(f"{len(cases)} {split}" for split, cases in inventory.cases.items())
    say(f"{final}: built from {manual_dir} ({counts} volumes)")
    return final


def _generate(builder_class: Any, manual_dir: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    """Runs TFDS inside `scratch`; the folder of the records."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()  # the builders show their own, which know how much is left
    builder = builder_class(data_dir=scratch)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it announces a download
            builder.download_and_prepare(download_config=config)
    except Exception as e:
        raise _user_error(e) or e from None
    return pathlib.Path(builder.data_dir)


def _user_error(error: BaseException | None) -> UserError | None:
    """The `UserError` at the root of what TFDS made of it."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


@contextlib.contextmanager
def _scratch(data_dir: pathlib.Path) -> Iterator[pathlib.Path]:
    folder = pathlib.Path(tempfile.mkdtemp(dir=data_dir, prefix=".building_"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _install(new: pathlib.Path, final: pathlib.Path, aside: pathlib.Path, fingerprint: dict[str, Any]) -> None:
    """Moves the records to their place; a run that built the same meanwhile has won."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        os.replace(final, aside)
    try:
        os.replace(new, final)
    except OSError:
        if not _is_built_from(final, fingerprint):
            raise


def _is_built_from(folder: pathlib.Path, fingerprint: dict[str, Any]) -> bool:
    try:
        return json.loads((folder / FINGERPRINT).read_text()) == fingerprint
    except (OSError, ValueError):
        return False


def _fingerprint(inventory: Inventory) -> dict[str, Any]:
    """Names, sizes and checksums of every file that goes into the data set, but not where they lie."""
    scans = {path for cases in inventory.cases.values() for case in cases for path in (case.image, case.mask)}
    files = {}
    for path in sorted(scans):
        files[path.relative_to(inventory.root).as_posix()] = [path.stat().st_size, _checksum(path)]
    for path in inventory.tables:
        files[path.relative_to(inventory.root).as_posix()] = [path.stat().st_size, _sha(path.read_bytes())]
    return {"files": files}


def _checksum(path: pathlib.Path) -> str:
    """Of a zipped file its last 8 bytes, gzip's own checksum and size; of a plain one the checksum."""
    with path.open("rb") as file:
        if path.suffix == ".gz":
            file.seek(max(0, path.stat().st_size - 8))
            return file.read().hex()
        checksum = 0
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
        return f"{checksum:08x}"


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
