"""From ConfigDict to frozen, validated dataclasses; nothing else in the package reads a config.

`load` executes a config file, `override` applies `--config.a.b=value`, `parse` checks and freezes. The defaults
stand in `configs/common.py` alone; the classes here say types and rules.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import json
import pathlib
import sys
import typing
from typing import Any, Literal

import ml_collections

from jras_jax.errors import UserError


class ConfigError(UserError):
    """A configuration key or value is wrong; the message names the key."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    name: Literal["acdc", "mnms", "phantom"]
    manual_dir: str
    data_dir: str
    num_folds: int
    fold: int
    split_seed: int
    image_size: int
    spacing_mm: float
    unknown_spacing: Literal["fit", "crop"]
    percentiles: tuple
    drop_empty: bool
    max_train_patients: int
    phantom_patients: int
    phantom_test_patients: int

    @property
    def convention(self) -> str:
        """Whose label values are written: the phantom follows ACDC."""
        return "mnms" if self.name == "mnms" else "acdc"


@dataclasses.dataclass(frozen=True)
class Augment:
    enabled: bool
    rotate_deg: float
    scale: float
    shift: float
    retriever_share: float
    flip: bool
    gamma: float
    contrast: float
    brightness: float
    noise_std: float
    probability: float


@dataclasses.dataclass(frozen=True)
class Backbone:
    name: Literal["unet", "segformer", "transunet", "sam"]
    variant: str
    options: dict
    in_channels: int
    init_from: str
    frozen: tuple


@dataclasses.dataclass(frozen=True)
class Retriever:
    variant: str
    image_size: int
    trained_blocks: int
    lora_rank: int
    pool: Literal["cls", "grid"]
    hidden: int
    dim: int
    dropout: float
    init_from: str


@dataclasses.dataclass(frozen=True)
class Retrieval:
    enabled: bool
    strategy: Literal["top_k", "softmax", "gumbel_top_k", "sparsemax", "random", "oracle"]
    top_k: int
    temperature: float
    exclude: Literal["patient", "slice", "none"]
    recall_target: float
    gallery_memory: Literal["device", "host"]
    refresh: Literal["epochs", "steps", "rolling"]
    refresh_every: int
    overlap_weight: float
    overlap_sharpness: float
    contrast_weight: float
    contrast_candidates: int
    contrast_every: int
    contrast_temperature: float


@dataclasses.dataclass(frozen=True)
class Fusion:
    name: Literal["prototype", "concat", "adapter", "cross_attention"]
    guide_gradient: bool
    options: dict


@dataclasses.dataclass(frozen=True)
class Loss:
    dice_weight: float
    ce_weight: float
    dice_batch: bool
    deep_weight: float


@dataclasses.dataclass(frozen=True)
class Optim:
    name: Literal["adamw", "adam", "sgd"]
    lr_backbone: float
    lr_retriever: float
    weight_decay: float
    warmup_steps: int
    final_lr_factor: float
    grad_clip: float
    ema_decay: float


@dataclasses.dataclass(frozen=True)
class Train:
    num_steps: int
    batch_size: int
    dtype: Literal["float32", "bfloat16"]
    eval_every: int
    checkpoint_every: int
    log_every: int
    with_baseline: bool
    validate_patients: int


@dataclasses.dataclass(frozen=True)
class Pretrain:
    num_steps: int
    batch_size: int
    lr: float
    weight_decay: float
    temperature: float
    normalise: bool
    neighbour_probability: float


@dataclasses.dataclass(frozen=True)
class Mesh:
    data: int
    model: int


