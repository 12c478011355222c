"""Prepared data sets back into volumes, through TFDS data sources; TensorFlow is never imported."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from jras_jax.data import DatasetDescription, Volume
from jras_jax.data.description import CARDIAC, FILE, KNOWN, read_description
from jras_jax.errors import UserError


def splits(dataset_dir: str | os.PathLike[str]) -> dict[str, int]:
    """Names of a prepared data set's splits and their numbers of volumes.

    Raises:
      UserError: there is no prepared data set in the folder.
    """
    return {name: info.num_examples for name, info in _builder(dataset_dir).info.splits.items()}


def describe(dataset_dir: str | os.PathLike[str], dataset: str) -> DatasetDescription:
    """The description of a prepared data set: that of `config.dataset.name` if the project knows it, or its own.

    Raises:
      UserError: it has none, or a damaged one.
    """
    if dataset in KNOWN:
        return KNOWN[dataset]
    return read_description(pathlib.Path(dataset_dir) / FILE, "delete the folder, and it will be built again")


def load_volumes(
    dataset_dir: str | os.PathLike[str], split: str, description: DatasetDescription = CARDIAC
) -> list[Volume]:
    """All volumes of a split, in the order of patient and phase.

    Args:
      dataset_dir: folder of the prepared data set, as `tfds_builders.build` returns it.
      split: as `splits` names it.
      description: of the data set, for the volumes.

    Raises:
      UserError: there is no such data set or split, or its records are damaged.
    """
    builder = _builder(dataset_dir)
    if split not in builder.info.splits:
        raise UserError(f"{dataset_dir}: has no split {split!r}, it has {', '.join(builder.info.splits)}")
    try:
        source = builder.as_data_source(split)
        volumes = [_volume(source[i], description) for i in range(len(source))]
    except Exception as e:  # whatever a damaged record raises, in ArrayRecord, protobuf, zlib or numpy
        raise _damaged(dataset_dir, e) from e
    return sorted(volumes, key=lambda v: (v.patient, v.phase, v.name))


def _builder(dataset_dir: str | os.PathLike[str]) -> Any:
    import tensorflow_datasets as tfds  # slow to import

    if not (pathlib.Path(dataset_dir) / "dataset_info.json").is_file():
        raise UserError(f"{dataset_dir}: no prepared data set; build it with python -m tfds_builders")
    try:
        return tfds.builder_from_directory(dataset_dir)
    except Exception as e:
        raise _damaged(dataset_dir, e) from e


def _damaged(dataset_dir: str | os.PathLike[str], error: Exception) -> UserError:
    return UserError(f"{dataset_dir}: cannot be read ({error}); delete the folder, and it will be built again")


def _volume(example: dict[str, Any], description: DatasetDescription) -> Volume:
    text = {key: example[key].decode() for key in ("patient", "phase", "group", "vendor", "centre", "source")}
    image = np.asarray(example["image"], np.float32)
    return Volume(
        image=image[..., 0] if image.ndim == 4 and image.shape[3] == 1 else image,
        mask=np.asarray(example["mask"], np.uint8),
        affine=np.asarray(example["affine"], np.float64),
        spacing=np.asarray(example["spacing"], np.float32),
        spacing_known=bool(example["spacing_known"]),
        frame=int(example["frame"]),
        name=example["name"].decode() if "name" in example else "",
        description=description,
        **text,
    )
