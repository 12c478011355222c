"""Work in threads beside the caller's own, in order; for what releases Python's lock: decompression, numpy, SciPy."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Generator[Result, None, None]:
    """The results of `work` in the order of the items.

    Args:
      work: a pure function. What it raises is raised here, of several items that of the first; nothing is begun after.
      items: taken one by one, in the caller's thread.
      threads: how many.
      ahead: items that are begun or done beside the one whose result is yielded.
    """
    with concurrent.futures.ThreadPoolExecutor(threads, "in_order") as pool:
        waiting = collections.deque[concurrent.futures.Future[Result]]()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # after an error, or where the caller stops
            for future in waiting:
                future.cancel()
