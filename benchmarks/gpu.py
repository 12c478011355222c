"""The figures of one GPU: `python -m benchmarks --gpu`. What is there when the budget ends is what there is.

    python -m benchmarks --gpu --acdc=PATH_TO_ACDC     8 minutes at most; without --acdc on the built-in phantom
    python -m benchmarks --gpu --quick                 every part at tiny size, on any device; its figures mean nothing

Each part runs in its own process, so that JAX's and PyTorch's memory do not meet. First the programs are compiled
into a cache, a few at a time. Then the parts are timed one after another. A part that fails, or for which no time is
left, is a row that says so. gpu.json and gpu.md are written again after each part.
"""

from __future__ import annotations

import concurrent.futures
import csv
import functools
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from benchmarks.__main__ import ROOT, facts_of_this_run, worker
from benchmarks.sizes import GPU, GPU_QUICK, Sizes
from jras_jax.errors import UserError

Row = dict[str, Any]
TARGET_PIPELINE = 0.95  # real steps a second over those on a batch that lies on the device
COLUMNS = ("what", "ours", "PyTorch", "torch.compile", "ratio", "note")


class Board:
    """The rows so far, and the time that is left.

    Args:
      folder: for gpu.json, gpu.md and the loss curve.
      sizes: `sizes.GPU` or `GPU_QUICK`.
      budget_s: seconds of the whole command.
    """

    def __init__(self, folder: pathlib.Path, sizes: Sizes, budget_s: float):
        self.folder, self.sizes, self.budget_s = folder, sizes, budget_s
        self.rows: list[Row] = []
        self.facts = facts_of_this_run()
        self.start = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget_s - (time.monotonic() - self.start)

    def part(self, name: str, measured: Callable[[], list[Row]], least_s: float) -> None:
        """Runs a part if `least_s` seconds are left, and keeps its rows, or one that says why there are none."""
        begun = time.monotonic()
        if self.left < least_s:
            found = [{"what": name, "failed": f"left out: {self.left:.0f} s of the budget were left"}]
        else:
            try:
                found = measured()
            except (UserError, SystemExit, OSError, ValueError, KeyError, subprocess.SubprocessError) as e:
                lines = str(e).strip().splitlines() or [type(e).__name__]
                found = [{"what": name, "failed": lines[-1][:300]}]
        seconds = round(time.monotonic() - begun, 1)
        self.rows += [row | {"part": name, "took_s": seconds} for row in found]
        self.write()

    def write(self) -> None:
        """gpu.json and gpu.md."""
        self.folder.mkdir(parents=True, exist_ok=True)
        seconds = time.monotonic() - self.start
        whole = self.facts | {"sizes": self.sizes.name, "seconds": seconds, "rows": self.rows}
        (self.folder / "gpu.json").write_text(json.dumps(whole, indent=1) + "\n")
        (self.folder / "gpu.md").write_text(as_table(self.rows))


