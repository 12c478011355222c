"""From a config to the volumes, splits and slice tables of a run; builds the data set first where it is not built."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

from absl import logging

from jras_jax import mesh
from jras_jax.config import Config
from jras_jax.data import Volume, phantom, pipeline, store
from jras_jax.data.preprocess import Grid
from jras_jax.errors import UserError

# (name, manual_dir, data_dir) -> folder of the prepared data set; `tfds_builders.build`, handed over by run.py.
Build = Callable[[str, str, str], pathlib.Path]


@dataclasses.dataclass(frozen=True)
class Data:
    """The volumes of each part of a run ('train', 'validation', 'test') and who is where."""

    volumes: dict[str, list[Volume]]
    splits: dict[str, Any]
    grid: Grid
    scans: str  # the folder that the volumes' sources are relative to

    def part(self, name: str) -> list[Volume]:
        """Volumes of a part.

        Raises:
          UserError: the data set has no patients there.
        """
        found = pipeline.pick(self.volumes, self.splits, name)
        if not found:
            have = [p for p in ("train", "validation", "test") if self.splits.get(p)]
            raise UserError(f"config.eval.split={name!r}: this data set has no such patients; it has {', '.join(have)}")
        return found


def grid_of(config: Config) -> Grid:
    """The model grid of a config."""
    d = config.dataset
    return Grid(d.image_size, d.spacing_mm, d.unknown_spacing, d.percentiles)


def prepare(config: Config, build: Build, splits: dict[str, Any] | None = None) -> Data:
    """Loads the data set of a config, building it first (and for the phantom, writing its scans).

    Args:
      config: the run.
      build: see `Build`.
      splits: those of an earlier start of the same run; None makes them.

    Raises:
      UserError: no manual_dir, a fault in the scans, or splits that name patients who are no longer there.
    """
    d = config.dataset
    manual = d.manual_dir
    if d.name != "phantom" and not manual:
        raise UserError(
            f"config.dataset.manual_dir is empty: give --config.dataset.manual_dir=FOLDER, the folder of the official "
            f"{d.name.upper()} download ({'with training/ in it' if d.name == 'acdc' else 'with its CSV in it'})"
        )
    builder = "mnms" if d.name == "mnms" else "acdc"
    # The phantom follows ACDC's layout, but must not take the place of prepared real scans.
    cache = str(pathlib.Path(d.data_dir) / "phantom") if d.name == "phantom" else d.data_dir
    with mesh.first_host_first():
        if d.name == "phantom":
            manual = str(_write_phantom(config))
        folder = build(builder, manual, cache)
    volumes = {split: store.load_volumes(folder, split) for split in store.splits(folder)}
    if "train" not in volumes:
        raise UserError(f"{manual}: no training patients were found there, so there is nothing to train on")
    if splits is None:
        splits = pipeline.make_splits(
            volumes,
            stratify="vendor" if d.name == "mnms" else "group",
            num_folds=d.num_folds,
            fold=d.fold,
            seed=d.split_seed,
            max_train_patients=d.max_train_patients,
        )
    else:
        have = {v.patient for vs in volumes.values() for v in vs}
        gone = sorted({p for part in ("train", "validation", "test") for p in splits[part]} - have)
        if gone:
            raise UserError(f"{manual}: patients of this run's splits.json are no longer there: {', '.join(gone[:5])}")
    unknown = sum(not v.spacing_known for vs in volumes.values() for v in vs)
    if unknown:
        logging.info("%d volumes have no known spacing: not resampled, distances will be in voxels", unknown)
    return Data(volumes, splits, grid_of(config), manual)


def _write_phantom(config: Config) -> pathlib.Path:
    """The phantom's folder under data_dir; written once for each size and seed."""
    d = config.dataset
    name = f"phantom_{d.phantom_patients}_{d.phantom_test_patients}_{d.split_seed}"
    folder = pathlib.Path(d.data_dir) / "scans" / name
    done = folder / "phantom.json"
    if not done.is_file():
        phantom.write_acdc(
            folder, train_patients=d.phantom_patients, test_patients=d.phantom_test_patients, seed=d.split_seed
        )
        done.write_text(json.dumps({"train": d.phantom_patients, "test": d.phantom_test_patients}) + "\n")
    return folder
