"""A run as it is published, in a folder or on the Hugging Face hub: settings, weights, perhaps a gallery.

A published run can be opened, not resumed. Its splits.json names no patient unless the publisher wants it to.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import safetensors
import safetensors.numpy

from jras_jax import config as configs
from jras_jax import files, mesh
from jras_jax.config import Config
from jras_jax.data import DatasetDescription
from jras_jax.errors import UserError
from jras_jax.run_folder.layout import RunFolder

HUB = "hf:"  # before a name on the Hugging Face hub
_REMEDY = "download it again"
_NAMES = ("train", "validation", "test", "official_validation", "folds")  # of patients, in splits.json


def is_hub(workdir: object) -> bool:
    """Whether a --workdir names a run on the Hugging Face hub."""
    return str(workdir).startswith(HUB)


def located(workdir: str | pathlib.Path) -> RunFolder:
    """The folder of a --workdir; a run 'hf:org/name' is downloaded if it is not there.

    Raises:
      UserError: see `sources.from_hub`, or it is no run of this program.
    """
    if not is_hub(workdir):
        return RunFolder(workdir)
    from jras_jax.convert import sources  # and with it Flax, which opening a local run does without

    folder = RunFolder(sources.from_hub(str(workdir)))
    if not is_published(folder):
        raise UserError(f"{workdir} is not a run of this program: it has no {folder.published.name}")
    return folder


def is_published(folder: RunFolder) -> bool:
    """Whether a folder holds a published run."""
    return folder.published.is_file()


def write(
    folder: RunFolder,
    config: Config,
    description: DatasetDescription,
    variables: Mapping[str, Any],
    splits: Mapping[str, Any],
    facts: Mapping[str, Any],
    *,
    with_patients: bool,
) -> None:
    """Writes settings, weights, splits and published.json.

    Args:
      folder: where to.
      config: the run's; paths of this machine are left out.
      description: of its data set.
      variables: of the model.
      splits: the run's splits.json.
      facts: 'step' and whatever else published.json is to say.
      with_patients: whether the splits keep the names of the patients.

    Raises:
      FileError: a file cannot be written.
    """
    configs.save(_without_paths(config), folder.config)
    files.write_json(folder.dataset, description.to_json())
    leaves = jax.tree_util.tree_leaves_with_path(mesh.to_host(variables))
    files.save_tensors(folder.weights, {mesh.path_name(path): leaf for path, leaf in leaves}, {"format": "np"})
    kept = splits if with_patients else {k: [] if k in _NAMES else v for k, v in splits.items()}
    files.write_json(folder.splits, {**kept, "patients_named": with_patients})
    files.write_json(folder.published, {**facts, "sha256": files.sha256(folder.weights)})


def read(folder: RunFolder, device_mesh: jax.sharding.Mesh) -> tuple[int, dict[str, Any]]:
    """The step and the variables of a published run, on a mesh.

    Raises:
      UserError: a file is missing or damaged.
    """
    facts = files.read_json(folder.published, remedy=_REMEDY, holds={"sha256": str, "step": int})
    if not folder.weights.is_file():
        raise UserError(f"{folder.weights} is missing: {_REMEDY}")
    if files.sha256(folder.weights) != facts["sha256"]:
        raise UserError(f"{folder.weights} does not match its checksum in {folder.published.name}: {_REMEDY}")
    try:
        arrays = safetensors.numpy.load_file(folder.weights)
    except (safetensors.SafetensorError, ValueError) as e:
        raise UserError(f"{folder.weights} is not a readable safetensors file ({e}): {_REMEDY}") from e
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, last = name.split("/")
        holder = tree
        for parent in parents:
            holder = holder.setdefault(parent, {})
        holder[last] = array
    return facts["step"], jax.device_put(tree, mesh.parameter_shardings(tree, device_mesh))


def check_named(splits: Mapping[str, Any], folder: RunFolder) -> None:
    """Raises UserError if the run was published without the names that its splits need."""
    if splits.get("patients_named") is False:
        raise UserError(
            f"{folder} was published without the names of its patients, so its splits cannot be formed: score its "
            "masks with jras predict and jras score"
        )


def _without_paths(config: Config) -> Config:
    """The settings without the paths of this machine, whose folders may be named after people."""
    last = lambda path: pathlib.PurePath(path).name  # noqa: E731
    return dataclasses.replace(
        config,
        dataset=dataclasses.replace(config.dataset, manual_dir="", data_dir="data_cache"),
        backbone=dataclasses.replace(config.backbone, init_from=last(config.backbone.init_from)),
        retriever=dataclasses.replace(config.retriever, init_from=last(config.retriever.init_from)),
    )
