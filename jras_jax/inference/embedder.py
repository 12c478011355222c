"""Slices to embeddings in batches of one shape: the gallery's refresh in training, galleries of a trained run."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jras_jax import joint, mesh

# Slices per device on CPU: small enough that their attention stays in the caches (measured: docs/lab-notes).
CPU_BATCH = 8


class Embedder:
    """Recomputes gallery embeddings in batches of one shape.

    With a frozen prefix (`retriever.trained_blocks` >= 0) its states are computed once, kept as bfloat16, and a
    refresh runs the trained blocks only.

    Args:
      model: of `state.build_model`.
      device_mesh: batches and states are split over its data axis.
      batch_size: slices a call, rounded up to the devices; on CPU fewer, see `CPU_BATCH`.
      images: (N, S, S[, C]) uint8 of the gallery's slices, on the host.
    """

    def __init__(self, model: joint.JointModel, device_mesh: Mesh, batch_size: int, images: np.ndarray):
        data = device_mesh.shape["data"]
        self.mesh, self.images = device_mesh, images
        if device_mesh.devices.flat[0].platform == "cpu":
            batch_size = min(batch_size, CPU_BATCH * data)
        self.batch_size = -(-batch_size // data) * data
        self.chunks = -(-len(images) // self.batch_size)
        rows = mesh.by_rows(device_mesh)
        apply: Any = model.apply
        everywhere = mesh.replicated(device_mesh)
        scaled = lambda x: x.astype(jnp.float32) / 255.0  # noqa: E731

        def states(v: joint.Variables, x: jax.Array) -> jax.Array:
            return apply(v, scaled(x), method="states").astype(jnp.bfloat16)

        def cached(v: joint.Variables, cache: jax.Array, start: jax.Array) -> jax.Array:
            part = jax.lax.dynamic_slice_in_dim(cache, start, self.batch_size)
            return apply(v, jax.lax.with_sharding_constraint(part, rows), method="embed")

        self._states = jax.jit(states, out_shardings=rows)
        self._join = jax.jit(lambda parts: jnp.concatenate(parts), out_shardings=rows)
        self._cached = jax.jit(cached, out_shardings=everywhere)
        self._whole = jax.jit(lambda v, x: apply(v, scaled(x), method="embed_images"), out_shardings=everywhere)

    def states(self, variables: joint.Variables) -> jax.Array:
        """The frozen states (at least N, T, D) bfloat16, split over the data axis by rows; padded at the end."""
        return self._join([self._states(variables, self._chunk(i)) for i in range(self.chunks)])

    def embeddings(self, variables: joint.Variables, cache: jax.Array | None = None) -> np.ndarray:
        """Embeddings (N, dim) float32 of norm 1 of all slices, from `cache` (of `states`) if it is given."""
        parts = [self.part(variables, i, cache)[1] for i in range(self.chunks)]
        return np.concatenate([np.asarray(p) for p in parts])[: len(self.images)]

    def part(
        self, variables: joint.Variables, chunk: int, cache: jax.Array | None = None
    ) -> tuple[np.ndarray, jax.Array]:
        """Row numbers (batch_size,) of one chunk, some beyond N in the last, and their embeddings, on every device."""
        start = chunk * self.batch_size
        rows = start + np.arange(self.batch_size)
        if cache is None:
            return rows, self._whole(variables, self._chunk(chunk))
        return rows, self._cached(variables, cache, start)

    def _chunk(self, number: int) -> jax.Array:
        start = number * self.batch_size
        images = self.images[start : start + self.batch_size]
        images = np.pad(images, [(0, self.batch_size - len(images))] + [(0, 0)] * (images.ndim - 1))
        return mesh.put_whole(self.mesh, images)
