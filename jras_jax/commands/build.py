"""Prepares a data set from its official download, as ArrayRecord files; no TensorFlow needed.

jras build acdc --manual_dir=PATH_TO_ACDC --data_dir=data_cache
"""

from __future__ import annotations

import argparse

import tfds_builders


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    p.add_argument("name", choices=tfds_builders.NAMES)
    p.add_argument("--manual_dir", required=True, help="folder of the unpacked official download")
    p.add_argument("--data_dir", default="data_cache", help="where prepared data sets are kept [%(default)s]")


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Builds the data set; returns the exit status."""
    tfds_builders.build(args.name, args.manual_dir, args.data_dir)
    return 0