def as_table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [str(row.get(column, "")) for column in COLUMNS]
        if "failed" in row:
            cells = [row["what"], "-", "-", "-", "-", row["failed"].replace("|", "/")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(
    folder: pathlib.Path, console: Console, *, quick: bool, acdc: str | None, data_dir: str | None, budget_s: float
) -> int:
    """Measures and writes; returns the exit status: 1 if a part failed.

    Raises:
      UserError: there is no GPU, and it is not `quick`.
    """
    sizes = GPU_QUICK if quick else GPU
    board = Board(folder.absolute(), sizes, budget_s)
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(board.folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    os.environ |= cache | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    board.folder.mkdir(parents=True, exist_ok=True)
    (card,) = worker("ours", sizes, "card")
    if card["backend"] == "cpu" and not quick:
        raise UserError(
            "--gpu: JAX finds no GPU. Install jax[cuda13] (or jax[cuda12]) for the driver that nvidia-smi shows, or "
            "see the command at tiny size with --gpu --quick"
        )
    os.environ["BENCHMARK_DEVICE"] = "cpu" if card["backend"] == "cpu" else "cuda"
    with_torch = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    board.facts |= {"device": card["device"], "torch": with_torch}
    board.part("card", lambda: rates(card), 0)
    shared = Shared(board, card, with_torch, console=console, train=Training(board, acdc, data_dir))
    shared.compile()
    for pair in sizes.gpu_pairs:
        shared.say(pair)
        board.part(f"joint:{pair}", lambda pair=pair: shared.beside(f"joint:{pair}"), 15)
    shared.say("retriever")
    retriever = f"retriever:{sizes.retrievers[-1]}"
    board.part("retriever", lambda: shared.beside(retriever, sizes.gpu_embedded), 15)
    shared.say("real steps")
    board.part("train", shared.train.rows, 30)
    board.part("pipeline", shared.train.pipeline, 20)
    shared.say("folder")
    board.part("folder", lambda: folder_rows(board, acdc), 60 if not quick else 20)
    console.print((board.folder / "gpu.md").read_text(), markup=False, highlight=False)
    written = board.folder / "gpu.json"
    console.print(f"{budget_s - board.left:.0f} s; written: {written}, gpu.md, gpu_loss.csv and gpu_loss.svg")
    return int(any("failed" in row for row in board.rows))


def rates(card: Row) -> list[Row]:
    """What the card can do, by XLA."""
    return [
        {"what": "bfloat16 matrix product", "ours": f"{card['bf16_gflops'] / 1e3:.1f} TFLOP/s"} | card,
        {"what": "float32 matrix product, JAX's default precision", "ours": f"{card['gflops'] / 1e3:.1f} TFLOP/s"},
        {"what": "copy, read and written", "ours": f"{card['gb_per_s']:.0f} GB/s"},
    ]


class Shared:
    """The parts that run beside PyTorch."""

    def __init__(self, board: Board, card: Row, with_torch: bool, *, console: Console, train: Training):
        self.board, self.card, self.with_torch, self.console, self.train = board, card, with_torch, console, train

    def say(self, what: str) -> None:
        """Progress."""
        self.console.print(f"[{self.board.budget_s - self.board.left:4.0f} s] {what}", style="dim")

    def compile(self) -> None:
        """Fills the caches within half of the budget, the most important program first.

        Few at a time: a compilation uses several cores, and one that is cut off leaves nothing. What fails here fails
        again, and is told, where it is timed.
        """
        sizes, until = self.board.sizes, time.monotonic() + self.board.left / 2

        def fill(side: str, part: str, **more: str) -> None:
            if (left := until - time.monotonic()) > 0:
                worker(side, sizes, part, timeout_s=left, **more)

        first, *rest = sizes.gpu_pairs
        jobs = [functools.partial(fill, "ours-fill", f"joint:{first}")]
        jobs.append(functools.partial(self.train.prepare, until))
        batch = {"BENCHMARK_BATCH": str(sizes.gpu_embedded)}
        jobs.append(functools.partial(fill, "ours-fill", f"retriever:{sizes.retrievers[-1]}", **batch))
        jobs += [functools.partial(fill, "ours-fill", f"joint:{pair}") for pair in rest]
        if self.with_torch:
            jobs += [functools.partial(fill, "torch-compile", f"joint:{pair}") for pair in sizes.gpu_compiled]
        self.say(f"compiling {len(jobs)} programs")
        with concurrent.futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 4)) as pool:
            concurrent.futures.wait([pool.submit(job) for job in jobs])

    def beside(self, part: str, batch: int = 0) -> list[Row]:
        """Ours, PyTorch's eager form and torch.compile's; the retriever also as a fraction of the card's rate."""
        sizes, board = self.board.sizes, self.board
        more = {"BENCHMARK_BATCH": str(batch)} if batch else {}
        (mine,) = worker("ours", sizes, part, timeout_s=board.left, **more)
        row: Row = {"what": f"{mine['row']}, batch {batch or sizes.batch}", "ours": f"{mine['ms']:.2f} ms", "row": mine}
        row["note"] = f"memory {mine['peak_gb']:.2f} GB"
        if mine["gflop"]:
            row["of_matrix_rate"] = mine["gflop"] / (mine["ms"] * 1e-3) / self.card["bf16_gflops"]
            row["note"] = f"{100 * row['of_matrix_rate']:.0f}% of the matrix rate; {row['note']}"
        if not self.with_torch:
            return [row]
        try:
            (eager,) = worker("torch", sizes, part, timeout_s=board.left, **more)
            row |= {"PyTorch": f"{eager['ms']:.2f} ms", "eager": eager, "times": eager["ms"] / mine["ms"]}
            row["ratio"] = f"{row['times']:.2f}"
            row["note"] += f" against {eager['peak_gb']:.2f} GB"
            if part.removeprefix("joint:") in sizes.gpu_compiled:
                (compiled,) = worker("torch-compile", sizes, part, timeout_s=board.left, **more)
                row |= {"torch.compile": f"{compiled['ms']:.2f} ms", "compiled": compiled}
                row["ratio"] += f"; {compiled['ms'] / mine['ms']:.2f}"
        except UserError as e:  # ours stands
            row["torch_failed"] = str(e).strip().splitlines()[-1][:300]
            row["note"] += f"; PyTorch failed: {row['torch_failed']}"
        return [row]


