"""The table of slices that a run trains on or retrieves from: one row per slice on the model grid.

`slice_table` makes one from volumes; `without` and `joined` edit it, as galleries are edited.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jras_jax import threads
from jras_jax.data import Volume
from jras_jax.data.description import CARDIAC, DatasetDescription
from jras_jax.data.grid import Grid, volume_slices
from jras_jax.errors import UserError

PLACERS = min(8, os.cpu_count() or 1)  # threads that bring volumes to the model grid

# The arrays of a table, one entry per row.
ROWS = (
    "images",
    "masks",
    "case",
    "patient",
    "phase",
    "slice_index",
    "position",
    "vendor",
    "neighbours",
    "wholes",
    "corners",
)


def base_first(mask: np.ndarray | None, description: DatasetDescription = CARDIAC) -> bool:
    """Whether slice 0 is at the heart's base: the apex end of the labelled range has the smaller left ventricle.

    Of a data set without a frame (`description.frame_structures`), slice 0 counts as the first.
    """
    if mask is None or not description.frame_structures:
        return True
    area = np.isin(mask, description.labels_of(description.frame_structures)).sum((0, 1)).astype(float)
    labelled = np.flatnonzero(area)
    if len(labelled) < 2:
        return True
    half = len(labelled) // 2
    return bool(area[labelled[:half]].mean() >= area[labelled[-half:]].mean())


@dataclasses.dataclass(frozen=True)
class SliceTable:
    """All slices of some volumes on the model grid, one row each.

    Attributes:
      images, masks: (N, S, S) uint8, images of several channels, or stacked with their neighbours, (N, S, S, C); masks
        in the project's labels.
      case: (N,) int32, index into `cases`.
      patient: (N,) int32, index into `patients`.
      phase: (N,) int32, index into the phases of the volumes' description, -1 unknown.
      slice_index: (N,) int32, z of the native volume.
      position: (N,) float32, 0 base to 1 apex, by slice number.
      vendor: (N,) int32, index into `vendors`.
      neighbours: (N, 2) int32, rows of the slices before and after in the same volume, -1 none.
      cases, patients, vendors: names.
      wholes: (N, L, L) uint8, the whole slices where images are crops in the frame of the heart; else (N, 0, 0).
      corners: (N, 4, 2) float32, the crop's corners in pixels of `wholes`; NaN where there is no crop.
    """

    images: np.ndarray
    masks: np.ndarray
    case: np.ndarray
    patient: np.ndarray
    phase: np.ndarray
    slice_index: np.ndarray
    position: np.ndarray
    vendor: np.ndarray
    neighbours: np.ndarray
    cases: tuple[str, ...]
    patients: tuple[str, ...]
    vendors: tuple[str, ...]
    wholes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0, 0), np.uint8))
    corners: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 4, 2), np.float32))

    def __post_init__(self) -> None:
        if not len(self.wholes):
            object.__setattr__(self, "wholes", np.zeros((len(self), 0, 0), np.uint8))
        if not len(self.corners):
            object.__setattr__(self, "corners", np.full((len(self), 4, 2), np.nan, np.float32))

    def __len__(self) -> int:
        return len(self.images)

    def describe(self, row: int) -> dict[str, Any]:
        """{'case', 'slice'} of a row, for a program: the slice is an index from 0, a person reads it plus 1."""
        return {"case": self.cases[self.case[row]], "slice": int(self.slice_index[row])}

    @property
    def known_by(self) -> np.ndarray:
        """The slices that do not depend on a frame, by which a patient is recognised: (N, L, L) or (N, S, S) uint8."""
        return self.wholes if self.wholes.size else self.images

    @property
    def contents(self) -> str:
        """'120 slices of 6 patients'."""
        patients = len(np.unique(self.patient))
        return f"{len(self)} slices of {patients} {'patient' if patients == 1 else 'patients'}"


def slice_table(volumes: Sequence[Volume], grid: Grid, *, drop_empty: bool) -> SliceTable:
    """Prepares the slices of `volumes`; with `drop_empty` those without foreground are left out."""
    patients = tuple(dict.fromkeys(v.patient for v in volumes))
    vendors = tuple(dict.fromkeys(v.vendor for v in volumes))
    patient_of = {name: i for i, name in enumerate(patients)}
    parts: dict[str, list[np.ndarray]] = {
        f: [] for f in ("images", "masks", "case", "patient", "phase", "slice_index", "position")
    }
    parts |= {"vendor": [], "neighbours": [], "wholes": [], "corners": []}
    start = 0
    placed = threads.in_order(lambda v: volume_slices(v, grid), volumes, threads=PLACERS, ahead=2 * PLACERS)
    for number, (volume, slices) in enumerate(zip(volumes, placed, strict=True)):
        images, located = slices.images, slices.located
        masks = np.zeros(images.shape[:3], np.uint8) if slices.masks is None else slices.masks
        kept = np.flatnonzero(masks.any((1, 2))) if drop_empty else np.arange(len(images))
        if not len(kept):
            continue
        depth, n = len(images), len(kept)
        position = kept / max(depth - 1, 1)
        rows = start + np.arange(n)
        before = np.where(np.diff(kept, prepend=kept[0] - 2) == 1, rows - 1, -1)
        after = np.where(np.diff(kept, append=kept[-1] + 2) == 1, rows + 1, -1)
        phases = volume.description.phases
        constant = functools.partial(np.full, n, dtype=np.int32)
        parts["images"].append(images[kept])
        parts["masks"].append(masks[kept])
        parts["case"].append(constant(number))
        parts["patient"].append(constant(patient_of[volume.patient]))
        parts["phase"].append(constant(phases.index(volume.phase) if volume.phase in phases else -1))
        parts["slice_index"].append(kept.astype(np.int32))
        parts["position"].append(
            (position if base_first(volume.mask, volume.description) else 1 - position).astype(np.float32)
        )
        parts["vendor"].append(constant(vendors.index(volume.vendor)))
        parts["neighbours"].append(np.stack([before, after], -1).astype(np.int32))
        wholes, corners = np.zeros((n, 0, 0), np.uint8), np.full((n, 4, 2), np.nan, np.float32)
        if located is not None:
            wholes = located.wholes[kept]
            corners[:, : len(located.corners)] = located.corners
        parts["wholes"].append(wholes)
        parts["corners"].append(corners)
        start += n
    if not start:
        size = grid.image_size
        empty = {k: np.zeros((0, size, size) if k in ("images", "masks") else (0,), np.uint8) for k in parts}
        return SliceTable(**empty, cases=(), patients=patients, vendors=vendors)
    arrays = {name: np.concatenate(chunks) for name, chunks in parts.items()}
    return SliceTable(**arrays, cases=tuple(v.case for v in volumes), patients=patients, vendors=vendors)


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
      UserError: the two are on model grids of different size.
    """
    if a.masks.shape[1:] != b.masks.shape[1:]:
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
