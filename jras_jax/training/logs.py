"""What a run writes while it trains: metrics.csv, TensorBoard events, a progress bar."""

from __future__ import annotations

import csv
import io
import math
import pathlib
import sys
import time
from collections.abc import Mapping

import rich.console
import rich.progress
from tensorboardX import SummaryWriter


class MetricLog:
    """metrics.csv (one wide table) and TensorBoard events of a run; on resume, rows after the restored step go.

    New columns may appear at any time: the file is then rewritten with the wider header.
    """

    def __init__(self, workdir: pathlib.Path, resume_step: int):
        self._path = workdir / "metrics.csv"
        self._rows: list[dict[str, str]] = []
        self._columns = ["step"]
        if self._path.is_file():
            with self._path.open(newline="") as f:
                reader = csv.DictReader(f)
                self._columns = list(reader.fieldnames or ["step"])
                self._rows = [r for r in reader if r["step"].isdigit() and int(r["step"]) <= resume_step]
        self._write_all()
        self._events = SummaryWriter(str(workdir), purge_step=resume_step + 1 if resume_step else None)

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
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(buffer.getvalue())
        temporary.replace(self._path)


class Progress:
    """A live bar with loss, Dice, slices/s and time left on a terminal; a line now and then elsewhere."""

    def __init__(self, title: str, total: int, start: int, slices_per_step: int, every_s: float = 20.0):
        self._live = sys.stdout.isatty()
        self._title, self._total, self._per_step = title, total, slices_per_step
        self._first, self._t0 = start, time.monotonic()
        self._every, self._last = every_s, time.monotonic()
        self.rate = float("nan")
        if self._live:
            columns = (
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[note]}"),
                rich.progress.TimeRemainingColumn(),
            )
            self._bar = rich.progress.Progress(*columns, console=rich.console.Console())
            self._task = self._bar.add_task(title, total=total, completed=start, note="")
            self._bar.start()

    def restart_clock(self, step: int) -> None:
        """Leaves compilation and validation out of the rate."""
        self._first, self._t0 = step, time.monotonic()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows where the run is; `metrics` may hold 'loss', 'dice' and 'val/dice'."""
        seconds = time.monotonic() - self._t0
        self.rate = (step - self._first) * self._per_step / seconds if step > self._first else float("nan")
        shown = [("loss", "loss"), ("dice", "Dice"), ("val/dice", "val Dice")]
        note = "  ".join(f"{label} {metrics[key]:.3f}" for key, label in shown if key in metrics)
        if not math.isnan(self.rate):
            note += f"  {self.rate:.0f} slices/s"
        if self._live:
            self._bar.update(self._task, completed=step, note=note)
        elif time.monotonic() - self._last > self._every or step == self._total:
            self._last = time.monotonic()
            left = (self._total - step) * self._per_step / self.rate if self.rate > 0 else float("nan")
            eta = "" if math.isnan(left) else f"  {left / 60:.1f} min left"
            print(f"{self._title}: step {step}/{self._total}  {note}{eta}", flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._live:
            self._bar.stop()
