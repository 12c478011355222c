"""Galleries on disk: gallery.safetensors (arrays) and gallery.json (names, fingerprint, checksum) in one folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh

from jras_jax.data.preprocess import SliceTable
from jras_jax.errors import UserError
from jras_jax.retrieval import gallery as galleries
from jras_jax.retrieval.gallery import Gallery

ARRAYS, FACTS = "gallery.safetensors", "gallery.json"
ROWS = ("images", "masks", "case", "patient", "phase", "slice_index", "position", "vendor", "neighbours")


class GalleryError(UserError):
    """A stored gallery is missing, damaged, or made by another retriever."""


@dataclasses.dataclass(frozen=True)
class Names:
    """What the numbers of a gallery mean: per row its case (N,), slice (N,), and the names."""

    case: np.ndarray
    slice_index: np.ndarray
    cases: tuple[str, ...]
    patients: tuple[str, ...]
    vendors: tuple[str, ...]

    def describe(self, row: int) -> dict[str, Any]:
        """{'case', 'slice'} of a row, for a person."""
        return {"case": self.cases[self.case[row]], "slice": int(self.slice_index[row])}


def names_of(table: SliceTable) -> Names:
    """The names of a slice table."""
    return Names(table.case, table.slice_index, table.cases, table.patients, table.vendors)


def save(folder: str | pathlib.Path, table: SliceTable, embeddings: np.ndarray, fingerprint: str) -> None:
    """Writes a gallery; one that was there before is replaced only when the new one is complete.

    Args:
      folder: made if absent.
      table: its N slices.
      embeddings: (N, D) float32, made by the retriever of this fingerprint.
      fingerprint: of `encoder.fingerprint`.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(getattr(table, name)) for name in ROWS}
    arrays["embeddings"] = np.ascontiguousarray(np.asarray(embeddings, np.float32)[: len(table)])
    temporary = folder / (ARRAYS + ".tmp")
    safetensors.numpy.save_file(arrays, temporary)
    facts = {
        "fingerprint": fingerprint,
        "sha256": _digest(temporary),
        "slices": len(table),
        "image_size": int(table.images.shape[-1]),
        "cases": table.cases,
        "patients": table.patients,
        "vendors": table.vendors,
    }
    described = folder / (FACTS + ".tmp")
    described.write_text(json.dumps(facts, indent=1) + "\n")
    temporary.replace(folder / ARRAYS)
    described.replace(folder / FACTS)


def is_stored(folder: str | pathlib.Path) -> bool:
    """Whether a folder holds a stored gallery (rather than scans)."""
    return (pathlib.Path(folder) / FACTS).is_file()


def fingerprint_of(folder: str | pathlib.Path) -> str:
    """Of the retriever that made a stored gallery."""
    return _facts(pathlib.Path(folder))["fingerprint"]


def load(
    folder: str | pathlib.Path, fingerprint: str | None, mesh: Mesh | None = None, *, memory: str = "device"
) -> tuple[Gallery, Names]:
    """Reads a stored gallery onto the mesh.

    Args:
      folder: that `save` wrote.
      fingerprint: of the retriever that will search it; None: do not compare.
      mesh, memory: see `gallery.from_table`.

    Raises:
      GalleryError: no gallery there, a damaged one, or one made by another retriever.
    """
    table, embeddings = read(folder, fingerprint)
    empty = galleries.from_table(table, embeddings.shape[1], mesh, memory=memory)
    return galleries.with_embeddings(empty, embeddings, mesh), names_of(table)


