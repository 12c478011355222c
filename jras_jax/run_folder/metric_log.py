"""The metrics of a run while it trains: metrics.csv and TensorBoard events."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Mapping

import numpy as np

from jras_jax import files
from jras_jax.run_folder.event_log import EventLog
from jras_jax.run_folder.layout import RunFolder
from jras_jax.run_folder.run_log import JOURNAL


class MetricLog:
    """metrics.csv (one wide table) and TensorBoard events of a run; on resume, rows after the restored step go.

    New columns may appear at any time: the file is then rewritten with the wider header. If the file cannot be written
    while the run trains, that is said, the rows are kept, and the next row tries again.

    Args:
      folder: the run's; its config.json is shown in TensorBoard.
      resume_step: steps that are done already.

    Raises:
      FileError: metrics.csv cannot be written at the start, or one that is there is damaged.
    """

    def __init__(self, folder: RunFolder, resume_step: int):
        self._path = folder.metrics
        self._rows: list[dict[str, str]] = []
        self._columns = ["step"]
        self._behind = False
        if self._path.is_file():
            self._read(resume_step)
        self._write_all()
        logging.getLogger(JOURNAL).info("trains from step %d in %s", resume_step, folder)
        self._events = EventLog(folder, resume_step)
        if folder.config.is_file():
            settings = folder.config.read_text(encoding="utf-8", errors="replace")
            self._events.text("settings", "".join(f"    {line}\n" for line in settings.splitlines()))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row."""
        row = {"step": str(step)} | {k: f"{v:.6g}" for k, v in values.items() if not math.isnan(v)}
        same = bool(self._rows) and self._rows[-1]["step"] == row["step"]
        new = [k for k in row if k not in self._columns]
        if same:
            self._rows[-1] |= row
        else:
            self._rows.append(row)
        self._columns += new
        self._save(row, whole=bool(new) or same)
        self._events.scalars(step, values)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Shows images (H, W, 3) uint8 in TensorBoard."""
        self._events.images(step, images)

    def close(self) -> None:
        """Writes what is left and closes the events."""
        if self._behind:
            self._save({}, whole=True)
        self._events.close()

    def _read(self, resume_step: int) -> None:
        """Takes the rows of an earlier start up to the step that this one begins at."""
        remedy = "restore it from a copy, or delete it: only the curves up to here are then lost"
        # A start that was killed may have left half a line.
        columns, rows = files.read_rows(self._path, remedy=remedy, growing=True)
        self._columns = columns or ["step"]
        if "step" not in self._columns:
            raise files.FileError(f"{self._path} is damaged (it has no column step): {remedy}")
        self._rows = [row for row in rows if row["step"].isdigit() and int(row["step"]) <= resume_step]

    def _save(self, row: Mapping[str, str], *, whole: bool) -> None:
        """Writes the row, or (`whole`, or after a failure) the whole table."""
        try:
            if whole or self._behind:
                self._write_all()
            else:
                with self._path.open("a", newline="") as f:
                    csv.DictWriter(f, self._columns, restval="").writerow(row)
        except (OSError, files.FileError) as e:
            if not self._behind:
                why = e.strerror if isinstance(e, OSError) else e
                text = "%s cannot be written (%s); the run continues, keeps its rows and tries again"
                logging.getLogger("absl").warning(text, self._path, why)
            self._behind = True
        else:
            self._behind = False

    def _write_all(self) -> None:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self._columns, restval="")
        writer.writeheader()
        writer.writerows(self._rows)
        files.write_text(self._path, buffer.getvalue())
