"""Converts published weights, for config.backbone.init_from and config.retriever.init_from.

    jras convert nvidia_segformer_b4/ --model=segformer --output=weights/segformer_b4
    jras convert hf:microsoft/rad-dino --model=dinov2 --output=weights/rad_dino

SOURCE is a Hugging Face folder (config.json and model.safetensors, sharded or not), a safetensors file, Google's npz,
or hf:org/name. The output folder gets model.safetensors, in the project's parameter names, and provenance.json.
"""

from __future__ import annotations

import argparse
import pathlib

from jras_jax.convert import weights
from jras_jax.convert.converter import convert
from jras_jax.convert.tables import TABLES


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    p.add_argument("source", help="folder, .safetensors, .npz or hf:org/name")
    p.add_argument("--model", required=True, help=", ".join(TABLES))
    p.add_argument("--output", required=True, type=pathlib.Path, help="folder to write")
    p.add_argument("--variant", default="", help="size of the model, if the source has no config.json")


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Converts; returns the exit status."""
    facts = convert(args.source, args.model, output=args.output, variant=args.variant)
    print(f"{args.output / weights.FILE}: {facts['model']}, {facts['parameters']:,} parameters")
    return 0
