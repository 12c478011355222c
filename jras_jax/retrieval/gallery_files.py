"""Galleries on disk: gallery.safetensors (arrays) and gallery.json (names, fingerprint, checksum) in one folder."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from jras_jax import files
from jras_jax.data.slice_table import ROWS, SliceTable
from jras_jax.errors import UserError
from jras_jax.mesh import path_name

ARRAYS, FACTS = "gallery.safetensors", "gallery.json"
HOW = "jras gallery --workdir=RUN --input=SCANS --output=FOLDER"


class GalleryError(UserError):
    """A stored gallery is missing, damaged, or made by another retriever."""


def save(
    folder: str | pathlib.Path, table: SliceTable, embeddings: np.ndarray, fingerprint: str, contents: str = ""
) -> None:
    """Writes a gallery; one that was there before is replaced only when the new one is complete.

    Args:
      folder: made if absent.
      table: its N slices.
      embeddings: (N, D) float32, made by the retriever of this fingerprint.
      fingerprint: of the retriever, see `fingerprint`.
      contents: what the slices were made of, by which `kept` finds them again; '' if that is not known.

    Raises:
      FileError: the folder cannot be written.
    """
    folder = pathlib.Path(folder)
    arrays = {name: getattr(table, name) for name in ROWS}
    arrays["embeddings"] = np.asarray(embeddings, np.float32)[: len(table)]
    files.save_tensors(folder / ARRAYS, arrays)
    facts = {
        "fingerprint": fingerprint,
        "contents": contents,
        "sha256": files.sha256(folder / ARRAYS),
        "slices": len(table),
        "image_size": int(table.masks.shape[-1]),
        "cases": table.cases,
        "patients": table.patients,
        "vendors": table.vendors,
    }
    files.write_json(folder / FACTS, facts)


def is_stored(folder: str | pathlib.Path) -> bool:
    """Whether a folder holds a stored gallery (rather than scans)."""
    return (pathlib.Path(folder) / FACTS).is_file()


def fingerprint_of(folder: str | pathlib.Path) -> str:
    """The fingerprint of the retriever that made a stored gallery."""
    return _facts(pathlib.Path(folder))["fingerprint"]


def read(
    folder: str | pathlib.Path, fingerprint: str | None = None, *, how: str = HOW
) -> tuple[SliceTable, np.ndarray]:
    """Reads a stored gallery.

    Args:
      folder: that `save` wrote.
      fingerprint: of the retriever that will search it; None does not compare.
      how: the command that makes this gallery, for messages.

    Returns:
      The slices and their embeddings (N, D) float32.

    Raises:
      GalleryError: there is no gallery, it is damaged, or another retriever made it.
    """
    folder = pathlib.Path(folder)
    facts = _facts(folder, how)
    path = folder / ARRAYS
    if not path.is_file():
        raise GalleryError(f"{path} is missing: the gallery is damaged; make it again with {how}")
    if files.sha256(path) != facts["sha256"]:
        raise GalleryError(
            f"{path} does not match its checksum in {FACTS}: the file is damaged; make it again with {how}"
        )
    if fingerprint is not None and facts["fingerprint"] != fingerprint:
        raise GalleryError(
            f"{folder} was made by another retriever ({facts['fingerprint'][:12]}, this run has {fingerprint[:12]}), "
            f"so its embeddings cannot be compared; make it again from the scans for this run with {how}"
        )
    try:
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as e:
        raise GalleryError(f"{path} is not a readable safetensors file ({e}); make it again with {how}") from e
    later = {"wholes", "corners"} - arrays.keys()  # which galleries of earlier versions, of whole slices, do not have
    fields: dict[str, Any] = {name: arrays[name] for name in ROWS if name not in later}
    fields |= {key: tuple(facts[key]) for key in ("cases", "patients", "vendors")}
    return SliceTable(**fields), arrays["embeddings"]


def kept(folder: str | pathlib.Path, contents: str, fingerprint: str) -> tuple[SliceTable, np.ndarray | None] | None:
    """The slices of a stored gallery that was made of these contents, so that nobody needs to make them again.

    Returns:
      The slices, and their embeddings if this retriever made them; None if there is no whole gallery of these contents.
    """
    folder = pathlib.Path(folder)
    try:
        facts = _facts(folder)
        if not contents or facts.get("contents") != contents:
            return None
        table, embeddings = read(folder)
    except GalleryError:
        return None  # damaged: it is made again
    return table, embeddings if facts["fingerprint"] == fingerprint else None


def _facts(folder: pathlib.Path, how: str = HOW) -> dict[str, Any]:
    path = folder / FACTS
    if not path.is_file():
        raise GalleryError(f"{path} is missing: {folder} holds no gallery; make one with {how}")
    try:
        return files.read_json(path, remedy=f"make the gallery again with {how}", holds=_KINDS)
    except files.FileError as e:
        raise GalleryError(str(e)) from e


_KINDS = dict.fromkeys(("fingerprint", "sha256"), str) | dict.fromkeys(("cases", "patients", "vendors"), list)


def fingerprint(params: Any, settings: Mapping[str, Any]) -> str:
    """A name (64 hexadecimal digits) for a retriever: equal where parameters and what shapes its output are equal.

    Args:
      params: the retriever's parameters, host arrays.
      settings: its config section, and dataset.neighbours; what only matters in training is left out.
    """
    digest = hashlib.sha256()
    for key in ("variant", "image_size", "pool", "hidden", "dim"):
        digest.update(f"{key}={settings[key]};".encode())
    if settings.get("neighbours"):  # left out otherwise, so that galleries of earlier versions stay valid
        digest.update(b"neighbours=True;")
    for name, leaf in sorted((path_name(p), x) for p, x in jax.tree_util.tree_leaves_with_path(dict(params))):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
