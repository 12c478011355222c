"""The progress line: it moves by itself, says what the run does, and fits 80 columns; elsewhere lines now and then."""

import io
import logging
import re
import time

import pytest
import rich.console

from jras_jax.training.progress import Progress

METRICS = {"loss": 0.4321, "dice": 0.8123, "val/dice": 0.7654}


class Terminal:
    """A terminal of so many columns, and the progress line on it."""

    def __init__(self, width=80, **settings):
        self.file = io.StringIO()
        console = rich.console.Console(file=self.file, width=width, force_terminal=True, color_system=None)
        settings = {"total": 10_000, "start": 0, "slices_per_step": 8} | settings
        self.bar = Progress("acdc_segformer", console=console, **settings)

    def line(self):
        """The line as it would be drawn now."""
        return self.bar._line().plain

    def drawn(self):
        """All lines that were drawn so far, without control codes."""
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.file.getvalue())
        return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.fixture
def terminal():
    opened = []

    def make(**settings):
        opened.append(Terminal(**settings))
        return opened[-1]

    yield make
    for one in opened:
        one.bar.close()


def test_the_line_says_compiling_until_the_first_step_is_done(terminal):
    one = terminal()
    assert "compiling 0:00" in one.line()
    one.bar.restart_clock(0)
    assert "compiling" in one.line()
    one.bar.restart_clock(1)
    assert "compiling" not in one.line() and "1/10000" in one.line()


def test_the_line_moves_every_second_without_the_loop(terminal):
    one = terminal()
    deadline = time.monotonic() + 15
    while len(set(one.drawn())) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)  # the loop waits for the compiler
    assert len(set(one.drawn())) >= 3, one.drawn()
    assert any("compiling 0:01" in line for line in one.drawn())


def test_between_two_reports_the_step_moves_by_the_rate_but_not_beyond_what_was_done(terminal, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    one = terminal()
    one.bar.restart_clock(1)
    clock[0] += 10
    one.bar.update(101, METRICS)  # ten steps a second
    one.bar.step(150)  # the device has been given more
    assert " 101/10000" in one.line()
    clock[0] += 2
    assert " 121/10000" in one.line() and "16:27 left" in one.line()
    clock[0] += 60
    assert " 150/10000" in one.line()


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("phase", ["", "validating", "compiling"])
@pytest.mark.parametrize("total", [4, 10_000, 1_000_000])
def test_the_line_fits_and_keeps_step_time_loss_and_dice(terminal, width, phase, total):
    one = terminal(width=width, total=total, start=0)
    one.bar.restart_clock(1)
    time.sleep(0.01)
    one.bar.update(2, METRICS)
    if phase:
        one.bar.phase(phase)
    line = one.line()
    assert len(line) < width
    if width >= 80:
        for piece in (f" 2/{total}", "loss 0.432", "Dice 0.812", "val 0.765", " left", phase):
            assert piece in line, line
        assert re.search(r"\d:\d\d(:\d\d)? left", line)


def test_a_validation_is_shown_and_leaves_one_line(terminal):
    one = terminal(total=100)
    one.bar.restart_clock(1)
    one.bar.update(10, METRICS)
    one.bar.phase("validating")
    assert "validating 0:00" in one.line() and "10/100" in one.line()
    one.bar.validated(10, {"val/dice": 0.9, "val/seconds": 65.0})
    one.bar.restart_clock(10)
    assert "validating" not in one.line()
    kept = [line for line in one.drawn() if "validated in 1:05" in line]
    assert len(kept) == 1 and kept[0].startswith("acdc_segformer: step 10/100  loss 0.432  Dice 0.812  val 0.900")


def test_warnings_stand_above_the_line(monkeypatch):
    logger, before = logging.getLogger("absl"), io.StringIO()
    monkeypatch.setattr("sys.__stderr__", before)
    handler = logging.StreamHandler(before)
    logger.addHandler(handler)
    try:
        one = Terminal()
        logger.warning("a leak")
        one.bar.close()
        assert "a leak" in "\n".join(one.drawn()) and not before.getvalue()
        logger.warning("later")
        assert before.getvalue() == "later\n"
    finally:
        logger.removeHandler(handler)


def test_elsewhere_a_line_now_and_then_and_one_a_validation(capsys):
    bar = Progress("run", total=100, start=0, slices_per_step=8, every_s=3600)
    bar.restart_clock(1)
    for step in (10, 20, 30):
        bar.update(step, METRICS)
    assert capsys.readouterr().out == ""
    bar.phase("validating")
    bar.validated(30, {"val/dice": 0.5})
    bar.restart_clock(30)
    bar.update(100, METRICS)
    bar.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "step 30/100" in lines[0] and "step 100/100" in lines[1]


def test_a_terminal_that_is_gone_does_not_stop_the_run():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    bar = Progress("run", total=10, start=0, slices_per_step=8, every_s=0, console=rich.console.Console(file=Gone()))
    bar.restart_clock(1)
    bar.update(10, METRICS)
    bar.validated(10, {"val/dice": 0.5})
    bar.close()
