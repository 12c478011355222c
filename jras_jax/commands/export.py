"""Writes a trained model as a program that runs without this project: StableHLO, and ONNX if asked for.

    jras export runs/acdc exported/
    jras export runs/acdc exported/ --gallery_as_argument
    jras export runs/acdc exported/ --onnx

OUTPUT gets model.stablehlo (for any batch size, on CPU, CUDA and TPU; only jax and flatbuffers are needed to run it)
and model.json, which says what goes in and comes out. The program takes slices as the model sees them (whole, or crops
that this project cuts in the frame of the heart) and gives class probabilities and the gallery rows that guide each
slice.

The gallery is part of the program, unless --gallery_as_argument: whoever has the file then has the gallery's patients'
images.

ONNX holds one batch size. jax2onnx converts it, onnxruntime checks it to 1e-4, and a model that it does not convert is
refused.
"""

from __future__ import annotations

import argparse
import pathlib

import jax
import numpy as np

from jras_jax import files
from jras_jax.commands.opened import add_places, places
from jras_jax.commands.terminal import enable_compilation_cache, say
from jras_jax.errors import UserError
from jras_jax.inference import onnx_model, standalone
from jras_jax.inference.trained_run import RunGallery, TrainedRun, open_run


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_places(p, "folder of a trained run", "folder to write")
    p.add_argument("--gallery", metavar="FOLDER", help="another gallery, as for jras predict (default: the run's own)")
    p.add_argument("--labels", help="label values of the gallery's scans, such as LV:1,MYO:2,RV:3")
    p.add_argument(
        "--gallery_as_argument",
        action="store_true",
        help="leave the gallery out of the program; it is written beside it and given at each call",
    )
    p.add_argument("--onnx", action="store_true", help=f"write {onnx_model.MODEL} too ({onnx_model.INSTALL})")
    p.add_argument(
        "--onnx_batch", type=int, default=8, metavar="N", help="slices per call of the ONNX model (default: 8)"
    )


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Exports; returns the exit status."""
    workdir, output = places(args, "export")
    files.check_folder(output, "OUTPUT")
    if args.onnx:
        _check_onnx(args)
    enable_compilation_cache()
    opened = open_run(workdir, overrides)
    gallery = None
    if opened.config.retrieval.enabled or args.gallery:
        gallery = opened.open_gallery(args.gallery, args.labels)
    it = standalone.program(opened, gallery, takes_gallery=args.gallery_as_argument)
    if jax.process_index() == 0:
        with files.filling(output) as folder:
            standalone.save(folder, opened, gallery=gallery, it=it)
            if args.onnx:
                _save_onnx(folder, opened, gallery=gallery, it=it, batch=args.onnx_batch)
        _tell(output, gallery, it=it, frame=opened.config.dataset.frame)
    return 0


def _check_onnx(args: argparse.Namespace) -> None:
    if args.gallery_as_argument:
        raise UserError("--onnx keeps the gallery inside; leave --gallery_as_argument or --onnx out")
    if not 1 <= args.onnx_batch <= 4096:
        raise UserError(f"--onnx_batch={args.onnx_batch}: give 1 to 4096 slices")
    onnx_model.require()


def _save_onnx(
    folder: pathlib.Path, run: TrainedRun, gallery: RunGallery | None, it: standalone.Program, batch: int
) -> None:
    """Writes the ONNX model, compared on slices of the gallery (on noise if there is none)."""
    if gallery is None:
        images = np.random.default_rng(0).integers(0, 256, (batch, *it.image), np.uint8)
        patient = np.full(batch, -1, np.int32)
    else:
        rows = np.arange(batch) % len(gallery.table)
        images, patient = gallery.table.images[rows], gallery.table.patient[rows].astype(np.int32)
    difference = onnx_model.save(folder / onnx_model.MODEL, it, images=images, patient=patient)
    say(f"ONNX differs by at most {difference:.1e} in onnxruntime")


def _tell(output: pathlib.Path, gallery: RunGallery | None, it: standalone.Program, frame: str) -> None:
    if gallery is not None and it.takes_gallery:
        say(f"note: {output / standalone.GALLERY} holds the gallery, images and masks of {gallery.table.contents}")
    elif gallery is not None:
        say(f"note: the program contains the gallery, images and masks of {gallery.table.contents}")
    if frame == "heart":
        say(f"note: it takes {standalone.CROPS}")
    say(f"{output / standalone.PROGRAM}: {(output / standalone.PROGRAM).stat().st_size / 1e6:.1f} MB")
