"""The data set of a config: builds it first if needed (and writes the phantom's scans), then loads it."""

from __future__ import annotations

import pathlib
from typing import Any

import tfds_builders
from jras_jax import files
from jras_jax.config import Dataset
from jras_jax.data import DatasetDescription, phantom
from jras_jax.data.description import KNOWN
from jras_jax.data.load import RunData, load
from jras_jax.errors import UserError
from jras_jax.hosts import first_host_first


def describe(dataset: Dataset) -> DatasetDescription:
    """The description of a config's data set, before it is built.

    Raises:
      UserError: no manual_dir, or a folder that does not describe itself.
    """
    if dataset.name in KNOWN:
        return KNOWN[dataset.name]
    return tfds_builders.describe(dataset.name, _manual_dir(dataset))


def _manual_dir(dataset: Dataset) -> str:
    """config.dataset.manual_dir; raises UserError if it is empty."""
    if dataset.manual_dir or dataset.name == "phantom":
        return dataset.manual_dir
    if dataset.name == "folder":
        raise UserError(
            "config.dataset.manual_dir is empty: give --config.dataset.manual_dir=FOLDER, the folder of your images "
            "and masks (jras check FOLDER verifies it)"
        )
    holds = _HOLDS[dataset.name]
    raise UserError(
        f"config.dataset.manual_dir is empty: give --config.dataset.manual_dir=FOLDER, the folder of the official "
        f"{KNOWN[dataset.name].name} download (with {holds} in it)"
    )


_HOLDS = {
    "acdc": "training/",
    "mnms": "its CSV",
    "mnms2": "dataset_information.csv",
    "busi": "benign/, malignant/ and normal/",
    "covid": "COVID-19-CT-Seg_20cases/ and Lung_and_Infection_Mask/",
}


def load_data(dataset: Dataset, splits: dict[str, Any] | None = None, protocol: str = "patient") -> RunData:
    """Loads the data set of a config's dataset section, building it first if it is not built from these scans.

    Args:
      dataset: the section.
      splits: those of an earlier start of the same run; None makes them.
      protocol: config.protocol.

    Raises:
      UserError: no manual_dir, a fault in the scans, or see `jras_jax.data.load.load`.
    """
    manual = _manual_dir(dataset)
    builder = "acdc" if dataset.name == "phantom" else dataset.name
    # The phantom follows ACDC's layout, but must not take the place of prepared real scans.
    prepared = files.expanded(dataset.data_dir)
    cache = prepared / "phantom" if dataset.name == "phantom" else prepared
    with first_host_first():
        if dataset.name == "phantom":
            manual = str(_write_phantom(dataset))
        folder = tfds_builders.build(builder, manual, cache, say=_say_phantom if dataset.name == "phantom" else print)
        scans = tfds_builders.scans_root(builder, manual)  # what exports look for their scans in
    return load(folder, dataset, scans=str(scans), splits=splits, protocol=protocol)


def _say_phantom(line: str) -> None:
    """The builder names acdc, the layout that the phantom is written in."""
    print(f"phantom (in ACDC's layout): {line}")


def _write_phantom(dataset: Dataset) -> pathlib.Path:
    """The phantom's folder under data_dir; written once for each size and seed."""
    train, test, seed = dataset.phantom_patients, dataset.phantom_test_patients, dataset.split_seed
    folder = files.expanded(dataset.data_dir) / "scans" / f"phantom_{train}_{test}_{seed}"
    done = folder / "phantom.json"
    if not done.is_file():
        phantom.write_acdc(folder, train_patients=train, test_patients=test, seed=seed)
        files.write_json(done, {"train": train, "test": test})
    return folder
