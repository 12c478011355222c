"""The J-RAS paper's protocol, for study only: slices instead of patients are the units that train, validate and test.

A slice becomes a volume of its own, of a patient of its own. What splits by patient then splits slices at random, so
that slices of one person are on both sides, as in the authors' published scripts (arXiv 2510.09953).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jras_jax.data.volume import Volume


def as_slices(volumes: Sequence[Volume]) -> list[Volume]:
    """Every slice (X, Y, 1) of labelled volumes that has foreground, named as 'patient001_ED03', slices from 1."""
    return [_slice(volume, z) for volume in volumes for z in _labelled(volume)]


def _labelled(volume: Volume) -> np.ndarray:
    assert volume.mask is not None
    return np.flatnonzero(volume.mask.any((0, 1)))


def _slice(volume: Volume, z: int) -> Volume:
    assert volume.mask is not None
    affine = volume.affine.copy()
    affine[:3, 3] += z * affine[:3, 2]
    return dataclasses.replace(
        volume,
        image=np.ascontiguousarray(volume.image[:, :, z : z + 1]),
        mask=np.ascontiguousarray(volume.mask[:, :, z : z + 1]),
        affine=affine,
        patient=f"{volume.patient}_{volume.phase}{z + 1:02d}",
    )
