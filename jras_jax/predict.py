"""`--mode=predict`: segments NIfTI short-axis stacks; masks and the evidence for every slice out."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from jras_jax import galleries, runs
from jras_jax.data import LABEL_CONVENTIONS, STRUCTURES, Volume, nifti, pairs
from jras_jax.data.preprocess import SliceTable, volume_slices
from jras_jax.errors import UserError
from jras_jax.evaluation import evaluator
from jras_jax.inference import Segmenter, VolumePrediction
from jras_jax.retrieval import store


def predict(
    workdir: str | pathlib.Path,
    source: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    gallery: str | pathlib.Path | None = None,
    labels: str | None = None,
    overrides: tuple[str, ...] = (),
) -> list[pathlib.Path]:
    """Segments a file, or every NIfTI file of a folder (its subfolders too), every frame of 4-D ones.

    Args:
      workdir: of the run whose best checkpoint segments.
      source: .nii or .nii.gz, or a folder; files named *_gt are passed over.
      output: folder for NAME.nii.gz (the input's affine, shape and zooms; labels in the data set's own convention) and
        NAME.json (the cases retrieved for every slice, their weights and similarities).
      gallery: folder of another gallery, or of labelled scans to make one of; see `galleries.opened`.
      labels: 'LV:1,MYO:2,RV:3', the values in those scans' masks; None: the convention of the run's data set.
      overrides: see `runs.open_run`.

    Returns:
      The masks written.

    Raises:
      UserError: nothing to segment, an unreadable file, an output that would overwrite an input.
    """
    source, output = pathlib.Path(source), pathlib.Path(output)
    files = _inputs(source)
    root = source if source.is_dir() else source.parent
    targets = [output / file.relative_to(root).parent / (pairs.stem(file) + ".nii.gz") for file in files]
    for file, target in zip(files, targets, strict=True):
        if target.resolve() == file.resolve():
            raise UserError(f"--output={output}: the mask would overwrite the scan {file}; choose another folder")
        if targets.count(target) > 1:
            raise UserError(f"{source}: two files would both give {target}; segment them one by one")
    run = runs.open_run(workdir, overrides)
    rows, table = None, None
    if run.config.retrieval.enabled:
        rows, table, line = galleries.opened(run, gallery, labels)
        print(line, flush=True)
    elif gallery is not None:
        raise UserError(f"--gallery={gallery}: the run {workdir} was trained without retrieval and takes no gallery")
    segmenter = run.segmenter(rows)
    known = galleries.Known(table) if table is not None else None
    for number, (file, target) in enumerate(zip(files, targets, strict=True), 1):
        print(f"[{number}/{len(files)}] {file} -> {target}", flush=True)
        scan = nifti.read_scan(file)
        volumes = frames(scan)
        patient, own = _identify(run, known, volumes)
        found = [_segment(run, segmenter, v, patient, r) for v, r in zip(volumes, own, strict=True)]
        masks = np.stack([_own_labels(run, f) for f in found], -1)
        target.parent.mkdir(parents=True, exist_ok=True)
        nifti.write_mask(target, masks if scan.array.ndim == 4 else masks[..., 0], scan)
        evidence = _evidence(run, file, scan, found, table, patient)
        temporary = target.parent / (pairs.stem(file) + ".json.tmp")
        temporary.write_text(json.dumps(evidence, indent=1) + "\n")
        temporary.replace(target.parent / (pairs.stem(file) + ".json"))
    return targets


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


def _identify(
    run: runs.Opened, known: galleries.Known | None, volumes: list[Volume]
) -> tuple[int, list[np.ndarray | None]]:
    """The gallery's number of a scan's patient (-1: not there) and, frame by frame, the rows of its slices."""
    if known is None:
        return -1, [None] * len(volumes)
    grid = run.grid
    found = [known.find(v.patient, volume_slices(v, grid)[0]) for v in volumes]
    patient = max(number for number, _ in found)
    if patient >= 0 and run.config.retrieval.exclude == "patient":
        known.check(patient, run.config.retrieval.top_k)
    return patient, [rows for _, rows in found]


def _segment(
    run: runs.Opened, segmenter: Segmenter, volume: Volume, patient: int, rows: np.ndarray | None
) -> VolumePrediction:
    found = segmenter.volume(volume, patient, rows)
    return evaluator.cleaned(found) if run.config.eval.postprocess == "largest_component" else found


def _own_labels(run: runs.Opened, found: VolumePrediction) -> np.ndarray:
    """Project labels -> the data set's own."""
    return np.array(LABEL_CONVENTIONS[run.config.dataset.convention], np.uint8)[found.labels]


def _evidence(
    run: runs.Opened,
    file: pathlib.Path,
    scan: nifti.Scan,
    found: list[VolumePrediction],
    table: SliceTable | None,
    patient: int,
) -> dict[str, Any]:
    """What the JSON beside a mask says."""
    convention = LABEL_CONVENTIONS[run.config.dataset.convention]
    names = store.names_of(table) if table is not None else None
    out: dict[str, Any] = {
        "input": str(file),
        "run": str(run.workdir),
        "checkpoint_step": run.step,
        "labels": {name: convention[label] for name, label in STRUCTURES.items()},
        "spacing": [float(s) for s in scan.spacing],
        "spacing_unit": "mm" if scan.spacing_known else "unknown",
        "frames": [],
    }
    if table is not None:
        # Whose slices were left out of the search by the leak rule, null where the scan is nobody's of the gallery.
        out["gallery_patient"] = table.patients[patient] if patient >= 0 else None
        out["exclude"] = run.config.retrieval.exclude
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
        files = sorted(
            p for p in source.rglob("*") if p.name.endswith(pairs.SUFFIXES) and not pairs.stem(p).endswith("_gt")
        )
        if not files:
            raise UserError(f"--input={source}: no .nii or .nii.gz file in this folder")
        return files
    if not source.is_file():
        raise UserError(f"--input={source}: no such file or folder")
    if not source.name.endswith(pairs.SUFFIXES):
        raise UserError(f"--input={source}: not a NIfTI file (.nii or .nii.gz)")
    return [source]
