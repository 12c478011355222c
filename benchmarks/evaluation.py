"""What an evaluation costs beyond its network passes.

    python -m benchmarks.evaluation --workdir=RUN [--pairs=3]    any trained run; its own data and split

Both sides run in one process, compiled and with everything read: the evaluation (placing on the grid, locator, network,
masks back on the scan's grid, distances, files), without the certificate; and its network passes alone, as many calls
of the same programs on the same number of slices, one after another. The evaluation is timed twice: as the first of a
checkpoint, which makes the gallery, and as a later one, which finds it in the run's folder. A ratio is the median over
the pairs. Writes nothing into the run: it works on a copy.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax

from jras_jax import hosts
from jras_jax.commands.evaluate import data_of
from jras_jax.evaluation.evaluate import evaluate
from jras_jax.inference.trained_run import TrainedRun, open_run

TARGET = 1.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.evaluation", description=__doc__.split("\n\n")[0])
    parser.add_argument("--workdir", required=True, help="folder of a trained run")
    parser.add_argument("--pairs", type=int, default=3, help="how often each side runs")
    options = parser.parse_args(arguments)
    hosts.keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "run"
        shutil.copytree(options.workdir, copy, ignore=shutil.ignore_patterns("evaluation"))
        row = measured(open_run(copy, ["--config.eval.certificate=False", "--config.mesh.data=1"]), options.pairs)
    print(
        f"evaluation of {row['volumes']} volumes: the first {row['first_s']:.2f} s, a later one "
        f"{row['later_s']:.2f} s; its {row['passes']} network passes alone: {row['network_s']:.2f} s; ratios "
        f"{row['first_ratio']:.2f} and {row['later_ratio']:.2f} (target at most {TARGET})"
    )
    return 0


def measured(run: TrainedRun, pairs: int) -> dict[str, Any]:
    """Both sides in turns, after one evaluation that is not timed, whose passes are those repeated alone."""
    data = data_of(run)
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
    with _recorded(calls):
        evaluate(run, data)
    once = []
    for _ in range(pairs):
        shutil.rmtree(run.folder.gallery, ignore_errors=True)
        times = [time.perf_counter()]
        for _ in ("first", "later"):
            evaluate(run, data)
            times.append(time.perf_counter())
        for program, own in calls:
            jax.block_until_ready(program(*own))
        times.append(time.perf_counter())
        once.append([b - a for a, b in itertools.pairwise(times)])
    return {
        "volumes": len(data.part(run.config.eval.split)),
        "passes": len(calls),
        "first_s": statistics.median(first for first, _, _ in once),
        "later_s": statistics.median(later for _, later, _ in once),
        "network_s": statistics.median(network for _, _, network in once),
        "first_ratio": statistics.median(first / network for first, _, network in once),
        "later_ratio": statistics.median(later / network for _, later, network in once),
    }


@contextlib.contextmanager
def _recorded(calls: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> Iterator[None]:
    """Notes the programs that segmenters call, and with what."""
    plain = TrainedRun.segmenter

    def noting(program: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append((program, arguments))
            return program(*arguments)

        return call

    def noted(run: TrainedRun, *arguments: Any, **options: Any) -> Any:
        segmenter = plain(run, *arguments, **options)
        segmenter.program, segmenter.locate = noting(segmenter.program), noting(segmenter.locate)
        return segmenter

    with mock.patch.object(TrainedRun, "segmenter", noted):
        yield


if __name__ == "__main__":
    sys.exit(main())
