"""Measures on the validation fold whether post-processing and test-time augmentation help, and says which to use.

jras choose --workdir=runs/acdc
"""

from __future__ import annotations

import argparse

import jax

from jras_jax.commands.dataset import load_data
from jras_jax.commands.opened import add_workdir, trained_folder
from jras_jax.commands.terminal import enable_compilation_cache, print_choices, progress, say
from jras_jax.evaluation.choose import choose
from jras_jax.inference.trained_run import open_run

add_arguments = add_workdir


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Measures the options; returns the exit status."""
    folder = trained_folder(args, "choose")
    enable_compilation_cache()
    opened = open_run(folder.path, overrides)
    data = load_data(opened.config.dataset, opened.splits, opened.config.protocol)
    result = choose(opened, data, progress=lambda title, volumes: progress(title)(volumes))
    if jax.process_index() == 0:
        print_choices(result)
        for warning in result["warnings"]:
            say(f"note: {warning}")
    chosen = result["chosen"]
    flags = f"--config.eval.postprocess={chosen['postprocess']} --config.eval.tta={chosen['tta']}"
    say(f"chosen: {flags}\n({result['rule']})\nscore with it: jras evaluate --workdir={folder} {flags}")
    return 0
