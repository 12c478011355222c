"""`python run.py COMMAND ...` is `jras COMMAND ...` from a checkout; without a command it trains.

python run.py --config=configs/demo.py                                  train, evaluate, report
python run.py evaluate --workdir=runs/demo --config.eval.split=test
python run.py predict --workdir=runs/demo --input=SCAN.nii.gz --output=masks
"""

import sys

from jras_jax.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
