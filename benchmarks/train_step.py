"""The joint step alone: `python -m benchmarks.train_step` does what `python -m benchmarks --only=joint` does."""

from __future__ import annotations

import sys

from benchmarks.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["--only=joint", *sys.argv[1:]]))
