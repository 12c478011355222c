"""What a NIfTI header says of a scan's geometry, checked once for every command: build, predict, gallery and score.

Whatever is impossible or contradicts itself is refused, with both values and the remedy. Whatever is unusual but can be
true becomes a remark: one line that the commands print once.

References:
  The NIfTI-1 standard, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import nibabel as nib
import numpy as np

from jras_jax.errors import ScanError

SIZE_TOLERANCE = 1e-3  # relative: headers hold float32, and some writers round
SAME_PLACE_MM = 0.1
SAME_DIRECTION = 0.9  # cosine between two directions of one axis; a mirrored axis gives -1, an exchanged one about 0
_TILTED = 0.9994  # cosine of 2 degrees: from there on a difference is worth a line
_SIZES_MM = (0.05, 50.0)  # no cardiac scan has smaller or larger voxels, of mice or of the thickest slices
_LIKELY_MM = (0.3, 30.0)
_THICKER = 1.5  # an axis whose voxels are so much longer than the third axis' is the one through the slices
_FEWER = 2.0  # without spacing: an axis with so many times fewer voxels than the third is
_SPATIAL_CODES = 0b111  # the bits of `xyzt_units` that hold the unit of space
_MM_PER_UNIT = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}  # NIfTI codes: unknown, metre, millimetre, micron
_UNITS = {0: "not given, so taken as millimetres", 1: "metres", 2: "millimetres", 3: "microns"}
_ZOOM_TOLERANCE = 1e-6
_ORDINAL = ("first", "second", "third")

NO_SPACING = "its header gives no spacing (no unit, and zooms of 1): it is not resampled, and distances are in voxels"
NO_SPACING_HERE = (
    "its header gives no spacing (no unit, and zooms of 1), but the run was trained on scans with known spacing: the "
    "heart is seen at another scale, and the mask is not to be trusted; set the header's zooms and unit"
)
NO_ORIENTATION = "its header gives no orientation (qform and sform codes are 0): left and right are taken as stored"
EMPTY_MASK = "the mask is empty: it labels no voxel"


class Geometry(NamedTuple):
    """(4, 4) affine in RAS+ mm; (3,) float32 spacing in mm, ones if it is not known; remarks, a line each."""

    affine: np.ndarray
    spacing: np.ndarray
    spacing_known: bool
    remarks: tuple[str, ...]


class Placed(Protocol):
    """What `compare` asks of a scan (`nifti.Scan`)."""

    @property
    def array(self) -> np.ndarray: ...
    @property
    def affine(self) -> np.ndarray: ...
    @property
    def spacing(self) -> np.ndarray: ...
    @property
    def spacing_known(self) -> bool: ...
    @property
    def header(self) -> Any: ...
    @property
    def path(self) -> pathlib.Path: ...


def of_image(path: str | os.PathLike[str], image: Any, pixdim: np.ndarray, shape: Sequence[int]) -> Geometry:
    """The geometry that a file's header gives.

    Args:
      path: the file, for messages.
      image: the nibabel image.
      pixdim: (8,) as the file has it; nibabel mends zooms of 0 or below.
      shape: of the scan, 3-D or 4-D.

    Raises:
      ScanError: zooms, unit or affine are impossible, contradict each other, or make voxels of a size that no cardiac
        scan has.
    """
    header, zooms = image.header, np.asarray(pixdim[1:4], np.float64)
    if not (np.isfinite(zooms).all() and (zooms > 0).all()):
        raise ScanError(path, f"its header gives voxel sizes (zooms) of {zooms.tolist()}; each must be above 0")
    unit = int(header["xyzt_units"]) & _SPATIAL_CODES
    if unit not in _MM_PER_UNIT:
        raise ScanError(path, f"its header's unit of space is code {unit}, which NIfTI does not define")
    affine = np.array(image.affine, np.float64)
    scale = _MM_PER_UNIT[unit]
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12 * scale**-3:
        raise ScanError(path, "its affine is singular or not finite: voxels have no place in the world")
    affine[:3] *= scale
    _check_affine(path, zooms * scale, affine)
    known = unit != 0 or bool((np.abs(zooms - 1.0) > _ZOOM_TOLERANCE).any())
    spacing = (zooms * scale).astype(np.float32) if known else np.ones(3, np.float32)
    if known:
        _check_size(path, zooms, unit=unit, shape=shape)
    remarks = _check_forms(path, header)
    if not known:
        remarks.append(NO_SPACING)
        axis = suspected_slice_axis(shape, spacing, known)
        if axis != 2:
            remarks.append(
                f"it has the fewest voxels along the {_ORDINAL[axis]} axis, but slices are read along the third"
            )
    elif not is_placed(header):
        remarks.append(NO_ORIENTATION)
    if len(shape) == 4 and not (np.isfinite(pixdim[4]) and pixdim[4] >= 0):
        remarks.append(f"its header gives {pixdim[4]:g} as the time between two frames, which means nothing")
    return Geometry(affine, spacing, spacing_known=known, remarks=tuple(remarks))


def is_placed(header: Any) -> bool:
    """Whether a header says where its voxels are: a qform or sform code above 0."""
    return bool(int(header["sform_code"]) or int(header["qform_code"]))


def suspected_slice_axis(shape: Sequence[int], spacing: Sequence[float] | np.ndarray, spacing_known: bool) -> int:
    """The axis (0, 1 or 2) that seems to run through the slices; warnings and refusals depend on it, reading does not.

    It is the third unless another has voxels at least 1.5 times as long as the third's; if the spacing is not known,
    unless another has less than half as many voxels as the third.
    """
    sizes, counts = np.asarray(spacing, np.float64), np.asarray(shape[:3])
    if spacing_known:
        other = int(np.argmax(sizes))
        return other if sizes[other] >= _THICKER * sizes[2] else 2
    other = int(np.argmin(counts))
    return other if _FEWER * counts[other] < counts[2] else 2


def require_slices_last(scan: Placed) -> None:
    """Raises ScanError if a scan's slices seem to run along another axis than the third."""
    shape = scan.array.shape[:3]
    axis = suspected_slice_axis(shape, scan.spacing, scan.spacing_known)
    if axis == 2:
        return
    size = f" of {sizes_text(scan.spacing)} mm" if scan.spacing_known else ""
    raise ScanError(
        scan.path,
        f"its slices seem to run along the {_ORDINAL[axis]} axis ({' x '.join(map(str, shape))} voxels{size}), but "
        "they must run along the third; reorder the axes of the scan and of its mask, and the columns of their affines "
        "(nibabel: Nifti1Image.as_reoriented)",
    )


