"""What the frame of the heart costs: training steps in it beside training steps on whole slices.

    python -m benchmarks.frame [--config=acdc_segformer] [--pairs=5] [--steps=4] [--config.KEY=VALUE ...]

Both sides are runs of the config on phantom data and differ in `dataset.frame` alone, so that crops and slices have
the same size; the side in the frame trains the locator too. They step in turns in one process, `--steps` a turn. A
ratio is the median over the pairs.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence

import jax

from jras_jax import config as configs
from jras_jax import hosts
from jras_jax.commands.dataset import load_data
from jras_jax.run_folder.layout import RunFolder
from jras_jax.training import joint_run

FRAMES = ("heart", "whole")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.frame", description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", default="acdc_segformer", help="a config file, or the name of a shipped one")
    parser.add_argument("--pairs", type=int, default=5, help="turns of each side")
    parser.add_argument("--steps", type=int, default=4, help="training steps a turn")
    options, overrides = parser.parse_known_args(arguments)
    hosts.keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        runs = [started(options.config, frame, pathlib.Path(folder), overrides) for frame in FRAMES]
        times = measured(runs, options.pairs, options.steps)
    heart, whole = (statistics.median(side) for side in zip(*times, strict=True))
    ratio = statistics.median(h / w for h, w in times)
    print(
        f"{options.config}: a training step takes {heart * 1000:.0f} ms in the frame of the heart and "
        f"{whole * 1000:.0f} ms on whole slices; ratio {ratio:.2f}"
    )
    return 0


def started(name: str, frame: str, folder: pathlib.Path, overrides: Sequence[str]) -> joint_run.TrainingRun:
    """A run before its first step."""
    phantom = ["--config.dataset.name=phantom", f"--config.dataset.data_dir={folder}"]
    settings = [*phantom, *overrides, f"--config.dataset.frame={frame}"]
    config = configs.parse(configs.override(configs.load(name), settings))
    return joint_run.start(config, RunFolder(folder / frame), load_data(config.dataset))


def measured(runs: Sequence[joint_run.TrainingRun], pairs: int, steps: int) -> list[tuple[float, ...]]:
    """Seconds a step of each run, pair by pair, after a turn that is not timed (it compiles and embeds the gallery)."""
    done, times = 0, []
    for turn in range(pairs + 1):
        seconds = []
        for run in runs:
            if not turn:
                run.prepare(0)
            start = time.perf_counter()
            for step in range(done, done + steps):
                run.advance(step)
            jax.block_until_ready(run.state.params)
            seconds.append((time.perf_counter() - start) / steps)
        done += steps
        times.append(tuple(seconds))
    return times[1:]


if __name__ == "__main__":
    sys.exit(main())
