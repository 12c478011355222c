"""`python -m jras_jax.evaluation ...`: the same as `jras score ...`."""

import sys

from jras_jax.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
