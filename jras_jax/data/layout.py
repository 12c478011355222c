"""Finds the cases of a folder of one's own data: nnU-Net's raw layout, or pairs of images and masks.

nnU-Net: imagesTr/CASE_0000.nii.gz (CASE_0001.nii.gz for the second channel), labelsTr/CASE.nii.gz, and if the test
cases have masks imagesTs/ and labelsTs/. Pairs: NAME.png with NAME_gt.png (or NAME_mask, NAME_seg, NAME_label), or the
folders images/ and masks/ (or labels/) with files of equal names; the folders train/ and test/ part the cases if they
are there. Whatever is wrong is collected, so that one look names every fault.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from jras_jax.data import finder, images

_MASK = re.compile(r"(?P<name>.+)_(?:gt|mask|seg|segmentation|label|labels)", re.I)
_MASK_FOLDERS = ("masks", "mask", "labels", "label", "gt", "segmentations")
_IMAGE_FOLDERS = ("images", "image", "imgs", "scans")
_SPLITS = {"train": ("train", "training"), "test": ("test", "testing")}
_FOREIGN = (".mha", ".mhd", ".nrrd", ".dcm", ".hdr", ".img", ".mgz", ".npy", ".npz", ".h5")


@dataclasses.dataclass
class Files:
    """The files of the cases of one split, and what is wrong with them.

    Attributes:
      cases: name -> (files of the channels in order, mask).
      faults: lines 'FILE: rule and remedy'.
      skipped: lines on what is passed over.
    """

    cases: dict[str, tuple[list[pathlib.Path], pathlib.Path]] = dataclasses.field(default_factory=dict)
    faults: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)


def is_nnunet(root: pathlib.Path) -> bool:
    """Whether a folder has nnU-Net's raw layout."""
    return (root / "imagesTr").is_dir()


def nnunet(root: pathlib.Path, part: str, channels: int, ending: str) -> Files:
    """The cases of imagesTr ('Tr') or imagesTs ('Ts'); without labelsTs the latter has none."""
    found = Files()
    image_folder, label_folder = root / f"images{part}", root / f"labels{part}"
    if not label_folder.is_dir():
        if part == "Tr":
            found.faults.append(
                f"{label_folder}: the folder is missing; it must hold the mask of each case, CASE.nii.gz"
            )
        return found
    masks = _by_stem(label_folder, ending, found)
    pictures = _by_stem(image_folder, ending, found)
    groups = _channels(pictures, set(masks), channels=channels, found=found)
    for name, files in groups.items():
        if name in masks:
            found.cases[name] = (files, masks[name])
        else:
            found.faults.append(
                f"{files[0]}: has no mask; put it into {label_folder} as {name}{images.suffix(files[0])}"
            )
    lost = sorted(set(masks) - set(groups) - {images.channel_of(stem)[0] for stem in pictures})
    found.faults += [
        f"{masks[name]}: has no image; put it into {image_folder} as {name}_0000{images.suffix(masks[name])}"
        for name in lost
    ]
    return found


def _channels(
    files: dict[str, pathlib.Path], masks: set[str], channels: int, found: Files
) -> dict[str, list[pathlib.Path]]:
    """Case -> its files in the order of the channels; whoever lacks one is a fault.

    A name without a channel's number is a case's own: that of a mask, or of the one file of an image in colours.
    """
    groups: dict[str, dict[int, pathlib.Path]] = {}
    for stem, path in files.items():
        name, channel = images.channel_of(stem)
        if channel is None or (channels == 1 and channel) or (stem in masks and f"{stem}_0000" not in files):
            name, channel = stem, 0
        groups.setdefault(name, {})[channel] = path
    whole: dict[str, list[pathlib.Path]] = {}
    for name, own in groups.items():
        there, wanted = sorted(own), list(range(channels))
        coloured = there == [0] and channels == 3 and not finder.suffix(own[0])
        if there == wanted or coloured:
            whole[name] = [own[i] for i in there]
            continue
        any_file = next(iter(own.values()))
        lacks = ", ".join(f"{name}_{i:04d}" for i in wanted if i not in own)
        more = ", ".join(own[i].name for i in there if i not in wanted)
        what = f"lacks the channel {lacks}" if lacks else f"has more channels than dataset.json names: {more}"
        found.faults.append(
            f"{any_file}: case {name} {what}; an image has {channels} ({', '.join(_numbers(channels))})"
        )
    return whole


def _numbers(channels: int) -> list[str]:
    return [f"_{i:04d}" for i in range(channels)]


