"""The gallery as an explicit pytree: embeddings, images, masks and identities of labelled slices; search and fetch.

Axes: B queries, N gallery rows (padded to a multiple of the devices), K guides, S model grid, C classes, D embedding.

Rows are split over the mesh's data axis. A search is a local top-k on every device, an all-gather of k candidates per
device and a merge, equal to the dense search; a fetch is a sum over devices to which only the owner of a row
contributes. Both give row numbers and constants: the gradient takes another way, from the weights through the
similarity of the query and the fetched rows' embeddings, so that it is exact on any number of devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jras_jax.data.slice_table import SliceTable
from jras_jax.errors import UserError
from jras_jax.retrieval.quantised import Int8Rows, like, quantised

EXCLUDE = ("patient", "slice", "none")


class HostRows:
    """Images or masks (M, S, S) uint8 that stay in the host's memory; a callback fetches the rows that a step needs.

    For galleries that do not fit on the devices. The rows are the slice table's own, not a copy: every host holds them
    anyway, as a batch may draw any slice. They are not padded for devices, so M may be less than the gallery's N.
    Equal only to itself, so that a compiled step is made once.
    """

    def __init__(self, rows: np.ndarray):
        self.rows = rows
        self.shape, self.dtype, self.ndim = rows.shape, rows.dtype, rows.ndim

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.rows[index]


jax.tree_util.register_pytree_node(HostRows, lambda rows: ((), rows), lambda rows, _: rows)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gallery:
    """Labelled slices that may guide.

    Attributes:
      embeddings: (N, D) float32 of norm 1, or `Int8Rows` of such; constants between two refreshes.
      images, masks: (N, S, S) uint8, masks in the project's labels; on the devices, or `HostRows`. Images of several
        channels are (N, S, S, C).
      patient: (N,) int32, number of the patient.
      valid: (N,) bool, False for the padding at the end.
    """

    embeddings: jax.Array | Int8Rows
    images: jax.Array | HostRows
    masks: jax.Array | HostRows
    patient: jax.Array
    valid: jax.Array

    def __len__(self) -> int:
        return self.embeddings.shape[0]

    @property
    def rows(self) -> int:
        """N; in an exported program, which may leave it open, a symbol that `len` refuses."""
        return self.embeddings.shape[0]

    def replace(self, **changes: Any) -> Gallery:
        """This gallery with other arrays."""
        return dataclasses.replace(self, **changes)


class QueryKeys(NamedTuple):
    """Who asks: patient (B,) int32 (the gallery's number, -1: not there), row (B,) int32 (own row, -1: none)."""

    patient: jax.Array
    row: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guides:
    """What was retrieved for B queries.

    Attributes:
      images: (B, K, S, S) float32 in [0, 1]; of several channels (B, K, S, S, C).
      masks: (B, K, S, S, C) float32, one-hot (or a mix of one-hot masks).
      weights: (B, K) float32 of sum 1, differentiable in the query's embedding.
      indices: (B, K) int32 gallery rows. similarity: (B, K) float32 cosine similarity.
    """

    images: jax.Array
    masks: jax.Array
    weights: jax.Array
    indices: jax.Array
    similarity: jax.Array

    def replace(self, **changes: Any) -> Guides:
        """These guides with other arrays."""
        return dataclasses.replace(self, **changes)


def gallery_from_table(
    table: SliceTable, dim: int, mesh: Mesh | None = None, *, memory: str = "device", embeddings: str = "float32"
) -> Gallery:
    """The gallery of a slice table (row i of both is the same slice), embeddings still zero.

    Args:
      table: at least one slice.
      dim: D.
      mesh: rows are split over its data axis, and padded so that they divide.
      memory: 'device', or 'host' to keep images and masks in the host's memory.
      embeddings: 'float32', or 'int8' to keep them quantised (`Int8Rows`).

    Raises:
      UserError: the table is empty.
    """
    if not len(table):
        raise UserError("the gallery would be empty: no slice of its cases has a labelled structure")
    put = functools.partial(_put_rows, mesh=mesh)
    rows = -(-len(table) // data_devices(mesh)) * data_devices(mesh)
    pixels = HostRows if memory == "host" else lambda held: put(_padded(held, rows))
    zeros = np.zeros((rows, dim), np.float32)
    return Gallery(
        embeddings=jax.tree.map(put, quantised(zeros) if embeddings == "int8" else zeros),
        images=pixels(table.images),
        masks=pixels(table.masks),
        patient=put(_padded(table.patient, rows, -2)),
        valid=put(np.arange(rows) < len(table)),
    )


def with_embeddings(gallery: Gallery, embeddings: jax.Array | np.ndarray, mesh: Mesh | None = None) -> Gallery:
    """The gallery with new embeddings (N before padding, D) float32, kept in the form of its old ones."""
    new = like(gallery.embeddings, _padded(np.asarray(embeddings), len(gallery)))
    return gallery.replace(embeddings=jax.tree.map(functools.partial(_put_rows, mesh=mesh), new))


@functools.partial(jax.jit, donate_argnums=0)
def _set_rows(embeddings: Any, rows: jax.Array, new: jax.Array) -> Any:
    return jax.tree.map(lambda old, part: old.at[rows].set(part, mode="drop"), embeddings, like(embeddings, new))


def with_rows(gallery: Gallery, rows: np.ndarray, embeddings: jax.Array) -> Gallery:
    """The gallery with new embeddings (n, D) float32 at rows (n,), those beyond its end left out; consumes the old."""
    new = _set_rows(gallery.embeddings, rows, embeddings)
    shardings = jax.tree.map(lambda x: x.sharding, gallery.embeddings)
    return gallery.replace(embeddings=jax.device_put(new, shardings))


def as_one_patient(gallery: Gallery, patients: Sequence[int]) -> Gallery:
    """The gallery with the slices of several patients all under the number of the first: one person by two names."""
    own = jnp.isin(gallery.patient, jnp.array(patients, jnp.int32))
    merged = jnp.where(own, jnp.int32(patients[0]), gallery.patient)
    return gallery.replace(patient=jax.device_put(merged, gallery.patient.sharding))


def check_candidates(table: SliceTable, exclude: str, k: int) -> None:
    """Raises UserError where the leak rule leaves some training slice fewer than k candidates."""
    if exclude not in EXCLUDE:
        raise UserError(f"config.retrieval.exclude={exclude!r}: choose one of {', '.join(EXCLUDE)}")
    own = {"patient": int(np.bincount(table.patient).max()), "slice": 1, "none": 0}[exclude]
    if len(table) - own < k:
        raise UserError(
            f"config.retrieval.top_k={k}: of {len(table)} gallery slices, exclude={exclude!r} leaves a query only "
            f"{len(table) - own}; lower top_k or add patients"
        )


def allowed_rows(gallery: Gallery, queries: QueryKeys, exclude: str) -> jax.Array:
    """(B, N) bool: rows that may guide each query; `exclude` is 'patient', 'slice' or 'none'."""
    valid = jnp.broadcast_to(gallery.valid[None], (queries.patient.shape[0], gallery.rows))
    if exclude == "patient":
        return valid & (gallery.patient[None] != queries.patient[:, None])
    if exclude == "slice":
        return valid & (jnp.arange(gallery.rows)[None] != queries.row[:, None])
    if exclude == "none":
        return valid
    raise UserError(f"config.retrieval.exclude={exclude!r}: choose one of {', '.join(EXCLUDE)}")


def draw_rows(gallery: Gallery, count: int, key: jax.Array) -> jax.Array:
    """Row numbers (min(count, N),) int32, drawn uniformly without replacement from the valid rows.

    The draw depends on the key alone, not on the padding for devices. Padding comes last: only if fewer rows are valid.
    """
    order = jnp.where(gallery.valid, jax.random.uniform(key, (gallery.rows,)), -1.0)
    drawn = jax.lax.top_k(order, min(count, gallery.rows))[1]
    return jax.lax.optimization_barrier(drawn).astype(jnp.int32)  # else XLA on CPU may sort all rows, see `settle`


def data_devices(mesh: Mesh | None) -> int:
    return 1 if mesh is None else mesh.shape["data"]


def _padded(rows: np.ndarray, n: int, fill: int = 0) -> np.ndarray:
    """(m, ...) -> (n, ...), m <= n, filled at the end."""
    return np.pad(rows, [(0, n - len(rows))] + [(0, 0)] * (rows.ndim - 1), constant_values=fill)


def _put_rows(rows: np.ndarray, *, mesh: Mesh | None) -> jax.Array:
    """An array that every host holds whole, split over the data axis."""
    if mesh is None:
        return jnp.asarray(rows)
    return jax.make_array_from_callback(rows.shape, NamedSharding(mesh, P("data")), lambda index: rows[index])
