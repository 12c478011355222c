"""Steps whose loss or update is not finite: skipped on the device, counted on the host, and too many stop the run.

No step waits for the host: the flag of a step is read when later ones are under way already.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jras_jax import files
from jras_jax.data.slice_table import SliceTable
from jras_jax.errors import UserError
from jras_jax.run_folder.layout import RunFolder

BEHIND = 16  # steps between the one that is given to the device and the one whose flag is read


class DivergedError(UserError):
    """Too many steps in a row were not finite."""


def all_finite(*trees: Any) -> jax.Array:
    """() bool: whether every number in all leaves of floating type is finite."""
    leaves = [x for x in jax.tree.leaves(trees) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in leaves])) if leaves else jnp.array(True)


def chosen(finite: jax.Array, new: Any, old: Any) -> Any:
    """The tree `new` if `finite`, else `old`; bit for bit."""
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)


class Skips:
    """Counts the skipped steps of a run.

    Args:
      limit: steps in a row that end it (config.train.max_skipped).
      folder: where `diverged.json` goes.
      table: the training slices, which the batches' rows number.
      advice: what to do then, a clause.

    Attributes:
      total: skipped steps since the run began.
    """

    def __init__(self, limit: int, folder: RunFolder, table: SliceTable, advice: str):
        self._limit, self._folder, self._table, self._advice = limit, folder, table, advice
        self._waiting: collections.deque[tuple[int, jax.Array, np.ndarray]] = collections.deque()
        self._recent: collections.deque[tuple[int, np.ndarray]] = collections.deque(maxlen=100)
        self.total = self._in_a_row = 0

    def add(self, at: int, finite: jax.Array, rows: np.ndarray) -> None:
        """Takes note of step `at`: its flag, on the device, and this host's rows of its batch.

        Raises:
          DivergedError: too many steps in a row were skipped, up to `BEHIND` steps ago.
        """
        finite.copy_to_host_async()
        self._waiting.append((at, finite, rows))
        while len(self._waiting) > BEHIND:
            self._read(*self._waiting.popleft())

    def settle(self) -> None:
        """Reads the flags of all steps so far; waits for the device. Raises DivergedError."""
        while self._waiting:
            self._read(*self._waiting.popleft())

    def state(self) -> dict[str, int]:
        """For a checkpoint, after `settle`."""
        return {"total": self.total, "in_a_row": self._in_a_row}

    def restore(self, state: Mapping[str, int]) -> None:
        """Goes on counting from `state()`."""
        self.total, self._in_a_row = state.get("total", 0), state.get("in_a_row", 0)

    def _read(self, at: int, finite: jax.Array, rows: np.ndarray) -> None:
        if bool(finite):
            self._in_a_row = 0
            return
        self.total += 1
        self._in_a_row += 1
        self._recent.append((at, rows))
        if self._in_a_row >= self._limit:
            self._write()
            raise DivergedError(
                f"loss or update was not finite in {self._in_a_row} steps in a row, up to step {at}; they were "
                f"skipped, and the checkpoints are intact. {self._folder.diverged} lists their slices: if they share "
                f"a patient, look at its scan and mask. Otherwise {self._advice}"
            )

    def _write(self) -> None:
        if jax.process_index() != 0:
            return
        steps = []
        for at, rows in self._recent:
            cases = [self._table.cases[i] for i in self._table.case[rows]]
            patients = [self._table.patients[i] for i in self._table.patient[rows]]
            slices = [int(i) for i in self._table.slice_index[rows]]
            steps.append({"step": at, "rows": rows.tolist(), "patients": patients, "cases": cases, "slices": slices})
        files.write_json(self._folder.diverged, {"skipped_steps": self.total, "last": steps})
