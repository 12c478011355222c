"""`--mode=gallery`: makes and changes galleries of labelled cases for a trained run; opens the one it predicts with."""

from __future__ import annotations

import pathlib

import numpy as np

from jras_jax import dataset, runs
from jras_jax.data import Volume, pairs
from jras_jax.data.preprocess import SliceTable, slice_table
from jras_jax.errors import UserError
from jras_jax.retrieval import gallery, store


def make(
    workdir: str | pathlib.Path,
    output: str | pathlib.Path | None,
    build: dataset.Build,
    *,
    source: str | pathlib.Path | None = None,
    split: str | None = None,
    base: str | pathlib.Path | None = None,
    add: str | pathlib.Path | None = None,
    remove: tuple[str, ...] = (),
    labels: str | None = None,
    overrides: tuple[str, ...] = (),
) -> tuple[pathlib.Path, SliceTable]:
    """Makes a gallery with a run's retriever and keeps it.

    Args:
      workdir: of a run with retrieval.
      output: folder for the gallery; None changes the gallery `base` where it lies.
      build: prepares the data set, see `dataset.Build`; called for `split` alone.
      source, split, base: what it starts from, exactly one of them: a folder of NIfTI pairs (see `pairs.read_pairs`);
        'train', 'validation' or 'test' of the run's data set; the folder of another gallery of this retriever.
      add: a folder of NIfTI pairs to add; a case that is there already is replaced.
      remove: patients to leave out.
      labels: 'LV:1,MYO:2,RV:3', the values in the pairs' masks; None: the convention of the run's data set.
      overrides: see `runs.open_run`.

    Returns:
      The folder written and its slices.

    Raises:
      UserError: a run without retrieval, no or two starting points, nothing to do, or see `runs.open_run`,
        `pairs.read_pairs`, `store.read`.
    """
    starts = {"--input": source, "--split": split, "--gallery": base}
    given = [name for name, value in starts.items() if value]
    if len(given) != 1:
        said = " and ".join(given) if given else "none of them was"
        raise UserError(f"--mode=gallery starts from one of {', '.join(starts)}; {said} given")
    if base and not add and not remove and output is None:
        raise UserError(f"--gallery={base}: say what to change, with --add=FOLDER or --remove=PATIENT,PATIENT")
    if output is None and base is None:
        raise UserError("--mode=gallery needs --output=FOLDER for the gallery")
    if split is not None and split not in ("train", "validation", "test"):
        raise UserError(f"--split={split}: choose one of train, validation, test")
    run = runs.open_run(workdir, overrides)
    target = pathlib.Path(output or base or "")
    _check_run(run, target)
    values = pairs.parse_labels(labels) if labels else pairs.convention_labels(run.config.dataset.convention)
    known: dict[bytes, np.ndarray] = {}  # embeddings of the slices that a change of a gallery leaves alone
    if base is not None:
        table, embeddings = store.read(base, run.fingerprint)
        known = {image.tobytes(): e for image, e in zip(table.images, embeddings, strict=True)}
    elif split is not None:
        table = table_of(run, dataset.prepare(run.config, build, run.splits()).part(split))
    else:
        assert source is not None
        table = table_of(run, pairs.read_pairs(source, values))
    if remove:
        table = store.without(table, remove)
    if add:
        table = store.joined(table, table_of(run, pairs.read_pairs(add, values)))
    run.gallery_of(table, target, _embedded(run, table.images, known))
    return target, table


def _embedded(run: runs.Opened, images: np.ndarray, known: dict[bytes, np.ndarray]) -> np.ndarray:
    """Embeddings (N, dim) of slices (N, S, S) uint8; only those that are not `known`, pixel for pixel, are made."""
    keys = [image.tobytes() for image in images]
    new = [row for row, key in enumerate(keys) if key not in known]
    if new:
        known = known | dict(zip((keys[row] for row in new), run.embed(images[new]), strict=True))
    return np.stack([known[key] for key in keys])


