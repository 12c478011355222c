"""Makes or changes a gallery of labelled cases for a trained run.

    jras gallery --workdir=runs/acdc --input=LABELLED_SCANS --output=GALLERY
    jras gallery --workdir=runs/acdc --split=validation --output=GALLERY
    jras gallery --workdir=runs/acdc --gallery=GALLERY --add=SCANS --remove=patient1,patient2

Labelled scans are NAME.nii.gz with NAME_gt.nii.gz, or ACDC's patient folders.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

from jras_jax.commands.dataset import data_of
from jras_jax.commands.opened import add_workdir, trained_folder
from jras_jax.commands.terminal import enable_compilation_cache, say
from jras_jax.data import own
from jras_jax.data.slice_table import SliceTable, joined, without
from jras_jax.errors import UserError
from jras_jax.inference.trained_run import RunGallery, TrainedRun, open_run
from jras_jax.retrieval import gallery_files
from jras_jax.run_folder import provenance


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_workdir(p)
    p.add_argument("--input", metavar="SCANS", help="start from a folder of labelled scans")
    p.add_argument(
        "--split", metavar="PART", help="start from train, validation or test patients of the run's data set"
    )
    p.add_argument("--gallery", metavar="FOLDER", help="start from another gallery of this run's retriever")
    p.add_argument("--add", metavar="SCANS", help="add a folder of labelled scans; a case that is there is replaced")
    p.add_argument("--remove", default="", metavar="PATIENT,PATIENT", help="patients to leave out")
    p.add_argument("--output", metavar="FOLDER", help="folder for the gallery (default: changes --gallery in place)")
    p.add_argument(
        "--labels", help="label values of the scans, such as LV:1,MYO:2,RV:3 (default: the run's data set's)"
    )


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Makes or changes a gallery; returns the exit status."""
    _check(args)
    folder = trained_folder(args, "gallery")
    enable_compilation_cache()
    opened = open_run(folder.path, overrides)
    target = pathlib.Path(args.output or args.gallery)
    made = make(opened, args, target)
    say(f"{target}: {made.table.contents}\nuse it with jras predict --workdir={folder} --gallery={target}")
    return 0


def make(run: TrainedRun, args: argparse.Namespace, target: pathlib.Path) -> RunGallery:
    """Makes the gallery that the options describe and keeps it in `target`.

    Raises:
      UserError: the run has no retrieval, or see `pairs.read_pairs` and `gallery_files.read`.
    """
    if not run.config.retrieval.enabled:
        raise UserError(f"the run {run.folder} was trained without retrieval: it has no use for a gallery")
    is_own = args.split == "train" and not args.add and not args.remove
    if target.resolve() == run.folder.gallery.resolve() and not is_own:
        raise UserError(
            f"{target} is the run's own gallery, which evaluations write again; write this one elsewhere, with "
            "--output=FOLDER"
        )
    values = run.label_values(args.labels)
    table, known = _start(run, args, values)
    remove = tuple(filter(None, (name.strip() for name in args.remove.split(","))))
    if remove:
        table = without(table, remove)
    if args.add:
        table = joined(table, run.table_of(own.read_labelled(args.add, values, run.description)))
    return run.make_gallery(table, target, embeddings=_embedded(run, table.images, known))


def _check(args: argparse.Namespace) -> None:
    starts = {"--input": args.input, "--split": args.split, "--gallery": args.gallery}
    given = [name for name, value in starts.items() if value]
    if len(given) != 1:
        said = f"you gave {' and '.join(given)}" if given else "you gave none of them"
        raise UserError(f"a gallery starts from one of {', '.join(starts)}; {said}")
    if args.gallery and not args.add and not args.remove and args.output is None:
        raise UserError(f"--gallery={args.gallery}: say what to change, with --add=FOLDER or --remove=PATIENT,PATIENT")
    if args.output is None and args.gallery is None:
        raise UserError("gallery needs --output=FOLDER for the new gallery")
    if args.split is not None and args.split not in ("train", "validation", "test"):
        raise UserError(f"--split={args.split}: choose one of train, validation, test")


def _start(
    run: TrainedRun, args: argparse.Namespace, values: dict[str, int]
) -> tuple[SliceTable, dict[bytes, np.ndarray]]:
    """The slices that the gallery starts from, and the embeddings of those that are embedded already."""
    if args.gallery is not None:
        table, embeddings = gallery_files.read(args.gallery, run.fingerprint)
        return table, {image.tobytes(): e for image, e in zip(table.images, embeddings, strict=True)}
    if args.split is not None:
        data = data_of(run)
        for warning in provenance.data_changes(run.folder.facts, data):
            say(f"note: {warning}")
        return run.table_of(data.part(args.split)), {}
    return run.table_of(own.read_labelled(args.input, values, run.description)), {}


def _embedded(run: TrainedRun, images: np.ndarray, known: dict[bytes, np.ndarray]) -> np.ndarray:
    """Embeddings (N, dim) of slices (N, S, S) uint8; only those that are not `known`, pixel for pixel, are computed."""
    keys = [image.tobytes() for image in images]
    new = [row for row, key in enumerate(keys) if key not in known]
    if new:
        known = known | dict(zip((keys[row] for row in new), run.embed(images[new]), strict=True))
    return np.stack([known[key] for key in keys])
