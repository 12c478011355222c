"""The geometry contract: how scans and masks are read from NIfTI files, and how a mask is written back.

Axes are those of nibabel: X and Y in the image plane, Z through the slices, T the time frames. World coordinates are
RAS+ in millimetres, whatever unit the header is in. A mask takes affine, form codes, shape, zooms and units from the
header of its scan, bit for bit, and nothing else: the header's texts may name the patient.

References:
  The NIfTI-1 standard, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import logging as std_logging
import math
import os
import pathlib
import zlib
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np

from jras_jax import files
from jras_jax.data import geometry
from jras_jax.errors import ScanError

MAX_BYTES = 4 << 30  # of a file once it is unzipped; a cine of 50 frames of 512 x 512 x 20 voxels has 0.5 GB
MAX_INTENSITY = 1e30  # beyond it differences overflow in float32
_SLACK = 64 << 20  # so many bytes may follow the voxels that the header describes
_CHUNK = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
MARK = b"segmentation by jras_jax"  # the description in the header of a mask
MAP_MARK = b"map by jras_jax"  # and of a map of probabilities or uncertainty
# What a mask takes from the header of its scan, beside the shape. The texts (descrip, aux_file, db_name, intent_name)
# and the extensions may name the patient.
_GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
    *("dim_info", "slice_start", "slice_end", "slice_code", "slice_duration", "toffset"),
)
_LARGEST_HEADER = 540  # bytes, of NIfTI-2
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
      remarks: what is unusual about the file, a line each without its name; the commands print them once
        (`data.remarks`).
    """

    array: np.ndarray
    affine: np.ndarray
    spacing: np.ndarray
    spacing_known: bool
    header: Any
    path: pathlib.Path
    remarks: tuple[str, ...] = ()


@np.errstate(all="ignore")  # what overflows in headers or scaling ends as infinity or NaN, which is refused
def read_scan(path: str | os.PathLike[str]) -> Scan:
    """Reads a 3-D or 4-D scan from a .nii or .nii.gz file (NIfTI-1 or NIfTI-2).

    Args:
      path: the file.

    Returns:
      The scan, intensities as float32 with the header's slope and intercept applied.

    Raises:
      ScanError: the file is missing, damaged, cut short, no NIfTI image, not 3-D or 4-D, empty along an axis, not
        real-valued, holds NaN, infinity or values beyond 1e30, unpacks to more than `MAX_BYTES`, or a rule of
        `geometry.of_image` is broken.
    """
    path = pathlib.Path(path)
    image, pixdim = _parse(path, _read_bytes(path))
    shape = _checked_shape(path, image.header)
    affine, spacing, known, remarks = geometry.of_image(path, image, pixdim=pixdim, shape=shape)
    try:
        array = np.asarray(image.dataobj)
        kind = array.dtype.kind
        array = array.astype(np.float32) if kind in "biuf" else array
    except _DAMAGE as e:
        raise ScanError(path, f"its voxels cannot be read, the file is damaged or cut short ({_first_line(e)})") from e
    if kind not in "biuf":
        raise ScanError(path, f"its voxels are of type {image.get_data_dtype()}, not plain numbers (a greyscale image)")
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise ScanError(path, f"{bad} of its {array.size} voxels are NaN or infinite")
    largest = float(max(array.max(), -array.min()))
    if largest > MAX_INTENSITY:
        raise ScanError(path, f"its voxels hold values of up to {largest:.3g}; the file is damaged, or of another type")
    return Scan(
        array.reshape(shape),
        affine,
        spacing=spacing,
        spacing_known=known,
        header=image.header,
        path=path,
        remarks=remarks,
    )


