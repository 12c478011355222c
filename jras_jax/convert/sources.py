"""Reading the weights that people have: safetensors (whole or sharded), a Hugging Face folder or name, Google's npz.

Pickled files (.bin, .pt, .pth, .ckpt, .pkl) run code when they are opened; they are refused by name, never opened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import zipfile
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jras_jax.errors import UserError

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Source:
    """Named tensors, the reference's config.json (empty if there is none) and the SHA-256 of each file read."""

    tensors: dict[str, np.ndarray]
    config: dict[str, Any]
    files: dict[str, str]


def read(source: str) -> Source:
    """Reads a local folder or file, or 'hf:org/name' ('hf:org/name@revision') from the Hugging Face hub.

    Raises:
      UserError: the source does not exist, is pickled or of an unknown kind, or cannot be read.
    """
    path = _download(source[3:]) if source.startswith("hf:") else pathlib.Path(source)
    if path.is_dir():
        return _read_folder(path)
    if path.suffix in PICKLED:
        raise UserError(_refusal(path.name))
    if not path.exists():
        raise UserError(f"{source}: no such file or folder; names on the Hugging Face hub are written hf:org/name")
    if path.suffix == ".safetensors":
        return Source(_read_safetensors(path), {}, _digests([path]))
    if path.suffix == ".npz":
        return Source(_read_npz(path), {}, _digests([path]))
    raise UserError(f"{source}: neither .safetensors nor .npz nor a folder with {WEIGHTS}")


def _read_folder(folder: pathlib.Path) -> Source:
    config_file, index_file, whole = folder / "config.json", folder / INDEX, folder / WEIGHTS
    config = _read_json(config_file) if config_file.is_file() else {}
    if index_file.is_file():
        shards = sorted(set(_read_json(index_file).get("weight_map", {}).values()))
        paths = [folder / shard for shard in shards]
        absent = [path.name for path in paths if not path.is_file()]
        if absent or not paths:
            raise UserError(f"{index_file}: lists files that are not there: {', '.join(absent) or 'none at all'}")
    elif whole.is_file():
        paths = [whole]
    else:
        paths = sorted(folder.glob("*.safetensors"))
        if len(paths) != 1:
            pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
            if pickled:
                raise UserError(f"{folder}: {_refusal(pickled[0])}")
            raise UserError(f"{folder}: no {WEIGHTS}, no {INDEX} and {len(paths)} other .safetensors files")
    tensors: dict[str, np.ndarray] = {}
    for path in paths:
        tensors.update(_read_safetensors(path))
    return Source(tensors, config, _digests(paths))


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not an npz archive of plain arrays ({error})") from error


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object")
    return content


def _download(name: str) -> pathlib.Path:
    name, _, revision = name.partition("@")
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"hf:{name} needs the package huggingface_hub (pip install huggingface_hub); or download the folder "
            f"with config.json and {WEIGHTS} yourself and give its path"
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=["*.safetensors", "*.json"]
        )
    except Exception as error:  # the hub's, the network's and the proxy's errors share no base class
        raise UserError(
            f"hf:{name} could not be fetched ({type(error).__name__}: {error}); offline, give the path of a local copy"
        ) from error
    return pathlib.Path(folder)


def _refusal(name: str) -> str:
    return (
        f"{name} is a pickled or foreign checkpoint, which is never opened (pickle runs code): save it as safetensors, "
        "with model.save_pretrained(folder) of transformers where you trust it, or take the hub's safetensors revision"
    )


def _digests(paths: list[pathlib.Path]) -> dict[str, str]:
    digests = {}
    for path in paths:
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
