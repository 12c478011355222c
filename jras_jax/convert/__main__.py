"""`python -m jras_jax.convert ...`: the same as `jras convert ...`."""

import sys

from jras_jax.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
