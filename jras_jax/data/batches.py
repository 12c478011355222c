"""From prepared volumes to batches: patient-wise folds, and a grain pipeline with an exact, restartable state.

The order of slices is drawn over the whole training set and cut into global batches; each host then loads its own
rows of every batch. So the batches, and the iterator's state, do not depend on how many hosts there are.
"""

from __future__ import annotations

import json
from typing import Any

import grain
import numpy as np

from jras_jax.data.slice_table import SliceTable
from jras_jax.errors import UserError


class Batches:
    """Endless shuffled batches of a slice table.

    Each batch is a dict: image, mask (b, S, S) uint8; patient, row (b,) int32, where b is this host's share of
    `batch_size` and `row` the slice's row of the table. `state()` and `restore()` continue exactly.
    """

    def __init__(
        self,
        table: SliceTable,
        batch_size: int,
        seed: int,
        *,
        host: int = 0,
        hosts: int = 1,
        prefetch: int = 8,
        key: str = "train.batch_size",
    ):
        if len(table) < batch_size:
            raise UserError(
                f"only {len(table)} training slices for config.{key}={batch_size}: lower it or add patients"
            )
        if batch_size % hosts:
            raise UserError(f"config.{key}={batch_size} does not divide by the {hosts} hosts")
        share = batch_size // hosts
        own = slice(host * share, (host + 1) * share)

        def fetch(rows: np.ndarray) -> dict[str, np.ndarray]:
            rows = np.asarray(rows)[own]
            return {
                "image": table.images[rows],
                "mask": table.masks[rows],
                "patient": table.patient[rows],
                "row": rows.astype(np.int32),
            }

        order = grain.MapDataset.range(len(table)).seed(seed).shuffle().repeat(None)
        batches = order.batch(batch_size, drop_remainder=True).map(fetch)
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=prefetch)
        self._iterator = iter(batches.to_iter_dataset(options))

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def state(self) -> dict[str, Any]:
        """The position, as JSON-able data."""
        state = self._iterator.get_state()
        return json.loads(json.dumps(state))

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state()` was taken."""
        self._iterator.set_state(state)
