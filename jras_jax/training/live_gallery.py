"""The gallery of a run in training: its arrays, the embedder that renews them and the cached frozen states."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jras_jax import joint, mesh
from jras_jax.config import Retrieval
from jras_jax.data.slice_table import SliceTable
from jras_jax.inference.embedder import Embedder
from jras_jax.retrieval import measures
from jras_jax.retrieval.gallery import Gallery, check_candidates, gallery_from_table, with_embeddings, with_rows
from jras_jax.retrieval.quantised import as_float


class LiveGallery:
    """The training patients' slices, renewed as config.retrieval.refresh says.

    Args:
      model: of `joint.build_model`.
      table: the slices; row i of table and gallery is the same slice.
      device_mesh: gallery and cache are split over its data axis.
      retrieval: the config's section.
      dim: D of the embeddings.
      batch_size: slices per call of the embedder.
      steps_per_epoch: of the training slices.

    Attributes:
      arrays: the gallery as the step reads it.
      cache: (at least N, T, D) bfloat16 frozen states of every row, or None; see `fill_cache`.

    Raises:
      UserError: the leak rule leaves some slice too few candidates.
    """

    def __init__(
        self,
        model: joint.JointModel,
        table: SliceTable,
        device_mesh: Mesh,
        *,
        retrieval: Retrieval,
        dim: int,
        batch_size: int,
        steps_per_epoch: int,
    ):
        check_candidates(table, retrieval.exclude, retrieval.top_k)
        self.table = table
        self.embedder = Embedder(model, device_mesh, batch_size=batch_size, images=table.images)
        self.arrays = gallery_from_table(
            table, dim, device_mesh, memory=retrieval.gallery_memory, embeddings=retrieval.embeddings
        )
        self.cache: jax.Array | None = None
        self._mesh, self._rolling = device_mesh, retrieval.refresh == "rolling"
        # Steps between two refreshes of all rows; a rolling refresh gives every row its turn within as many steps.
        self._period = retrieval.refresh_every * (steps_per_epoch if retrieval.refresh == "epochs" else 1)

    def fill_cache(self, variables: joint.Variables) -> None:
        """Computes the frozen states of every row, which stay constant while the retriever's prefix does not train."""
        self.cache = self.embedder.states(variables)

    def refresh(self, step: int, variables: joint.Variables) -> dict[str, float]:
        """Renews embeddings if step number `step` asks for it.

        Returns:
          {'neighbour_drift': ...} after a refresh of all rows, else {}.
        """
        if self._rolling and step > 0:
            self._refresh_share(step, variables)
        elif step % self._period == 0:
            before = self._embeddings()
            self.arrays = self.embedded_by(variables)
            if step:
                return {"neighbour_drift": measures.neighbour_drift(before, self._embeddings(), self.table.patient)}
        return {}

    def embedded_by(self, variables: joint.Variables) -> Gallery:
        """The gallery with every row embedded by `variables`; this object keeps its own."""
        return with_embeddings(self.arrays, self.embedder.embeddings(variables, self.cache), self._mesh)

    def restore(self, embeddings: Any) -> None:
        """Takes the embeddings of a checkpoint."""
        self.arrays = self.arrays.replace(embeddings=embeddings)

    def _embeddings(self) -> np.ndarray:
        """The rows' embeddings (N, D) float32 on the host."""
        return as_float(mesh.to_host(self.arrays.embeddings))[: len(self.table)]

    def _refresh_share(self, step: int, variables: joint.Variables) -> None:
        share = -(-self.embedder.chunks // self._period)
        for i in range(share):
            chunk = (step * share + i) % self.embedder.chunks
            rows, new = self.embedder.part(variables, chunk, self.cache)
            self.arrays = with_rows(self.arrays, rows, new)
