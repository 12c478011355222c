"""What a model says of slices and volumes: probabilities, labels on the scan, guides, and signs of doubt."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jras_jax.data.dice import dice
from jras_jax.data.frame import Located
from jras_jax.data.grid import GridMap, VolumeSlices
from jras_jax.data.resampling import winners


class SlicePredictions(NamedTuple):
    """Per slice, on the model grid.

    Attributes:
      probabilities: (n, S, S, C) float32.
      indices: (n, K) int32 gallery rows; K = 0 without retrieval.
      weights, similarity: (n, K) float32.
      agreement: (n,) float32, mean Dice among the guide masks; NaN without retrieval.
    """

    probabilities: np.ndarray
    indices: np.ndarray
    weights: np.ndarray
    similarity: np.ndarray
    agreement: np.ndarray


def joined(parts: Iterable[SlicePredictions]) -> SlicePredictions:
    """The predictions of slices that were made in parts, in their order."""
    return SlicePredictions(*(np.concatenate(p) for p in zip(*parts, strict=True)))


@dataclasses.dataclass(frozen=True)
class VolumePrediction:
    """One segmented volume.

    Attributes:
      labels: (X, Y, Z) uint8 on the native grid, project labels.
      images: (Z, S, S[, C]) uint8, the slices as the model saw them.
      masks: (Z, S, S) uint8, the true labels on the model grid; None if the volume has no mask.
      slices: the model's output for each slice.
      mapping: between the two grids.
      entropy: mean predictive entropy over the predicted foreground and its rim, nats.
      patient: the gallery's number of the volume's patient, for the leak rule; -1 if not in the gallery.
      located: the frame in which it was segmented; None if the model sees whole slices.
      expected_dice: the Dice that the probabilities expect of their own mask, see `expected_dice`; NaN if not computed.
      averaged: (X, Y, Z, C) float32, the mean probabilities of an ensemble, in place of those of `slices`; else None.
    """

    labels: np.ndarray
    images: np.ndarray
    masks: np.ndarray | None
    slices: SlicePredictions
    mapping: GridMap
    entropy: float
    patient: int = -1
    located: Located | None = None
    expected_dice: float = float("nan")
    averaged: np.ndarray | None = None

    @property
    def wholes(self) -> np.ndarray:
        """The slices by which the scan is recognised, as `VolumeSlices.wholes`."""
        return self.images if self.located is None else self.located.wholes

    @property
    def probabilities(self) -> np.ndarray:
        """(X, Y, Z, C) float32 class probabilities on the native grid; background outside the model grid."""
        if self.averaged is not None:
            return self.averaged
        return self.mapping.probabilities_to_native(self.slices.probabilities)


def on_scan(slices: VolumeSlices, predicted: SlicePredictions, patient: int) -> VolumePrediction:
    """A volume's prediction, brought from the model grid to its native one."""
    entropy, expected = (f(predicted.probabilities) for f in (predictive_entropy, expected_dice))
    return VolumePrediction(
        slices.mapping.to_native(predicted.probabilities),
        slices.images,
        masks=slices.masks,
        slices=predicted,
        mapping=slices.mapping,
        entropy=entropy,
        patient=patient,
        located=slices.located,
        expected_dice=expected,
    )


def predictive_entropy(probabilities: np.ndarray) -> float:
    """Mean entropy (nats) of (n, S, S, C) probabilities over pixels that may be foreground (background below 0.99)."""
    p = np.clip(probabilities[probabilities[..., 0] < 0.99], 1e-7, 1.0)
    return float(-(p * np.log(p)).sum(-1).mean()) if len(p) else 0.0


def expected_dice(probabilities: np.ndarray) -> float:
    """The Dice that (n, S, S, C) probabilities of a volume expect of their own mask, in [0, 1].

    2 sum(p m) / (sum p + sum m) of each foreground class, with m the mask that the probabilities give; the mean over
    the classes. The sums run over the model grid, and post-processing does not change them.
    """
    classes = probabilities.shape[-1]
    labels, highest = (x.ravel() for x in winners(probabilities))
    common = np.bincount(labels, weights=highest, minlength=classes)
    total = probabilities.sum((0, 1, 2), dtype=np.float64) + np.bincount(labels, minlength=classes)
    return float(dice(common, total)[1:].mean())