@dataclasses.dataclass(frozen=True)
class Eval:
    split: Literal["validation", "test", "train"]
    batch_size: int
    gallery: Literal["train"]
    postprocess: Literal["none", "largest_component"]
    tta: bool
    evidence_cases: int


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run; fields as in `configs/common.py`."""

    name: str
    seed: int
    dataset: Dataset
    augment: Augment
    backbone: Backbone
    retriever: Retriever
    retrieval: Retrieval
    fusion: Fusion
    loss: Loss
    optim: Optim
    train: Train
    pretrain: Pretrain
    mesh: Mesh
    eval: Eval


def load(path: str | pathlib.Path) -> ml_collections.ConfigDict:
    """Runs `get_config()` of a config file.

    Raises:
      ConfigError: the file is missing, does not run, or has no `get_config`.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        near = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"--config={path}: no such file{_nearest(str(path), near)}")
    spec = importlib.util.spec_from_file_location(f"jras_config_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # A config imports its siblings (`from configs import common`): its folder's parent must be importable.
    root = str(path.resolve().parent.parent)
    sys.path.insert(0, root)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as e:
        raise ConfigError(f"{path} is not a working config file: {type(e).__name__}: {e}") from e
    finally:
        sys.path.remove(root)
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"{path}: get_config() must return an ml_collections.ConfigDict")
    return config


def override(config: ml_collections.ConfigDict, assignments: typing.Iterable[str]) -> ml_collections.ConfigDict:
    """Applies `--config.a.b=value` arguments; a name that does not exist fails and names the nearest.

    Raises:
      ConfigError: an argument is not of this form, names no key, or its value has the wrong type.
    """
    known = list(flatten(config.to_dict()))
    config = ml_collections.ConfigDict(config.to_dict())
    for argument in assignments:
        name, _, text = argument.partition("=")
        if not name.startswith("--config.") or "=" not in argument:
            raise ConfigError(f"{argument!r} is no known argument; settings are given as --config.section.key=value")
        key = name.removeprefix("--config.")
        section, _, leaf = key.rpartition(".")
        free = section in ("backbone.options", "fusion.options")
        if key not in known and not free:
            raise ConfigError(f"--config.{key}: no such setting{_nearest(key, known)}")
        node = config
        for part in section.split(".") if section else ():
            node = node[part]
        node[leaf] = _value(text, None if free and leaf not in node else node[leaf], key)
    return config


def _value(text: str, old: Any, key: str) -> Any:
    """`text` as the type of `old` (any literal where there is no old value)."""
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        if old is None:
            return text
        raise ConfigError(f"--config.{key}={text}: expected {_kind(old)}, such as {old!r}") from None
    if isinstance(old, tuple) and not isinstance(value, (tuple, list)):
        value = (value,)
    if isinstance(old, tuple):
        value = tuple(value)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, int) and not isinstance(old, bool) and isinstance(value, float) and value.is_integer():
        value = int(value)
    if old is not None and type(value) is not type(old):
        raise ConfigError(f"--config.{key}={text}: expected {_kind(old)}, such as {old!r}")
    return value


