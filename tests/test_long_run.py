"""Two thousand small steps with twenty validations and saves: memory does not grow (and a step's time is printed)."""

import gc
import os
import pathlib
import threading
import time

import jax
import numpy as np
import pytest

from jras_jax.commands import cli
from jras_jax.evaluation import evaluator
from tests.test_skips import arguments

STEPS, EVERY = 2000, 100


def resident_mb():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def skip_without_proc():
    if not pathlib.Path("/proc/self/statm").exists():
        pytest.skip("the process's memory is read from /proc")


@pytest.mark.slow
def test_two_thousand_steps_do_not_grow_memory(tiny, tmp_path, monkeypatch):
    skip_without_proc()
    plain, seen = evaluator.validate, []

    def measured(*given, **named):
        start = time.process_time()
        values = plain(*given, **named)
        gc.collect()
        spent = time.process_time()
        before = seen[-1][-1] if seen else start
        seen.append((resident_mb(), len(jax.live_arrays()), threading.active_count(), (start - before) / EVERY, spent))
        return values

    monkeypatch.setattr(evaluator, "validate", measured)
    length = {"train__num_steps": STEPS, "train__eval_every": EVERY, "train__checkpoint_every": EVERY}
    small = {"retrieval__enabled": True, "train__batch_size": 4, "train__log_every": 50}
    assert cli.main(["train", *arguments(tiny, tmp_path / "run", **(length | small))]) == 0
    memory, arrays, threads, seconds = (np.array([row[i] for row in seen]) for i in range(4))
    assert len(seen) == STEPS // EVERY
    early, late = slice(3, 8), slice(-5, None)  # the first ones compile
    grown = f"memory {np.median(memory[early]):.0f} MB early, {np.median(memory[late]):.0f} MB late"
    slower = [f"{1000 * np.median(seconds[part]):.1f} ms" for part in (early, late)]
    print(f"\noutcome: {grown}; CPU time of a step {slower[0]} early, {slower[1]} late")
    assert np.median(memory[late]) < 1.02 * np.median(memory[early]) + 10
    assert max(arrays[late]) <= max(arrays[early]) and max(threads[late]) <= max(threads[early])
