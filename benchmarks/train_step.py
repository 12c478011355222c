"""Our joint step against the authors', alone: `python -m benchmarks.train_step` = `python -m benchmarks --only=joint`."""

from __future__ import annotations

import sys

from benchmarks.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["--only=joint", *sys.argv[1:]]))
