"""BUSI, breast ultrasound images: 437 benign, 210 malignant and 133 normal, lesions drawn as white on black.

An image may have several masks (NAME_mask.png, NAME_mask_1.png, ...), one a lesion; they are united. Normal images have
black masks. The download does not say which images are of one patient (780 images of 600 women), so each image counts
as a patient of its own, and images of one woman may train and validate.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re

import numpy as np

from jras_jax.data import DatasetDescription, finder, images
from jras_jax.data.nifti import Scan
from jras_jax.errors import ScanError
from tfds_builders import common

_FOLDERS = ("benign", "malignant", "normal")
_MASK = re.compile(r"(?P<name>.+)_mask(?:_\d+)?\.png", re.I)
_WHITE = 255


class Builder(common.ScanBuilder):
    """See the module; manual_dir is the folder that holds benign/, malignant/ and normal/."""

    RELEASE_NOTES = {"1.0.0": "First."}  # noqa: RUF012  the name TFDS reads
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Download Dataset_BUSI.zip from https://scholar.cu.edu.eg/?q=afahmy/pages/dataset and unpack it, so that "
        "manual_dir holds benign/, malignant/ and normal/ (or Dataset_BUSI_with_GT/, which holds them)."
    )
    DESCRIPTION = "780 breast ultrasound images of 600 women, lesions drawn by radiologists."
    HOMEPAGE = "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset"
    CITATION = "Al-Dhabyani et al., Data in Brief 2020, doi:10.1016/j.dib.2019.104863"
    LABELS = "busi"
    NAMED = True

    @classmethod
    def reader(cls, description: DatasetDescription) -> common.Reader:
        """See `common.ScanBuilder.reader`; whatever is not black is lesion."""
        return _read

    @staticmethod
    def root(manual_dir: pathlib.Path) -> pathlib.Path:
        """See `common.ScanBuilder.root`."""
        return common.find_root(manual_dir, _FOLDERS, inner="Dataset_BUSI_with_GT")

    @staticmethod
    def inventory(manual_dir: pathlib.Path) -> common.Inventory:
        """See `common.ScanBuilder.inventory`."""
        root = Builder.root(manual_dir)
        cases: list[common.Case] = []
        notes: list[str] = []
        for group in _FOLDERS:
            if (root / group).is_dir():
                cases += _cases(root / group, group)
            else:
                notes.append(f"{root / group} is not there: the data set has no {group} images")
        common.check_patients({"train": cases}, manual_dir)
        return common.Inventory(root, {"train": cases}, tables=[], notes=notes)


def _cases(folder: pathlib.Path, group: str) -> list[common.Case]:
    """The images of one folder with their masks, in the order of their numbers."""
    pictures: dict[str, pathlib.Path] = {}
    masks: dict[str, list[pathlib.Path]] = {}
    for path in sorted(folder.glob("*.png")):
        match = _MASK.fullmatch(path.name)
        if finder.is_hidden(path.name):
            continue
        if match:
            masks.setdefault(match["name"], []).append(path)
        else:
            pictures[path.stem] = path
    if lost := sorted(set(masks) - set(pictures)):
        raise ScanError(masks[lost[0]][0], f"its image {lost[0]}.png is not beside it")
    cases = []
    for name, path in sorted(pictures.items(), key=lambda item: (len(item[0]), item[0])):
        if name not in masks:
            raise ScanError(path, f"its mask {name}_mask.png is not beside it")
        first, *more = sorted(masks[name], key=lambda mask: (len(mask.name), mask.name))
        cases.append(
            common.Case(
                image=path,
                mask=first,
                more_masks=tuple(more),
                patient=name,
                phase="",
                group=group,
                vendor="",
                centre="",
                name=name,
            )
        )
    return cases


def _read(case: common.Case) -> tuple[Scan, Scan]:
    scan = images.read_image((case.image,), 1)
    masks = [images.read_mask(path, scan) for path in (case.mask, *case.more_masks)]
    united = functools.reduce(np.logical_or, (mask.array > 0 for mask in masks))
    return scan, dataclasses.replace(masks[0], array=np.where(united, _WHITE, 0).astype(np.uint8))
