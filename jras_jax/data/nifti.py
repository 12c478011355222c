"""The geometry contract: how scans and masks are read from NIfTI files, and how a mask is written back.

Axes are those of nibabel: X and Y in the image plane, Z through the slices, T the time frames. World coordinates are
RAS+ in millimetres, whatever unit the header is in. A mask takes affine, form codes, shape, zooms and units from the
header of its scan, bit for bit, and nothing else: the header's texts may name the patient.

References:
  The NIfTI-1 standard, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import logging as std_logging
import os
import pathlib
import zlib
from collections.abc import Collection
from typing import Any

import nibabel as nib
import numpy as np
from absl import logging

from jras_jax import files
from jras_jax.errors import UserError, printable

_GZIP_MAGIC = b"\x1f\x8b"
_SPATIAL_CODES = 0b111  # the bits of `xyzt_units` that hold the unit of space
_MM_PER_UNIT = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}  # NIfTI codes: unknown, metre, millimetre, micron
MARK = b"segmentation by jras_jax"  # the description in the header of a mask
# What a mask takes from the header of its scan, beside the shape. The texts (descrip, aux_file, db_name, intent_name)
# and the extensions may name the patient.
_GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
    *("dim_info", "slice_start", "slice_end", "slice_code", "slice_duration", "toffset"),
)
_LARGEST_HEADER = 540  # bytes, of NIfTI-2
_AFFINE_TOLERANCE_MM = 0.1
_ZOOM_TOLERANCE = 1e-6
# What nibabel, zlib and numpy raise on damaged bytes; MemoryError and OverflowError on absurd sizes in a header.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    MemoryError,
    OverflowError,
    zlib.error,
    nib.spatialimages.HeaderDataError,
    nib.spatialimages.HeaderTypeError,
    nib.filebasedimages.ImageFileError,
)


class ScanError(UserError):
    """A scan or mask that breaks a rule; the text names the file and the rule."""

    def __init__(self, path: str | os.PathLike[str], rule: str):
        super().__init__(f"{printable(os.fspath(path))}: {rule}")
        self.path = pathlib.Path(path)
        self.rule = rule


@dataclasses.dataclass(frozen=True)
class Scan:
    """A NIfTI file in memory.

    Attributes:
      array: (X, Y, Z) or (X, Y, Z, T) float32 intensities; uint8 where `read_labels` read it. Trailing axes of length
        one beyond the third are dropped.
      affine: (4, 4) float64, voxel to world, RAS+ mm.
      spacing: (3,) float32, mm; ones where `spacing_known` is False. From the header's zooms.
      spacing_known: False where the header gives no unit of space and every zoom is 1.
      header: the file's own header, in the file's own units, kept for writing.
      path: the file it was read from.
    """

    array: np.ndarray
    affine: np.ndarray
    spacing: np.ndarray
    spacing_known: bool
    header: Any
    path: pathlib.Path


def read_scan(path: str | os.PathLike[str]) -> Scan:
    """Reads a 3-D or 4-D scan from a .nii or .nii.gz file (NIfTI-1 or NIfTI-2).

    Args:
      path: the file.

    Returns:
      The scan, intensities as float32 with the header's slope and intercept applied.

    Raises:
      ScanError: the file is missing, damaged, cut short, no NIfTI image, not 3-D or 4-D, empty along an axis, not
        real-valued, holds NaN or infinity, or its zooms, unit or affine make no sense.
    """
    path = pathlib.Path(path)
    image, zooms = _parse(path, _read_bytes(path))
    shape = _checked_shape(path, image.header)
    affine, spacing, known = _geometry(path, image, zooms)
    with np.errstate(all="ignore"):  # overflow in scaling ends as infinity, which is caught below
        try:
            array = np.asarray(image.dataobj)
            kind = array.dtype.kind
            array = array.astype(np.float32) if kind in "biuf" else array
        except _DAMAGE as e:
            raise ScanError(
                path, f"its voxels cannot be read, the file is damaged or cut short ({_first_line(e)})"
            ) from e
    if kind not in "biuf":
        raise ScanError(path, f"its voxels are of type {image.get_data_dtype()}, not plain numbers (a greyscale image)")
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise ScanError(path, f"{bad} of its {array.size} voxels are NaN or infinite")
    return Scan(array.reshape(shape), affine, spacing, known, image.header, path)


def read_labels(
    path: str | os.PathLike[str],
    *,
    like: Scan | None = None,
    allowed: Collection[int] | None = None,
) -> Scan:
    """Reads a label map; the same rules as `read_scan`, and those of masks.

    Args:
      path: the file.
      like: the scan it belongs to; the shapes must be equal. An affine that differs is only warned about: the data sets
        draw their masks on the voxel grid, and published files do carry such headers.
      allowed: the values it may hold; None allows 0 to 255.

    Returns:
      The scan, its array as uint8.

    Raises:
      ScanError: as `read_scan`; or a value is no integer, below 0, above 255 or not allowed, or the shape is not that
        of `like`.
    """
    scan = read_scan(path)
    rounded = np.rint(scan.array)
    worst = float(np.abs(scan.array - rounded).max())
    if worst > 1e-4:  # a slope stored as float32 may miss the integer by rounding
        raise ScanError(path, f"a mask must hold whole numbers, but one of its values is {worst:.3g} away from one")
    low, high = rounded.min(), rounded.max()
    if low < 0 or high > 255:
        raise ScanError(path, f"a mask must hold labels of 0 to 255, it holds {low:g} to {high:g}")
    labels = rounded.astype(np.uint8)
    if allowed is not None:
        foreign = sorted(set(np.unique(labels).tolist()) - set(allowed))
        if foreign:
            raise ScanError(path, f"a mask may hold only the labels {sorted(allowed)}, it holds {foreign} too")
    if like is not None:
        if labels.shape != like.array.shape:
            raise ScanError(
                path, f"its shape {labels.shape} is not that of its image, {like.array.shape} ({like.path})"
            )
        if like.header["descrip"].item().startswith(MARK):
            raise ScanError(like.path, "is a mask written by this program, not a scan; put the scan in its place")
        _warn_if_elsewhere(scan, like)
    return dataclasses.replace(scan, array=labels)


def write_mask(path: str | os.PathLike[str], mask: np.ndarray, like: Scan) -> None:
    """Writes a label map on the grid of a scan: same affine (qform and sform with their codes), shape, zooms and units.

    Of the scan's header nothing but the geometry is taken. The mask's description is `MARK`, by which `is_own_mask`
    knows the masks of this program. The file appears whole or not at all: it is written beside its place and renamed.
    Its bytes depend on its content alone (no time stamp).

    Args:
      path: where to, .nii or .nii.gz; folders on the way are made, an existing file is replaced.
      mask: (X, Y, Z) or (X, Y, Z, T) uint8, the shape of `like.array`.
      like: the scan it belongs to.

    Raises:
      ValueError: the mask's type or shape is not as said.
      FileError: the file cannot be written.
    """
    path = pathlib.Path(path)
    if mask.dtype != np.uint8 or mask.shape != like.array.shape:
        raise ValueError(f"mask is {mask.dtype} {mask.shape}, it must be uint8 {like.array.shape}")
    header = type(like.header)()  # without extensions, which often hold patient data
    header.set_data_dtype(np.uint8)
    header.set_data_shape(like.header.get_data_shape())
    for field in _GEOMETRY:
        header[field] = like.header[field]
    header["descrip"] = MARK
    image = _IMAGES[header.sizeof_hdr](mask.reshape(header.get_data_shape()), header.get_best_affine(), header)
    image.header.set_slope_inter(1, 0)
    write_image(path, image)


def write_image(path: str | os.PathLike[str], image: Any, compresslevel: int = 6) -> None:
    """Writes a nibabel image in one step: a reader sees the old file or the whole new one.

    Args:
      path: where to, gzipped where it ends in .gz; folders on the way are made.
      image: a nibabel single-file image.
      compresslevel: of gzip.

    Raises:
      FileError: the file cannot be written.
    """
    path = pathlib.Path(path)
    data = image.to_bytes()
    if path.name.endswith(".gz"):
        data = gzip.compress(data, compresslevel, mtime=0)
    with files.replacing(path) as temporary:
        temporary.write_bytes(data)


def is_own_mask(path: str | os.PathLike[str]) -> bool:
    """Whether a NIfTI file is a mask that `write_mask` wrote, by its header; False if it cannot be read."""
    try:
        with open(path, "rb") as file:
            start = file.read(2)
            file.seek(0)
            if start == _GZIP_MAGIC:
                with gzip.GzipFile(fileobj=file) as unzipped:
                    return MARK in unzipped.read(_LARGEST_HEADER)
            return MARK in file.read(_LARGEST_HEADER)
    except _DAMAGE:
        return False


_IMAGES = {348: nib.Nifti1Image, 540: nib.Nifti2Image}  # by the header's size in bytes


def _read_bytes(path: pathlib.Path) -> bytes:
    """The file's bytes, unzipped to the end, so that gzip's checksum is checked too."""
    if not path.exists():
        raise ScanError(path, "the file is missing")
    if not path.is_file():
        raise ScanError(path, "not a file")
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == _GZIP_MAGIC else data
    except _DAMAGE as e:
        raise ScanError(path, f"cannot be read, the file is damaged or cut short ({_first_line(e)})") from e


def _parse(path: pathlib.Path, data: bytes) -> tuple[Any, np.ndarray]:
    """(a nibabel image over the bytes, the zooms as the file has them: nibabel mends those of 0 or below)."""
    size = {int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big")}
    kinds = [kind for header_size, kind in _IMAGES.items() if header_size in size and len(data) >= header_size]
    if not kinds:
        raise ScanError(path, "not a NIfTI image: it does not begin with a NIfTI header")
    kind = kinds[0]
    nibabel_log = std_logging.getLogger("nibabel.global")
    level = nibabel_log.level
    try:
        nibabel_log.setLevel(std_logging.CRITICAL)  # it reports its repairs of the header; ours is the stricter check
        raw = kind.header_class.from_fileobj(io.BytesIO(data), check=False)
        image = kind.from_bytes(data)
    except _DAMAGE as e:
        raise ScanError(path, f"its NIfTI header cannot be read ({_first_line(e)})") from e
    finally:
        nibabel_log.setLevel(level)
    if raw["magic"].item().startswith(b"ni"):
        raise ScanError(path, "its voxels lie in a separate .img file; convert the pair to one .nii file")
    return image, np.asarray(raw["pixdim"][1:4], np.float64)


def _checked_shape(path: pathlib.Path, header: Any) -> tuple[int, ...]:
    """The shape without trailing axes of length one beyond the third."""
    full = shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4):
        raise ScanError(path, f"its shape is {full}; a scan must have 3 axes (x, y, slice) or 4 (x, y, slice, time)")
    if 0 in shape:
        raise ScanError(path, f"its shape is {full}: there are no voxels")
    return shape


def _geometry(path: pathlib.Path, image: Any, zooms: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """(affine in mm, spacing in mm, whether the spacing is known)."""
    if not (np.isfinite(zooms).all() and (zooms > 0).all()):
        raise ScanError(path, f"its header gives voxel sizes (zooms) of {zooms.tolist()}; each must be above 0")
    unit = int(image.header["xyzt_units"]) & _SPATIAL_CODES
    if unit not in _MM_PER_UNIT:
        raise ScanError(path, f"its header's unit of space is code {unit}, which NIfTI does not define")
    affine = np.array(image.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12 * _MM_PER_UNIT[unit] ** -3:
        raise ScanError(path, "its affine is singular or not finite: voxels have no place in the world")
    affine[:3] *= _MM_PER_UNIT[unit]
    known = unit != 0 or bool((np.abs(zooms - 1.0) > _ZOOM_TOLERANCE).any())
    spacing = (zooms * _MM_PER_UNIT[unit]).astype(np.float32) if known else np.ones(3, np.float32)
    return affine, spacing, known


def _warn_if_elsewhere(mask: Scan, image: Scan) -> None:
    apart = float(np.abs(mask.affine - image.affine).max())
    if apart > _AFFINE_TOLERANCE_MM:
        logging.warning(
            "%s: its affine differs from that of its image by up to %.3g mm; it is taken to lie on the image's voxels",
            mask.path,
            apart,
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
