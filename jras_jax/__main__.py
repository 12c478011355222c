"""`python -m jras_jax COMMAND ...`: the same as `jras COMMAND ...`."""

import sys

from jras_jax.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
