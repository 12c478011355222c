"""Looks through a folder before it is built: every fault in one go, and what the cases hold."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jras_jax.data import DatasetDescription
from jras_jax.data.remarks import summarised
from jras_jax.errors import ScanError, UserError
from tfds_builders import common, folder
from tfds_builders.prepare import builder_of

SAMPLES = 8  # cases of the summary picture


@dataclasses.dataclass
class Verdict:
    """What was found.

    Attributes:
      faults: lines 'FILE: rule and remedy'; the data set is not built while there is one.
      remarks: lines on what is unusual.
      description: of the data set; None if it cannot be told.
      cases: number of readable cases of each split.
      patients: their patients.
      voxels: structure -> voxels of each case that has it.
      sizes: (rows, columns, slices) of each case.
      spacings: mm of each case whose spacing is known.
      samples: (case, image (X, Y), mask (X, Y)): the slice with the most labelled pixels of some cases.
    """

    faults: list[str] = dataclasses.field(default_factory=list)
    remarks: list[str] = dataclasses.field(default_factory=list)
    description: DatasetDescription | None = None
    cases: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    patients: set[str] = dataclasses.field(default_factory=set)
    voxels: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    sizes: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
    spacings: list[np.ndarray] = dataclasses.field(default_factory=list)
    samples: list[tuple[str, np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)

    @property
    def widest_mm(self) -> float:
        """The widest side of a case in its slices, mm; NaN if no spacing is known."""
        known = len(self.spacings) == len(self.sizes) and self.sizes
        if not known:
            return float("nan")
        return max(float(max(s[0] * d[0], s[1] * d[1])) for s, d in zip(self.sizes, self.spacings, strict=True))


def verify(name: str, manual_dir: pathlib.Path, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> Verdict:
    """Reads every case of a folder and collects what is wrong.

    Args:
      name: of the builder, such as 'folder' or 'acdc'.
      manual_dir: the folder.
      progress: wraps the cases to show how far it is.
    """
    found = Verdict()
    builder = builder_of(name)
    try:
        if name == "folder":
            inventory, found.faults = folder.survey(manual_dir)
        else:
            inventory = builder.inventory(manual_dir)
        description = builder.describe(manual_dir)
    except UserError as e:
        found.faults.append(str(e))
        return found
    found.description = description
    notes = [*inventory.notes, *inventory.skipped]
    found.voxels = {structure: [] for structure in description.structures}
    read = builder.reader(description)
    every = [(split, case) for split, cases in inventory.cases.items() for case in cases]
    apart = max(1, len(every) // SAMPLES)
    for number, (split, case) in enumerate(progress(every)):
        try:
            example, remarked, _ = common.read_case(case, description, root=inventory.root, read=read)
        except ScanError as e:
            found.faults.append(str(e))
            continue
        notes += remarked
        _count(found, split, case=case, example=example, description=description)
        if number % apart == 0 and len(found.samples) < SAMPLES:
            found.samples.append(_sample(case, example))
    absent = [structure for structure, counts in found.voxels.items() if not counts]
    if found.cases and absent:
        found.faults.append(
            f"{manual_dir}: no mask has {', '.join(absent)}; correct the values in dataset.json or in the masks"
            if name == "folder"
            else f"{manual_dir}: no mask has {', '.join(absent)}"
        )
    found.remarks = summarised(notes)
    return found


def _count(
    found: Verdict, split: str, case: common.Case, example: dict[str, Any], description: DatasetDescription
) -> None:
    found.cases[split] += 1
    found.patients.add(case.patient)
    found.sizes.append(example["mask"].shape)
    if example["spacing_known"]:
        found.spacings.append(example["spacing"])
    counts = np.bincount(example["mask"].ravel(), minlength=description.num_classes)
    for structure, label in description.structures.items():
        if counts[label]:
            found.voxels[structure].append(int(counts[label]))


def _sample(case: common.Case, example: dict[str, Any]) -> tuple[str, np.ndarray, np.ndarray]:
    z = int((example["mask"] > 0).sum((0, 1)).argmax())
    image = example["image"][:, :, z]
    image = image.mean(-1) if image.ndim == 3 else image
    name = case.name or f"{case.patient} {case.phase}"
    return name, image, example["mask"][:, :, z]
