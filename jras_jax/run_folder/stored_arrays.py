"""Reads arrays of an Orbax checkpoint straight to the devices, without Orbax.

A trained run is opened with this reader: importing and starting Orbax takes longer than reading the weights. Orbax
writes every checkpoint, and reads those that training resumes from.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jras_jax.mesh import path_name
from jras_jax.run_folder.manifests import CheckpointError

_LISTING = "_METADATA"


class Chosen(NamedTuple):
    """Arrays that are taken as they are stored.

    Attributes:
      wanted: says of each array's path, such as ('state', 'params', 'backbone', 'kernel'), whether it is read.
      shardings: from the tree of their jax.ShapeDtypeStruct to a tree of their shardings.
    """

    wanted: Callable[[tuple[str, ...]], bool]
    shardings: Callable[[Any], Any]


def read(folder: pathlib.Path, target: Any) -> Any:
    """The arrays that `target` names; the checkpoint may hold others too.

    Args:
      folder: the arrays' folder in a checkpoint, whose files are known to be intact.
      target: nested dictionaries of jax.ShapeDtypeStruct with shardings, which may be on another mesh than the saved
        one; or `Chosen`.

    Raises:
      CheckpointError: an array is not there, has another shape or type, or the files are not as Orbax writes them.
    """
    listing = _listing(folder)
    shardings = None
    if isinstance(target, Chosen):
        shardings = target.shardings
        target = _nested({path: None for path in _paths(listing) if target.wanted(path)})
    leaves, tree = jax.tree_util.tree_flatten_with_path(target, is_leaf=lambda x: x is None)
    try:
        stored = _opened(folder, "zarr3" if listing.get("use_zarr3") else "zarr", [path for path, _ in leaves])
        if shardings is not None:
            shapes = [jax.ShapeDtypeStruct(tuple(x.shape), x.dtype.numpy_dtype) for x in stored]
            placed = jax.tree.leaves(shardings(jax.tree_util.tree_unflatten(tree, shapes)))
        else:
            _check(folder, leaves, stored)
            placed = [want.sharding for _, want in leaves]
        values = [one.result() for one in [array.read() for array in stored]]
    except ValueError as e:  # what tensorstore raises; its first line names the array
        raise CheckpointError(f"{folder} cannot be restored into this run's model: {str(e).splitlines()[0]}") from e
    arrays = [_placed(np.asarray(value), sharding) for value, sharding in zip(values, placed, strict=True)]
    return jax.tree_util.tree_unflatten(tree, arrays)


def _opened(folder: pathlib.Path, driver: str, paths: list[Any]) -> list[Any]:
    """The arrays of these paths, opened at the same time."""
    import tensorstore as ts

    opening = []
    for path in paths:
        name = path_name(path).replace("/", ".") + "/"
        store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}, "path": name}
        opening.append(ts.open({"driver": driver, "kvstore": store}, read=True, open=True))
    return [one.result() for one in opening]


def _listing(folder: pathlib.Path) -> dict[str, Any]:
    """What Orbax says of the arrays and their format."""
    try:
        listing = json.loads((folder / _LISTING).read_text())
        if listing["use_ocdbt"] and listing["tree_metadata"]:
            return dict(listing)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{folder / _LISTING} cannot be read ({e}): the checkpoint is damaged") from e
    raise CheckpointError(f"{folder} is in a format that this version does not read")


def _paths(listing: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The path of every array."""
    for entry in listing["tree_metadata"].values():
        if not entry["value_metadata"].get("skip_deserialize"):
            yield tuple(str(part["key"]) for part in entry["key_metadata"])


def _nested(flat: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        place = tree
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = leaf
    return tree


def _check(folder: pathlib.Path, leaves: list[Any], stored: list[Any]) -> None:
    """Raises CheckpointError if the stored arrays are not those of the target."""
    wrong = []
    for (path, want), array in zip(leaves, stored, strict=True):
        have = (array.dtype.numpy_dtype, tuple(array.shape))
        if have != (np.dtype(want.dtype), tuple(want.shape)):
            wrong.append(f"{path_name(path)}: {have[0]}{have[1]} saved, {want.dtype}{tuple(want.shape)} expected")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(f"{folder} is of another model or data set: " + "; ".join(sorted(wrong)[:5]) + more)


def _placed(value: np.ndarray, sharding: Any) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