def _kind(value: Any) -> str:
    return {bool: "True or False", int: "a whole number", float: "a number", tuple: "a list"}.get(
        type(value), type(value).__name__
    )


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    """' (did you mean ...?)' or nothing; a key of another section with the same last part counts as near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    near = near or [k for k in known if k.split(".")[-1] == name.split(".")[-1]][:1]
    return f"; did you mean {near[0]}?" if near else ""


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def parse(config: ml_collections.ConfigDict | dict) -> Config:
    """Checks types, choices and rules, and freezes.

    Raises:
      ConfigError: naming the first key that is wrong and what it may be.
    """
    tree = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    parsed = _build(Config, tree, "")
    _check(parsed)
    return parsed


def _build(cls: Any, tree: Any, prefix: str) -> Any:
    if not isinstance(tree, dict):
        raise ConfigError(f"config.{prefix.rstrip('.')}: expected a section, found {tree!r}")
    hints = typing.get_type_hints(cls)
    for key in tree:
        if key not in hints:
            raise ConfigError(f"config.{prefix}{key}: no such setting{_nearest(key, hints)}")
    values = {}
    for key, hint in hints.items():
        name = prefix + key
        if key not in tree:
            raise ConfigError(
                f"config.{name} is missing; configs start from configs/common.py, which has every default"
            )
        value = tree[key]
        if dataclasses.is_dataclass(hint):
            value = _build(hint, value, name + ".")
        elif typing.get_origin(hint) is Literal:
            choices = typing.get_args(hint)
            if value not in choices:
                raise ConfigError(f"config.{name}={value!r}: choose one of {', '.join(map(repr, choices))}")
        elif hint is tuple:
            value = tuple(value)
        elif hint is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
            raise ConfigError(f"config.{name}={value!r}: expected {_kind(hint())}")
        values[key] = value
    return cls(**values)


def _check(c: Config) -> None:
    """Rules that types alone do not say."""
    rules = [
        (0 <= c.dataset.fold < c.dataset.num_folds, "dataset.fold", f"0 to {c.dataset.num_folds - 1}"),
        (c.dataset.num_folds >= 2, "dataset.num_folds", "2 or more"),
        (c.dataset.image_size >= 16, "dataset.image_size", "16 or more"),
        (c.dataset.spacing_mm >= 0, "dataset.spacing_mm", "0 or more"),
        (
            len(c.dataset.percentiles) == 2 and 0 <= c.dataset.percentiles[0] < c.dataset.percentiles[1] <= 100,
            "dataset.percentiles",
            "two rising numbers in 0..100",
        ),
        (c.backbone.in_channels in (1, 3), "backbone.in_channels", "1 or 3"),
        (c.retrieval.top_k >= 1, "retrieval.top_k", "1 or more"),
        (c.retrieval.temperature > 0, "retrieval.temperature", "above 0"),
        (c.retrieval.refresh_every >= 1, "retrieval.refresh_every", "1 or more"),
        (0 < c.retrieval.recall_target <= 1, "retrieval.recall_target", "above 0 and at most 1"),
        (c.retrieval.overlap_sharpness > 0, "retrieval.overlap_sharpness", "above 0"),
        (
            c.retrieval.gallery_memory == "device"
            or (c.retrieval.strategy not in ("softmax", "oracle") and not c.retrieval.overlap_weight),
            "retrieval.gallery_memory",
            "'device' with strategy 'softmax' or 'oracle' and with overlap_weight above 0, which read every mask",
        ),
        (c.retriever.lora_rank >= 0, "retriever.lora_rank", "0 or more"),
        (c.retrieval.contrast_candidates >= 2, "retrieval.contrast_candidates", "2 or more"),
        (c.retrieval.contrast_every >= 1, "retrieval.contrast_every", "1 or more"),
        (0 <= c.retriever.dropout < 1, "retriever.dropout", "in [0, 1)"),
        (0 <= c.optim.ema_decay < 1, "optim.ema_decay", "in [0, 1)"),
        (c.loss.dice_weight + c.loss.ce_weight > 0, "loss.dice_weight", "above 0 in sum with loss.ce_weight"),
        (c.train.num_steps >= 1, "train.num_steps", "1 or more"),
        (c.train.batch_size >= 1, "train.batch_size", "1 or more"),
        (c.train.eval_every >= 1, "train.eval_every", "1 or more"),
        (c.train.checkpoint_every >= 1, "train.checkpoint_every", "1 or more"),
        (c.train.log_every >= 1, "train.log_every", "1 or more"),
        (c.eval.batch_size >= 1, "eval.batch_size", "1 or more"),
        (c.mesh.model >= 1, "mesh.model", "1 or more"),
    ]
    for holds, key, want in rules:
        if not holds:
            value = flatten(dataclasses.asdict(c))[key]
            raise ConfigError(f"config.{key}={value!r}: must be {want}")


def save(config: Config, path: str | pathlib.Path) -> None:
    """Writes the run's own configuration as JSON, atomically."""
    path = pathlib.Path(path)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    temporary.replace(path)


def load_saved(path: str | pathlib.Path) -> ml_collections.ConfigDict:
    """Reads what `save` wrote.

    Raises:
      ConfigError: the file is missing or is not such a file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ConfigError(f"{path} is missing: {path.parent} is not the folder of a run (train one first)")
    try:
        tree = json.loads(path.read_text())
    except json.JSONDecodeError as e:
        raise ConfigError(f"{path} is damaged ({e}); restore it or train again") from e
    for section, key in (("dataset", "percentiles"), ("backbone", "frozen")):  # JSON has lists for tuples
        if isinstance(tree.get(section, {}).get(key), list):
            tree[section][key] = tuple(tree[section][key])
    return ml_collections.ConfigDict(tree)
