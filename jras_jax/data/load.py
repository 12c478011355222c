"""The volumes of a run: a prepared data set read into memory, and who trains, validates and tests."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import Any

from absl import logging

from jras_jax.config import Dataset
from jras_jax.data import DatasetDescription, Volume, prepared
from jras_jax.data.description import CARDIAC
from jras_jax.data.fingerprint import PARTS, fingerprints
from jras_jax.data.frame import FrameRule
from jras_jax.data.grid import Grid
from jras_jax.data.paper import as_slices
from jras_jax.data.splits import make_splits, pick
from jras_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RunData:
    """The volumes of a data set and the part that each patient plays in a run.

    Attributes:
      volumes: the data set's own splits, each its volumes.
      splits: as of `make_splits`.
      grid: the model grid.
      scans: the folder that the volumes' `source` is relative to.
      description: of the data set.
      fingerprint: {part: 32 hexadecimal digits} of what the volumes of 'train', 'validation' and 'test' hold.
      added: test patients that the data set has, but had not when the run was started; they are tested too.
    """

    volumes: dict[str, list[Volume]]
    splits: dict[str, Any]
    grid: Grid
    scans: str
    description: DatasetDescription = CARDIAC
    fingerprint: dict[str, str] = dataclasses.field(default_factory=dict)
    added: tuple[str, ...] = ()

    def part(self, name: str) -> list[Volume]:
        """The volumes of 'train', 'validation' or 'test'.

        Raises:
          UserError: the data set has no patients there.
        """
        volumes = pick(self.volumes, self.splits, name)
        if not volumes:
            have = [p for p in PARTS if self.splits.get(p)]
            raise UserError(f"config.eval.split={name!r}: this data set has no such patients; it has {', '.join(have)}")
        return volumes

    def contents(self, name: str, **how: Any) -> str:
        """64 digits that are equal where the slices of a part, made `how`, are; '' if the data has no fingerprint."""
        if name not in self.fingerprint:
            return ""
        cases = [(v.case, v.patient, v.phase, v.vendor) for v in self.part(name)]
        facts = (self.fingerprint[name], cases, self.grid, self.description, sorted(how.items()))
        return hashlib.sha256(repr(facts).encode()).hexdigest()


def grid_of(dataset: Dataset, description: DatasetDescription) -> Grid:
    """The model grid of a config's dataset section.

    Raises:
      UserError: the frame of the heart is wanted of a data set that names no structures for it, or neighbours of one
        of several channels or of single images.
    """
    if dataset.neighbours and (len(description.channels) > 1 or description.dimensions == 2):
        what = f"has {len(description.channels)} channels" if description.dimensions == 3 else "holds single images"
        raise UserError(
            f"config.dataset.neighbours=True: {description.name} {what}, but the neighbours are slices of a volume "
            "of one channel; use --config.dataset.neighbours=False"
        )
    grid = Grid(
        dataset.image_size,
        dataset.spacing_mm,
        unknown_spacing=dataset.unknown_spacing,
        percentiles=dataset.percentiles,
        neighbours=dataset.neighbours,
    )
    if dataset.frame == "whole":
        return grid
    if not description.frame_structures:
        raise UserError(
            f"config.dataset.frame='heart': the data set {description.name} names no structures that make the frame; "
            "use --config.dataset.frame=whole"
        )
    if len(description.channels) > 1:
        raise UserError(
            f"config.dataset.frame='heart': {description.name} has {len(description.channels)} channels, and the frame "
            "is found in images of one; use --config.dataset.frame=whole"
        )
    direction = description.structures.get(description.frame_direction or "")
    rule = FrameRule(description.labels_of(description.frame_structures), direction, dataset.frame_radius)
    return grid._replace(frame=rule, whole_size=dataset.whole_size)


def load(
    folder: str | os.PathLike[str],
    dataset: Dataset,
    *,
    scans: str,
    splits: dict[str, Any] | None = None,
    protocol: str = "patient",
) -> RunData:
    """Reads a prepared data set.

    Args:
      folder: that `tfds_builders.build` returned.
      dataset: the config's section.
      scans: the folder of the scans it was built from.
      splits: those of an earlier start of the same run; None makes them.
      protocol: config.protocol; with 'paper' every slice is a volume, see `data.paper`.

    Raises:
      UserError: no training patients, damaged records, or splits that name patients who are no longer there.
    """
    description = prepared.describe(folder, dataset.name)
    volumes = {split: prepared.load_volumes(folder, split, description) for split in prepared.splits(folder)}
    if protocol == "paper":
        volumes = {split: as_slices(found) for split, found in volumes.items()}
    if "train" not in volumes:
        raise UserError(f"{scans}: there are no training patients, so there is nothing to train on")
    added: list[str] = []
    if splits is None:
        splits = make_splits(
            volumes,
            stratify="vendor" if dataset.name in ("mnms", "mnms2") else "group",
            num_folds=dataset.num_folds,
            fold=dataset.fold,
            seed=dataset.split_seed,
            max_train_patients=dataset.max_train_patients,
            leave_out=dataset.leave_out,
        )
    else:
        have = {v.patient for vs in volumes.values() for v in vs}
        gone = sorted({p for part in PARTS for p in splits[part]} - have)
        added = sorted({v.patient for v in volumes.get("test", ())} - set(splits["test"]))
        if gone:
            raise UserError(f"{scans}: patients of this run's splits.json are no longer there: {', '.join(gone[:5])}")
    unknown = sum(not v.spacing_known for vs in volumes.values() for v in vs)
    if unknown:
        logging.info("%d volumes have no known spacing: not resampled, distances will be in voxels", unknown)
    fingerprint = fingerprints(volumes, splits)  # of the patients that the run had when it was started
    if added:
        splits = splits | {"test": sorted([*splits["test"], *added])}
    return RunData(
        volumes,
        splits,
        grid=grid_of(dataset, description),
        scans=scans,
        description=description,
        fingerprint=fingerprint,
        added=tuple(added),
    )
