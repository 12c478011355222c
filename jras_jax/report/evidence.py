"""The evidence of a case as evaluation kept it: slices, masks and the guides that were fetched for each slice."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from jras_jax.report.files import ReportError

BYTES_PER_PIXEL = 1.0  # of a base64-encoded grey PNG of MRI, measured 0.8 to 1.0
SMALLEST_SIDE = 64


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What evaluation kept of one case. Z slices, S pixels a side, K guides a slice (0 without retrieval).

    Attributes:
      name: of the case.
      dice: mean over structures, of the volume.
      image: (Z, S, S) uint8.
      truth, prediction: (Z, S, S) uint8 labels.
      guide_images, guide_masks: (Z, K, S, S) uint8.
      weights, similarity: (Z, K) float32.
      guide_names: (Z, K) str, such as "patient012 ED slice 3".
      wholes: (Z, L, L) uint8, the whole slices, if the network saw crops; None otherwise.
      corners: (4, 2) row and column of the crop's corners in pixels of `wholes`; empty if no heart was found.
      baseline: what the baseline's evaluation kept of the case, if it did; its slices may be cut from the scan in
        another way.
    """

    name: str
    dice: float
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    guide_images: np.ndarray
    guide_masks: np.ndarray
    weights: np.ndarray
    similarity: np.ndarray
    guide_names: np.ndarray
    wholes: np.ndarray | None = None
    corners: np.ndarray | None = None
    baseline: Evidence | None = None

    @property
    def guides(self) -> int:
        """K."""
        return self.guide_images.shape[1]


def load(name: str, path: pathlib.Path, baseline: pathlib.Path | None = None) -> Evidence:
    """Reads an evidence file, and the baseline's file of the same case.

    Raises:
      ReportError: one is no .npz file, lacks an array, or its arrays do not fit together.
    """
    found = _arrays(path, {"image", "truth", "prediction"})
    image = found["image"]
    other = load(name, baseline) if baseline else None
    if other is not None and other.image.shape != image.shape:  # trained at another size
        other = None
    slices, size = image.shape[0], image.shape[-1]
    none = np.zeros((slices, 0, size, size), np.uint8)
    evidence = Evidence(
        name=name,
        dice=float(found.get("dice", math.nan)),
        image=image,
        truth=found["truth"],
        prediction=found["prediction"],
        guide_images=found.get("guide_images", none),
        guide_masks=found.get("guide_masks", none),
        weights=found.get("weights", np.zeros((slices, 0))),
        similarity=found.get("similarity", np.zeros((slices, 0))),
        guide_names=found.get("guide_names", np.zeros((slices, 0), str)),
        wholes=found.get("wholes"),
        corners=found.get("corners"),
        baseline=other,
    )
    wanted = {"truth": image.shape, "prediction": image.shape, "guide_masks": evidence.guide_images.shape}
    wanted |= {key: evidence.guide_images.shape[:2] for key in ("weights", "similarity", "guide_names")}
    for key, shape in wanted.items():
        if getattr(evidence, key).shape != shape:
            raise ReportError(f"{path}: {key} has shape {getattr(evidence, key).shape}, but {shape} fits the images")
    wholes, corners = evidence.wholes, evidence.corners
    if wholes is not None and (len(wholes) != slices or corners is None or corners.shape not in ((4, 2), (0, 2))):
        raise ReportError(f"{path}: wholes and corners do not fit the images; evaluate the run again")
    return evidence


def _arrays(path: pathlib.Path, needed: set[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; raises ReportError if it is damaged or lacks one of those that are needed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as e:
        raise ReportError(f"{path} is not a readable .npz file ({e}); evaluate the run again") from e
    missing = needed - set(found)
    if missing:
        raise ReportError(f"{path} lacks the arrays {', '.join(sorted(missing))}; evaluate the run again")
    return found


def side_within(shown: Sequence[Evidence], budget: int) -> int:
    """Largest side, in pixels, at which the grey images of all cases take at most `budget` bytes of the page."""
    # 2: the baseline's slices may be others.
    count = sum(len(e.image) * (2 + e.guides + (e.wholes is not None)) for e in shown)
    return max(SMALLEST_SIDE, math.isqrt(int(budget / BYTES_PER_PIXEL / max(count, 1))))