def splits_of(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders of a folder of pairs, by split: its train/ and test/, or itself."""
    found = {}
    for split, names in _SPLITS.items():
        folder = next((root / name for name in names if (root / name).is_dir()), None)
        if folder is not None:
            found[split] = folder
    return found if "train" in found else {"train": root}


def pairs(root: pathlib.Path, channels: int) -> Files:
    """The pairs of a folder and its subfolders."""
    found = Files()
    masks: dict[tuple[str, str], pathlib.Path] = {}
    pictures: dict[str, dict[str, pathlib.Path]] = {}
    for path in _walk(root, found):
        place, name, is_mask = _role(path, root)
        other = masks.get((place, name)) if is_mask else pictures.setdefault(place, {}).get(name)
        if other is not None:
            found.faults.append(f"{path}: {other.name} is of the same name; keep one of them")
        elif is_mask:
            masks[place, name] = path
        else:
            pictures[place][name] = path
    groups = {
        (place, name): files
        for place, own in pictures.items()
        for name, files in _channels(own, {n for p, n in masks if p == place}, channels=channels, found=found).items()
    }
    counts = Counter(name for _, name in groups)
    for (place, name), files in groups.items():
        mask = masks.pop((place, name), None)
        if mask is None:
            found.skipped.append(
                f"{files[0]}: passed over, it has no mask ({name}_gt{images.suffix(files[0])} beside it)"
            )
            continue
        shown = name if counts[name] == 1 else "_".join([*pathlib.PurePath(place).parts, name]).replace("*", "")
        found.cases[shown.replace("__", "_").strip("_")] = (files, mask)
    found.faults += [f"{mask}: has no image {name}{images.suffix(mask)} beside it" for (_, name), mask in masks.items()]
    return found


class Unlabelled(NamedTuple):
    """Images to segment, each as its files in the order of the channels, and what is wrong with others."""

    groups: list[list[pathlib.Path]]
    faults: list[str]


def unlabelled(root: pathlib.Path, channels: int) -> Unlabelled:
    """The images of a folder and its subfolders; masks are left out."""
    found = Files()
    pictures: dict[pathlib.Path, dict[str, pathlib.Path]] = {}
    for path in _walk(root, found):
        if not _role(path, root)[2] and not path.parent.name.startswith("labels"):
            pictures.setdefault(path.parent, {})[images.stem(path)] = path
    groups = [
        files for own in pictures.values() for files in _channels(own, set(), channels=channels, found=found).values()
    ]
    return Unlabelled(groups, found.faults)


def _role(path: pathlib.Path, root: pathlib.Path) -> tuple[str, str, bool]:
    """(place, name, whether it is a mask); an image and its mask have place and name in common."""
    parts = list(path.relative_to(root).parent.parts)
    stem, is_mask = images.stem(path), False
    for i, part in enumerate(parts):
        if part.lower() in _MASK_FOLDERS or part.lower() in _IMAGE_FOLDERS:
            is_mask = is_mask or part.lower() in _MASK_FOLDERS
            parts[i] = "*"
    match = _MASK.fullmatch(stem)
    if match and (is_mask or "*" not in parts):
        stem, is_mask = match["name"], True
    return "/".join(parts), stem, is_mask


def _by_stem(folder: pathlib.Path, ending: str, found: Files) -> dict[str, pathlib.Path]:
    """The images of one folder by their names without suffix, sorted."""
    files: dict[str, pathlib.Path] = {}
    if not folder.is_dir():
        found.faults.append(f"{folder}: the folder is missing")
        return files
    for path in sorted(folder.iterdir()):
        if finder.is_hidden(path.name) or path.is_dir():
            continue
        suffix = images.suffix(path)
        if not suffix or (ending and suffix.lower() != ending.lower()):
            wanted = ending or "NIfTI (.nii.gz), PNG or TIFF"
            found.skipped.append(f"{path}: passed over, it is no {wanted} file")
        elif fault := finder.fault(path):
            found.faults.append(f"{path}: {fault}")
        elif images.stem(path) in files:
            found.faults.append(f"{path}: {files[images.stem(path)].name} is of the same name; keep one of them")
        else:
            files[images.stem(path)] = path
    return files


def _walk(root: pathlib.Path, found: Files) -> Iterator[pathlib.Path]:
    """Every image file below a folder, sorted; links to folders are followed once."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not finder.is_hidden(name))
        for name in sorted(names):
            path = pathlib.Path(folder) / name
            if finder.is_hidden(name):
                continue
            if images.suffix(path):
                if fault := finder.fault(path):
                    found.faults.append(f"{path}: {fault}")
                else:
                    yield path
            elif path.suffix.lower() in _FOREIGN:
                found.skipped.append(f"{path}: passed over, its format is not read; convert it to NIfTI (.nii.gz)")
