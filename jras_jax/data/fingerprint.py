"""What the volumes of a run hold, in few digits, so that a run notices that its data changed.

The digits depend on voxels, labels, geometry and names alone: neither on the files they were read from, nor on whether
these were zipped.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jras_jax.data.splits import pick
from jras_jax.data.volume import Volume

PARTS = ("train", "validation", "test")
_DIGITS = 32


def fingerprints(volumes: Mapping[str, Sequence[Volume]], splits: Mapping[str, Any]) -> dict[str, str]:
    """{part: 32 hexadecimal digits} of the parts of a run that have patients.

    Args:
      volumes: the data set's own splits, each its volumes.
      splits: as of `make_splits`.
    """
    found = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases Python's lock
        for part in PARTS:
            own = sorted(pick(volumes, splits, part), key=lambda v: (v.patient, v.phase, v.frame, v.name))
            if own:
                whole = hashlib.sha256(b"".join(pool.map(_digest, own)))
                found[part] = whole.hexdigest()[:_DIGITS]
    return found


def changed(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The parts whose data is not what it was; a part that one side lacks is not compared."""
    return [part for part in PARTS if part in saved and part in now and saved[part] != now[part]]


def _digest(volume: Volume) -> bytes:
    facts = (volume.patient, volume.phase, volume.frame, volume.image.shape, bool(volume.spacing_known))
    digest = hashlib.sha256(repr(facts).encode())
    for array in (volume.image, volume.mask, volume.affine, volume.spacing):
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
