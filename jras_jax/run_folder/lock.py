"""Who writes to a run's folder: a lock file, so that two trainings never share one.

The file names the host, the process and its start time, and its owner touches it every few seconds. A dead owner on
this machine is recognised at once, by process number and start time; one on another machine by its silence. No flock:
creation that fails if the file exists (O_EXCL) and renaming work on network file systems too.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging

from jras_jax import files
from jras_jax.errors import UserError
from jras_jax.run_folder.layout import RunFolder

BEAT_S = 5.0  # between two touches of the file
SILENCE_S = 60.0  # an owner on another machine that has been silent for this long is dead


class LockError(UserError):
    """Another process trains in the folder."""


@contextlib.contextmanager
def hold(folder: RunFolder, command: str) -> Iterator[Lock]:
    """Holds the folder for this process; only the first of several hosts takes the lock.

    A folder that did not exist and is still empty at the end is removed.

    Raises:
      LockError: a living process holds it.
      FileError: the folder cannot be written.
    """
    lock = Lock(folder.lock, command)
    if jax.process_index() == 0:
        lock.acquire()
    try:
        yield lock
    finally:
        lock.release()


def check_free(folder: RunFolder) -> None:
    """Raises LockError if a living process holds the folder; takes and writes nothing."""
    if jax.process_index() == 0:
        owner = _read(folder.lock)
        if owner is not None and (why := _alive(folder.lock, owner)):
            raise _refusal(folder.lock, owner, why)


class Lock:
    """One lock file. `hold` is the way to use it."""

    def __init__(self, path: pathlib.Path, command: str):
        self.path = path
        self._text = json.dumps(identity() | {"command": command})
        self._ended = threading.Event()
        self._beat: threading.Thread | None = None
        self._made: pathlib.Path | None = None

    def acquire(self) -> None:
        """Takes the lock, from a dead owner too, which is said in one line; raises LockError and FileError."""
        if not self.path.parent.exists():
            self._made = self.path.parent
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not self._create(self.path):
                owner = _read(self.path)
                if owner is not None and (why := _alive(self.path, owner)):
                    raise _refusal(self.path, owner, why)
                if owner is not None:
                    self._clear(owner)
        except OSError as e:
            raise files.FileError(
                f"{self.path} cannot be written ({e.strerror or e}): choose another --workdir, or mend this one"
            ) from e
        self._beat = threading.Thread(target=self._beats, daemon=True, name="lock of the run's folder")
        self._beat.start()

    def check(self) -> None:
        """Raises LockError if another process has taken the lock over (this one was silent for too long)."""
        if self._beat is not None and not self._ours():
            self._ended.set()
            raise LockError(
                f"{self.path} was taken over by another process while this one was suspended: this one ends; the other "
                "resumes from the last checkpoint"
            )

    def release(self) -> None:
        """Removes the file, and the folder if this lock made it and nothing else is in it."""
        if self._beat is None:
            return
        self._ended.set()
        self._beat.join()
        self._beat = None
        with contextlib.suppress(OSError):
            if self._ours():
                self.path.unlink()
            if self._made is not None:
                self._made.rmdir()  # fails if it holds anything

    def _create(self, path: pathlib.Path) -> bool:
        try:
            with path.open("x", encoding="utf-8") as f:
                f.write(self._text)
        except FileExistsError:
            return False
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return True

    def _clear(self, dead: str) -> None:
        """Removes a dead owner's file. One process at a time does so, and looks again before it does."""
        guard = self.path.with_name(f"{self.path.name}.takeover")
        if not self._create(guard):
            with contextlib.suppress(FileNotFoundError):
                if _age(guard) > SILENCE_S:  # whoever took over died meanwhile
                    guard.unlink(missing_ok=True)
            time.sleep(0.1)
            return
        try:
            if _read(self.path) == dead and not _alive(self.path, dead):
                self.path.unlink(missing_ok=True)
                logging.warning("%s: %s has died; this process takes over", self.path, _words(dead))
        finally:
            guard.unlink(missing_ok=True)

    def _ours(self) -> bool:
        return _read(self.path) == self._text

    def _beats(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(OSError):
                if not self._ours():
                    return
                os.utime(self.path)


def identity() -> dict[str, Any]:
    """This process: host, machine (a boot and a space of process numbers), pid, and when it started."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _alive(path: pathlib.Path, owner: str) -> str:
    """Why the owner counts as alive, '' if it is dead."""
    known = _parsed(owner)
    if known and known.get("machine") == _machine():
        running = _started(known["pid"])
        return "which is running" if running and running == known.get("started") else ""
    try:
        age = _age(path)
    except OSError:
        return ""  # it is gone meanwhile
    return f"last seen {age:.0f} seconds ago" if age <= SILENCE_S else ""


def _age(path: pathlib.Path) -> float:
    """Seconds since a file was touched, by the clock of the disk that it is on."""
    probe = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.clock")
    try:
        probe.touch()
        now = probe.stat().st_mtime
    except OSError:  # a folder that is only read
        now = time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return now - path.stat().st_mtime


def _refusal(path: pathlib.Path, owner: str, why: str) -> LockError:
    remote = "" if why == "which is running" else f"; if it has died, wait {SILENCE_S:.0f} seconds or remove {path}"
    return LockError(
        f"{path.parent} is in use by {_words(owner)}, {why}: wait until it ends, stop it, or give another --workdir"
        f"{remote}"
    )


def _words(owner: str) -> str:
    known = _parsed(owner)
    if not known:
        return "an unknown process"
    return f"jras {known.get('command')} (process {known.get('pid')} on {known.get('host')})"


def _parsed(owner: str) -> dict[str, Any] | None:
    try:
        known = json.loads(owner)
    except ValueError:
        return None  # it is being written, or its writer died in between
    return known if isinstance(known, dict) and isinstance(known.get("pid"), int) else None


def _read(path: pathlib.Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _machine() -> str:
    parts = []
    with contextlib.suppress(OSError):
        parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))  # containers number their processes from 1
    return " ".join([socket.gethostname(), *parts])


def _started(pid: int) -> str:
    """When a process started, in a form to compare; '' if there is none of this number."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]  # a zombie has ended; starttime, see proc(5)
    except OSError:
        if pathlib.Path("/proc/self/stat").exists():
            return ""
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip()
