"""Which settings may change after training has started; the schema says so for each (`change`)."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Any, Literal

import ml_collections

from jras_jax.config.parsing import flatten, setting_at
from jras_jax.config.schema import SETTINGS, Config
from jras_jax.config.setting import ConfigError

# Settings that a resumed run follows if its user asks for it (--resume_with_changes).
DECLARABLE = frozenset(s.key for s in SETTINGS.values() if s.change == "declared")


def changeable(when: Literal["resume", "open"]) -> frozenset[str]:
    """Keys of the settings that may change when training resumes, or when a trained run is opened."""
    return frozenset(key for key, setting in SETTINGS.items() if setting.change in (when, "free"))


def check_opened(overrides: Iterable[str]) -> None:
    """Refuses `--config.a.b=value` arguments that a trained run cannot follow.

    An argument that names no setting passes: `override` says what is wrong with it.

    Raises:
      ConfigError: an argument names a setting that is fixed by training.
    """
    allowed = changeable("open")
    for argument in overrides:
        key = argument.removeprefix("--config.").partition("=")[0]
        setting = setting_at(key)
        if setting is not None and setting.key not in allowed:
            raise ConfigError(
                f"--config.{key} cannot be changed after training; you can change: {', '.join(_abridged(allowed))}"
            )


def differences(saved: ml_collections.ConfigDict, config: Config) -> dict[str, tuple[str, str]]:
    """Settings that differ from those of a saved run and must not.

    Args:
      saved: of `load_saved`; it may come from an earlier version, with other settings.
      config: the configuration to resume with.

    Returns:
      {key: (saved, now)} as text, in the schema's order; 'not set' for an option or a setting that one side lacks.
    """
    allowed = changeable("resume")
    before, now = (_comparable(tree) for tree in (saved.to_dict(), dataclasses.asdict(config)))
    options = [key for key in before if key not in now and key not in SETTINGS and setting_at(key)]
    found = {}
    for key in (*now, *options):
        setting = setting_at(key)
        assert setting is not None, key
        missing = key not in before or key not in now
        if setting.key not in allowed and (missing or before[key] != now[key]):
            found[key] = tuple(repr(side[key]) if key in side else "not set" for side in (before, now))
    return found  # type: ignore[return-value]


def check_resumed(
    saved: ml_collections.ConfigDict, config: Config, workdir: pathlib.Path, *, declared: bool = False
) -> dict[str, tuple[str, str]]:
    """Refuses to resume the run of `workdir` with settings that training must not change.

    Args:
      saved: of `load_saved`.
      config: the configuration to resume with.
      workdir: for the message.
      declared: whether the settings of `DECLARABLE` may differ.

    Returns:
      The declared changes, {key: (saved, now)} as text.

    Raises:
      ConfigError: there are other changes; the message lists all of them.
    """
    found = differences(saved, config)
    follows = {key: pair for key, pair in found.items() if key in DECLARABLE and not _switched(key, saved, config)}
    refused = {key: pair for key, pair in found.items() if key not in follows} if declared else found
    if not refused:
        return found
    listed = ", ".join(f"config.{key}: {before} -> {now}" for key, (before, now) in refused.items())
    flag = ", or add --resume_with_changes to continue with the new ones" if len(follows) == len(found) else ""
    raise ConfigError(
        f"{workdir} holds a run with other settings (saved -> now): {listed}. Give another --workdir, or the saved "
        f"settings to resume it{flag}"
    )


def _switched(key: str, saved: ml_collections.ConfigDict, config: Config) -> bool:
    """Whether clipping of the gradient is switched on or off, which changes the optimiser's saved state."""
    return key == "optim.grad_clip" and (saved.optim.grad_clip == 0) != (config.optim.grad_clip == 0)


def _comparable(tree: dict[str, Any]) -> dict[str, Any]:
    """Flat, as JSON has it (lists for tuples), and without options that hold nothing."""
    return {key: value for key, value in flatten(json.loads(json.dumps(tree))).items() if value != {}}


def _abridged(keys: frozenset[str]) -> list[str]:
    """Keys in the schema's order; 'section.*' for a section with all of its keys among them."""
    names: dict[str, None] = {}
    for key in (key for key in SETTINGS if key in keys):
        section = key.partition(".")[0]
        whole = all(other in keys for other in SETTINGS if other.startswith(f"{section}."))
        names[f"{section}.*" if whole and "." in key else key] = None
    return list(names)
