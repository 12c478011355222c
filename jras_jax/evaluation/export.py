"""Predictions as the challenges want them: files, names, labels and geometry."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable

import numpy as np

from jras_jax import files
from jras_jax.data import LABEL_CONVENTIONS, NUM_CLASSES, PHASES, Volume, images, nifti, pictures
from jras_jax.errors import UserError, printable

# A case and its segmentation: (X, Y, Z) on the native grid, in the project's labels.
Prediction = tuple[Volume, np.ndarray]
_MNMS_SUFFIX = "_sa_pred"


def check(
    volumes: Iterable[Volume], folder: str | os.PathLike[str], scans: str | os.PathLike[str], convention: str
) -> None:
    """Checks before an evaluation that its export can be written, as far as can be told without reading a voxel.

    Args:
      volumes: that will be exported.
      folder, scans: as of `export_acdc` and `export_mnms`.
      convention: 'acdc', 'mnms' or 'own'.

    Raises:
      UserError: the folder cannot be written, a phase is unknown, a scan is missing, a patient's name cannot be a
        file's, or a file is in the way that is no mask of this program.
    """
    files.check_folder(folder, "--output")
    for volume in volumes:
        if convention != "own":
            _check_phase(volume)
        _scan_path(volume, scans)
        path = _PATHS[convention](volume, folder)
        if path.exists() and not (nifti.is_own_mask(path) or pictures.is_own_picture(path)):
            raise UserError(
                f"--output={folder}: {path} exists and is not a mask of this program; choose another folder, so that "
                "it is not overwritten"
            )


def export_acdc(
    predictions: Iterable[Prediction],
    folder: str | os.PathLike[str],
    scans: str | os.PathLike[str],
) -> list[pathlib.Path]:
    """Writes the layout of an ACDC submission: patientNNN_ED.nii.gz and patientNNN_ES.nii.gz, in ACDC's labels.

    Args:
      predictions: written one by one, so that a generator may make them.
      folder: where to.
      scans: the folder that `Volume.source` is relative to (the official download); each mask gets its scan's geometry.

    Returns:
      The files written.

    Raises:
      UserError: a phase is unknown, a name cannot be a file's, a case comes twice, a source scan is missing or has
        another shape.
    """
    written: list[pathlib.Path] = []
    for volume, labels in predictions:
        _check_phase(volume)
        path = _acdc_path(volume, folder)
        if path in written:
            raise UserError(f"{volume.case}: comes twice among the predictions")
        scan = _source(volume, labels, scans)
        if scan.array.ndim == 4:
            scan = _frame(scan, volume.frame)
        nifti.write_mask(path, _converted(labels, "acdc"), scan)
        written.append(path)
    return written


def export_mnms(
    predictions: Iterable[Prediction],
    folder: str | os.PathLike[str],
    scans: str | os.PathLike[str],
    *,
    suffix: str = _MNMS_SUFFIX,
) -> list[pathlib.Path]:
    """Writes one 4-D mask a patient, in the layout and labels of M&Ms' CODE_sa_gt.nii.gz: labels at ED and ES alone.

    Args:
      predictions: both phases of each patient (a patient with one phase has labels at that frame only).
      folder: where to; files are CODE/CODE`suffix`.nii.gz.
      scans: the folder that `Volume.source` is relative to; each mask gets its scan's geometry and number of frames.
      suffix: after the code. Not '_sa_gt', so that nobody takes a prediction for the truth.

    Returns:
      The files written.

    Raises:
      UserError: a phase is unknown, a name cannot be a file's, two cases of a patient share a frame, they come from
        different scans, or the source scan is missing or has another shape.
    """
    patients: dict[str, list[Prediction]] = {}
    for volume, labels in predictions:
        _check_phase(volume)
        patients.setdefault(volume.patient, []).append((volume, labels))
    written = []
    for patient, cases in patients.items():
        frames = [volume.frame for volume, _ in cases]
        if len(set(frames)) < len(frames):
            raise UserError(f"patient {patient}: two predictions are of frame {max(frames, key=frames.count)}")
        sources = {volume.source for volume, _ in cases}
        if len(sources) > 1:
            raise UserError(f"patient {patient}: ED and ES come from different scans ({', '.join(sorted(sources))})")
        scan = _source(*cases[0], scans)
        if scan.array.ndim == 3:  # a single frame; its third axis alone is kept by the reader
            raise UserError(f"{scan.path}: has no time frames; the M&Ms layout is for 4-D scans")
        mask = np.zeros(scan.array.shape, np.uint8)
        for volume, labels in cases:
            _check_fit(volume, labels, scan)
            mask[..., volume.frame] = _converted(labels, "mnms")
        path = _mnms_path(cases[0][0], folder, suffix)
        nifti.write_mask(path, mask, scan)
        written.append(path)
    return written


def export_own(
    predictions: Iterable[Prediction], folder: str | os.PathLike[str], scans: str | os.PathLike[str]
) -> list[pathlib.Path]:
    """Writes CASE.nii.gz, or CASE.png of a 2-D image, in the values of the data set itself.

    Args and errors are those of `export_acdc`, but for phases, which there are none of.
    """
    written: list[pathlib.Path] = []
    for volume, labels in predictions:
        path = _own_path(volume, folder)
        source = _scan_path(volume, scans)
        scan = pictures.read_picture(source) if pictures.is_picture(source) else nifti.read_scan(source)
        _check_fit(volume, labels, scan)
        images.write_mask(path, np.array(volume.description.values, np.uint8)[labels], scan)
        written.append(path)
    return written


def _own_path(volume: Volume, folder: str | os.PathLike[str]) -> pathlib.Path:
    suffix = ".png" if pictures.is_picture(pathlib.Path(volume.source)) else ".nii.gz"
    return pathlib.Path(folder) / f"{files.safe_name(volume.case, 'case')}{suffix}"


def _acdc_path(volume: Volume, folder: str | os.PathLike[str]) -> pathlib.Path:
    return pathlib.Path(folder) / f"{files.safe_name(volume.patient, 'patient')}_{volume.phase}.nii.gz"


def _mnms_path(volume: Volume, folder: str | os.PathLike[str], suffix: str = _MNMS_SUFFIX) -> pathlib.Path:
    patient = files.safe_name(volume.patient, "patient")
    return pathlib.Path(folder) / patient / f"{patient}{suffix}.nii.gz"


_PATHS = {"acdc": _acdc_path, "mnms": _mnms_path, "own": _own_path}


def _converted(labels: np.ndarray, convention: str) -> np.ndarray:
    """Project labels -> the data set's own, uint8."""
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < NUM_CLASSES:
        raise ValueError(f"labels must be 0 to {NUM_CLASSES - 1}, not {labels.min()} to {labels.max()}")
    return np.array(LABEL_CONVENTIONS[convention], np.uint8)[labels]


