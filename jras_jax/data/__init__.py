"""Scans and slices: the vocabulary every part shares (labels, phases, `Volume`) and how data reaches a model.

volume -> nifti, pairs (read) -> prepared (ArrayRecord) -> load (volumes and splits of a run) -> grid, slice_table ->
batches, augment. `phantom` makes synthetic scans in the ACDC layout.
"""

from jras_jax.data.description import DatasetDescription
from jras_jax.data.volume import (
    CLASSES,
    LABEL_CONVENTIONS,
    NUM_CLASSES,
    PHASES,
    STRUCTURES,
    Volume,
)

__all__ = ["CLASSES", "LABEL_CONVENTIONS", "NUM_CLASSES", "PHASES", "STRUCTURES", "DatasetDescription", "Volume"]
