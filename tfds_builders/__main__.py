"""`python -m tfds_builders acdc --manual_dir=FOLDER --data_dir=FOLDER`: prepares a data set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jras_jax.errors import UserError
from tfds_builders.prepare import NAMES, build


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; 0, or 2 with one line on stderr where the user's files or flags are wrong."""
    parser = argparse.ArgumentParser(prog="python -m tfds_builders", description="Prepares a data set (ArrayRecord).")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--manual_dir", required=True, help="folder of the unpacked official download")
    parser.add_argument("--data_dir", default="data_cache", help="where prepared data sets are kept [%(default)s]")
    args = parser.parse_args(argv)
    try:
        build(args.name, args.manual_dir, args.data_dir)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
