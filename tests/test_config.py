"""Configs: every file validates, values are typed and checked, wrong names and values are refused in words."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

import ml_collections
import pytest

from jras_jax import config as configs
from jras_jax.config import ConfigError

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_config_file_validates(file):
    parsed = configs.parse(configs.load(file))
    assert parsed.name == file.stem


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_config_files_say_what_they_train_and_import_only_the_package(file):
    text = file.read_text()
    assert f"run.py --config=configs/{file.name}" in text.split('"""')[1]
    imports = [line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert imports and {name.split(".")[0] for name in imports} <= {"jras_jax", "ml_collections"}


def test_a_shipped_config_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "demo.py", "configs/demo.py"):
        assert configs.load(name).to_dict() == configs.load(ROOT / "configs" / "demo.py").to_dict()
    with pytest.raises(ConfigError, match="did you mean acdc_unet"):
        configs.load("acdc_unett")
    with pytest.raises(ConfigError, match="no such file"):
        configs.load("elsewhere/demo.py")


def test_a_file_that_exists_precedes_a_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.py").write_text(
        "from jras_jax import config\n\n"
        "def get_config():\n    c = config.load('acdc_unet')\n    c.seed = 3\n    return c\n"
    )
    mine = configs.load("demo.py")
    assert mine.name == "acdc_unet" and mine.seed == 3
    assert configs.load("demo").name == "demo"


def test_configs_inside_the_package_precede_those_of_the_checkout(tmp_path, monkeypatch):
    """As in a wheel: the package holds configs/, and a folder beside it that is no checkout is not looked into."""
    package = tmp_path / "jras_jax"
    (package / "configs").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    for folder, names in ((package, ("one", "__init__")), (tmp_path, ("one", "two"))):
        for name in names:
            (folder / "configs" / f"{name}.py").touch()
    monkeypatch.setattr("importlib.resources.files", lambda name: tmp_path / name)
    assert configs.shipped() == {"one": package / "configs" / "one.py"}
    (tmp_path / "pyproject.toml").touch()
    assert configs.shipped() == {"one": package / "configs" / "one.py", "two": tmp_path / "configs" / "two.py"}


def test_overrides_are_typed():
    base = configs.defaults()
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
        configs.override(configs.defaults(), [argument])


@pytest.mark.parametrize("text", ["1e999", "-1e999", "9" * 400, "nan", "inf"])
def test_infinity_on_the_command_line_is_refused(text):
    for key in ("optim.lr_backbone", "train.num_steps"):
        with pytest.raises(ConfigError, match=rf"config\.{key}="):
            configs.parse(configs.override(configs.defaults(), [f"--config.{key}={text}"]))


def test_a_config_that_returns_something_else_or_lacks_a_setting_is_refused(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def get_config():\n    return {}\n")
    with pytest.raises(ConfigError, match=r"must return an ml_collections\.ConfigDict"):
        configs.load(file)
    file.write_text("import nothing_of_this_name\n")
    with pytest.raises(ConfigError, match="not a working config file: ModuleNotFoundError"):
        configs.load(file)
    with pytest.raises(ConfigError, match=r"must end in \.py"):
        configs.load(file.rename(tmp_path / "mine.txt"))
    c = configs.defaults()
    del c.train.num_steps
    with pytest.raises(ConfigError, match=r"train\.num_steps is missing.*config\.defaults"):
        configs.parse(c)
    with pytest.raises(ConfigError, match="expected a section"):
        configs.parse(configs.defaults().to_dict() | {"train": 3})


def test_saved_config_is_the_same(tmp_path):
    parsed = configs.parse(configs.load(ROOT / "configs/acdc_sam.py"))
    configs.save(parsed, tmp_path / "config.json")
    assert configs.parse(configs.load_saved(tmp_path / "config.json")) == parsed


def test_a_run_of_an_earlier_version_takes_the_default_of_what_may_change_and_misses_what_may_not(tmp_path):
    tree = configs.defaults().to_dict()
    del tree["train"]["max_skipped"]
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert configs.parse(configs.load_saved(tmp_path / "config.json")) == configs.Config()
    del tree["fusion"]["blank_share"], tree["eval"]["certificate"]
    (tmp_path / "config.json").write_text(json.dumps(tree))
    opened = configs.parse(configs.load_saved(tmp_path / "config.json"))
    assert opened.fusion.blank_share == opened.blank_share == 0.0 and opened.eval.certificate
    del tree["train"]["num_steps"]
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=r"config.train.num_steps is missing"):
        configs.parse(configs.load_saved(tmp_path / "config.json"))


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="did you mean"):
        configs.load(ROOT / "configs/acdc_unett.py")
    with pytest.raises(ConfigError, match="not the folder of a run"):
        configs.load_saved(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        configs.load_saved(tmp_path / "config.json")
    tree = configs.defaults().to_dict()
    tree["train"]["nmu_steps"] = 3
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=r"train\.nmu_steps.*num_steps"):
        configs.parse(configs.load_saved(tmp_path / "config.json"))


def test_defaults_are_a_fresh_tree_that_parses_to_the_schema():
    first = configs.defaults()
    first.backbone.options.levels = 3
    first.train.num_steps = 1
    second = configs.defaults()
    assert isinstance(second.backbone.options, ml_collections.ConfigDict) and not second.backbone.options
    assert configs.parse(second) == configs.Config()
    assert second.to_dict() == dataclasses.asdict(configs.Config())


def test_the_paper_recipe_names_its_model():
    parsed = configs.parse(configs.paper("mnms", "segformer", "b2"))
    assert (parsed.name, parsed.dataset.name) == ("mnms_segformer", "mnms")
    assert (parsed.backbone.name, parsed.backbone.variant) == ("segformer", "b2")
    assert parsed.retriever.variant == "vitb14" and parsed.train.batch_size == 4


def test_the_listing_is_printed_without_a_device():
    command = [sys.executable, "-m", "jras_jax", "settings"]
    without = os.environ | {"JAX_PLATFORMS": "no_such_device"}
    listing = functools.partial(subprocess.run, cwd=ROOT, env=without, capture_output=True, text=True)
    done = listing([*command, "lr_backbone"], check=True)
    assert done.stdout.splitlines()[0] == "--config.optim.lr_backbone=0.001"
    assert "above 0 and at most 1" in done.stdout
    nothing = listing([*command, "no such word"], check=False)
    assert nothing.returncode == 2 and nothing.stderr == "error: no setting contains 'no such word'\n"
