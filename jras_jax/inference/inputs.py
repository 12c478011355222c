"""Which files a run of one's own data segments: 2-D pictures, and images whose channels are files of their own."""

from __future__ import annotations

import pathlib

from jras_jax.data import DatasetDescription, finder, images, layout, pictures
from jras_jax.errors import UserError


def is_needed(description: DatasetDescription) -> bool:
    """Whether images may be other than NIfTI files of one channel: those of phases are cines, with a time axis."""
    return not description.phases


def case_name(path: pathlib.Path, description: DatasetDescription) -> str:
    """The case in an image's file name: without suffix, and for data of one's own without the channel's number 0000."""
    stem = images.stem(path)
    return stem.removesuffix("_0000") if is_needed(description) else stem


def mask_name(path: pathlib.Path, description: DatasetDescription) -> str:
    """The file name of an image's mask: CASE.nii.gz, or CASE.png of a picture."""
    return case_name(path, description) + (".png" if pictures.is_picture(path) else ".nii.gz")


def groups(source: pathlib.Path, description: DatasetDescription) -> list[list[pathlib.Path]]:
    """The images of a folder and its subfolders, or one image, each as its files in the order of the channels.

    Masks (NAME_gt and the like, folders masks/ and labels/) are left out.

    Raises:
      UserError: there is no image of this kind, or one lacks a channel.
    """
    if not source.exists():
        raise UserError(f"--input={source}: no such file or folder")
    channels = len(description.channels)
    kind = "PNG, TIFF or JPEG image" if description.dimensions == 2 else "NIfTI file (.nii or .nii.gz)"
    if source.is_file():
        folder, (stem, number) = source.parent, images.channel_of(images.stem(source))
        if not _fits(source, description):
            raise UserError(f"--input={source}: not a {kind}, which the run was trained on")
        if channels == 1 or number is None:
            return [[source]]
        wanted = [folder / f"{stem}_{i:04d}{images.suffix(source)}" for i in range(channels)]
        missing = [path.name for path in wanted if not path.is_file()]
        if missing:
            raise UserError(f"--input={source}: its channel {missing[0]} is not beside it; the run has {channels}")
        return [wanted]
    found = layout.unlabelled(source, channels)
    fitting = [group for group in found.groups if _fits(group[0], description)]
    if found.faults:
        raise UserError(found.faults[0])
    if not fitting:
        raise UserError(f"--input={source}: no {kind} in this folder")
    return fitting


def _fits(path: pathlib.Path, description: DatasetDescription) -> bool:
    return pictures.is_picture(path) if description.dimensions == 2 else bool(finder.suffix(path))
