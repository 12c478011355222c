"""DICOM series as NIfTI files, read by SimpleITK (ITK and GDCM): an extra, `pip install '.[dicom]'`.

A cine series has several images at each position; it becomes one 4-D file, its frames in the order of their trigger
times (of their instance numbers, if they have none).
"""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import nibabel as nib
import numpy as np

from jras_jax import files
from jras_jax.data import nifti
from jras_jax.errors import ScanError, UserError, printable

_POSITION, _ORIENTATION, _TRIGGER, _INSTANCE = "0020|0032", "0020|0037", "0018|1060", "0020|0013"
_NUMBER = "0020|0011"  # of a series
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes point left and back, NIfTI's right and front
_SAME = 1e-3  # mm, between images at one position
_EVEN = 0.05  # largest deviation of a gap between slices, as a share of their distance


def holds_series(folder: pathlib.Path) -> bool:
    """Whether a folder or one below it holds a DICOM file."""
    return folder.is_dir() and any(True for _ in _files(folder))


def convert(source: pathlib.Path, output: pathlib.Path, note: Callable[[str], None]) -> list[pathlib.Path]:
    """Writes each series below a folder as NIfTI: FOLDER.nii.gz, of several series in it FOLDER_SERIESNUMBER.nii.gz.

    Args:
      source: folder with DICOM files.
      output: an empty folder; subfolders of `source` are kept.
      note: takes a line on each series that cannot be read.

    Raises:
      UserError: SimpleITK is not installed, or no series can be read.
    """
    try:
        import SimpleITK as sitk
    except ImportError as e:
        raise UserError(f"{source} holds DICOM files, which need SimpleITK: pip install '.[dicom]'") from e
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    written: list[pathlib.Path] = []
    for folder in sorted({path.parent for path in _files(source)}):
        found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        for number, series in enumerate(found, 1):
            names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)
            try:
                array, affine, label = _read(sitk, folder, names)
            except ScanError as e:
                note(f"passed over: {e}")
                continue
            stem = files.safe_name(folder.resolve().name)
            stem += f"_{label or number}" if len(found) > 1 else ""
            path = output / folder.relative_to(source) / f"{stem}.nii.gz"
            path = path.with_name(f"{stem}_{number}.nii.gz") if path in written else path
            image = nib.Nifti1Image(array, affine)
            image.header.set_xyzt_units("mm")
            image.set_sform(affine, 1)
            image.set_qform(affine, 1)
            nifti.write_image(path, image, 1)
            written.append(path)
    if not written:
        raise UserError(f"{source}: none of its DICOM series can be read")
    return written


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """DICOM files, known by their magic."""
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or path.name == "DICOMDIR" or not path.is_file():
            continue
        try:
            with path.open("rb") as f:
                start = f.read(132)
        except OSError:
            continue
        if start[128:] == b"DICM":
            yield path


def _read(sitk: Any, folder: pathlib.Path, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, str]:
    """A series as (X, Y, Z) or (X, Y, Z, T) float32, its affine (RAS+ mm), and its number.

    Raises:
      ScanError: the images do not form a stack.
    """
    images = [_header(sitk, folder, name) for name in names]
    turned = {tuple(np.round(i["orientation"], 4)) for i in images}
    if len(turned) > 1:
        raise ScanError(folder, f"a series of {len(names)} images has {len(turned)} orientations; split it by view")
    along = np.cross(images[0]["orientation"][:3], images[0]["orientation"][3:])
    places: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
    for image in images:
        places[round(float(along @ image["position"]) / _SAME)].append(image)
    stacks = [sorted(places[at], key=lambda i: i["time"]) for at in sorted(places)]
    if len({len(stack) for stack in stacks}) > 1:
        counts = sorted({len(stack) for stack in stacks})
        raise ScanError(
            folder, f"a series has {counts[0]} to {counts[-1]} frames, not the same number at each position"
        )
    gaps = np.diff(np.array(sorted(places)) * _SAME)
    if len(gaps) and np.ptp(gaps) > _EVEN * gaps.mean():
        raise ScanError(
            folder, f"the gaps of a series are {gaps.min():.2f} to {gaps.max():.2f} mm; is a slice missing?"
        )
    frames = [_volume(sitk, folder, [stack[t]["name"] for stack in stacks]) for t in range(len(stacks[0]))]
    array = np.stack([sitk.GetArrayFromImage(f).T for f in frames], -1).astype(np.float32)
    return array if len(frames) > 1 else array[..., 0], _affine(frames[0], along, gaps), images[0]["number"]


def _header(sitk: Any, folder: pathlib.Path, name: str) -> dict[str, Any]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    try:
        reader.ReadImageInformation()
        numbers = lambda key: np.array([float(x) for x in reader.GetMetaData(key).split("\\")])  # noqa: E731
        has = reader.HasMetaDataKey
        time = tuple(float(reader.GetMetaData(key)) if has(key) else 0.0 for key in (_TRIGGER, _INSTANCE))
        number = reader.GetMetaData(_NUMBER).strip() if has(_NUMBER) else ""
        position, orientation = numbers(_POSITION), numbers(_ORIENTATION)
    except (RuntimeError, ValueError) as e:
        raise ScanError(folder, f"{printable(pathlib.Path(name).name)} lacks position or orientation") from e
    if len(position) != 3 or len(orientation) != 6:
        raise ScanError(folder, f"{printable(pathlib.Path(name).name)} lacks position or orientation")
    return {"name": name, "position": position, "orientation": orientation, "time": time, "number": number}


def _volume(sitk: Any, folder: pathlib.Path, names: Sequence[str]) -> Any:
    """Images at rising positions as one SimpleITK image."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    try:
        return reader.Execute()
    except RuntimeError as e:
        reason = str(e).strip().splitlines()[-1][:200]
        raise ScanError(folder, f"a series cannot be read ({reason})") from e


def _affine(image: Any, along: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Voxel to world (RAS+, mm) of a SimpleITK image; a single slice has the thickness that its header says."""
    spacing = np.array(image.GetSpacing())
    direction = np.array(image.GetDirection()).reshape(3, 3)
    if len(gaps):
        spacing[2], direction[:, 2] = gaps.mean(), along
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = image.GetOrigin()
    return _LPS @ affine