def read_labels(
    path: str | os.PathLike[str],
    *,
    like: Scan | None = None,
    allowed: Collection[int] | None = None,
) -> Scan:
    """Reads a label map; the same rules as `read_scan`, and those of masks.

    Args:
      path: the file.
      like: the scan it belongs to; the shapes must be equal, and so must voxel sizes and directions if both headers
        give them (`geometry.compare`). An affine that is shifted is only remarked on: the data sets draw their masks on
        the voxel grid, and published files do carry such headers.
      allowed: the values it may hold; None allows 0 to 255.

    Returns:
      The scan, its array as uint8.

    Raises:
      ScanError: as `read_scan`; or a value is no integer, below 0, above 255 or not allowed, or the grid is not that
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
    remarks = [*scan.remarks, *([] if labels.any() else [geometry.EMPTY_MASK])]
    if like is not None:
        if labels.shape != like.array.shape:
            raise ScanError(
                path, f"its shape {labels.shape} is not that of its image, {like.array.shape} ({like.path})"
            )
        if like.header["descrip"].item().startswith(MARK):
            raise ScanError(like.path, "is a mask written by this program, not a scan; put the scan in its place")
        remarks += geometry.compare(scan, like)
    return dataclasses.replace(scan, array=labels, remarks=tuple(remarks))


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
    if mask.dtype != np.uint8 or mask.shape != like.array.shape:
        raise ValueError(f"mask is {mask.dtype} {mask.shape}, it must be uint8 {like.array.shape}")
    _write_like(pathlib.Path(path), mask, like=like, mark=MARK, slope=1.0)


def write_map(path: str | os.PathLike[str], steps: np.ndarray, like: Scan, step: float) -> None:
    """Writes numbers on the grid of a scan, as `write_mask` does: `steps` uint16 times `step`, the header's scl_slope.

    Raises:
      ValueError: the type or shape is not as said.
      FileError: the file cannot be written.
    """
    if steps.dtype != np.uint16 or steps.shape != like.array.shape:
        raise ValueError(f"map is {steps.dtype} {steps.shape}, it must be uint16 {like.array.shape}")
    _write_like(pathlib.Path(path), steps, like=like, mark=MAP_MARK, slope=step)


def _write_like(path: pathlib.Path, values: np.ndarray, like: Scan, mark: bytes, slope: float) -> None:
    header = type(like.header)()  # without extensions, which often hold patient data
    header.set_data_dtype(values.dtype)
    header.set_data_shape(like.header.get_data_shape())
    for field in _GEOMETRY:
        header[field] = like.header[field]
    header["descrip"] = mark
    image = _IMAGES[header.sizeof_hdr](values.reshape(header.get_data_shape()), header.get_best_affine(), header)
    image.header.set_slope_inter(slope, 0)
    write_image(path, image)


def write_image(path: str | os.PathLike[str], image: Any, compresslevel: int = 6) -> None:
    """Writes a nibabel image in one step: a reader sees the old file or the whole new one.

    Args:
      path: where to, gzipped if it ends in .gz; folders on the way are made.
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
    return _has_mark(path, MARK)


def is_own_map(path: str | os.PathLike[str]) -> bool:
    """Whether a NIfTI file is a map that `write_map` wrote, by its header; False if it cannot be read."""
    return _has_mark(path, MAP_MARK)


