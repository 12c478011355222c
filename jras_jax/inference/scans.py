"""Segments NIfTI files: which files, where the masks go, and the evidence written beside each mask."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jras_jax import files
from jras_jax.data import LABEL_CONVENTIONS, STRUCTURES, Volume, finder, geometry, nifti, pairs, remarks
from jras_jax.errors import UserError
from jras_jax.inference.segmenter import Segmenter, VolumePrediction
from jras_jax.inference.trained_run import RunGallery, TrainedRun

Note = Callable[[str], None]


class Task(NamedTuple):
    """One scan to segment and the mask to write."""

    scan: pathlib.Path
    mask: pathlib.Path


def tasks(source: str | pathlib.Path, output: str | pathlib.Path) -> list[Task]:
    """The scans of a file or folder (its subfolders too) and where their masks go.

    Args:
      source: .nii or .nii.gz, or a folder; files named *_gt are skipped.
      output: folder for NAME.nii.gz; subfolders are kept.

    Raises:
      UserError: there is nothing to segment, or a mask would overwrite a scan or another mask.
    """
    source, output = pathlib.Path(source), pathlib.Path(output)
    root = source if source.is_dir() else source.parent
    found = [
        Task(scan, output / scan.relative_to(root).parent / (pairs.stem(scan) + ".nii.gz")) for scan in _inputs(source)
    ]
    masks = [task.mask for task in found]
    for task in found:
        if task.mask.resolve() == task.scan.resolve():
            raise UserError(f"--output={output}: the mask would overwrite the scan {task.scan}; choose another folder")
        if masks.count(task.mask) > 1:
            raise UserError(f"{source}: two files would both give {task.mask}; segment them one by one")
    return found


def segment_file(
    run: TrainedRun,
    task: Task,
    gallery: RunGallery | None,
    segmenter: Segmenter | None = None,
    note: Note = lambda line: None,
) -> list[VolumePrediction]:
    """Segments one scan and writes its mask and evidence; returns the prediction of each frame.

    The mask NAME.nii.gz has its scan's geometry and the labels of the run's data set; NAME.json beside it lists the
    cases that guided every slice. `segmenter` is one of `run.segmenter()` with this gallery, shared by several scans.
    `note` takes a line on whatever is unusual about the scan.

    Raises:
      UserError: an unreadable scan, a folder that cannot be written, or see `TrainedRun.segment_volumes`.
    """
    scan = nifti.read_scan(task.scan)
    for remark in unusual(run, scan):
        note(f"{scan.path}: {remark}")
    predictions = run.segment_volumes(frames(scan), gallery, segmenter)
    values = np.array(LABEL_CONVENTIONS[run.config.dataset.convention], np.uint8)
    masks = np.stack([values[p.labels] for p in predictions], -1)
    task.mask.parent.mkdir(parents=True, exist_ok=True)
    nifti.write_mask(task.mask, masks if scan.array.ndim == 4 else masks[..., 0], scan)
    evidence = task.mask.with_name(pairs.stem(task.mask) + ".json")
    files.write_json(evidence, _evidence(run, task.scan, scan, predictions, gallery))
    return predictions


def unusual(run: TrainedRun, scan: nifti.Scan) -> list[str]:
    """What is unusual about a scan, by itself or for this run."""
    remarks = [remark for remark in scan.remarks if remark != geometry.NO_SPACING]
    if not scan.spacing_known and run.splits.get("spacing") != "unknown":
        remarks.append(geometry.NO_SPACING_HERE)
    return remarks


def frames(scan: nifti.Scan) -> list[Volume]:
    """Each frame of a scan as a volume to segment."""
    array = scan.array if scan.array.ndim == 4 else scan.array[..., None]
    name = pairs.stem(pathlib.Path(scan.path))
    return [
        Volume(
            image=np.ascontiguousarray(array[..., t], np.float32),
            mask=None,
            affine=scan.affine,
            spacing=scan.spacing,
            spacing_known=scan.spacing_known,
            patient=name,
            frame=t,
            source=str(scan.path),
        )
        for t in range(array.shape[-1])
    ]


def _evidence(
    run: TrainedRun,
    file: pathlib.Path,
    scan: nifti.Scan,
    predictions: list[VolumePrediction],
    gallery: RunGallery | None,
) -> dict[str, Any]:
    """The content of the JSON beside a mask."""
    convention = LABEL_CONVENTIONS[run.config.dataset.convention]
    out: dict[str, Any] = {
        "input": str(file),
        "run": str(run.folder),
        "checkpoint_step": run.step,
        "labels": {name: convention[label] for name, label in STRUCTURES.items()},
        "spacing": [float(s) for s in scan.spacing],
        "spacing_unit": "mm" if scan.spacing_known else "unknown",
        "frames": [],
    }
    if gallery is not None:
        # Whose slices the leak rule left out of the search; null if the scan belongs to nobody in the gallery.
        patient = predictions[0].patient
        out["gallery_patient"] = gallery.table.patients[patient] if patient >= 0 else None
        out["exclude"] = run.config.retrieval.exclude
    for t, prediction in enumerate(predictions):
        slices: list[dict[str, Any]] = [{"slice": z} for z in range(len(prediction.images))]
        if gallery is not None:
            agreement = prediction.slices.agreement
            for entry, guides, agreed in zip(slices, gallery.guides(prediction), agreement, strict=True):
                entry |= {"guides": guides, "guide_agreement": round(float(agreed), 6)}
        out["frames"].append({"frame": t, "entropy": round(prediction.entropy, 6), "slices": slices})
    return out


def _inputs(source: pathlib.Path) -> list[pathlib.Path]:
    """The scans of a file or folder; what else looks like one is named on stderr."""
    if source.is_dir():
        found = finder.find(source)
        masks = [p for p in found.files if pairs.is_mask(p)]
        scans = [p for p in found.files if not pairs.is_mask(p)]
        if not scans:
            why = [f"{len(masks)} masks (NAME_gt)"] if masks else []
            why += found.lines()[:3]
            raise UserError(
                f"--input={source}: no .nii or .nii.gz file in this folder" + (f" ({'; '.join(why)})" if why else "")
            )
        finder.check_stems(scans)
        remarks.tell([*found.lines(), *(f"{p}: passed over, a name with _gt is a mask's" for p in masks)])
        return scans
    if not source.exists() and not source.is_symlink():
        raise UserError(f"--input={source}: no such file or folder")
    if finder.suffix(source) and (reason := finder.fault(source)):
        raise UserError(f"--input={source}: {reason}")
    if not finder.suffix(source):
        raise UserError(f"--input={source}: not a NIfTI file (.nii or .nii.gz)")
    return [source]
