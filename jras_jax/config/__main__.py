"""`python -m jras_jax.config [WORD]`: lists all settings, or those whose name or meaning contains WORD."""

from __future__ import annotations

import sys

from jras_jax.config.listing import listing


def main(argv: list[str]) -> int:
    """Prints the settings; returns the exit status, 1 if there are none."""
    found = listing(" ".join(argv))
    print(found or f"no setting contains {' '.join(argv)!r}")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
