"""Writes a trained and evaluated model as a folder for the Hugging Face hub, with a model card.

    jras publish runs/acdc published/
    hf upload ORG/NAME published/

OUTPUT gets the weights of the best checkpoint (safetensors), the settings, and README.md, the model card: data, split,
protocol, scores with intervals, controls, licence, intended use and limits, all from the run's own files.

The gallery is left out: it holds the images and masks of the training patients. --with_gallery adds it, and with it the
patients' names. --with_patients adds the names to splits.json, so that others can score the same patients. Give them
only if the data's licence and the patients' consent allow it.

Others open the folder, or its name on the hub: jras predict --workdir=hf:ORG/NAME ...
"""

from __future__ import annotations

import argparse
import pathlib

import jax
import numpy as np

from jras_jax import files, mesh
from jras_jax.commands.opened import add_places, places
from jras_jax.commands.terminal import say
from jras_jax.errors import UserError
from jras_jax.inference.trained_run import RunGallery, TrainedRun, open_run
from jras_jax.report import card
from jras_jax.report.files import ReportedRun, read
from jras_jax.retrieval import gallery_files
from jras_jax.retrieval.quantised import as_float
from jras_jax.run_folder import published
from jras_jax.run_folder.layout import RunFolder


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_places(p, "folder of a trained and evaluated run", "folder to write; new or empty")
    p.add_argument(
        "--license", metavar="ID", help="licence of the weights, such as cc-by-nc-sa-4.0 (default: what ACDC asks for)"
    )
    p.add_argument("--with_gallery", action="store_true", help="publish the training patients' images and masks too")
    p.add_argument("--with_patients", action="store_true", help="name the patients of the split")


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Publishes; returns the exit status."""
    workdir, output = places(args, "publish")
    if overrides:
        raise UserError(f"publish keeps the run's own settings: leave {overrides[0]} out")
    files.check_folder(output, "OUTPUT")
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"OUTPUT={output}: holds files already; choose a new folder, or empty it")
    opened = open_run(workdir)
    licence = args.license or card.LICENCES.get(opened.config.dataset.name)
    if not licence:
        raise UserError(
            f"the data set {opened.config.dataset.name} may bind what you publish: read its terms and give the licence "
            "of the weights, such as --license=cc-by-nc-4.0"
        )
    gallery = opened.open_gallery() if args.with_gallery else None
    contents = _contents(opened, licence, gallery=gallery, named=args.with_patients)
    variables = mesh.to_host(opened.variables)
    if jax.process_index() == 0:
        with files.filling(output) as folder:
            facts = {"name": opened.config.name, "step": opened.step, "license": licence}
            new = RunFolder(folder)
            published.write(
                new,
                opened.config,
                description=opened.description,
                variables=variables,
                splits=opened.splits,
                facts=facts,
                with_patients=args.with_patients,
            )
            if gallery is not None:
                embeddings = as_float(mesh.to_host(gallery.arrays.embeddings))
                gallery_files.save(
                    new.gallery, gallery.table, embeddings=np.asarray(embeddings), fingerprint=opened.fingerprint
                )
            files.write_text(folder / "README.md", card.card(contents))
    _tell(output, opened, gallery)
    return 0


def _contents(run: TrainedRun, licence: str, gallery: RunGallery | None, named: bool) -> card.Contents:
    """What the card is written from.

    Raises:
      UserError: the published checkpoint was not scored.
    """
    runs = _scored(run.folder, run.step)
    if not runs:
        raise UserError(
            f"the checkpoint of step {run.step} has no scores for the model card: run jras evaluate "
            f"--workdir={run.folder} --config.eval.split=test (or validation)"
        )
    runs.sort(key=lambda r: (r.summary.get("split") != "test", "+" in r.evaluation))
    parts = ("train", "validation", "test")
    return card.Contents(
        runs=runs,
        baselines=_scored(run.folder.baseline, None) if run.folder.baseline.config.is_file() else [],
        licence=licence,
        step=run.step,
        patients={part: len(run.splits[part]) for part in parts},
        gallery=gallery.table.contents if gallery else "",
        patients_named=named,
    )


def _scored(folder: RunFolder, step: int | None) -> list[ReportedRun]:
    """The evaluations of a run that have scores of every case, of this checkpoint alone if `step` is given."""
    there = folder.evaluations()
    kept = [name for name, one in there.items() if step is None or one.checkpoint_step == step]
    return [found for found in (read(folder.path, name) for name in kept) if found.cases]


def _tell(output: pathlib.Path, run: TrainedRun, gallery: RunGallery | None) -> None:
    if gallery is not None:
        say(f"note: contains the gallery, images, masks and names of {gallery.table.contents}")
    elif run.config.retrieval.enabled:
        say(
            "note: the gallery is left out, because it holds the training patients' images; whoever uses the model "
            "gives labelled scans with --gallery=FOLDER"
        )
    say(f"{output}: read README.md, then publish it with hf upload ORG/NAME {output}")
