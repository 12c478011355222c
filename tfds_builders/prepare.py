"""Builds a data set whole or not at all, and only where the scans changed since the last time."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import importlib
import io
import json
import os
import pathlib
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jras_jax import files
from jras_jax.data.description import FILE as DESCRIPTION
from jras_jax.data.remarks import summarised
from jras_jax.errors import UserError

if TYPE_CHECKING:
    from jras_jax.data import DatasetDescription
    from tfds_builders.common import Inventory

NAMES = ("acdc", "mnms", "mnms2", "busi", "covid", "folder")
FINGERPRINT = "built_from.json"  # beside the records: what they were built from, and their own checksums
_FORMAT = 2  # of that file; 1 had the last bytes of zipped files alone
_SCRATCH = ".building_"
_DAY = 24 * 3600.0


def _warn(line: str) -> None:
    print(f"note: {line}", file=sys.stderr, flush=True)


def build(
    name: str,
    manual_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    say: Callable[[str], None] = print,
    warn: Callable[[str], None] = _warn,
) -> pathlib.Path:
    """Prepares a data set, or finds it prepared from the very same files.

    The records are written in a temporary folder inside `data_dir` and moved to their place at the end; after a fault
    nothing is left of them. A data set that was built from other files (names or content), or whose records are
    damaged, is replaced, and that is said.

    Args:
      name: one of `NAMES`.
      manual_dir: the folder of the unpacked official download.
      data_dir: where prepared data sets are kept.
      say: takes the lines meant for the user.
      warn: takes a line on each file or folder that looks like a scan or patient but is passed over.

    Returns:
      The folder of the prepared data set, `data_dir/name/version`; of a folder of one's own, see `home`.

    Raises:
      UserError: an unknown name, a folder that is missing or cannot be written, or a fault in the scans: the text names
        file and rule.
    """
    if name not in NAMES:
        raise UserError(f"no builder {name!r}; there are {', '.join(NAMES)}")
    if not os.fspath(manual_dir):
        raise UserError("manual_dir is empty; give the folder of the unpacked official download")
    manual_dir, data_dir = files.expanded(manual_dir), home(name, manual_dir, data_dir)
    builder_class = builder_of(name)
    _check_writable(data_dir)
    inventory = builder_class.inventory(manual_dir)
    for line, tell in (*((n, say) for n in inventory.notes), *((s, warn) for s in summarised(inventory.skipped))):
        tell(line)
    _remove_left_over(data_dir, say)
    final = data_dir.absolute() / name / str(builder_class.VERSION)
    fingerprint = _fingerprint(inventory)
    if _is_built_from(final, fingerprint):
        say(f"{final}: built already from these scans")
        return final
    if final.exists():
        say(f"{final}: was built from other scans or is damaged, and is replaced: building it again from {manual_dir}")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _scratch(data_dir) as scratch:
            new = _generate(builder_class, manual_dir, scratch)
            files.write_json(new / DESCRIPTION, builder_class.describe(manual_dir).to_json())
            records = _checksums(new, [path for path in new.rglob("*") if path.is_file()])
            files.write_json(new / FINGERPRINT, fingerprint | {"records": records})
            _install(new, final, aside=scratch / "replaced", fingerprint=fingerprint)
    except OSError as e:
        raise UserError(f"{data_dir}: the data set cannot be written there ({e})") from e
    counts = ", ".join(f"{len(cases)} {split}" for split, cases in inventory.cases.items())
    say(f"{final}: built from {manual_dir} ({counts} volumes)")
    return final


def scans_root(name: str, manual_dir: str | os.PathLike[str]) -> pathlib.Path:
    """The folder inside `manual_dir` that the `source` of a volume is relative to, such as ACDC's database/."""
    return builder_of(name).root(files.expanded(manual_dir))


def describe(name: str, manual_dir: str | os.PathLike[str]) -> DatasetDescription:
    """The description of a data set that is not built yet; raises UserError as its builder's `describe`."""
    return builder_of(name).describe(files.expanded(manual_dir))


def home(name: str, manual_dir: str | os.PathLike[str], data_dir: str | os.PathLike[str]) -> pathlib.Path:
    """Where a data set is prepared: `data_dir`, and for each folder of one's own a folder in it."""
    data_dir = files.expanded(data_dir)
    if name != "folder":
        return data_dir
    source = files.expanded(manual_dir).absolute()
    digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:8]
    return data_dir / f"{re.sub(r'[^A-Za-z0-9._-]', '_', source.name)[:40]}_{digest}"


def builder_of(name: str) -> Any:
    """The class of a builder of `NAMES`."""
    return importlib.import_module(f"tfds_builders.{name}").Builder  # TFDS takes its time to import


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
    folder = pathlib.Path(tempfile.mkdtemp(dir=data_dir, prefix=f"{_SCRATCH}{_host()}_{os.getpid()}_"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left_over(data_dir: pathlib.Path, say: Callable[[str], None]) -> None:
    """Removes what a killed build left: its process is gone, or (of another host) it is older than a day."""
    for folder in sorted(data_dir.glob(f"{_SCRATCH}*")):
        owner = re.fullmatch(rf"{re.escape(_SCRATCH + _host())}_(\d+)_.*", folder.name)
        try:
            old = time.time() - folder.stat().st_mtime > _DAY
        except OSError:  # another build has just removed it
            continue
        if _is_alive(int(owner[1])) if owner else not old:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            say(f"{folder}: removed; an interrupted build had left it there")


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:40]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _check_writable(data_dir: pathlib.Path) -> None:
    """Refuses a folder that cannot be made or written, before hours of work; makes nothing."""
    there = data_dir.absolute()
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
        fault = "" if there.is_dir() else f"{there} is a file"
    except OSError as e:
        fault = e.strerror or str(e)
    if not fault and not os.access(there, os.W_OK | os.X_OK):
        fault = f"there is no permission to write in {there}"
    if fault:
        raise UserError(f"{data_dir}: the data set cannot be written there ({fault}); give another data_dir")


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
    """Whether the folder holds a whole data set that was built from these files and is as it was written."""
    try:
        built = json.loads((folder / FINGERPRINT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(built, dict) or not isinstance(written := built.pop("records", None), dict):
        return False
    try:
        return built == fingerprint and written == _checksums(folder, [folder / name for name in written])
    except (OSError, files.FileError):
        return False


def _fingerprint(inventory: Inventory) -> dict[str, Any]:
    """Names, sizes and checksums of every file that goes into the data set, but not their folder."""
    scans = {path for cases in inventory.cases.values() for case in cases for path in case.files}
    try:
        return {"format": _FORMAT, "files": _checksums(inventory.root, [*scans, *inventory.tables])}
    except OSError as e:
        raise UserError(f"{e.filename}: cannot be read ({e.strerror or e}); check the file and its permissions") from e


def _checksums(root: pathlib.Path, paths: Iterable[pathlib.Path]) -> dict[str, list[Any]]:
    """{path below `root`: [size, SHA-256]} of files, whole, whatever their suffix says."""
    ordered = sorted(paths)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases Python's lock
        sums = list(pool.map(files.sha256, ordered))
    names = [path.relative_to(root).as_posix() for path in ordered]
    return {name: [path.stat().st_size, s] for name, path, s in zip(names, ordered, sums, strict=True)}
