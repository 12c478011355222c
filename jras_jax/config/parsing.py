"""From a ConfigDict to the frozen, checked `Config`, and `--config.a.b=value` arguments into a ConfigDict."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import math
import sys
import typing
from typing import Any

import ml_collections

from jras_jax.config.schema import SETTINGS, Config
from jras_jax.config.setting import ConfigError, Setting, kind_of


def override(config: ml_collections.ConfigDict, assignments: typing.Iterable[str]) -> ml_collections.ConfigDict:
    """Applies `--config.a.b=value` arguments; a name that does not exist is refused, and the nearest one named.

    Raises:
      ConfigError: an argument is not of this form, names no key, or its value has the wrong type.
    """
    known = list(flatten(config.to_dict()))
    config = ml_collections.ConfigDict(config.to_dict())
    for argument in assignments:
        name, _, text = argument.partition("=")
        if not name.startswith("--config.") or "=" not in argument:
            raise ConfigError(f"{argument!r} is not a known argument; settings are given as --config.section.key=value")
        key = name.removeprefix("--config.")
        section, _, leaf = key.rpartition(".")
        free = section in SETTINGS and SETTINGS[section].open_ended
        if key not in known and not free:
            raise ConfigError(f"--config.{key}: no such setting{nearest(key, known)}")
        node = config
        for part in section.split(".") if section else ():
            node = node[part]
        node[leaf] = _value(text, None if free and leaf not in node else node[leaf], key)
    return config


def _value(text: str, old: Any, key: str) -> Any:
    """`text` as the type of `old` (any literal if there is no old value)."""
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        if old is None:
            return text
        raise ConfigError(f"--config.{key}={text}: expected {kind_of(old)}, such as {old!r}") from None
    if isinstance(old, tuple) and not isinstance(value, (tuple, list)):
        value = (value,)
    if isinstance(old, tuple):
        value = tuple(value)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= sys.float_info.max else math.inf  # which `parse` refuses in words
    if isinstance(old, int) and not isinstance(old, bool) and isinstance(value, float) and value.is_integer():
        value = int(value)
    if old is not None and type(value) is not type(old):
        raise ConfigError(f"--config.{key}={text}: expected {kind_of(old)}, such as {old!r}")
    return value


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """'; did you mean ...?' or nothing; a key of another section with the same last part counts as near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    near = near or [k for k in known if k.split(".")[-1] == name.split(".")[-1]][:1]
    return f"; did you mean {near[0]}?" if near else ""


def setting_at(key: str) -> Setting | None:
    """The setting that `key` names, or the options that it is one of; None if there is none."""
    if key in SETTINGS:
        return SETTINGS[key]
    return next((s for s in SETTINGS.values() if s.open_ended and key.startswith(f"{s.key}.")), None)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def parse(config: ml_collections.ConfigDict | dict[str, Any]) -> Config:
    """Checks types, choices and rules, and freezes.

    Raises:
      ConfigError: a key or value is wrong; the message names the first one and what it must be.
    """
    tree = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    built = _build(Config, tree, "")
    if built.protocol == "paper":  # the query itself guides, in training and in evaluation
        built = dataclasses.replace(built, retrieval=dataclasses.replace(built.retrieval, exclude="none"))
    return built


def _build(cls: Any, tree: Any, prefix: str) -> Any:
    """The section `cls` (or the whole `Config`) from its dictionary; its keys start with `prefix`."""
    if not isinstance(tree, dict):
        raise ConfigError(f"config.{prefix.rstrip('.')}: expected a section, found {tree!r}")
    hints = typing.get_type_hints(cls)
    for key in tree:
        if key not in hints:
            raise ConfigError(f"config.{prefix}{key}: no such setting{nearest(key, hints)}")
    values = {}
    for key, hint in hints.items():
        name = prefix + key
        if key not in tree:
            raise ConfigError(
                f"config.{name} is missing; configs start from config.defaults(), which has every setting"
            )
        section = dataclasses.is_dataclass(hint)
        values[key] = _build(hint, tree[key], name + ".") if section else SETTINGS[name].read(tree[key])
    built = cls(**values)
    for key, holds, want in built.rules() if hasattr(cls, "rules") else ():
        if not holds:
            value = functools.reduce(getattr, key.split("."), built)
            raise ConfigError(f"config.{prefix}{key}={value!r}: must be {want}")
    return built
