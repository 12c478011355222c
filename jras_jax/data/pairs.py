"""Labelled scans outside any data set: NIfTI pairs NAME.nii.gz and NAME_gt.nii.gz, anywhere below a folder.

Names are read as the challenges write them, so that one patient is one name wherever it comes from:
patient001_frame12 and patient001_ES are patient001, CODE_sa is CODE, any other NAME is its own patient. An Info.cfg
beside a pair (ACDC's patient folders) says which frames are ED and ES, and the pathology group.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Collection, Mapping

import numpy as np

from jras_jax.data import (
    DatasetDescription,
    Volume,
    cavities,
    finder,
    geometry,
    nifti,
    remarks,
    tables,
)
from jras_jax.data.description import CARDIAC
from jras_jax.data.finder import SUFFIXES, stem
from jras_jax.errors import ScanError, UserError

__all__ = ["SUFFIXES", "parse_labels", "patient_of", "read_pairs", "stem"]
_NAME = re.compile(r"^(?P<patient>.+?)(?:_sa)?(?:_(?:frame(?P<frame>\d+)|(?P<phase>ED|ES)))?$")


def parse_labels(text: str, structures: Collection[str] = (), option: str = "--labels") -> dict[str, int]:
    """'LV:1,MYO:2,RV:3' -> {'LV': 1, 'MYO': 2, 'RV': 3}.

    Args:
      text: NAME:LABEL,... with labels of 1 to 255.
      structures: if given, the names that must occur, each once.
      option: the command's option that gives the text, for messages.

    Raises:
      UserError: not of that form, a name or label twice, or not the names that must occur.
    """
    labels: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = (p.strip() for p in part.partition(":"))
        if not name or not value.isdecimal() or not 1 <= int(value) <= 255:
            raise UserError(
                f"{option}={text}: {part!r} is not NAME:LABEL with a label of 1 to 255, as in LV:1,MYO:2,RV:3"
            )
        if name in labels or int(value) in labels.values():
            raise UserError(
                f"{option}={text}: {part!r} repeats a structure or a label; give each once, as in LV:1,MYO:2,RV:3"
            )
        labels[name] = int(value)
    if structures and set(labels) != set(structures):
        raise UserError(f"{option}={text}: give a label to each of {', '.join(structures)}, as in LV:1,MYO:2,RV:3")
    return labels


def read_pairs(
    folder: str | pathlib.Path, labels: Mapping[str, int], description: DatasetDescription = CARDIAC
) -> list[Volume]:
    """Reads every pair below a folder.

    Args:
      folder: 3-D pairs give one volume each, 4-D ones a volume for every frame whose mask is not empty. Scans without
        a mask are passed over. What is unusual or passed over for another reason is said on stderr.
      labels: structure -> its value in these masks.
      description: of the data set whose structures these are.

    Returns:
      Volumes with masks in the project's labels, sorted by case.

    Raises:
      UserError: no such folder, no pair in it, a mask without its scan, a file that breaks a rule of `nifti` or holds
        another label, slices along another axis than the third, one scan in two files, two pairs of one case, masks
        that are all empty, or LV and RV exchanged.
    """
    folder = pathlib.Path(folder)
    notes: list[str] = []
    masks = _masks(folder, notes)
    volumes: dict[str, Volume] = {}
    for mask in masks:
        for volume in _read_pair(mask, labels, description=description, notes=notes):
            if volume.case in volumes:
                other = volumes[volume.case].source
                raise UserError(f"{folder}: {other} and {volume.source} are both case {volume.case}; keep one of them")
            volumes[volume.case] = volume
    if not volumes:
        raise UserError(f"{folder}: the mask of every pair is empty, so there is nothing to retrieve")
    found = [volumes[case] for case in sorted(volumes)]
    if description.enclosure is not None:
        _check_cavities(folder, found, labels)
        odd = [v for v in found if v.mask is not None and cavities.seem_exchanged([v.mask], description)]
        notes += [f"{v.source}: LV and RV seem exchanged in its mask ({v.case}), unlike in the others" for v in odd]
    remarks.tell(notes)
    return found


def _check_cavities(folder: pathlib.Path, volumes: list[Volume], labels: Mapping[str, int]) -> None:
    """Raises UserError if LV and RV seem exchanged."""
    shares = cavities.seem_exchanged((v.mask for v in volumes if v.mask is not None), volumes[0].description)
    if shares is not None:
        left, right = shares
        other = f"LV:{labels['RV']},MYO:{labels['MYO']},RV:{labels['LV']}"
        raise UserError(
            f"{folder}: LV and RV seem exchanged: myocardium surrounds {right:.0%} of what is read as RV, but "
            f"{left:.0%} of what is read as LV; if the masks hold it the other way round, give --labels={other}"
        )


def patient_of(name: str) -> str:
    """The patient in a scan's name: 'patient001_frame12' -> 'patient001', 'A0S9V9_sa' -> 'A0S9V9'."""
    match = _NAME.match(name)
    return match["patient"] if match else name


