"""Where a training run is: a line on a terminal that moves every second, lines now and then elsewhere.

What is said goes to the run's log too (`run_folder/run_log.py`), with time stamps.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import rich.cells
import rich.console
import rich.live
import rich.text

from jras_jax.run_folder.run_log import JOURNAL

SHOWN = (("loss", "loss"), ("dice", "Dice"), ("val/dice", "val"))  # metric -> its name on the line
WIDEST_BAR, NARROWEST_BAR = 30, 5


class Progress:
    """A live line with loss, Dice, step and time left on a terminal; a line now and then elsewhere.

    Args:
      title: begins the lines.
      total: steps of the run.
      start: steps that are done already.
      slices_per_step: for the rate.
      every_s: seconds between two lines elsewhere.
      console: where to; None is the standard output.

    Attributes:
      rate: slices per second since the clock was restarted; NaN before the first measurement.
    """

    def __init__(
        self,
        title: str,
        *,
        total: int,
        start: int,
        slices_per_step: int,
        every_s: float = 20.0,
        console: rich.console.Console | None = None,
    ):
        self._title, self._total, self._per_step = title, total, slices_per_step
        self._first, self._t0 = start, time.monotonic()
        self._every, self._last = every_s, time.monotonic()
        self._started_at = start
        self._done = self._known = start  # steps given to the device; steps whose metrics have come back
        self._known_at = self._t0
        self._metrics: dict[str, float] = {}
        self._phase, self._phase_since = "compiling", self._t0
        self.rate = math.nan
        self._console = console or rich.console.Console()
        self._live: rich.live.Live | None = None
        self._streams: list[tuple[logging.StreamHandler[Any], object]] = []
        if self._console.is_terminal:
            # A separate thread draws it, also while the program compiles or waits for the device.
            self._live = rich.live.Live(get_renderable=self._line, console=self._console, refresh_per_second=2)
            self._live.start()
            self._redirect_logs()

    def restart_clock(self, step: int) -> None:
        """Leaves compilation and validation out of the rate; ends the phase that `phase` began."""
        self._first = self._done = self._known = step
        self._t0 = self._known_at = time.monotonic()
        if step > self._started_at:
            self._phase = ""

    def phase(self, name: str) -> None:
        """Shows what the run does beside training, such as 'validating', until the clock is restarted."""
        self._phase, self._phase_since = name, time.monotonic()

    def step(self, step: int) -> None:
        """Tells that a step was given to the device; costs nothing, so that every step may tell it."""
        self._done = step

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows where the run is; `metrics` may hold 'loss', 'dice' and 'val/dice'."""
        now = time.monotonic()
        seconds = now - self._t0
        if step > self._first:
            self.rate = (step - self._first) * self._per_step / seconds
        self._done = self._known = step
        self._known_at, self._metrics = now, dict(metrics)
        self._phase = ""
        if now - self._last > self._every or step == self._total:
            self._last = now
            self._tell(self._report(step), keep=self._live is None)

    def validated(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps a line about a validation; `values` hold 'val/dice'."""
        self._metrics |= values
        seconds = values.get("val/seconds", time.monotonic() - self._phase_since)
        self._tell(f"{self._report(step)}  validated in {_clock(seconds)}", keep=True)

    def close(self) -> None:
        """Ends the line."""
        if self._live is not None:
            for handler, stream in self._streams:
                handler.setStream(stream)
            with contextlib.suppress(OSError):
                self._live.stop()
            self._live = None

    def _redirect_logs(self) -> None:
        """Logs that were set up before the line appeared are written above it, not into it."""
        for name in (None, "absl"):
            for handler in logging.getLogger(name).handlers:
                handler = getattr(handler, "python_handler", handler)
                if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.__stderr__, sys.__stdout__):
                    self._streams.append((handler, handler.stream))
                    handler.setStream(sys.stderr)

    def _tell(self, text: str, *, keep: bool) -> None:
        """Into the run's log, and (`keep`) for good on the terminal; a terminal that is gone does not stop the run."""
        logging.getLogger(JOURNAL).info(text)
        if not keep:
            return
        with contextlib.suppress(OSError, ValueError):
            if self._live is not None:
                self._console.print(rich.text.Text(text), soft_wrap=True)
            else:
                print(text, file=self._console.file, flush=True)

    def _note(self) -> list[str]:
        return [f"{label} {self._metrics[key]:.3f}" for key, label in SHOWN if key in self._metrics]

    def _seconds_left(self, step: float) -> float:
        return (self._total - step) * self._per_step / self.rate if self.rate > 0 else math.nan

    def _report(self, step: int) -> str:
        """A line for good: where the run is at `step`."""
        rate = "" if math.isnan(self.rate) else f"{self.rate:.0f} slices/s"
        left = self._seconds_left(step)
        eta = "" if math.isnan(left) or step == self._total else f"{left / 60:.1f} min left"
        return "  ".join(filter(None, [f"{self._title}: step {step}/{self._total}", *self._note(), rate, eta]))

    def _position(self, now: float) -> float:
        """The step that the device is at: between two reports by the rate, but not beyond what it was given."""
        if self._phase or math.isnan(self.rate):
            return self._done if not self._phase else self._known
        guess = self._known + (now - self._known_at) * self.rate / self._per_step
        return min(float(self._done), guess)

    def _line(self) -> rich.text.Text:
        """The live line, never wider than the terminal."""
        now, width = time.monotonic(), self._console.width
        at = self._position(now)
        left = self._seconds_left(at)
        clock = "-:--" if math.isnan(left) else _clock(left)
        phase = f"{self._phase} {_clock(now - self._phase_since)}" if self._phase else ""
        parts = [f"{int(at)}/{self._total}", "  ".join(self._note()), f"{clock} left"]
        fixed = rich.cells.cell_len("  ".join(filter(None, [phase, *parts])))
        room = width - 1 - fixed - 2
        if not phase and room >= NARROWEST_BAR:
            size = min(WIDEST_BAR, max(NARROWEST_BAR, room - rich.cells.cell_len(self._title) - 2))
            full = int(size * at / self._total)
            phase = "━" * full + "╺" * (size - full)
            room -= size + 2
        title = rich.cells.set_cell_size(self._title, room).rstrip() if 0 < room < len(self._title) else self._title
        line = rich.text.Text(
            "  ".join(filter(None, [title if room >= min(4, len(self._title)) else "", phase, *parts])), no_wrap=True
        )
        line.truncate(width - 1)
        return line


def _clock(seconds: float) -> str:
    """'0:07', '12:05' or '3:12:05'."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
