"""Weights in the project's own names: one safetensors file, and starting a model from it.

Names are '/'-joined paths with the collection first ('params/block_0/norm1/scale'); the file's header keeps what is
known of their origin under 'provenance' (JSON): the model, the path of its first convolution ('stem'), of its class
heads ('heads').
"""

from __future__ import annotations

import fnmatch
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from absl import logging

from jras_jax import files
from jras_jax.convert.rules import Arrays, fail
from jras_jax.errors import UserError

FILE = "model.safetensors"
COLLECTIONS = ("params", "batch_stats")
NEW = ("*/lora_a", "*/lora_b")  # LoRA starts as the identity, so that it may always be new


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of params, or of variables ({'params': ..., 'batch_stats': ...}), by our flat names."""
    tree = tree if _has_collections(tree) else {"params": tree}
    return flax.traverse_util.flatten_dict(dict(tree), sep="/")


def save(path: str | os.PathLike[str], tree: Mapping[str, Any], provenance: Mapping[str, Any] | None = None) -> None:
    """Writes params (or variables) as one safetensors file; a crash leaves the file that was there before.

    Args:
      path: the file to write; its folder is made.
      tree: nested dict of arrays.
      provenance: JSON-able facts for the file's header.
    """
    metadata = {"provenance": json.dumps(dict(provenance or {}), sort_keys=True)}
    files.save_tensors(path, flatten(tree), metadata)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `save` or the converter wrote: {'params': nested dict, and 'batch_stats' where the model has it}.

    Args:
      path: the file, or the folder that `python -m jras_jax.convert` wrote.

    Raises:
      UserError: no such file, or not one of ours.
    """
    return flax.traverse_util.unflatten_dict(_read(path)[0], sep="/")


def provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the file's header says of its origin."""
    return _read(path)[1]


def init_from(
    params: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    allow_new: Sequence[str] = (),
    query_channels: int | None = None,
    new_channels: Literal["xavier", "zeros"] = "xavier",
    keep_heads: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """A model's params with the values of a file where it has them.

    The class heads that the file declares keep the model's own values (other classes); the first convolution is widened
    to the model's channels; everything else must fit, name by name. Where the file is of a part of the model (an
    encoder inside a retriever), it fills that part and leaves the rest.

    Args:
      params: the model's params, or its whole variables ({'params': ..., 'batch_stats': ...}): the result is alike.
      path: file or folder of converted weights.
      allow_new: glob patterns of params ('/'-joined) that may be absent in the file, besides LoRA's.
      query_channels: how many of the first input channels are the query's. As many as the file's (3): their weights are
        copied. 1: the file's RGB weights are summed into it, which is exact for grey repeated thrice. None: 1 for a
        model of one channel, else the file's.
      new_channels: values of the remaining input channels: Xavier uniform, or zeros (the model starts blind to them).
      keep_heads: take the file's class heads too (its classes are the model's).
      seed: of the new channels' values.

    Raises:
      UserError: no such file. ConversionError: parameters that do not fit, all listed.
    """
    arrays, facts = _read(path)
    flat = flatten(params)
    prefix = _part_of(flat, arrays)
    heads = () if keep_heads else tuple(f"params/{pattern}" for pattern in facts.get("heads", ()))
    absent = tuple(facts.get("absent", ()))
    free = tuple(f"params/{pattern}" for pattern in (*NEW, *allow_new))
    result, kept, faults = dict(flat), [], []
    for name, own in flat.items():
        collection, _, local = name.partition("/")
        if not local.startswith(prefix):
            kept.append(name)
            continue
        key = f"{collection}/{local.removeprefix(prefix)}"
        value = arrays.pop(key, None)
        if _matches(key, heads) or (value is None and (key.startswith(absent or ("\0",)) or _matches(name, free))):
            kept.append(name)
            continue
        if value is not None and key == f"params/{facts.get('stem')}" and _same_but_inputs(value, own):
            value = _widen(value, shape=own.shape, query_channels=query_channels, new_channels=new_channels, seed=seed)
        fault = _fault(name, value, own)
        if fault or value is None:
            faults.append(fault)
        else:
            result[name] = value.astype(own.dtype)
    faults += _left_over(flat, arrays, heads)
    advice = "choose the variant and the options that the weights were made for, or name what may be new"
    fail(f"{path} does not fit the model", faults, advice)
    logging.info("%s: %d arrays taken, %d kept new: %s", path, len(flat) - len(kept), len(kept), ", ".join(kept))
    tree = flax.traverse_util.unflatten_dict(result, sep="/")
    return tree if _has_collections(params) else tree["params"]


def _left_over(flat: Mapping[str, Any], arrays: Arrays, heads: Sequence[str]) -> list[str]:
    """Faults for the file's arrays that the model has no place for; of other classes' heads none is expected."""
    given = {name.partition("/")[0] for name in flat}
    rest = [name for name in sorted(arrays) if name.partition("/")[0] in given and not _matches(name, heads)]
    return [f"left over: {name} {arrays[name].shape}: the model has no such parameter" for name in rest]


def _fault(name: str, value: np.ndarray | None, own: Any) -> str:
    """Why the file's array cannot be the model's parameter; '' if it can."""
    if value is None:
        return f"missing: {name} {own.shape}: not in the file"
    if value.shape != own.shape:
        return f"wrong shape: {name}: the file has {value.shape}, the model {own.shape}"
    return ""


def _read(path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, Any]]:
    path = pathlib.Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no such file; python -m jras_jax.convert writes it")
    try:
        with safetensors.safe_open(path, "np") as file:
            header = (file.metadata() or {}).get("provenance")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    if header is None or not all(name.startswith(tuple(f"{c}/" for c in COLLECTIONS)) for name in arrays):
        raise UserError(f"{path}: not converted yet: python -m jras_jax.convert {path} --model=NAME --output=DIR")
    return arrays, json.loads(header)


