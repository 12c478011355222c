"""Where a training run is: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping

import rich.console
import rich.progress


class Progress:
    """A live bar with loss, Dice, slices/s and time left on a terminal; a line now and then elsewhere."""

    def __init__(self, title: str, *, total: int, start: int, slices_per_step: int, every_s: float = 20.0):
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
