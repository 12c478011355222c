"""Time, memory, and this machine's own peaks."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import statistics
import sys
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


def device() -> str:
    """'cuda' or 'cpu': where PyTorch computes (the environment's BENCHMARK_DEVICE); JAX takes a GPU by itself."""
    return os.environ.get("BENCHMARK_DEVICE", "cpu")


def peak_memory_gb() -> float:
    """Largest memory of this process so far, 1e9 bytes: on the GPU if one computes, else its resident size."""
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        if device() == "cuda":
            return float(torch.cuda.max_memory_allocated() / 1e9)
    elif "jax" in sys.modules:
        stats = sys.modules["jax"].local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            return float(stats["peak_bytes_in_use"] / 1e9)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def environment(**more: str) -> dict[str, str]:
    """The environment of a measuring process: this one's, with the allocator's settings; values in `more` win."""
    return {**os.environ, **ALLOCATOR, **more}


def product_gflops(seconds: float, size: int, dtype: str = "float32") -> float:
    """The best square matrix product of random numbers by XLA, GFLOP/s."""
    import jax

    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    return 2e-6 * size**3 / timed(lambda: product(a).block_until_ready(), seconds, (5, 50)).fastest


def machine_peaks(seconds: float, *, size: int = 2048, copied_mb: int = 256) -> dict[str, float]:
    """The best float32 matrix product (GFLOP/s) and copy (GB/s, read and written) of this machine, both by XLA.

    The fastest repeat counts: it is a ceiling that fractions are taken of.
    """
    import jax
    import jax.numpy as jnp

    big = jnp.ones((copied_mb * 250_000,))
    # Donated, so that the copy writes warm memory, as a step's buffers are.
    add = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    state = [big]

    def step() -> None:
        state[0] = add(state[0]).block_until_ready()

    copy = timed(step, seconds, (5, 50)).fastest
    return {"gflops": product_gflops(seconds, size), "gb_per_s": 2e-3 * copied_mb / (copy * 1e-3)}
