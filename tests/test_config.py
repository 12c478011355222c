"""Configs: every file loads and validates, overrides are typed, misspelt ones fail and name the nearest."""

import json
import pathlib

import pytest

from jras_jax import config as configs
from jras_jax.config import ConfigError

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_config_file_validates(file):
    parsed = configs.parse(configs.load(file))
    assert parsed.name == file.stem


def test_overrides_are_typed():
    base = configs.load(ROOT / "configs/common.py")
    changed = configs.override(
        base,
        [
            "--config.train.num_steps=7",
            "--config.optim.lr_backbone=1e-2",
            "--config.dataset.percentiles=(1,99)",
            "--config.retrieval.enabled=false",
            "--config.backbone.options.base_channels=8",
            "--config.dataset.spacing_mm=2",
        ],
    )
    parsed = configs.parse(changed)
    assert parsed.train.num_steps == 7 and parsed.optim.lr_backbone == 1e-2
    assert parsed.dataset.percentiles == (1, 99) and parsed.retrieval.enabled is False
    assert parsed.backbone.options == {"base_channels": 8}
    assert parsed.dataset.spacing_mm == 2.0
    assert base.train.num_steps == 10_000  # the original is left alone


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--config.train.num_step=7", "train.num_steps"),
        ("--config.retreival.top_k=3", "retrieval.top_k"),
        ("--config.num_steps=3", "num_steps"),
        ("--config.train.num_steps=many", "whole number"),
        ("--config.train.num_steps=1.5", "whole number"),
        ("--config.retrieval.enabled=3", "True or False"),
        ("--workdri=x", "--workdri=x"),
    ],
)
def test_wrong_overrides_name_what_is_meant(argument, named):
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        configs.override(configs.load(ROOT / "configs/common.py"), [argument])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset.fold", 5),
        ("dataset.name", "acdcc"),
        ("retrieval.temperature", 0.0),
        ("backbone.in_channels", 2),
        ("dataset.percentiles", (99.0, 1.0)),
        ("train.batch_size", 0),
    ],
)
def test_values_out_of_range_name_their_key(key, value):
    c = configs.load(ROOT / "configs/common.py")
    section, leaf = key.split(".")
    c[section][leaf] = value
    with pytest.raises(ConfigError, match=key):
        configs.parse(c)


def test_saved_config_is_the_same(tmp_path):
    parsed = configs.parse(configs.load(ROOT / "configs/acdc_unet.py"))
    configs.save(parsed, tmp_path / "config.json")
    assert configs.parse(configs.load_saved(tmp_path / "config.json")) == parsed


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="did you mean"):
        configs.load(ROOT / "configs/acdc_unett.py")
    with pytest.raises(ConfigError, match="not the folder of a run"):
        configs.load_saved(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        configs.load_saved(tmp_path / "config.json")
    tree = configs.load(ROOT / "configs/common.py").to_dict()
    tree["train"]["nmu_steps"] = 3
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=r"train\.nmu_steps.*num_steps"):
        configs.parse(configs.load_saved(tmp_path / "config.json"))
