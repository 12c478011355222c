"""`--mode=predict`: segments NIfTI short-axis stacks; masks and the evidence for every slice out."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from jras_jax import runs
from jras_jax.data import LABEL_CONVENTIONS, STRUCTURES, Volume, nifti
from jras_jax.errors import UserError
from jras_jax.evaluation import postprocess
from jras_jax.inference import Segmenter, VolumePrediction
from jras_jax.retrieval import store

SUFFIXES = (".nii", ".nii.gz")


def predict(
    workdir: str | pathlib.Path,
    source: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    gallery: str | pathlib.Path | None = None,
    overrides: tuple[str, ...] = (),
) -> list[pathlib.Path]:
    """Segments a file, or every NIfTI file of a folder (its subfolders too), every frame of 4-D ones.

    Args:
      workdir: of the run whose best checkpoint segments.
      source: .nii or .nii.gz, or a folder; files named *_gt are passed over.
      output: folder for NAME.nii.gz (the input's affine, shape and zooms; labels in the data set's own convention) and
        NAME.json (the cases retrieved for every slice, their weights and similarities).
      gallery: folder of another gallery.
      overrides: see `runs.open_run`.

    Returns:
      The masks written.

    Raises:
      UserError: nothing to segment, an unreadable file, an output that would overwrite an input.
    """
    source, output = pathlib.Path(source), pathlib.Path(output)
    files = _inputs(source)
    root = source if source.is_dir() else source.parent
    targets = [output / file.relative_to(root).parent / (_stem(file) + ".nii.gz") for file in files]
    for file, target in zip(files, targets, strict=True):
        if target.resolve() == file.resolve():
            raise UserError(f"--output={output}: the mask would overwrite the scan {file}; choose another folder")
        if targets.count(target) > 1:
            raise UserError(f"{source}: two files would both give {target}; segment them one by one")
    run = runs.open_run(workdir, overrides)
    rows, names = None, None
    if run.config.retrieval.enabled:
        rows, names = runs.load_gallery(run, gallery)
    elif gallery is not None:
        raise UserError(f"--gallery={gallery}: the run {workdir} was trained without retrieval and takes no gallery")
    segmenter = run.segmenter(rows)
    for number, (file, target) in enumerate(zip(files, targets, strict=True), 1):
        print(f"[{number}/{len(files)}] {file} -> {target}", flush=True)
        scan = nifti.read_scan(file)
        found = [_segment(run, segmenter, frame) for frame in frames(scan)]
        labels = np.stack([_own_labels(run, f) for f in found], -1)
        target.parent.mkdir(parents=True, exist_ok=True)
        nifti.write_mask(target, labels if scan.array.ndim == 4 else labels[..., 0], scan)
        evidence = _evidence(run, file, scan, found, names)
        temporary = target.parent / (_stem(file) + ".json.tmp")
        temporary.write_text(json.dumps(evidence, indent=1) + "\n")
        temporary.replace(target.parent / (_stem(file) + ".json"))
    return targets


def frames(scan: nifti.Scan) -> list[Volume]:
    """Each frame of a scan as a volume to segment."""
    array = scan.array if scan.array.ndim == 4 else scan.array[..., None]
    name = _stem(pathlib.Path(scan.path))
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


def _segment(run: runs.Opened, segmenter: Segmenter, volume: Volume) -> VolumePrediction:
    found = segmenter.volume(volume)
    if run.config.eval.postprocess != "largest_component":
        return found
    labels = postprocess.largest_component(found.labels, STRUCTURES.values())
    return VolumePrediction(labels, found.images, found.slices, found.mapping, found.entropy)


def _own_labels(run: runs.Opened, found: VolumePrediction) -> np.ndarray:
    """Project labels -> the data set's own."""
    return np.array(LABEL_CONVENTIONS[run.config.dataset.convention], np.uint8)[found.labels]


def _evidence(
    run: runs.Opened, file: pathlib.Path, scan: nifti.Scan, found: list[VolumePrediction], names: store.Names | None
) -> dict[str, Any]:
    convention = LABEL_CONVENTIONS[run.config.dataset.convention]
    out: dict[str, Any] = {
        "input": str(file),
        "run": str(run.workdir),
        "checkpoint_step": run.step,
        "labels": {name: convention[label] for name, label in STRUCTURES.items()},
        "spacing": [float(s) for s in scan.spacing],
        "spacing_unit": "mm" if scan.spacing_known else "unknown",
        "frames": [],
    }
    for t, prediction in enumerate(found):
        slices = []
        for z in range(len(prediction.images)):
            entry: dict[str, Any] = {"slice": z}
            if names is not None:
                entry["guides"] = [
                    names.describe(int(row)) | {"weight": round(float(w), 6), "similarity": round(float(s), 6)}
                    for row, w, s in zip(
                        prediction.slices.indices[z],
                        prediction.slices.weights[z],
                        prediction.slices.similarity[z],
                        strict=True,
                    )
                ]
                entry["guide_agreement"] = round(float(prediction.slices.agreement[z]), 6)
            slices.append(entry)
        out["frames"].append({"frame": t, "entropy": round(prediction.entropy, 6), "slices": slices})
    return out


def _inputs(source: pathlib.Path) -> list[pathlib.Path]:
    if source.is_dir():
        files = sorted(p for p in source.rglob("*") if p.name.endswith(SUFFIXES) and not _stem(p).endswith("_gt"))
        if not files:
            raise UserError(f"--input={source}: no .nii or .nii.gz file in this folder")
        return files
    if not source.is_file():
        raise UserError(f"--input={source}: no such file or folder")
    if not source.name.endswith(SUFFIXES):
        raise UserError(f"--input={source}: not a NIfTI file (.nii or .nii.gz)")
    return [source]


def _stem(path: pathlib.Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