def _has_collections(tree: Mapping[str, Any]) -> bool:
    return "params" in tree and set(tree) <= set(COLLECTIONS)


def _part_of(flat: Mapping[str, Any], arrays: Arrays) -> str:
    """The module path, '' or ending in '/', under which most of the file's names are found in the model."""
    local = [name.partition("/")[2] for name in arrays if name.startswith("params/")]
    names = {name.partition("/")[2] for name in flat if name.startswith("params/")}
    prefixes = {""}
    for name in names:
        modules = name.split("/")[:-1]
        prefixes |= {"/".join(modules[: i + 1]) + "/" for i in range(min(2, len(modules)))}
    return max(sorted(prefixes), key=lambda prefix: sum(prefix + name in names for name in local))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _same_but_inputs(value: np.ndarray, own: Any) -> bool:
    """Whether two kernels (h, w, in, out) differ in their inputs and in nothing else."""
    if value.shape == own.shape:
        return False
    return value.ndim == 4 == len(own.shape) and (*value.shape[:2], value.shape[3]) == (*own.shape[:2], own.shape[3])


def _widen(
    kernel: np.ndarray, shape: Sequence[int], query_channels: int | None, new_channels: str, seed: int
) -> np.ndarray:
    """A first convolution's kernel (h, w, in, out) brought to `shape`, another number of inputs."""
    inputs = shape[2]
    query = query_channels or (1 if inputs == 1 else kernel.shape[2])
    if query == 1:
        kernel = kernel.sum(2, keepdims=True)
    if kernel.shape[2] != query or inputs < query:
        return kernel
    if new_channels == "zeros":
        wide = np.zeros(shape, kernel.dtype)
    else:
        wide = np.array(nn.initializers.xavier_uniform()(jax.random.key(seed), tuple(shape), jnp.float32))
    wide[:, :, :query] = kernel
    return wide
