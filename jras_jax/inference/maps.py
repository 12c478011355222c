"""Maps beside a mask: the probability of each class, and how uncertain the model is; compressed NIfTI, or PNG for PNG.

A file holds uint16 with the scale in its header (scl_slope), which every NIfTI reader applies: 65536 equal steps from 0
to 1, finer near 1 than float16, which NIfTI does not have, at the same size. A 4-D scan gives 4-D maps. The map of a
picture is a PNG of 16 bits, in which 65535 is 1.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jras_jax.data import DatasetDescription, images, pictures
from jras_jax.data.nifti import Scan
from jras_jax.errors import UserError, printable
from jras_jax.inference.predictions import VolumePrediction

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS = 65535


class Wanted(NamedTuple):
    """Which maps are written beside the masks."""

    probabilities: bool = False
    uncertainty: bool = False


def paths(mask: pathlib.Path, wanted: Wanted, description: DatasetDescription) -> list[pathlib.Path]:
    """Where the maps of a mask go: those of the classes, the background first, then the uncertainty."""
    names: list[str] = []
    if wanted.probabilities:
        plain = [re.sub(r"[^\w-]+", "_", name) for name in description.classes]
        if len({name.lower() for name in plain}) < len(plain):  # also on file systems that ignore case
            plain = [f"{label}_{name}" for label, name in enumerate(plain)]
        names = [f"probability_{name}" for name in plain]
    if wanted.uncertainty:
        names.append("uncertainty")
    suffix = ".png" if pictures.is_picture(mask) else ".nii.gz"
    return [mask.with_name(f"{images.stem(mask)}_{name}{suffix}") for name in names]


def write(
    mask: pathlib.Path,
    scan: Scan,
    predictions: Sequence[VolumePrediction],
    wanted: Wanted,
    description: DatasetDescription,
    cine: bool,
) -> Iterator[pathlib.Path]:
    """Writes the maps of a scan one by one, and gives the path of each that is about to be written.

    The uncertainty of a voxel is the entropy of its class probabilities as a share of the largest possible, ln C: 0
    where one class is certain, 1 where all are equally probable.

    Args:
      mask: the path of the mask that they belong to.
      scan: on whose grid they are.
      predictions: of each frame.
      wanted, description: which maps, and what the classes are called.
      cine: whether the scan's fourth axis is time, and the maps have it too.

    Raises:
      UserError: a file that is no map of this program has the name of one, or a map cannot be written.
    """
    places = paths(mask, wanted, description)
    for path in places:
        if (path.exists() or path.is_symlink()) and not images.is_own_map(path):
            raise UserError(f"{printable(path)} exists and is not a map of this program: give another --output")
    if not places:
        return
    steps = [_steps(prediction, wanted) for prediction in predictions]
    for index, path in enumerate(places):
        yield path
        values = np.stack([frame[index] for frame in steps], -1)
        images.write_map(path, values if cine else values[..., 0], like=scan, step=1 / STEPS)


def _steps(prediction: VolumePrediction, wanted: Wanted) -> list[np.ndarray]:
    """The maps of a frame, each (X, Y, Z) uint16 in steps of 1 / `STEPS`."""
    shares = np.clip(prediction.probabilities, 0.0, 1.0)
    kept = [shares[..., c] for c in range(shares.shape[-1])] if wanted.probabilities else []
    if wanted.uncertainty:
        entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(-1)
        kept.append(np.clip(entropy / math.log(shares.shape[-1]), 0.0, 1.0))
    return [np.round(x * STEPS).astype(np.uint16) for x in kept]
