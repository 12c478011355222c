"""run.log in a run's folder: what a training run said, and all warnings, with time stamps."""

from __future__ import annotations

import contextlib
import datetime
import logging
import pathlib
import sys
import warnings
from collections.abc import Iterator

import jax

from jras_jax.run_folder.layout import RunFolder

JOURNAL = "jras_jax.run"  # the logger of what a run says of itself
_journal = logging.getLogger(JOURNAL)
_journal.propagate = False
_journal.addHandler(logging.NullHandler())
_journal.setLevel(logging.INFO)


@contextlib.contextmanager
def kept(folder: RunFolder) -> Iterator[None]:
    """Within the block warnings and the run's own lines go to the folder's run.log, on the first host.

    The file is opened at the run's own first line, so that a start that fails leaves nothing in a folder;
    warnings from before are then written first.
    """
    if jax.process_index() != 0:
        yield
        return
    handler = _Handler(folder.log)
    sources = (_journal, logging.getLogger("absl"), logging.getLogger("py.warnings"), logging.getLogger("jax"))
    show = warnings.showwarning
    for source in sources:
        source.addHandler(handler)
    warnings.showwarning = handler.showing(show)
    try:
        yield
        handler.end("ended")
    except BaseException as e:  # SystemExit and Ctrl-C too: how a run ended is what one looks for in a log
        handler.end(f"ended: {type(e).__name__}: {e}")
        raise
    finally:
        warnings.showwarning = show
        for source in sources:
            source.removeHandler(handler)
        handler.close()


class _Handler(logging.Handler):
    """Appends lines to the file; keeps them until the run's own first line. Never stops the run."""

    def __init__(self, path: pathlib.Path):
        super().__init__(logging.INFO)
        self._path = path
        self._waiting: list[str] = []
        self._open = self._failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a record."""
        try:
            text = record.getMessage()
        except Exception:  # a record whose arguments do not fit its text
            text = str(record.msg)
        self._open = self._open or record.name == JOURNAL
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self._add(level + text)

    def showing(self, show):  # type: ignore[no-untyped-def]
        """`warnings.showwarning` that also writes into the log."""

        def both(message, category, filename, lineno, file=None, line=None):  # type: ignore[no-untyped-def]
            self._add(f"warning: {category.__name__}: {message}")
            show(message, category, filename, lineno, file, line)

        return both

    def end(self, text: str) -> None:
        """Says how the run ended, if it had begun."""
        if self._open:
            self._add(text)

    def _add(self, text: str) -> None:
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self._waiting.append(f"{now} {' '.join(text.splitlines())}\n")
        if not self._open or self._failed:
            return
        lines, self._waiting = self._waiting, []
        try:
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(lines)
        except OSError as e:
            self._failed = True
            print(f"warning: {self._path} cannot be written ({e.strerror}); the run continues without", file=sys.stderr)