def compare(mask: Placed, image: Placed, role: str = "image", hint: str = "") -> list[str]:
    """Whether two files of one shape are on one grid.

    Args:
      mask, image: the two; the mask is the one that messages blame.
      role: what `image` is to `mask`.
      hint: the remedy that ends the errors.

    Returns:
      Remarks on what differs without harm.

    Raises:
      ScanError: the voxel sizes differ, or an axis is mirrored or exchanged with another.
    """
    hint = hint or "write the mask on the grid of its image, with the image's header"
    if not mask.spacing_known:
        return [f"its header holds no voxel size; that of its {role} is used"] if image.spacing_known else []
    if not image.spacing_known:
        remarks = [f"its header gives voxels of {sizes_text(mask.spacing)} mm, that of its {role} gives no size"]
    elif not np.allclose(image.spacing, mask.spacing, rtol=SIZE_TOLERANCE, atol=0):
        sizes = [sizes_text(s.spacing) for s in (mask, image)]
        raise ScanError(mask.path, f"its voxels are {sizes[0]} mm, those of its {role} {sizes[1]} mm; {hint}")
    else:
        remarks = []
    if not (is_placed(mask.header) and is_placed(image.header)):
        return remarks
    cosines = _cosines(mask.affine, image.affine)
    worst = int(np.argmin(cosines))
    if cosines[worst] < SAME_DIRECTION:
        how = "is mirrored" if cosines[worst] < -SAME_DIRECTION else "runs in another direction"
        raise ScanError(
            mask.path,
            f"its axes run in other directions than those of its {role} {image.path}: by the two affines the "
            f"{_ORDINAL[worst]} axis {how} ({_column(mask.affine, worst)} against {_column(image.affine, worst)} mm a "
            f"voxel); {hint}",
        )
    apart = float(np.abs(image.affine - mask.affine).max())
    if apart > SAME_PLACE_MM:
        remarks.append(f"its affine is up to {apart:.3g} mm off its {role}'s; compared voxel by voxel")
    return remarks