def _has_mark(path: str | os.PathLike[str], mark: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(2)
            file.seek(0)
            if start == _GZIP_MAGIC:
                with gzip.GzipFile(fileobj=file) as unzipped:
                    return mark in unzipped.read(_LARGEST_HEADER)
            return mark in file.read(_LARGEST_HEADER)
    except _DAMAGE:
        return False


_IMAGES = {348: nib.Nifti1Image, 540: nib.Nifti2Image}  # by the header's size in bytes


def _read_bytes(path: pathlib.Path) -> bytes:
    """Header and voxels; a zipped file is read to its end, so that gzip's checksum is checked too.

    No more memory is taken than the header describes, and no more than `MAX_BYTES`.
    """
    if not path.exists():
        absent = (
            "it is a link to a file that is not there (git annex get?)" if path.is_symlink() else "the file is missing"
        )
        raise ScanError(path, absent)
    if not path.is_file():
        raise ScanError(path, "not a file")
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == _GZIP_MAGIC
            file.seek(0)
            if not zipped:
                return _described(path, file)
            with gzip.GzipFile(fileobj=file) as unzipped:  # of several members too, as bgzip writes them
                data = _described(path, unzipped)
                _read_to_the_end(path, unzipped, len(data))
                return data
    except _DAMAGE as e:
        raise ScanError(path, f"cannot be read, the file is damaged or cut short ({_first_line(e)})") from e


def _described(path: pathlib.Path, file: BinaryIO | gzip.GzipFile) -> bytes:
    """As many bytes as the header describes; fewer if the file ends before."""
    data = bytearray(file.read(max(_IMAGES)))
    kind = _kind(data)
    if kind is None:
        raise ScanError(path, "not a NIfTI image: it does not begin with a NIfTI header")
    header = _raw_header(path, kind, bytes(data))
    try:
        voxels = math.prod(max(0, int(n)) for n in header.get_data_shape())
        wanted = max(int(header["vox_offset"]), len(data)) + voxels * max(0, int(header["bitpix"])) // 8
    except _DAMAGE as e:  # numbers that are none, such as an offset of NaN
        raise ScanError(path, f"its NIfTI header cannot be read ({_first_line(e)})") from e
    if wanted > MAX_BYTES:
        raise ScanError(path, f"its header describes {wanted} bytes, and more than {MAX_BYTES} are not read")
    while len(data) < wanted and (block := file.read(min(_CHUNK, wanted - len(data)))):
        data += block
    return bytes(data)


def _read_to_the_end(path: pathlib.Path, file: gzip.GzipFile, before: int) -> None:
    """Reads what follows the voxels, and keeps none of it."""
    rest = 0
    while block := file.read(_CHUNK):
        rest += len(block)
        if rest > _SLACK:
            raise ScanError(
                path, f"it unpacks to more than {before + _SLACK} bytes, but its header describes {before}: not a scan"
            )


def _kind(data: bytes | bytearray) -> Any:
    """nibabel's image class by the header's first number, in either byte order; None if these are no such bytes."""
    size = {int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big")}
    return next((kind for length, kind in _IMAGES.items() if length in size and len(data) >= length), None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences nibabel, which reports its repairs of the header; ours is the stricter check."""
    log = std_logging.getLogger("nibabel.global")
    level = log.level
    try:
        log.setLevel(std_logging.CRITICAL)
        yield
    finally:
        log.setLevel(level)


def _raw_header(path: pathlib.Path, kind: Any, data: bytes) -> Any:
    """The header as the file has it."""
    try:
        with _quiet():
            return kind.header_class.from_fileobj(io.BytesIO(data), check=False)
    except _DAMAGE as e:
        raise ScanError(path, f"its NIfTI header cannot be read ({_first_line(e)})") from e


def _parse(path: pathlib.Path, data: bytes) -> tuple[Any, np.ndarray]:
    """(a nibabel image over the bytes, (8,) pixdim as the file has it: nibabel mends zooms of 0 or below)."""
    kind = _kind(data)
    raw = _raw_header(path, kind, data)
    try:
        with _quiet():
            image = kind.from_bytes(data)
    except _DAMAGE as e:
        raise ScanError(path, f"its NIfTI header cannot be read ({_first_line(e)})") from e
    if raw["magic"].item().startswith(b"ni"):
        raise ScanError(path, "its voxels are in a separate .img file; convert the pair to one .nii file")
    return image, np.asarray(raw["pixdim"], np.float64)


def _checked_shape(path: pathlib.Path, header: Any) -> tuple[int, ...]:
    """The shape without trailing axes of length one beyond the third."""
    full = shape = tuple(int(n) for n in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4):
        raise ScanError(path, f"its shape is {full}; a scan must have 3 axes (x, y, slice) or 4 (x, y, slice, time)")
    if min(shape) < 1:
        raise ScanError(path, f"its shape is {full}: there are no voxels")
    return shape


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