def _masks(folder: pathlib.Path, notes: list[str]) -> list[pathlib.Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = finder.find(folder)
    masks = [p for p in found.files if is_mask(p)]
    if not masks:
        why = "; ".join(found.lines()[:3])
        raise UserError(
            f"{folder}: holds no labelled scans; a pair is NAME.nii.gz and its mask NAME_gt.nii.gz"
            + (f" ({why})" if why else "")
        )
    finder.check_stems(masks)
    notes += found.lines()
    return masks


def is_mask(path: pathlib.Path) -> bool:
    """Whether a NIfTI file is named as a mask, NAME_gt."""
    return stem(path).lower().endswith("_gt")


def _read_pair(
    mask_path: pathlib.Path, labels: Mapping[str, int], description: DatasetDescription, notes: list[str]
) -> list[Volume]:
    """The labelled volumes of one pair."""
    name = stem(mask_path)[: -len("_gt")]
    if not finder.files_of(mask_path.parent, name):
        raise UserError(f"{mask_path}: its scan {name}.nii.gz is not beside it")
    scan = nifti.read_scan(finder.one_of(mask_path.parent, name))
    geometry.require_slices_last(scan)
    mask = nifti.read_labels(mask_path, like=scan)
    notes += [f"{s.path}: {remark}" for s in (scan, mask) for remark in s.remarks]
    array = _project_labels(mask, labels, description.structures)
    match = _NAME.match(name)
    assert match is not None
    info = _info(mask_path.parent / "Info.cfg")
    images, masks = (a if a.ndim == 4 else a[..., None] for a in (scan.array, array))
    kept = np.flatnonzero(masks.any((0, 1, 2)))
    # ACDC counts frames from 1. A pair of 3-D files is one frame of its cine, a 4-D one holds the cine itself.
    first = max(int(match["frame"]) - 1, 0) if match["frame"] else 0
    phases = {int(info[p]) - 1: p for p in description.phases if info.get(p, "").isdecimal()}
    return [
        Volume(
            image=np.ascontiguousarray(images[..., t], np.float32),
            mask=np.ascontiguousarray(masks[..., t]),
            affine=scan.affine,
            spacing=scan.spacing,
            spacing_known=scan.spacing_known,
            patient=match["patient"],
            phase=match["phase"] or phases.get(first + int(t), ""),
            group=info.get("Group", ""),
            frame=first + int(t),
            source=str(scan.path),
            description=description,
        )
        for t in kept
    ]


def _project_labels(mask: nifti.Scan, labels: Mapping[str, int], structures: Mapping[str, int]) -> np.ndarray:
    """A mask's own values -> the project's labels."""
    lookup = np.zeros(256, np.uint8)
    for name, value in labels.items():
        lookup[value] = structures[name]
    foreign = sorted(set(np.unique(mask.array).tolist()) - {0, *labels.values()})
    if foreign:
        own = ",".join(f"{name}:{value}" for name, value in labels.items())
        wanted = ",".join(f"{name}:VALUE" for name in sorted(labels))
        raise UserError(
            f"{mask.path}: holds the labels {foreign}, but {own} and 0 for the background are expected; say what the "
            f"values mean with --labels={wanted}"
        )
    return lookup[mask.array]


def _info(path: pathlib.Path) -> dict[str, str]:
    """The lines of an Info.cfg, none if it is absent or no text."""
    try:
        return tables.read_info(path)
    except ScanError:
        return {}
