"""Devices and hosts: the mesh, the placement of arrays on it, and how a host's rows become a global array."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jras_jax.errors import UserError

# Kernels that are worth sharing between the devices of the model axis: the first rule that matches a parameter's path
# gives its partition; the rest is replicated. Transformer blocks: heads and MLP columns out, rows back (Megatron-LM).
MODEL_RULES: tuple[tuple[str, P], ...] = (
    (r"(query|key|value|fc1)/kernel$", P(None, "model")),
    (r"(query|key|value|fc1)/bias$", P("model")),
    (r"(attention/output|fc2)/kernel$", P("model", None)),
)


def make_mesh(data: int = -1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A ('data', 'model') mesh over all devices; data=-1 takes what the model axis leaves.

    Raises:
      UserError: the two sizes do not match the devices there are.
    """
    devices = list(jax.devices() if devices is None else devices)
    n = len(devices)
    if data == -1:
        data = n // model
    if data * model > n or data < 1 or (data * model < n and jax.process_count() > 1) or (n % model and model > n):
        raise UserError(f"config.mesh.data x config.mesh.model = {data} x {model} does not fit the {n} devices")
    grid = np.array(devices[: data * model]).reshape(data, model)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, P())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The first axis is split over the data axis."""
    return NamedSharding(mesh, P("data"))


def check_batch(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raises UserError if a batch does not divide over the data axis."""
    if batch_size % mesh.shape["data"]:
        raise UserError(
            f"config.{key}={batch_size} does not divide by the {mesh.shape['data']} devices of the data axis"
        )


def path_name(path: Any) -> str:
    """'a/b/c' of a pytree path."""
    return "/".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)


def parameter_shardings(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, P]] = MODEL_RULES) -> Any:
    """A sharding for each leaf, by its path; works on parameters and on anything shaped like them (optimiser state).

    A leaf whose axis does not divide by the model axis is replicated, as is everything when that axis is 1.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        size = mesh.shape["model"]
        if size > 1:
            for pattern, spec in rules:
                if re.search(pattern, path_name(path)) and len(spec) == len(leaf.shape):
                    split = [d for d, axis in zip(leaf.shape, spec, strict=True) if axis == "model"]
                    return NamedSharding(mesh, spec if all(d % size == 0 for d in split) else P())
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(place, tree)


def put_rows(mesh: Mesh, batch: Any) -> Any:
    """This host's rows of a batch -> global arrays split over the data axis."""
    sharding = by_rows(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def put_whole(mesh: Mesh, x: np.ndarray) -> jax.Array:
    """An array that every host holds whole -> a global array split over the data axis."""
    return jax.make_array_from_callback(x.shape, by_rows(mesh), lambda index: x[index])


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """Arrays that every host holds whole -> global replicated arrays."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def to_host(tree: Any) -> Any:
    """Global arrays -> numpy on every host, also if other hosts hold some of their shards."""
    from jax.experimental import multihost_utils

    def fetch(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
            return np.asarray(multihost_utils.process_allgather(x, tiled=True))
        return np.asarray(x)

    return jax.tree.map(fetch, tree)
