"""Segments scans in files: which files, where the masks go, and the evidence written beside each mask.

A mask of this program is known by the description in its header (`nifti.is_own_mask`), or by the JSON beside it. Such
masks are never segmented, and no other file is ever overwritten.
"""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jras_jax import files
from jras_jax.data import DatasetDescription, Volume, axes, finder, geometry, images, nifti, pairs, pictures, remarks
from jras_jax.data.description import CARDIAC
from jras_jax.data.grid import FrameMap
from jras_jax.errors import UserError, printable
from jras_jax.inference import inputs, maps
from jras_jax.inference.predictions import SlicePredictions, VolumePrediction
from jras_jax.inference.prepared import Prepared
from jras_jax.inference.segmenter import Segmenter
from jras_jax.inference.trained_run import RunGallery, TrainedRun
from jras_jax.retrieval.known import Match
from jras_jax.run_folder import provenance

_COUNTING = "slice and frame are indices from 0; the report and the messages count slices from 1"
Note = Callable[[str], None]


class Task(NamedTuple):
    """One scan to segment, the mask to write, and which maps go beside it."""

    scan: pathlib.Path
    mask: pathlib.Path
    more: tuple[pathlib.Path, ...] = ()  # the files of the further channels
    maps: maps.Wanted = maps.Wanted()

    @property
    def evidence(self) -> pathlib.Path:
        """The JSON beside the mask."""
        return self.mask.with_name(images.stem(self.mask) + ".json")


def tasks(
    source: str | pathlib.Path,
    output: str | pathlib.Path,
    note: Note = lambda line: None,
    description: DatasetDescription = CARDIAC,
) -> list[Task]:
    """The scans of a file or folder (its subfolders too) and where their masks go.

    Args:
      source: .nii or .nii.gz, or a folder; files named *_gt and masks of this program are left out.
      output: folder for NAME.nii.gz; subfolders are kept. For a single scan also the mask's own name, .nii or .nii.gz;
        .png of a picture.
      note: takes a line on whatever is left out.
      description: of the run's data set. For one of 2-D images or several channels, see `inputs.groups`.

    Raises:
      UserError: there is nothing to segment; masks would be among the scans, where a later call would take them for
        scans; or a mask would overwrite another file or another mask.
    """
    source, output = pathlib.Path(source), pathlib.Path(output)
    groups = inputs.groups(source, description) if inputs.is_needed(description) else [[s] for s in _inputs(source)]
    scans = _without_masks([group[0] for group in groups], source, output=output, note=note)
    more = {group[0]: tuple(group[1:]) for group in groups}
    if output.name.lower().endswith(".png" if description.dimensions == 2 else pairs.SUFFIXES):
        if source.is_dir():
            raise UserError(f"--output={output} names one mask, but --input={source} is a folder; give a folder")
        found = [Task(scans[0], output, more[scans[0]])]
        if output.is_dir():
            raise UserError(f"--output={output}: a folder has this name; choose another name")
        if pairs.stem(output).lower().endswith("_gt"):
            raise UserError(f"--output={output}: names in _gt are those of reference masks; choose another name")
    else:
        root = source if source.is_dir() else source.parent
        name = functools.partial(inputs.mask_name, description=description)
        found = [Task(s, output / s.relative_to(root).parent / name(s), more[s]) for s in scans]
    for folder in {task.mask.parent for task in found}:
        files.check_folder(folder, "--output")
    _check_targets(found, source, output)
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
    cases that guided every slice. Either both are written or neither.

    Args:
      run, gallery: the trained run, and what guides it.
      task: which file.
      segmenter: one of `run.segmenter()` with this gallery, shared by several scans.
      note: takes a line on what is unusual about the scan, and on the gallery slices that the leak rule leaves out.

    Raises:
      UserError: an unreadable scan, a folder that cannot be written, or see `TrainedRun.segment_volumes`.
    """
    segmenter = segmenter or run.segmenter(gallery.arrays if gallery else None)
    opened = open_scan(run, task, gallery=gallery, segmenter=segmenter)
    for remark in opened.remarks:
        note(remark)
    ready, predicted = opened.ready.segmented(opened.ready.segmenter(segmenter))
    return write_results(run, opened._replace(ready=ready), predicted=predicted, gallery=gallery)


class OpenedScan(NamedTuple):
    """A scan that was read and is ready for the network; `remarks` are lines for the user."""

    task: Task
    scan: nifti.Scan
    ready: Prepared
    remarks: list[str]


def open_scan(run: TrainedRun, task: Task, gallery: RunGallery | None, segmenter: Segmenter) -> OpenedScan:
    """Reads a scan and prepares it; raises as `segment_file` does."""
    if inputs.is_needed(run.description):
        scan = images.read_image([task.scan, *task.more], len(run.description.channels))
    else:
        scan = nifti.read_scan(task.scan)
    remarks = [f"{printable(scan.path)}: {remark}" for remark in unusual(run, scan)]
    ready = run.prepare(frames(scan, run.description), gallery, segmenter)
    if gallery is not None and ready.match is not None and ready.match.patients:
        remarks.append(_recognised(run, task.scan, gallery=gallery, match=ready.match))
    return OpenedScan(task, scan, ready=ready, remarks=remarks)


def write_results(
    run: TrainedRun, opened: OpenedScan, predicted: list[SlicePredictions], gallery: RunGallery | None
) -> list[VolumePrediction]:
    """Writes the mask, its maps and the evidence of a scan, all or none; returns the prediction of each frame."""
    predictions = run.finish(opened.ready, predicted)
    write_mask_and_evidence(
        run,
        opened,
        predictions=predictions,
        evidence=evidence_of(run, opened, predictions=predictions, gallery=gallery),
    )
    return predictions


def write_mask_and_evidence(
    run: TrainedRun, opened: OpenedScan, predictions: list[VolumePrediction], evidence: dict[str, Any]
) -> None:
    """Writes the mask of a scan, in the values of the run's data set, its maps and its JSON, all or none."""
    task, scan = opened.task, opened.scan
    values = np.array(run.description.values, np.uint8)
    masks = np.stack([values[p.labels] for p in predictions], -1)
    cine = scan.array.ndim == 4 and not inputs.is_needed(run.description)
    images.write_mask(task.mask, masks if cine else masks[..., 0], scan)
    written = [task.mask]
    try:
        for path in maps.write(
            task.mask, scan, predictions=predictions, wanted=task.maps, description=run.description, cine=cine
        ):
            written.append(path)
        files.write_json(task.evidence, evidence)
    except BaseException:  # Ctrl-C too
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def unusual(run: TrainedRun, scan: nifti.Scan) -> list[str]:
    """What is unusual about a scan, by itself or for this run."""
    remarks = [remark for remark in scan.remarks if remark != geometry.NO_SPACING]
    if not scan.spacing_known and run.splits.get("spacing") != "unknown":
        remarks.append(geometry.NO_SPACING_HERE)
    axis = axes.slice_axis_to_read(scan.spacing, scan.spacing_known)
    if axis != 2:
        remarks.append(f"its slices run along the {axes.NAMES[axis]} axis; so do those of the mask")
    elif scan.spacing_known and geometry.suspected_slice_axis(scan.array.shape[:3], scan.spacing, True) != 2:
        remarks.append(
            f"its voxels are {geometry.sizes_text(scan.spacing)} mm, so its slices may run along another axis than the "
            "third, along which they are read"
        )
    return remarks


