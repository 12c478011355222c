"""Images and masks of any format the project reads, of one channel or several: NIfTI volumes and 2-D pictures.

An image's channels are files of their own (NAME_0000, NAME_0001, ... as nnU-Net has them) or the colours of one file.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Collection, Sequence

import numpy as np

from jras_jax.data import finder, geometry, nifti, pictures
from jras_jax.data.nifti import Scan
from jras_jax.errors import ScanError

SUFFIXES = (*finder.SUFFIXES, *pictures.SUFFIXES)
_CHANNEL = re.compile(r"(?P<name>.+)_(?P<channel>\d{4})")
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def suffix(path: pathlib.Path) -> str:
    """The suffix of a file's name as it is written there; '' if it is none of `SUFFIXES`."""
    return finder.suffix(path) or (path.suffix if pictures.is_picture(path) else "")


def stem(path: pathlib.Path) -> str:
    """A file's name without its suffix."""
    return path.name[: len(path.name) - len(suffix(path))]


def channel_of(name: str) -> tuple[str, int | None]:
    """The case and the channel in a name without suffix: 'liver_012_0001' -> ('liver_012', 1); None if it has none."""
    match = _CHANNEL.fullmatch(name)
    return (match["name"], int(match["channel"])) if match else (name, None)


def read_image(paths: Sequence[pathlib.Path], channels: int) -> Scan:
    """Reads the files of an image.

    Args:
      paths: one file, or one a channel.
      channels: how many the data set has.

    Returns:
      A scan of array (X, Y, Z), or (X, Y, Z, channels) if there are several.

    Raises:
      ScanError: a file cannot be read, has a time axis, lies on another grid than the first, or the channels are not so
        many. A picture in colours becomes grey if one channel is expected.
    """
    scans = [pictures.read_picture(path) if pictures.is_picture(path) else nifti.read_scan(path) for path in paths]
    first = scans[0]
    arrays, remarks = [], list(first.remarks)
    for scan in scans:
        if scan.header is not None and scan.array.ndim == 4:
            raise ScanError(
                scan.path,
                f"its shape is {scan.array.shape}, but an image must have 3 axes: save each channel or time frame as a "
                "separate file (NAME_0000, NAME_0001 for channels)",
            )
        if scan.array.shape[:3] != first.array.shape[:3]:
            raise ScanError(
                scan.path,
                f"its shape {scan.array.shape[:3]} is not that of the first channel, {first.array.shape[:3]} "
                f"({first.path})",
            )
        if scan is not first and scan.header is not None and first.header is not None:
            remarks += geometry.compare(scan, first, role="first channel")
        arrays.append(scan.array if scan.array.ndim == 4 else scan.array[..., None])
    array = np.concatenate(arrays, -1)
    if len(scans) == 1 and channels == 1 and array.shape[-1] == 3:
        array, remarks = (array @ _GREY)[..., None], [*remarks, "its colours are read as grey"]
    if len(scans) == 1 and channels == 3 and first.header is None and array.shape[-1] == 1:
        array = np.repeat(array, 3, -1)
    if array.shape[-1] != channels:
        have = f"{array.shape[-1]} {'channel' if array.shape[-1] == 1 else 'channels'}"
        raise ScanError(first.path, f"the image has {have}, but its data set {channels}")
    array = np.ascontiguousarray(array[..., 0] if channels == 1 else array)
    return dataclasses.replace(first, array=array, remarks=tuple(remarks))


def read_mask(path: pathlib.Path, like: Scan, allowed: Collection[int] | None = None) -> Scan:
    """Reads a mask, (X, Y, Z) uint8.

    Args:
      path: the file, of the same kind as the image.
      like: the image.
      allowed: the values it may hold; None allows 0 to 255.

    Raises:
      ScanError: see `nifti.read_labels` and `pictures.read_picture_labels`.
    """
    if pictures.is_picture(path) != (like.header is None):
        raise ScanError(
            path, f"image and mask must both be NIfTI volumes or both pictures, not {like.path.name} with it"
        )
    if not pictures.is_picture(path):
        return nifti.read_labels(path, like=_first_channel(like), allowed=allowed)
    mask = pictures.read_picture_labels(path, like)
    foreign = sorted(set(np.unique(mask.array).tolist()) - set(allowed)) if allowed is not None else []
    if foreign and allowed is not None:
        raise ScanError(path, f"a mask may hold only the labels {sorted(allowed)}, it holds {foreign} too")
    return mask


def write_mask(path: pathlib.Path, mask: np.ndarray, like: Scan) -> None:
    """Writes a mask (X, Y, Z[, T]) uint8 on the grid of its image, in the image's kind: NIfTI, or PNG for a picture."""
    if like.header is None:
        pictures.write_picture_mask(path, mask)
    else:
        nifti.write_mask(path, mask, like if mask.ndim == like.array.ndim else _first_channel(like))


def write_map(path: pathlib.Path, steps: np.ndarray, like: Scan, step: float) -> None:
    """Writes numbers, `steps` (X, Y, Z[, T]) uint16 times `step`, in the image's kind: NIfTI, or PNG for a picture.

    A PNG holds the steps themselves.
    """
    if like.header is None:
        pictures.write_picture_map(path, steps)
    else:
        like = like if steps.ndim == like.array.ndim else _first_channel(like)
        nifti.write_map(path, steps, like=like, step=step)


def is_own_map(path: pathlib.Path) -> bool:
    """Whether a file is a map of this program; False if it cannot be read."""
    return pictures.is_own_picture_map(path) if pictures.is_picture(path) else nifti.is_own_map(path)


def _first_channel(scan: Scan) -> Scan:
    return dataclasses.replace(scan, array=scan.array[..., 0]) if scan.array.ndim == 4 else scan
