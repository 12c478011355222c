"""Pre-trains the retriever by contrast, without labels, on the training slices of a config's fold.

jras pretrain --config=configs/acdc_unet.py --workdir=runs/retriever
jras train --config=configs/acdc_unet.py --config.retriever.init_from=runs/retriever ...
"""

from __future__ import annotations

import argparse

from jras_jax.commands.dataset import load_data
from jras_jax.commands.terminal import enable_compilation_cache, say
from jras_jax.commands.train import add_config_arguments, check_model, read_config
from jras_jax.training.pretrain import pretrain_retriever

add_arguments = add_config_arguments


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Pre-trains; returns the exit status."""
    config, folder = read_config(args, overrides)
    enable_compilation_cache()
    check_model(config)
    written = pretrain_retriever(config, folder, load_data(config.dataset))
    say(f"retriever: {written}\nuse it with --config.retriever.init_from={folder}")
    return 0
