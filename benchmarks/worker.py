"""One part on one side: `python -m benchmarks.worker SIDE SIZES PART` writes its rows as JSON, a line each.

SIDE is 'ours', 'ours-fill' (compiles and measures nothing), 'torch' or 'torch-compile'. A process of its own, so that
neither framework's threads, memory or caches get in the other's way, and so that the peak memory belongs to the part.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys

from benchmarks.sizes import BY_NAME

MARK = "@row "


def main(side: str, size: str, part: str) -> None:
    """Writes the rows to standard output, each behind `MARK`."""
    sizes = BY_NAME[size]
    sizes = dataclasses.replace(sizes, batch=int(os.environ.get("BENCHMARK_BATCH", sizes.batch)))
    if side in ("ours", "ours-fill"):
        from benchmarks import ours
        from jras_jax.hosts import keep_freed_memory

        keep_freed_memory()  # as run.py does
        found = ours.rows(part, dataclasses.replace(sizes, filling=side == "ours-fill"))
    else:
        from benchmarks import theirs

        found = theirs.rows(part, sizes, side == "torch-compile")
    for row in found:
        print(MARK + json.dumps(row | {"part": part}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