def frames(scan: nifti.Scan, description: DatasetDescription) -> list[Volume]:
    """Each frame of a scan as a volume to segment, for a run of the data set described."""
    several = len(description.channels) > 1
    array = scan.array if scan.array.ndim == 4 and not several else scan.array[..., None]
    name = inputs.case_name(scan.path, description)
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
            description=description,
        )
        for t in range(array.shape[-1])
    ]


def _recognised(run: TrainedRun, scan: pathlib.Path, gallery: RunGallery, match: Match) -> str:
    """Says whose slices the leak rule leaves out, and how the patient was recognised."""
    who = " and ".join(f"{gallery.table.patients[n]} (by its {how})" for n, how in match.patients.items())
    rule = run.config.retrieval.exclude
    count, total = gallery.known.slices_of(match), len(gallery.table)
    done = f"{count} of {total} gallery slices are left out"
    if rule != "patient":
        done = f"its slices may guide it, because config.retrieval.exclude={rule}"
    return f"{printable(scan)}: is a scan of the gallery's {printable(who)}; {done}"


def evidence_of(
    run: TrainedRun, opened: OpenedScan, predictions: list[VolumePrediction], gallery: RunGallery | None
) -> dict[str, Any]:
    """The content of the JSON beside a mask."""
    scan, match = opened.scan, opened.ready.match
    out: dict[str, Any] = {
        "input": scan.path.name,  # no more of its path: folders are often named after patients
        "run": str(run.folder),
        "checkpoint_step": run.step,
        "labels": run.description.structure_values,
        "spacing": [float(s) for s in scan.spacing],
        "spacing_unit": "mm" if scan.spacing_known else "unknown",
        "slice_axis": axes.slice_axis_to_read(scan.spacing, scan.spacing_known),
        "counting": _COUNTING,
        "warnings": provenance.leaks(run.config),
        "frames": [],
    }
    if gallery is not None and match is not None:
        # Whose slices the leak rule left out of the search; null if the scan belongs to nobody in the gallery.
        known = {gallery.table.patients[number]: how for number, how in match.patients.items()}
        out["gallery_patient"] = next(iter(known), None)
        out["matched_by"] = next(iter(known.values()), None)
        out["other_gallery_patients"] = dict(list(known.items())[1:])
        out["exclude"] = run.config.retrieval.exclude
        out["gallery_slices_left_out"] = gallery.known.slices_of(match) if out["exclude"] == "patient" else 0
    for t, prediction in enumerate(predictions):
        slices: list[dict[str, Any]] = [{"slice": z} for z in range(len(prediction.images))]
        if gallery is not None:
            agreement = prediction.slices.agreement
            for entry, guides, agreed in zip(slices, gallery.guides(prediction), agreement, strict=True):
                entry |= {"guides": guides, "guide_agreement": round(float(agreed), 6)}
        signs = {"expected_dice": prediction.expected_dice, "entropy": prediction.entropy}
        entry = {"frame": t} | {k: round(v, 6) for k, v in signs.items()} | {"slices": slices}
        if prediction.located is not None:
            entry["heart"] = _heart(prediction, scan.spacing_known and not run.grid.ignore_spacing)
        out["frames"].append(entry)
    return out