def _check_run(run: runs.Opened, target: pathlib.Path) -> None:
    if not run.config.retrieval.enabled:
        raise UserError(f"the run {run.workdir} was trained without retrieval: it has no use for a gallery")
    if target.resolve() == (run.workdir / "gallery").resolve():
        raise UserError(
            f"{target} is the run's own gallery, which every evaluation makes anew; write the gallery elsewhere, with "
            "--output=FOLDER"
        )


def table_of(run: runs.Opened, volumes: list[Volume]) -> SliceTable:
    """The slices of labelled volumes on a run's grid."""
    table = slice_table(volumes, run.grid, drop_empty=run.config.dataset.drop_empty)
    if not len(table):
        raise UserError("no slice has a labelled structure left on the model grid: the gallery would be empty")
    return table


def opened(
    run: runs.Opened, folder: str | pathlib.Path | None, labels: str | None = None
) -> tuple[gallery.Gallery, SliceTable, str]:
    """The gallery that a run predicts with, its slices, and a line that says what it is.

    Args:
      run: with retrieval.
      folder: a stored gallery of this run's retriever; or NIfTI pairs, of which a gallery is made in memory; None: the
        run's own gallery, embedded anew (and kept) where it is of an older checkpoint.
      labels: as of `make`, for pairs.

    Raises:
      UserError: neither is there, a damaged gallery or one made by another retriever, or see `pairs.read_pairs`.
    """
    if folder is None:
        found, table = runs.own_gallery(run)
        return found, table, f"gallery: the run's own, {contents(table)}"
    if store.is_stored(folder):
        table, embeddings = store.read(folder, run.fingerprint)
        return run.gallery_from(table, embeddings), table, f"gallery: {folder}, {contents(table)}"
    if not pathlib.Path(folder).is_dir():
        raise UserError(f"--gallery={folder}: no such folder")
    if not any(pathlib.Path(folder).rglob("*_gt.nii*")):
        raise UserError(
            f"--gallery={folder}: holds neither a gallery ({store.FACTS}; make one with --mode=gallery) nor labelled "
            "scans (NAME.nii.gz with NAME_gt.nii.gz)"
        )
    values = pairs.parse_labels(labels) if labels else pairs.convention_labels(run.config.dataset.convention)
    table = table_of(run, pairs.read_pairs(folder, values))
    line = f"gallery: made in memory from the scans of {folder}, {contents(table)} (--mode=gallery keeps one)"
    return run.gallery_of(table), table, line


def contents(table: SliceTable) -> str:
    """'120 slices of 6 patients'."""
    patients = len(np.unique(table.patient))
    return f"{len(table)} slices of {patients} {'patient' if patients == 1 else 'patients'}"


class Known:
    """Recognises scans of a gallery's own patients, so that the leak rule holds for new files too.

    A patient is known again by the scan's name, or, should the file have been renamed, by a slice that is pixel for
    pixel one of the gallery's.

    Args:
      table: the gallery's slices.
    """

    def __init__(self, table: SliceTable):
        self._table = table
        # An empty slice is anybody's.
        self._rows = {image.tobytes(): row for row, image in enumerate(table.images) if image.min() < image.max()}

    def find(self, name: str, images: np.ndarray) -> tuple[int, np.ndarray]:
        """The gallery's number of a scan's patient, and the rows that are its slices; -1: not there.

        Args:
          name: of the scan, such as patient001_frame12.
          images: (Z, S, S) uint8, its slices on the model grid.

        Returns:
          The number, and (Z,) int32.
        """
        rows = np.array([self._rows.get(image.tobytes(), -1) for image in images], np.int32)
        patient = pairs.patient_of(name)
        if patient in self._table.patients:
            return self._table.patients.index(patient), rows
        return (int(self._table.patient[rows.max()]) if rows.max(initial=-1) >= 0 else -1), rows

    def check(self, patient: int, k: int) -> None:
        """Raises UserError where fewer than k slices of other patients are left to guide a gallery patient's scan."""
        left = int((self._table.patient != patient).sum())
        if left < k:
            raise UserError(
                f"the gallery holds {left} slices of patients other than {self._table.patients[patient]}, whose scan "
                f"this is, but {k} guides are retrieved: add other patients' cases to the gallery"
            )
