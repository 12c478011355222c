"""Time, memory, and this machine's own peaks."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

# glibc gives freed pages back to the kernel, and fetching them again costs more than the arithmetic in both frameworks:
# keep them, and back them with huge pages.
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
}


class Timing(NamedTuple):
    """Milliseconds a call: median, fastest and slowest of `repeats` calls, after one that is not counted."""

    median: float
    fastest: float
    slowest: float
    repeats: int


def timed(call: Callable[[], Any], seconds: float, repeats: tuple[int, int]) -> Timing:
    """Calls once to warm up, then until `seconds` have gone by, at least and at most `repeats` times.

    `call` returns when its result is there. What a measurement before has freed goes back to the system first, so that
    the peak memory is this one's.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)
    call()
    times: list[float] = []
    least, most = repeats
    while len(times) < least or (sum(times) < seconds and len(times) < most):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    milliseconds = [1e3 * t for t in times]
    return Timing(statistics.median(milliseconds), min(milliseconds), slowest=max(milliseconds), repeats=len(times))


def peak_memory_gb() -> float:
    """Largest resident size of this process so far, 1e9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def environment(**more: str) -> dict[str, str]:
    """The environment of a measuring process: this one's, with the allocator's settings; values in `more` win."""
    return {**os.environ, **ALLOCATOR, **more}


def machine_peaks(seconds: float, *, size: int = 2048, copied_mb: int = 256) -> dict[str, float]:
    """The best float32 matrix product (GFLOP/s) and copy (GB/s, read and written) of this machine, both by XLA.

    The fastest repeat counts: it is a ceiling that fractions are taken of.
    """
    import jax
    import jax.numpy as jnp

    a = jnp.ones((size, size))
    product = jax.jit(lambda x: x @ x)
    fastest = timed(lambda: product(a).block_until_ready(), seconds, (5, 50)).fastest
    big = jnp.ones((copied_mb * 250_000,))
    # Donated, so that the copy writes warm memory, as a step's buffers are.
    add = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    state = [big]

    def step() -> None:
        state[0] = add(state[0]).block_until_ready()

    copy = timed(step, seconds, (5, 50)).fastest
    return {"gflops": 2e-6 * size**3 / fastest, "gb_per_s": 2e-3 * copied_mb / (copy * 1e-3)}
