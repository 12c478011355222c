"""Start-up of one or several hosts, and the watch that ends a job with a message if one of them dies."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jras_jax.errors import UserError

SILENCE_S = 60  # a host that has been silent for this long counts as dead
HOST_LOST = 3  # exit status of the hosts that remain
RESTART = "Start the job again with the same command, on any number of hosts: it resumes from its last checkpoint"
DAY_MS = 86_400_000  # how long the first host may take to prepare a data set
_turns = itertools.count()


def keep_freed_memory() -> None:
    """Lets a program on CPU use the same memory step after step; before anything else is done with JAX.

    glibc returns a step's buffers to the kernel and requests them again for the next one, page by page, which takes up
    to half of a step's time (docs/lab-notes). It can keep them, but only for the main thread; therefore JAX is told to
    run programs on CPU there and not on another thread. Other C libraries are left as they are, and beside an
    accelerator only the host's memory is kept.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        trim_threshold, mmap_max = -1, -4  # glibc's malloc.h
        set_option(trim_threshold, -1)
        set_option(mmap_max, 0)


def initialize_hosts(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins a job of several hosts; does nothing on a single one.

    Slurm, Open MPI, Kubernetes and Cloud TPU jobs are found by JAX itself; elsewhere give the three arguments.

    Raises:
      UserError: only some of the three were given, or the coordinator cannot be reached.
    """
    explicit = (bool(coordinator), num_processes > 0, process_id >= 0)
    if any(explicit) and not all(explicit):
        raise UserError("give --coordinator=HOST:PORT, --num_processes=N and --process_id=I together, or none of them")
    several = any(
        int(os.environ.get(name, "1").split("(")[0] or 1) > 1 for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    )
    cloud = "TPU_WORKER_HOSTNAMES" in os.environ and "," in os.environ["TPU_WORKER_HOSTNAMES"]
    kubernetes = "JOB_COMPLETION_INDEX" in os.environ and "JAX_COORDINATOR_ADDRESS" in os.environ
    if not (all(explicit) or several or cloud or kubernetes):
        return
    try:
        # JAX itself aborts with a stack trace if a host is silent; `_Watch` ends with a message, and earlier.
        later = SILENCE_S + 30
        if all(explicit):
            jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=later)
        else:
            jax.distributed.initialize(heartbeat_timeout_seconds=later)
    except Exception as e:
        raise UserError(f"this host could not join the job at {coordinator or 'the cluster coordinator'}: {e}") from e
    if jax.process_count() > 1:
        _explain_aborts()
        _Watch(jax.process_index(), jax.process_count()).start()


@contextlib.contextmanager
def first_host_first() -> Iterator[None]:
    """The other hosts enter the block after the first has left it: what it writes to a shared disk is then there."""
    if jax.process_count() == 1:
        yield
        return
    name = f"jras/first/{next(_turns)}"
    if jax.process_index() != 0:
        _store().wait_at_barrier(name, DAY_MS)
    yield
    if jax.process_index() == 0:
        _store().wait_at_barrier(name, DAY_MS)


def any_host(flag: bool) -> bool:
    """Whether `flag` is set on any host; all hosts must ask together."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def _store() -> Any:
    from jax._src import distributed  # JAX has no public name for the job's key-value store

    return distributed.global_state.client


def _explain_aborts() -> None:
    """Ends this process with a message if JAX aborts it, as it does at once if the first host is lost.

    No exception reports it, because a thread of JAX calls abort(). Python's handlers would run too late, so this is a
    handler of the C library.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "signal"):
        return
    library.signal.restype = ctypes.c_void_p
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal(signal.SIGABRT, ctypes.cast(_on_abort, ctypes.c_void_p))


@ctypes.CFUNCTYPE(None, ctypes.c_int)  # type: ignore[untyped-decorator]
def _on_abort(number: int) -> None:
    text = (
        "\nerror: JAX has ended this host (the lines above say why; most often the first host, which coordinates the "
        f"job, was lost). {RESTART}\n"
    )
    os.write(2, text.encode())
    os._exit(HOST_LOST)


class _Watch(threading.Thread):
    """Tells the other hosts that this one is alive, and ends this process with a message if one of them is not.

    Without it a host whose neighbour died waits inside a collective, where no exception can reach it.
    """

    EVERY_S = 5.0
    ROOT = "jras/alive/"

    def __init__(self, process: int, processes: int):
        super().__init__(daemon=True, name="watch over the other hosts")
        self._client = _store()
        self._process, self._processes = process, processes
        self._ended = threading.Event()
        atexit.register(self._end)  # runs before JAX's own, which waits for the other hosts

    def run(self) -> None:
        heard = {i: ("", time.monotonic()) for i in range(self._processes) if i != self._process}
        for beat in range(sys.maxsize):
            try:
                self._tell(str(beat))
                said = {key.rpartition("/")[2]: value for key, value in self._client.key_value_dir_get(self.ROOT)}
            except Exception as e:  # whatever the client raises if the coordinator has ended
                if not self._ended.is_set():
                    self._give_up(f"the first host, which coordinates the job, cannot be reached ({str(e)[:80]})")
                return
            now = time.monotonic()
            for host, (last, since) in heard.items():
                word = said.get(str(host), "")
                heard[host] = (word, now if word != last or word == "end" else since)
                if now - heard[host][1] > SILENCE_S:
                    self._give_up(f"host {host} has not been heard of for {SILENCE_S} seconds")
            if self._ended.wait(self.EVERY_S):
                return

    def _tell(self, word: str) -> None:
        self._client.key_value_set(f"{self.ROOT}{self._process}", word, allow_overwrite=True)

    def _end(self) -> None:
        self._ended.set()
        self.join(timeout=2 * self.EVERY_S)
        try:
            self._tell("end")
        except Exception:  # the coordinator has ended already: there is nobody to tell
            return

    def _give_up(self, why: str) -> None:
        message = f"error: {why}: host {self._process} ends too. {RESTART}"
        print(message, file=sys.stderr, flush=True)
        os._exit(HOST_LOST)
