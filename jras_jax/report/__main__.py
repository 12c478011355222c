"""`python -m jras_jax.report RUN_DIR [--baseline=DIR] [--output=FILE]`: writes the report of an evaluated run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jras_jax.errors import UserError
from jras_jax.report.page import write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jras_jax.report", description="One HTML page about an evaluated run."
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the --workdir of the run")
    parser.add_argument(
        "--baseline", metavar="DIR", help="run folder to compare with (default: RUN_DIR/baseline if it is evaluated)"
    )
    parser.add_argument("--output", metavar="FILE", help="where to write (default: RUN_DIR/report.html)")
    arguments = parser.parse_args(argv)
    try:
        written = write_report(arguments.run_dir, baseline_dir=arguments.baseline, output=arguments.output)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(f"{written} ({written.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
