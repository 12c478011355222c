"""Single 2-D images and their masks: PNG, TIFF, BMP and JPEG, as scans of one slice without a known spacing.

Axes are those of the project: X the columns, Y the rows, one slice. Reference: Pillow, https://pillow.readthedocs.io.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
from typing import Any

import numpy as np
import PIL.Image
import PIL.PngImagePlugin

from jras_jax import files
from jras_jax.data.nifti import MAP_MARK, MARK, Scan
from jras_jax.errors import ScanError

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
LOSSY = (".jpg", ".jpeg")  # no format for masks
_VIEW = np.diag([-1.0, -1.0, 1.0, 1.0])  # what is stored is shown as it is: columns to the patient's left, rows down
_COLOURED = ("RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "P", "PA", "RGBX")


def is_picture(path: pathlib.Path) -> bool:
    """Whether a file's name is that of a 2-D image."""
    return path.suffix.lower() in SUFFIXES


def read_picture(path: str | os.PathLike[str]) -> Scan:
    """Reads an image: its array (X, Y, 1), or (X, Y, 1, 3) if its colours are not grey. Transparency is dropped.

    Raises:
      ScanError: the file is missing, damaged, no image, or holds several pages.
    """
    path = pathlib.Path(path)
    image = _opened(path)
    if image.mode in _COLOURED:
        pixels = np.asarray(image.convert("RGB"), np.float32)
        pixels = pixels[..., 0] if (pixels == pixels[..., :1]).all() else pixels
    else:
        pixels = np.asarray(image.convert("L") if image.mode in ("LA", "La", "1") else image, np.float32)
    if not np.isfinite(pixels).all():
        raise ScanError(path, "some of its pixels are NaN or infinite")
    array = np.ascontiguousarray(np.moveaxis(pixels, 0, 1)[:, :, None])
    return Scan(array, _VIEW.copy(), spacing=np.ones(3, np.float32), spacing_known=False, header=None, path=path)


def read_picture_labels(path: str | os.PathLike[str], like: Scan) -> Scan:
    """Reads a mask of whole numbers, (X, Y, 1) uint8; of a palette the indices count, a two-valued image holds 0 and 1.

    Raises:
      ScanError: as `read_picture`; or a lossy format, colours, values beyond 0 to 255, or another size than `like`.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() in LOSSY:
        raise ScanError(path, "JPEG changes the values of a mask; save it as PNG")
    image = _opened(path)
    pixels = np.asarray(image)
    if pixels.ndim == 3:
        colours = pixels[..., :3] if image.mode in ("RGB", "RGBA") else pixels[..., :1]
        if (colours != colours[..., :1]).any():
            raise ScanError(path, "a mask must hold one number per pixel, but this one has colours; save class numbers")
        pixels = colours[..., 0]
    values = np.rint(pixels.astype(np.float64))
    if np.abs(pixels - values).max() > 1e-4 or values.min() < 0 or values.max() > 255:
        raise ScanError(
            path, f"a mask must hold whole numbers of 0 to 255, it holds {pixels.min():g} to {pixels.max():g}"
        )
    array = np.ascontiguousarray(values.T[:, :, None].astype(np.uint8))
    if array.shape != like.array.shape[:3]:
        size, other = (" x ".join(map(str, a.shape[:2])) for a in (array, like.array))
        raise ScanError(path, f"it has {size} pixels, but its image {other} ({like.path}); they must be equal")
    return dataclasses.replace(like, array=array, path=path, remarks=())


def write_picture_mask(path: str | os.PathLike[str], mask: np.ndarray) -> None:
    """Writes a mask (X, Y, 1) uint8 as PNG, marked as of this program; raises FileError."""
    _write(pathlib.Path(path), mask, MARK)


def write_picture_map(path: str | os.PathLike[str], steps: np.ndarray) -> None:
    """Writes numbers (X, Y, 1) uint16 as PNG of 16 bits, marked as a map of this program; raises FileError."""
    _write(pathlib.Path(path), steps, MAP_MARK)


def is_own_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a PNG is a mask or a map of this program; False if it cannot be read."""
    return _description(path) in (MARK.decode(), MAP_MARK.decode())


def is_own_picture_map(path: str | os.PathLike[str]) -> bool:
    """Whether a PNG is a map that `write_picture_map` wrote; False if it cannot be read."""
    return _description(path) == MAP_MARK.decode()


def _write(path: pathlib.Path, values: np.ndarray, mark: bytes) -> None:
    image = PIL.Image.fromarray(np.ascontiguousarray(values[:, :, 0].T))
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("Description", mark.decode())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text)
    with files.replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _description(path: str | os.PathLike[str]) -> Any:
    try:
        with PIL.Image.open(path) as image:
            return image.info.get("Description")
    except (OSError, ValueError):
        return None


def _opened(path: pathlib.Path) -> Any:
    """The image with its pixels read."""
    if not path.is_file():
        raise ScanError(path, "the file is missing")
    try:
        image = PIL.Image.open(path)
        if getattr(image, "n_frames", 1) > 1:
            raise ScanError(path, "holds several pages; save each as a file, or all as a NIfTI volume")
        image.load()
    except (OSError, ValueError, SyntaxError, MemoryError, PIL.Image.DecompressionBombError) as e:
        raise ScanError(path, f"cannot be read as an image ({str(e).splitlines()[0] if str(e) else e!r})") from e
    return image
