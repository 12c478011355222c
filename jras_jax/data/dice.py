"""Dice's coefficient, 2 |A and B| / (|A| + |B|), in one place for numpy and JAX arrays.

Reference: Dice, "Measures of the amount of ecologic association between species", Ecology 1945.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jras_jax.data.volume import STRUCTURES


def dice(common: Any, total: Any, *, empty: float = 1.0) -> Any:
    """Dice from sizes: `common` = |A and B| and `total` = |A| + |B|, numbers or arrays of one shape.

    `empty` is the value if both masks are empty. Soft sizes (sums of shares) work too.
    """
    xp = jnp if isinstance(total, jax.Array) else np
    return xp.where(total > 0, 2.0 * common / xp.where(total > 0, total, 1), empty)


class Counts(NamedTuple):
    """Sizes of one structure in two label maps, in voxels."""

    reference: int
    prediction: int
    common: int

    @property
    def dice(self) -> float:
        """1 if both are empty."""
        return float(dice(self.common, self.reference + self.prediction))

    @property
    def jaccard(self) -> float:
        """|A and B| / |A or B|; 1 if both are empty."""
        union = self.reference + self.prediction - self.common
        return self.common / union if union else 1.0

    @property
    def empty(self) -> str:
        """'' if neither is empty | 'both' | 'reference' | 'prediction'."""
        if self.reference:
            return "" if self.prediction else "prediction"
        return "reference" if self.prediction else "both"


def count(reference: np.ndarray, prediction: np.ndarray) -> Counts:
    """Sizes of two boolean masks of one shape."""
    return Counts(*(int(np.count_nonzero(mask)) for mask in (reference, prediction, reference & prediction)))


def structure_counts(
    reference: np.ndarray, prediction: np.ndarray, structures: Mapping[str, int] = STRUCTURES
) -> dict[str, Counts]:
    """Sizes of every structure in two integer label maps of one shape."""
    return {name: count(reference == label, prediction == label) for name, label in structures.items()}


def mean_over_present(a: Any, b: Any, labels: Iterable[int]) -> np.ndarray:
    """Mean Dice over the labels that at least one mask has, pair by pair: (Q, S, S) twice -> (Q,) float64.

    Two empty masks agree fully: 1.
    """
    total, present = np.zeros(len(a)), np.zeros(len(a))
    for label in labels:
        p, t = a == label, b == label
        size = p.sum((1, 2)) + t.sum((1, 2))
        total += dice((p & t).sum((1, 2)), size, empty=0.0)
        present += size > 0
    return np.where(present > 0, total / np.maximum(present, 1), 1.0)