def _check_phase(volume: Volume) -> None:
    if volume.phase not in PHASES:
        raise UserError(f"{volume.case}: its phase is unknown; the challenges want {' and '.join(PHASES)}")


def _source(volume: Volume, labels: np.ndarray, scans: str | os.PathLike[str]) -> nifti.Scan:
    """The scan that a volume was read from."""
    scan = nifti.read_scan(_scan_path(volume, scans))
    _check_fit(volume, labels, scan)
    return scan


def _scan_path(volume: Volume, scans: str | os.PathLike[str]) -> pathlib.Path:
    path = pathlib.Path(scans) / volume.source
    if not volume.source or not path.is_file():
        raise UserError(
            f"{printable(volume.case)}: its scan {printable(path)} is not there; give the folder of the official "
            "download with --config.dataset.manual_dir=FOLDER"
        )
    return path


def _check_fit(volume: Volume, labels: np.ndarray, scan: nifti.Scan) -> None:
    if scan.array.shape[:3] != labels.shape:
        raise UserError(f"{scan.path}: its shape {scan.array.shape[:3]} is not {labels.shape}, that of {volume.case}")
    if scan.header is not None and scan.array.ndim == 4 and volume.frame >= scan.array.shape[3]:
        raise UserError(f"{scan.path}: has {scan.array.shape[3]} frames, none of number {volume.frame} ({volume.case})")


def _frame(scan: nifti.Scan, number: int) -> nifti.Scan:
    """One frame of a 4-D scan, its header that of a 3-D file."""
    header = scan.header.copy()
    header.set_data_shape(scan.array.shape[:3])
    return dataclasses.replace(scan, array=scan.array[..., number], header=header)
