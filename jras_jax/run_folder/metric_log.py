"""The metrics of a run while it trains: metrics.csv and TensorBoard events."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping

from tensorboardX import SummaryWriter

from jras_jax import files
from jras_jax.run_folder.layout import RunFolder


class MetricLog:
    """metrics.csv (one wide table) and TensorBoard events of a run; on resume, rows after the restored step go.

    New columns may appear at any time: the file is then rewritten with the wider header.
    """

    def __init__(self, folder: RunFolder, resume_step: int):
        self._path = folder.metrics
        self._rows: list[dict[str, str]] = []
        self._columns = ["step"]
        if self._path.is_file():
            with self._path.open(newline="") as f:
                reader = csv.DictReader(f)
                self._columns = list(reader.fieldnames or ["step"])
                self._rows = [r for r in reader if r["step"].isdigit() and int(r["step"]) <= resume_step]
        self._write_all()
        self._events = SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row."""
        row = {"step": str(step)} | {k: f"{v:.6g}" for k, v in values.items() if not math.isnan(v)}
        same = self._rows and self._rows[-1]["step"] == row["step"]
        new = [k for k in row if k not in self._columns]
        if same:
            self._rows[-1] |= row
        else:
            self._rows.append(row)
        if new or same:
            self._columns += new
            self._write_all()
        else:
            with self._path.open("a", newline="") as f:
                csv.DictWriter(f, self._columns, restval="").writerow(row)
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes the events."""
        self._events.close()

    def _write_all(self) -> None:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self._columns, restval="")
        writer.writeheader()
        writer.writerows(self._rows)
        files.write_text(self._path, buffer.getvalue())
