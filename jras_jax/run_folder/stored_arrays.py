"""Reads arrays of an Orbax checkpoint straight to the devices, without Orbax.

A trained run is opened with this reader: importing and starting Orbax takes longer than reading the weights. Orbax
writes every checkpoint, and reads those that training resumes from.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import numpy as np

from jras_jax.mesh import path_name
from jras_jax.run_folder.manifests import CheckpointError

_LISTING = "_METADATA"


def read(folder: pathlib.Path, target: Any) -> Any:
    """The arrays that `target` names; the checkpoint may hold others too.

    Args:
      folder: the arrays' folder in a checkpoint, whose files are known to be intact.
      target: nested dictionaries of jax.ShapeDtypeStruct with shardings; may be on another mesh than the saved one.

    Raises:
      CheckpointError: an array is not there, has another shape or type, or the files are not as Orbax writes them.
    """
    import tensorstore as ts

    leaves, tree = jax.tree_util.tree_flatten_with_path(target)
    driver = _driver(folder)
    opening = []
    for path, _ in leaves:
        name = path_name(path).replace("/", ".") + "/"
        store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}, "path": name}
        opening.append(ts.open({"driver": driver, "kvstore": store}, read=True, open=True))
    try:
        stored = [one.result() for one in opening]
        _check(folder, leaves, stored)
        values = [one.result() for one in [array.read() for array in stored]]
    except ValueError as e:  # what tensorstore raises; its first line names the array
        raise CheckpointError(f"{folder} cannot be restored into this run's model: {str(e).splitlines()[0]}") from e
    placed = [_placed(np.asarray(value), want) for value, (_, want) in zip(values, leaves, strict=True)]
    return jax.tree_util.tree_unflatten(tree, placed)


def _driver(folder: pathlib.Path) -> str:
    """The format of the arrays, as the checkpoint's listing says."""
    try:
        listing = json.loads((folder / _LISTING).read_text())
        if listing["use_ocdbt"]:
            return "zarr3" if listing.get("use_zarr3") else "zarr"
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{folder / _LISTING} cannot be read ({e}): the checkpoint is damaged") from e
    raise CheckpointError(f"{folder} is in a format that this version does not read")


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


def _placed(value: np.ndarray, want: Any) -> jax.Array:
    if want.sharding.is_fully_addressable:
        return jax.device_put(value, want.sharding)
    return jax.make_array_from_callback(value.shape, want.sharding, lambda index: value[index])
