"""Segments new scans: one NIfTI file, or every one in a folder, all frames of 4-D ones.

    jras predict --workdir=runs/acdc --input=SCAN_OR_FOLDER --output=MASKS

Each mask has its scan's geometry and the label values of the run's data set. The JSON beside it lists the cases that
guided every slice.
"""

from __future__ import annotations

import argparse

from jras_jax.commands.evaluate import add_workdir, trained_folder
from jras_jax.commands.terminal import enable_compilation_cache, say
from jras_jax.data.remarks import Teller
from jras_jax.errors import UserError
from jras_jax.inference.scans import segment_file, tasks
from jras_jax.inference.trained_run import open_run


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_workdir(p)
    p.add_argument("--input", metavar="SCANS", help="a NIfTI file (.nii, .nii.gz), or a folder of them")
    p.add_argument("--output", metavar="FOLDER", help="folder for the masks")
    p.add_argument(
        "--gallery",
        metavar="FOLDER",
        help="guide with another gallery: one made by `jras gallery`, or labelled scans (NAME.nii.gz, NAME_gt.nii.gz)",
    )
    p.add_argument(
        "--labels", help="label values of those scans, such as LV:1,MYO:2,RV:3 (default: the run's data set's)"
    )


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Segments scans; returns the exit status."""
    folder = trained_folder(args, "predict")
    if not args.input or not args.output:
        raise UserError("predict needs --input=FILE_OR_FOLDER and --output=FOLDER")
    todo = tasks(args.input, args.output)
    enable_compilation_cache()
    opened = open_run(folder.path, overrides)
    gallery = None
    if opened.config.retrieval.enabled or args.gallery:
        gallery = opened.open_gallery(args.gallery, args.labels)
        say(f"gallery: {gallery.description}")
    note = Teller()
    segmenter = opened.segmenter(gallery.arrays if gallery else None)
    for number, task in enumerate(todo, 1):
        say(f"[{number}/{len(todo)}] {task.scan} -> {task.mask}")
        segment_file(opened, task, gallery, segmenter, note)
    say(f"{len(todo)} {'mask' if len(todo) == 1 else 'masks'} in {args.output}")
    return 0
