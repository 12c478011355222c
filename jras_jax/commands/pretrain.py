"""Pre-trains the retriever by contrast, without labels, on the training slices of a config's fold.

jras pretrain --config=configs/acdc_unet.py --workdir=runs/retriever
jras train --config=configs/acdc_unet.py --config.retriever.init_from=runs/retriever ...
"""

from __future__ import annotations

import argparse

from jras_jax.commands.dataset import describe, load_data
from jras_jax.commands.terminal import enable_compilation_cache, say
from jras_jax.commands.train import (
    add_config_arguments,
    add_resume_argument,
    check_model,
    read_config,
    say_changes,
)
from jras_jax.run_folder import lock, run_log
from jras_jax.training.pretrain import check_folder, pretrain_retriever


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_config_arguments(p)
    add_resume_argument(p)


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Pre-trains; returns the exit status."""
    config, folder = read_config(args, overrides)
    enable_compilation_cache()
    lock.check_free(folder)
    say_changes(folder, check_folder(config, folder, with_changes=args.resume_with_changes))
    check_model(config, describe(config.dataset))
    data = load_data(config.dataset, protocol=config.protocol)
    with run_log.kept(folder):
        written = pretrain_retriever(config, folder, data, with_changes=args.resume_with_changes)
    say(f"retriever: {written}\nuse it with --config.retriever.init_from={folder}")
    return 0