def read(folder: str | pathlib.Path, fingerprint: str | None = None) -> tuple[SliceTable, np.ndarray]:
    """The slice table and embeddings (N, D) of a stored gallery; raises like `load`."""
    folder = pathlib.Path(folder)
    facts = _facts(folder)
    path = folder / ARRAYS
    if not path.is_file():
        raise GalleryError(f"{path} is missing: the gallery is damaged; make it anew")
    if _digest(path) != facts["sha256"]:
        raise GalleryError(f"{path} does not match its checksum in {FACTS}: the file was damaged; make it anew")
    if fingerprint is not None and facts["fingerprint"] != fingerprint:
        raise GalleryError(
            f"{folder} was made by another retriever ({facts['fingerprint'][:12]}, this run has {fingerprint[:12]}): "
            "its embeddings cannot be compared; make it anew from the scans with this run (--mode=gallery)"
        )
    try:
        arrays = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as e:
        raise GalleryError(f"{path}: not a readable safetensors file ({e})") from e
    fields: dict[str, Any] = {name: arrays[name] for name in ROWS}
    fields |= {key: tuple(facts[key]) for key in ("cases", "patients", "vendors")}
    return SliceTable(**fields), arrays["embeddings"]


def without(table: SliceTable, patients: tuple[str, ...]) -> SliceTable:
    """A table without some patients' slices.

    Raises:
      UserError: a patient is not in the table, or nothing would be left.
    """
    unknown = sorted(set(patients) - set(table.patients))
    if unknown:
        raise UserError(f"the gallery has no patient {', '.join(unknown)}; it has {', '.join(table.patients[:10])}")
    gone = np.isin(table.patient, [table.patients.index(p) for p in patients])
    return _rows(table, np.flatnonzero(~gone))


def joined(a: SliceTable, b: SliceTable) -> SliceTable:
    """Both tables' slices; a case that both have is taken from `b`.

    Raises:
      UserError: the two lie on model grids of different size.
    """
    if a.images.shape[1:] != b.images.shape[1:]:
        raise UserError(
            f"galleries of {a.images.shape[1]} and {b.images.shape[1]} pixels a side cannot be joined: make both with "
            "the same run"
        )
    kept = np.flatnonzero(~np.isin(a.case, [a.cases.index(c) for c in a.cases if c in b.cases]))
    a = _rows(a, kept)
    names = {n: tuple(dict.fromkeys(getattr(a, n) + getattr(b, n))) for n in ("cases", "patients", "vendors")}
    fields: dict[str, Any] = {}
    for name in ROWS:
        left, right = getattr(a, name), getattr(b, name)
        kind = {"case": "cases", "patient": "patients", "vendor": "vendors"}.get(name)
        if kind:
            left, right = (_renumbered(getattr(t, name), getattr(t, kind), names[kind]) for t in (a, b))
        if name == "neighbours":
            right = np.where(right < 0, right, right + len(a))
        fields[name] = np.concatenate([left, right])
    return SliceTable(**(fields | names))


def _renumbered(numbers: np.ndarray, old: tuple[str, ...], new: tuple[str, ...]) -> np.ndarray:
    where = np.array([new.index(name) for name in old] or [0], np.int32)
    return where[numbers]


def _rows(table: SliceTable, kept: np.ndarray) -> SliceTable:
    """Some rows of a table, its neighbours renumbered; names that no row has any more are dropped."""
    if not len(kept):
        raise UserError("no slice would be left in the gallery")
    place = np.full(len(table) + 1, -1, np.int32)  # the last place answers for -1
    place[kept] = np.arange(len(kept))
    fields: dict[str, Any] = {name: getattr(table, name)[kept] for name in ROWS}
    fields["neighbours"] = place[fields["neighbours"]]
    for name, kind in (("case", "cases"), ("patient", "patients"), ("vendor", "vendors")):
        used, fields[name] = np.unique(fields[name], return_inverse=True)
        fields[name] = fields[name].astype(np.int32)
        fields[kind] = tuple(getattr(table, kind)[i] for i in used)
    return SliceTable(**fields)


def _facts(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / FACTS
    if not path.is_file():
        raise GalleryError(f"{path} is missing: {folder} holds no gallery")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as e:
        raise GalleryError(f"{path} is damaged ({e}); make the gallery anew") from e


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
