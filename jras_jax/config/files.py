"""Config files: those that a user writes, those that ship with the package, and the config.json of a run."""

from __future__ import annotations

import dataclasses
import importlib.resources
import importlib.util
import pathlib
import typing
from collections.abc import Iterator

import ml_collections

from jras_jax import files
from jras_jax.config.parsing import nearest
from jras_jax.config.schema import SETTINGS, Config
from jras_jax.config.setting import ConfigError


def load(path: str | pathlib.Path) -> ml_collections.ConfigDict:
    """Runs `get_config()` of a config file.

    Args:
      path: a config file, or the name of one that ships with the package ('demo', 'demo.py' or 'configs/demo.py'). A
        file that exists takes precedence.

    Raises:
      ConfigError: the file is missing, does not run, or has no `get_config`.

    Example:
      >>> load("demo").train.num_steps
      350
    """
    path = pathlib.Path(path)
    file = path if path.is_file() else _shipped_file(path)
    spec = importlib.util.spec_from_file_location(f"jras_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a working config file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as e:
        raise ConfigError(f"{path} is not a working config file: {type(e).__name__}: {e}") from e
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"{path}: get_config() must return an ml_collections.ConfigDict")
    return config


def shipped() -> dict[str, pathlib.Path]:
    """The config files that come with the package, by name; those inside the package precede those of the checkout."""
    files: dict[str, pathlib.Path] = {}
    for folder in _shipped_folders():
        for file in sorted(folder.glob("*.py")):
            if not file.stem.startswith("_"):
                files.setdefault(file.stem, file)
    return files


def _shipped_folders() -> Iterator[pathlib.Path]:
    package = pathlib.Path(str(importlib.resources.files("jras_jax")))
    yield package / "configs"
    if (package.parent / "pyproject.toml").is_file():  # a checkout; in site-packages, configs/ is not ours
        yield package.parent / "configs"


def _shipped_file(path: pathlib.Path) -> pathlib.Path:
    """The shipped config that `path` names, which is no file.

    Raises:
      ConfigError: there is none; the message lists those that there are.
    """
    known = shipped()
    if path.suffix in ("", ".py") and str(path.parent) in (".", "configs") and path.stem in known:
        return known[path.stem]
    beside = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
    near = nearest(str(path), beside) or nearest(path.stem, known)
    raise ConfigError(f"--config={path}: no such file{near or '.'} Configs of jras_jax: {', '.join(known)}")


def save(config: Config, path: str | pathlib.Path) -> None:
    """Writes a run's configuration as JSON, whole or not at all; raises FileError."""
    files.write_json(path, dataclasses.asdict(config), indent=2)


def load_saved(path: str | pathlib.Path) -> ml_collections.ConfigDict:
    """Reads what `save` wrote; settings that an earlier version did not have take their defaults if no weight
    depends on them, and else what such runs did (`before`).

    Raises:
      ConfigError: the file is missing or is not such a file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing: {path.parent} is not the folder of a run; make one with jras train --config=FILE "
            f"--workdir={path.parent}"
        )
    remedy = "restore it from a copy, or train again in another --workdir"
    try:
        tree = files.read_json(path, remedy=remedy)
    except files.FileError as e:
        raise ConfigError(str(e)) from e
    sections = {key.rpartition(".")[0] for key, setting in SETTINGS.items() if setting.before is None} - {""}
    if wrong := [name for name in sorted(sections) if not isinstance(tree.get(name), dict)]:
        raise ConfigError(f"{path} is damaged (it has no section {wrong[0]}): {remedy}")
    for setting in SETTINGS.values():  # JSON has lists for tuples
        section, _, name = setting.key.rpartition(".")
        holder = tree.setdefault(section, {}) if section else tree
        if typing.get_origin(setting.hint) is tuple and isinstance(holder.get(name), list):
            holder[name] = tuple(holder[name])
        if setting.before is not None:
            holder.setdefault(name, setting.before)
        elif setting.change not in ("fixed", "declared") and isinstance(holder, dict) and holder is not tree:
            holder.setdefault(name, setting.default)
    return ml_collections.ConfigDict(tree)
