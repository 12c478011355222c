"""Requests to stop: SIGTERM (a cluster's notice) and Ctrl-C, honoured where nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax

from jras_jax.errors import Stopped
from jras_jax.hosts import any_host

GRACE_S = 15.0  # schedulers kill a process about 30 seconds after SIGTERM
T = TypeVar("T")


class Abandoned(Exception):
    """A validation was given up because the run is to stop."""


class StopSignal(contextlib.AbstractContextManager["StopSignal"]):
    """Turns SIGTERM and SIGINT into a request that the loop honours between two steps, or two volumes.

    A second SIGTERM changes nothing; a second Ctrl-C raises KeyboardInterrupt. While the process compiles or waits in
    other code that is not Python, no handler runs: if `leave` is set then, a thread calls it after `GRACE_S` seconds
    and ends the process. Outside the main thread, signals are left as they are.

    Attributes:
      requested: whether a signal came.
      leave: what to do before the process ends if leaving at once loses nothing; None if it would.
    """

    def __init__(self) -> None:
        self.requested = False
        self.leave: Callable[[], None] | None = None
        self._status = self._handled = 0
        self._old: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._handle)
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            # Written to by the C library's handler at once, whatever the main thread does.
            self._old_descriptor = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            self._ended = threading.Event()
            self._watcher = threading.Thread(target=self._watch, args=(self._pipe[0],), daemon=True, name="signals")
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave = None
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}
        if self._pipe is not None:
            signal.set_wakeup_fd(self._old_descriptor)
            self._ended.set()
            os.write(self._pipe[1], b"\0")
            self._watcher.join()
            for descriptor in self._pipe:
                os.close(descriptor)
            self._pipe = None

    def agreed(self) -> bool:
        """Whether any host was asked to stop; on several hosts, all must ask together."""
        return self.requested if jax.process_count() == 1 else any_host(self.requested)

    def watched(self, items: Iterable[T]) -> Iterator[T]:
        """The items; raises Abandoned before one if the run is to stop."""
        for item in items:
            if self.agreed():
                raise Abandoned
            yield item

    def raise_if_asked(self, text: str) -> None:
        """Raises Stopped with this text if the run is to stop."""
        if self.agreed():
            raise Stopped(text, self._status)

    def stopped(self, at: int) -> Stopped:
        """What the loop raises once step `at` is saved."""
        return Stopped(f"stopped by a signal at step {at}; the same command resumes from there", self._status)

    def _handle(self, number: int, frame: Any) -> None:
        # Counted here: the watching thread may have noted this very signal before.
        self._handled += 1
        if self._handled > 1 and number == signal.SIGINT:  # a second Ctrl-C means now
            raise KeyboardInterrupt
        self._note(number)

    def _note(self, number: int) -> None:
        if not self.requested:
            self.requested, self._status = True, 130 if number == signal.SIGINT else 0

    def _watch(self, descriptor: int) -> None:
        while not self._ended.is_set():
            number = os.read(descriptor, 1)[0]
            if number not in (signal.SIGTERM, signal.SIGINT) or jax.process_count() > 1:
                continue
            self._note(number)
            if not self._ended.wait(GRACE_S) and self.leave is not None:
                self.leave()
                print("stopped by a signal; the same command resumes from the last checkpoint", flush=True)
                sys.stderr.flush()
                os._exit(self._status)
