"""Labelled cases of a folder as volumes, for data sets without phases: any format, any number of channels."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np

from jras_jax.data import DatasetDescription, Volume, geometry, images, layout, names, pairs, remarks
from jras_jax.errors import UserError


def read_labelled(
    folder: str | pathlib.Path, labels: Mapping[str, int], description: DatasetDescription
) -> list[Volume]:
    """The labelled cases of a folder: `pairs.read_pairs` for data sets with phases, else `read_cases`."""
    if description.phases:
        return pairs.read_pairs(folder, labels, description)
    return read_cases(pathlib.Path(folder), labels, description)


def read_cases(folder: pathlib.Path, labels: Mapping[str, int], description: DatasetDescription) -> list[Volume]:
    """Reads every case of a folder: nnU-Net's imagesTr with labelsTr, or pairs (see `layout`).

    Args:
      folder: the folder.
      labels: structure -> its value in these masks.
      description: of the run's data set, which these cases must fit.

    Returns:
      Volumes sorted by case. Whatever is passed over is said on stderr.

    Raises:
      UserError: no such folder, no case, a fault in the folder, or a file that breaks a rule.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    channels = len(description.channels)
    found = (
        layout.nnunet(folder, "Tr", channels=channels, ending="")
        if layout.is_nnunet(folder)
        else layout.pairs(folder, channels)
    )
    if found.faults:
        raise UserError(found.faults[0])
    if not found.cases:
        raise UserError(
            f"{folder}: holds no labelled cases: neither imagesTr/ with labelsTr/, nor images with masks beside them "
            "(NAME.png with NAME_gt.png, or images/ and masks/)"
        )
    lookup = np.zeros(256, np.uint8)
    for name, value in labels.items():
        lookup[value] = description.structures[name]
    notes, volumes = list(found.skipped), []
    for name, (files, mask_file) in sorted(found.cases.items()):
        scan = images.read_image(files, channels)
        if scan.header is not None:
            geometry.require_slices_last(scan)
        mask = images.read_mask(mask_file, scan, {0, *labels.values()})
        notes += [f"{s.path}: {remark}" for s in (scan, mask) for remark in s.remarks]
        volumes.append(
            Volume(
                image=np.ascontiguousarray(scan.array, np.float32),
                mask=lookup[mask.array],
                affine=scan.affine,
                spacing=scan.spacing,
                spacing_known=scan.spacing_known,
                patient=names.parse(name).patient,
                source=str(scan.path),
                name=name,
                description=description,
            )
        )
    remarks.tell(notes)
    return volumes
