"""Two thousand small steps with twenty validations and saves: memory does not grow (and a step's time is printed)."""

import ctypes
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


class _Heap(ctypes.Structure):
    """What mallinfo2 tells (man 3 mallinfo)."""

    NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in NAMES)


def heap_mb():
    """Memory that is allocated and not freed, in MiB; what is free between it stays with the process too."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("memory is counted by glibc 2.33 or later")
    libc.mallinfo2.restype = _Heap
    heap = libc.mallinfo2()
    return (heap.uordblks + heap.hblkhd) / 2**20


def resident_mb():
    """Memory that the process holds, in MiB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
def test_two_thousand_steps_do_not_grow_memory(tiny, tmp_path, monkeypatch):
    heap_mb()
    plain, seen = evaluator.validate, []

    def measured(*given, **named):
        start = time.process_time()
        values = plain(*given, **named)
        gc.collect()
        spent = time.process_time()
        before = seen[-1][-1] if seen else start
        seen.append(
            (
                heap_mb(),
                resident_mb(),
                len(jax.live_arrays()),
                sum(
                    not one.name.startswith("save of step") for one in threading.enumerate()
                ),  # chance, beside a validation
                (start - before) / EVERY,
                spent,
            )
        )
        return values

    monkeypatch.setattr(evaluator, "validate", measured)
    length = {"train__num_steps": STEPS, "train__eval_every": EVERY, "train__checkpoint_every": EVERY}
    small = {"retrieval__enabled": True, "train__batch_size": 4, "train__log_every": 50}
    assert cli.main(["train", *arguments(tiny, tmp_path / "run", **(length | small))]) == 0
    heap, resident, arrays, threads, seconds = (np.array([row[i] for row in seen]) for i in range(5))
    assert len(seen) == STEPS // EVERY
    early, late = slice(3, 8), slice(-5, None)  # the first ones compile
    figures = [f"{np.median(of[part]):.0f} MB" for of in (heap, resident) for part in (early, late)]
    grown = "memory in use {} early, {} late; held by the process {} early, {} late".format(*figures)
    slower = [f"{1000 * np.median(seconds[part]):.1f} ms" for part in (early, late)]
    print(f"\noutcome: {grown}; CPU time of a step {slower[0]} early, {slower[1]} late")
    assert np.median(heap[late]) < np.median(heap[early]) + 10
    # The heap frays while it settles, so that the process holds more for the same content: some 30 MB in these steps,
    # and less and less.
    assert np.median(resident[late]) < 1.1 * np.median(resident[early])
    assert max(arrays[late]) <= max(arrays[early]) and max(threads[late]) <= max(threads[early])