def _heart(prediction: VolumePrediction, in_mm: bool) -> dict[str, Any] | None:
    """The frame of the heart that the crop was cut by; null if none was found and whole slices were segmented."""
    assert prediction.located is not None
    frame, mapping = prediction.located.frame, prediction.mapping
    if frame is None or not isinstance(mapping, FrameMap):
        return None
    return {
        "centre_voxel": [round(x, 2) for x in mapping.voxel(*map(float, mapping.placement.centre))],
        "radius": round(frame.radius, 3),
        "radius_unit": "mm" if in_mm else "voxel",
        "angle_degrees": round(float(np.degrees(frame.angle)), 2),
    }


def _without_masks(
    scans: list[pathlib.Path], source: pathlib.Path, output: pathlib.Path, note: Note
) -> list[pathlib.Path]:
    """Leaves out masks of this program.

    Raises:
      UserError: nothing is left, or the output folder holds scans too.
    """
    own = [scan for scan in scans if _is_own(scan)]
    kept = [scan for scan in scans if scan not in set(own)]
    if not kept:
        what = "is a mask" if source.is_file() else "holds nothing but masks"
        raise UserError(f"--input={source}: {what} written by this program; give the scans")
    inside = output.resolve()
    if source.is_dir() and inside != source.resolve():
        among = [scan for scan in kept if scan.parent.resolve().is_relative_to(inside)]
        if among and inside.is_relative_to(source.resolve()):
            raise UserError(
                f"--output={output}: holds scans of --input, such as {printable(among[0])}, and masks among them would "
                "be taken for scans; choose another folder"
            )
    if own:
        count = "1 mask" if len(own) == 1 else f"{len(own)} masks"
        note(f"{source}: leaves out {count} written by this program, such as {printable(own[0])}")
    return kept


def _check_targets(found: list[Task], source: pathlib.Path, output: pathlib.Path) -> None:
    """Raises UserError if a mask would be written beside a scan, or in the place of another file or mask."""
    masks = [task.mask for task in found]
    folders = {task.scan.parent.resolve() for task in found} if source.is_dir() else set()
    for task in found:
        if task.mask.resolve() == task.scan.resolve():
            raise UserError(f"--output={output}: the mask would overwrite the scan {task.scan}; choose another folder")
        if task.mask.parent.resolve() in folders:
            raise UserError(
                f"--output={output}: the mask {task.mask} would be among the scans of --input={source}, where the "
                "next reader takes it for a scan; choose another folder"
            )
        if masks.count(task.mask) > 1:
            raise UserError(f"{source}: two files would both give {task.mask}; segment them one by one")
        stem = pairs.stem(task.mask)
        for other in (task.mask.with_name(stem + suffix) for suffix in pairs.SUFFIXES):
            if _is_there(other) and not _is_own(other):
                raise UserError(
                    f"--output={output}: {printable(other)} exists and is not a mask of this program: a mask "
                    f"{task.mask.name} would overwrite it or be mistaken for it; choose another folder"
                )
        if _is_there(task.evidence) and not _is_evidence(task.evidence):
            raise UserError(
                f"--output={output}: {printable(task.evidence)} exists and was not written by this program; it would "
                "be overwritten: choose another folder"
            )


def _is_own(path: pathlib.Path) -> bool:
    """Whether a file is a mask of this program, by its header or (masks of earlier versions) by the JSON beside it."""
    earlier = path.name.endswith(".gz") and _is_evidence(path.with_name(pairs.stem(path) + ".json"))
    if pictures.is_picture(path):
        return earlier or pictures.is_own_picture(path)
    return earlier or nifti.is_own_mask(path) or nifti.is_own_map(path)


def _is_there(path: pathlib.Path) -> bool:
    try:
        return path.exists() or path.is_symlink()
    except OSError:  # a name that is too long: writing tells
        return False


def _is_evidence(path: pathlib.Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"input", "run", "checkpoint_step", "frames"} <= content.keys()


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