def sizes_text(sizes: np.ndarray) -> str:
    """'1.25 x 1.25 x 8'."""
    return " x ".join(f"{float(s):.4g}" for s in sizes)


def _check_affine(path: str | os.PathLike[str], sizes: np.ndarray, affine: np.ndarray) -> None:
    """Refuses a pixdim (mm) that is not the length of the affine's columns."""
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(norms, sizes, rtol=SIZE_TOLERANCE, atol=0):
        raise ScanError(
            path,
            f"its header contradicts itself: voxels are {sizes_text(sizes)} mm by pixdim, but {sizes_text(norms)} mm "
            "by its affine (sform); correct the wrong one, or convert the scan again from its source",
        )


def _check_size(path: str | os.PathLike[str], zooms: np.ndarray, unit: int, shape: Sequence[int]) -> None:
    """Refuses voxels of a size that no cardiac scan has, and says which unit would make them plausible."""
    counted = np.array(shape[:3]) > 1  # the thickness of a single slice may be anything
    counted = counted if counted.any() else np.ones(3, bool)
    own = zooms[counted] * _MM_PER_UNIT[unit]
    if (own >= _SIZES_MM[0]).all() and (own <= _SIZES_MM[1]).all():
        return
    units = (("millimetres", 1.0), ("metres", 1e3), ("microns", 1e-3), ("centimetres", 10.0))
    fits = [
        f"in {name} they would be {sizes_text(zooms * factor)} mm"
        for name, factor in units
        if (zooms[counted] * factor >= _LIKELY_MM[0]).all() and (zooms[counted] * factor <= _LIKELY_MM[1]).all()
    ]
    better = f"; {fits[0]}" if fits else ""
    raise ScanError(
        path,
        f"its voxels would be {sizes_text(zooms * _MM_PER_UNIT[unit])} mm (zooms {sizes_text(zooms)}, unit "
        f"{_UNITS[unit]}), which no cardiac scan has{better}. Correct the header's zooms, or their unit (xyzt_units)",
    )


def _check_forms(path: str | os.PathLike[str], header: Any) -> list[str]:
    """Refuses an sform and a qform that both have codes but point elsewhere; a remark on a small difference."""
    if not (int(header["sform_code"]) and int(header["qform_code"])):
        return []
    try:
        quaternion = np.asarray(header.get_qform())
        cosines = _cosines(np.asarray(header.get_sform()), quaternion)
        valid = bool(np.isfinite(quaternion).all() and np.isfinite(cosines).all())
    except (ValueError, nib.spatialimages.HeaderDataError):
        valid = False
    if not valid:
        raise ScanError(path, "its qform is not a rotation; correct it, or set its code to 0 if the sform is right")
    worst = int(np.argmin(cosines))
    angle = np.degrees(np.arccos(np.clip(cosines[worst], -1, 1)))
    if cosines[worst] < SAME_DIRECTION:
        pair = [_column(np.asarray(form), worst) for form in (header.get_sform(), quaternion)]
        raise ScanError(
            path,
            f"its sform and its qform, which both have codes, contradict each other: the {_ORDINAL[worst]} axis "
            f"points {angle:.0f} degrees apart ({pair[0]} against {pair[1]} a voxel); set the code of the wrong one to "
            "0",
        )
    if cosines[worst] < _TILTED:
        return [f"its sform and its qform differ by {angle:.0f} degrees; the sform is used"]
    return []


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(3,) cosines between the axes of two affines."""
    with np.errstate(all="ignore"):
        axes = [m[:3, :3] / np.linalg.norm(m[:3, :3], axis=0) for m in (a, b)]
    return (axes[0] * axes[1]).sum(0)


def _column(affine: np.ndarray, axis: int) -> str:
    return "(" + ", ".join(f"{v:.3g}" for v in affine[:3, axis]) + ")"
