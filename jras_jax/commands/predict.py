"""Segments new scans: one NIfTI file, or every one in a folder, all frames of 4-D ones.

    jras predict --workdir=runs/acdc --input=SCAN_OR_FOLDER --output=MASKS

A --workdir of `jras train --folds=all` predicts by the mean of its folds' probabilities.

Each mask has its scan's geometry and the label values of the run's data set. The JSON beside it lists the cases that
guided every slice; --probabilities and --uncertainty write maps beside it. A folder of DICOM series is read too
(pip install '.[dicom]'). A scan that cannot be segmented does not stop the others: it is named at the end. Masks
of this program are left out if they are among the scans.

Exit status: 0; 1 if some of several scans could not be segmented; 2 if nothing could be done.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from jras_jax import files
from jras_jax.commands.opened import add_workdir, trained_folder
from jras_jax.commands.terminal import enable_compilation_cache, say, teller, warn
from jras_jax.data import finder
from jras_jax.errors import UserError, printable
from jras_jax.inference import maps
from jras_jax.inference.ensemble import Ensemble, open_ensemble
from jras_jax.inference.pipeline import segment_files
from jras_jax.inference.scans import Note, Task, tasks
from jras_jax.inference.trained_run import RunGallery, TrainedRun, open_run
from jras_jax.run_folder import provenance
from jras_jax.run_folder.layout import RunFolder


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_workdir(p)
    p.add_argument(
        "--input", metavar="SCANS", help="a NIfTI file (.nii, .nii.gz), a folder of them, or of DICOM series"
    )
    p.add_argument("--output", metavar="FOLDER", help="folder for the masks; for a single scan also NAME.nii.gz")
    p.add_argument(
        "--gallery",
        metavar="FOLDER",
        help="guide with another gallery: one made by `jras gallery`, or labelled scans (NAME.nii.gz, NAME_gt.nii.gz)",
    )
    p.add_argument(
        "--probabilities",
        action="store_true",
        help="write NAME_probability_CLASS.nii.gz beside each mask (uint16 with a scale: 0 to 1 in 65536 steps)",
    )
    p.add_argument(
        "--uncertainty",
        action="store_true",
        help="write NAME_uncertainty.nii.gz beside each mask: 0 one class is certain, 1 all are equally probable",
    )
    p.add_argument(
        "--labels", help="label values of the --gallery scans, such as LV:1,MYO:2,RV:3 (default: the run's data set's)"
    )


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Segments scans; returns the exit status."""
    folder = trained_folder(args, "predict")
    if not args.input or not args.output:
        raise UserError("predict needs --input=FILE_OR_FOLDER and --output=FOLDER")
    note = teller()
    with _as_nifti(pathlib.Path(args.input), note) as source:
        return _predict(args, folder, source, overrides=overrides, note=note)


@contextlib.contextmanager
def _as_nifti(source: pathlib.Path, note: Note) -> Iterator[pathlib.Path]:
    """Gives the input; a folder of DICOM series without any NIfTI file as a temporary folder of NIfTI files."""
    from jras_jax.data import dicom

    if not source.is_dir() or finder.find(source).files or not dicom.holds_series(source):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="jras_dicom_") as folder:
        converted = dicom.convert(source, pathlib.Path(folder), note)
        say(f"{source}: {len(converted)} DICOM series")
        yield pathlib.Path(folder)


def _predict(
    args: argparse.Namespace, folder: RunFolder, source: pathlib.Path, *, overrides: tuple[str, ...], note: Note
) -> int:
    first = next(iter(folder.folds().values()), folder)
    todo = tasks(source, args.output, note=note, description=first.read_description("acdc"))
    wanted = maps.Wanted(args.probabilities, args.uncertainty)
    todo = [task._replace(maps=wanted) for task in todo]
    enable_compilation_cache()
    if folder.folds():
        faults = _segment_by_folds(
            open_ensemble(folder, overrides, gallery=args.gallery, labels=args.labels), todo, note
        )
    else:
        opened = open_run(folder.path, overrides)
        if opened.config.protocol == "paper":
            warn(f"warning: {provenance.PAPER_WARNING}")
        gallery = None
        if opened.config.retrieval.enabled or args.gallery:
            gallery = opened.open_gallery(args.gallery, args.labels)
            say(f"gallery: {gallery.description}")
        faults = _segment(opened, todo, gallery=gallery, note=note)
    done = len(todo) - len(faults)
    say(f"{done} {'mask' if done == 1 else 'masks'} in {args.output}")
    for fault in faults:
        warn(f"not segmented: {fault}")
    if faults and not done:
        raise UserError(f"none of the {len(todo)} scans could be segmented; the first: {faults[0]}")
    if faults:
        warn(f"error: {len(faults)} of {len(todo)} scans could not be segmented; they are named above")
    return 1 if faults else 0


def _segment(run: TrainedRun, todo: list[Task], gallery: RunGallery | None, note: Note) -> list[str]:
    """Segments the scans; returns the fault of each that cannot be segmented, with its name.

    Raises:
      UserError: see `segment_files`.
    """

    def tell(number: int, task: Task, fault: str) -> None:
        end = "not segmented, see below" if fault else printable(task.mask)
        say(f"[{number}/{len(todo)}] {printable(task.scan)} -> {end}")

    return segment_files(run, todo, gallery, tell=tell, note=note)


def _segment_by_folds(ensemble: Ensemble, todo: list[Task], note: Note) -> list[str]:
    """Segments the scans one by one, by all folds; returns the fault of each that cannot be segmented.

    Raises:
      UserError: the only scan cannot be segmented, or no further mask can be written (the disk is full).
    """
    say(f"{len(ensemble.members)} folds: {', '.join(str(m.run.folder.path.name) for m in ensemble.members)}")
    faults: list[str] = []
    for number, task in enumerate(todo, 1):
        name = printable(task.scan)
        try:
            ensemble.segment_file(task, note)
        except UserError as e:
            if len(todo) == 1 or files.concerns_every_file(e):
                raise
            faults.append(str(e) if name in str(e) else f"{name}: {e}")
        else:
            say(f"[{number}/{len(todo)}] {name} -> {printable(task.mask)}")
    return faults