class Training:
    """Real steps of configs/acdc_unet.py in bfloat16.

    Args:
      board: the rows.
      acdc: folder of the ACDC download; None trains on the phantom.
      data_dir: a folder where it is built already; None builds it.
    """

    def __init__(self, board: Board, acdc: str | None, data_dir: str | None):
        self.board, self.folder = board, board.folder / "run"
        sizes = board.sizes
        self.options = [
            "--config=configs/acdc_unet.py",
            "--config.train.dtype=bfloat16",
            f"--config.dataset.data_dir={data_dir or board.folder / 'data'}",
            *sizes.gpu_recipe,
        ]
        if acdc:
            self.options += [f"--config.dataset.manual_dir={acdc}"]
        else:
            self.options += ["--config.dataset.name=phantom"]

    def prepare(self, until: float) -> None:
        """Builds the data set and compiles the step: starts the run elsewhere, and stops it at its first line.

        `until` is the `time.monotonic` at which it is stopped in any case.
        """
        folder = self.board.folder / "first"
        metrics, quiet = folder / "metrics.csv", subprocess.DEVNULL
        process = subprocess.Popen(self._command(folder), cwd=ROOT, stdout=quiet, stderr=quiet)
        while process.poll() is None and time.monotonic() < until:
            if metrics.is_file() and len(metrics.read_text().splitlines()) > 1:
                break
            time.sleep(0.2)
        process.terminate()
        process.wait()

    def rows(self) -> list[Row]:
        """The steps and their loss curve."""
        steps, start = self.board.sizes.gpu_steps, time.monotonic()
        limit = max(self.board.left, 1)
        done = subprocess.run(self._command(self.folder), cwd=ROOT, capture_output=True, text=True, timeout=limit)
        if done.returncode:
            raise UserError((done.stderr or done.stdout).strip()[-2000:] or "the run failed")
        seconds = time.monotonic() - start
        with open(self.folder / "metrics.csv", newline="") as file:
            lines = [line for line in csv.DictReader(file) if line["loss"]]
        curve = [(int(line["step"]), float(line["loss"])) for line in lines]
        self._draw(curve)
        rate = statistics.median(float(line["slices_per_s"]) for line in lines[1:] or lines)
        note = f"loss {curve[0][1]:.3f} after {curve[0][0]} steps, {curve[-1][1]:.3f} at the end"
        return [
            {"what": f"{steps} real steps of acdc_unet, start to end", "ours": f"{seconds:.1f} s", "note": note},
            {"what": "slices a second in them, median", "ours": f"{rate:.0f}", "rate": rate},
        ]

    def pipeline(self) -> list[Row]:
        """Real batches against one batch that lies on the device."""
        (found,) = worker("ours", self.board.sizes, f"pipeline:{self.folder}", timeout_s=self.board.left)
        share = found["real_per_s"] / found["same_per_s"]
        row = {"what": "real batches against one on the device, steps/s", "of_synthetic": share} | found
        row["ours"] = f"{found['real_per_s']:.1f} against {found['same_per_s']:.1f}"
        return [row | {"note": f"{100 * share:.1f}% (target: {100 * TARGET_PIPELINE:.0f}%)"}]

    def _command(self, folder: pathlib.Path) -> list[str]:
        steps = self.board.sizes.gpu_steps
        length = [f"--config.train.{name}={steps}" for name in ("num_steps", "eval_every", "checkpoint_every")]
        return [sys.executable, "run.py", "train", f"--workdir={folder}", "--no_report", *self.options, *length]

    def _draw(self, curve: list[tuple[int, float]]) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        with open(self.board.folder / "gpu_loss.csv", "w", newline="") as file:
            csv.writer(file).writerows([("step", "loss"), *curve])
        figure, axes = pyplot.subplots(figsize=(6, 3))
        axes.plot(*zip(*curve, strict=True))
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        figure.tight_layout()
        figure.savefig(self.board.folder / "gpu_loss.svg")
        pyplot.close(figure)


def folder_rows(board: Board, acdc: str | None) -> list[Row]:
    """`benchmarks.folder`'s job on the card, beside PyTorch: whole processes, one pair."""
    from benchmarks import folder

    work = board.folder / "folder"
    work.mkdir(exist_ok=True)
    rows = []
    for found in folder.measured(work, board.sizes, acdc=acdc, pairs=1, with_monai=False):
        row = {"what": found["row"], "ours": f"{found['ours_s']:.2f} s", "row": found}
        if found["theirs_s"] is not None:
            row |= {"PyTorch": f"{found['theirs_s']:.2f} s", "ratio": f"{found['ratio']:.2f}"}
        rows.append(row)
    return rows
