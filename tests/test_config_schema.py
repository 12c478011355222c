"""The schema: every setting has a meaning and bounds that hold, and says when it may change."""

import dataclasses
import json
import math
import typing

import ml_collections
import pytest

from jras_jax import config as configs
from jras_jax import models
from jras_jax.config import ConfigError
from jras_jax.config.schema import SETTINGS
from jras_jax.config.setting import Bounds, setting, settings_of
from jras_jax.joint import fusion
from jras_jax.models import vit
from jras_jax.retrieval import retriever, selection

NUMBERS = [s for s in SETTINGS.values() if s.hint in (int, float)]
# What another setting must be for a bound to be accepted: rules over several settings forbid the rest.
COMPANIONS = {"dataset.fold": {"dataset.num_folds": 1000}}


def with_values(values):
    """The defaults with {key: value}, as a dictionary: a ConfigDict would refuse some types before the schema does."""
    tree = configs.defaults().to_dict()
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (tree[section] if section else tree)[name] = value
    return tree


def value_at(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


def beside(end, outwards, hint):
    """The nearest number beyond an end."""
    return end + outwards if hint is int else math.nextafter(end, outwards * math.inf)


def test_every_setting_has_a_meaning_and_a_type_in_words():
    described = list(configs.describe())
    assert [d.key for d in described] == [s.key for s in settings_of(configs.Config)] and len(described) > 90
    for d in described:
        assert len(d.doc) > 4 and d.type and d.change, d
        assert d.key in configs.listing(d.key)
        if d.type not in ("text", "True or False", "options"):
            assert d.rule, d
    assert configs.listing("no such word") == ""


def test_every_number_has_bounds_around_its_default():
    for s in SETTINGS.values():
        kinds = {s.hint, *typing.get_args(s.hint)}
        assert (s.bounds is not None) == bool(kinds & {int, float}), s.key
    assert len(NUMBERS) > 50
    assert all(s.default in s.bounds and math.isfinite(s.bounds.low + s.bounds.high) for s in NUMBERS)


@pytest.mark.parametrize("s", NUMBERS, ids=lambda s: s.key)
def test_a_number_is_taken_up_to_its_bounds_and_refused_beyond(s):
    b = s.bounds
    for end, is_open, outwards in ((b.low, b.low_open, -1), (b.high, b.high_open, 1)):
        inside = beside(end, -outwards, s.hint) if is_open else s.hint(end)
        parsed = configs.parse(with_values(COMPANIONS.get(s.key, {}) | {s.key: inside}))
        assert value_at(parsed, s.key) == inside and type(value_at(parsed, s.key)) is s.hint
        outside = s.hint(end) if is_open else beside(end, outwards, s.hint)
        with pytest.raises(ConfigError) as refused:
            configs.parse(with_values(COMPANIONS.get(s.key, {}) | {s.key: outside}))
        assert str(refused.value) == f"config.{s.key}={outside!r}: must be {s.rule}"


@pytest.mark.parametrize("s", NUMBERS, ids=lambda s: s.key)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, True, "1", None], ids=str)
def test_what_is_no_finite_number_is_refused(s, value):
    with pytest.raises(ConfigError, match=rf"config\.{s.key}="):
        configs.parse(with_values({s.key: value}))


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("optim.lr_backbone", -1.0, "above 0 and at most 1"),
        ("augment.probability", 7.0, "0 to 1"),
        ("seed", -1, "0 to "),
        ("dataset.max_train_patients", -3, "0 to "),
        ("dataset.fold", 5, r"0 to 4, below dataset\.num_folds"),
        ("dataset.name", "acdcc", "choose one of 'acdc', 'mnms', 'mnms2', 'busi', 'covid', 'folder', 'phantom'"),
        ("retrieval.temperature", 0.0, "above 0"),
        ("backbone.in_channels", 2, "choose one of 1, 3"),
        ("backbone.in_channels", True, "choose one of 1, 3"),
        ("dataset.percentiles", (99.0, 1.0), "rising"),
        ("dataset.percentiles", (1.0, 101.0), "0 to 100 each"),
        ("dataset.percentiles", (math.nan, 99.0), "0 to 100 each"),
        ("dataset.percentiles", (1.0, 50.0, 99.0), "a list of 2 numbers"),
        ("dataset.percentiles", "ab", "a list of 2 numbers"),
        ("backbone.frozen", ("ok", "(open"), "valid regular expressions"),
        ("backbone.frozen", "encoder", "a list of texts"),
        ("backbone.frozen", (3,), "a list of texts"),
        ("backbone.options", {"depths": [1, math.inf]}, "without NaN and infinity"),
        ("fusion.options", {"sharpness": math.nan}, "without NaN and infinity"),
        ("fusion.options", 3, "expected options"),
        ("dataset.drop_empty", 1, "True or False"),
        ("name", 3, "expected text"),
        ("train.batch_size", 0, "1 to "),
        ("mesh.data", 0, "not 0"),
    ],
)
def test_wrong_values_are_refused_with_key_and_reason(key, value, why):
    with pytest.raises(ConfigError, match=rf"config\.{key}=.*{why}"):
        configs.parse(with_values({key: value}))


@pytest.mark.parametrize("change", [{"strategy": "softmax"}, {"strategy": "oracle"}, {"overlap_rows": 0}])
def test_galleries_in_host_memory_refuse_what_reads_every_mask(change):
    host = {"gallery_memory": "host"}
    assert configs.parse(with_values({f"retrieval.{k}": v for k, v in host.items()})).retrieval.gallery_memory == "host"
    sampled = host | {"overlap_weight": 1.0, "overlap_rows": 64}
    assert configs.parse(with_values({f"retrieval.{k}": v for k, v in sampled.items()})).retrieval.overlap_rows == 64
    with pytest.raises(ConfigError, match=r"retrieval\.gallery_memory='host'.*read every mask"):
        configs.parse(with_values({f"retrieval.{k}": v for k, v in (host | change).items()}))


def test_one_of_the_two_losses_must_count():
    assert configs.parse(with_values({"loss.dice_weight": 0.0})).loss.ce_weight == 1
    with pytest.raises(ConfigError, match=r"loss\.dice_weight=0\.0.*in sum with loss\.ce_weight"):
        configs.parse(with_values({"loss.dice_weight": 0.0, "loss.ce_weight": 0.0}))


def test_choices_are_those_of_the_code():
    tables = {
        "backbone.name": models.NAMES,
        "retriever.variant": {*vit.VARIANTS, retriever.PIXELS},
        "retriever.pool": retriever.POOLS,
        "retrieval.strategy": selection.STRATEGIES,
        "fusion.name": fusion.KINDS,
    }
    for key, names in tables.items():
        assert set(SETTINGS[key].choices) == set(names), key
    assert SETTINGS["retriever.trained_blocks"].bounds.high == max(v["depth"] for v in vit.VARIANTS.values())


def test_a_number_without_bounds_cannot_enter_the_schema():
    with pytest.raises(TypeError, match="one lower and one upper bound"):
        setting(1.0, "half bounded", at_least=0)
    loose = dataclasses.make_dataclass("Loose", [("rate", float, setting(1.0, "unbounded"))])
    with pytest.raises(TypeError, match="rate is a number without bounds"):
        list(settings_of(loose))
    assert str(Bounds(0, 1)) == "0 to 1" and str(Bounds(0, 1, high_open=True)) == "at least 0 and below 1"


def test_what_may_change_is_said_once_and_options_of_the_model_are_fixed():
    resumed, opened = configs.changeable("resume"), configs.changeable("open")
    for section in ("eval", "mesh"):
        assert {s.key for s in SETTINGS.values() if s.key.startswith(f"{section}.")} <= resumed & opened
    assert {"dataset.manual_dir", "dataset.data_dir"} <= resumed & opened
    assert {"retrieval.strategy", "retrieval.exclude", "retrieval.gallery_memory"} <= opened - resumed
    assert {"train.log_every", "train.checkpoint_every", "train.with_baseline"} <= resumed - opened
    for key in ("backbone.options", "fusion.options", "seed", "train.num_steps", "train.eval_every", "dataset.fold"):
        assert key not in resumed | opened


def test_opening_a_run_refuses_fixed_settings_and_leaves_typing_errors_to_override():
    configs.check_opened(["--config.eval.tta=True", "--config.retrieval.exclude=none", "--config.evall.tta=True", "-x"])
    for key in ("seed", "fusion.options", "fusion.options.mask", "backbone.options.a.b", "train.log_every"):
        with pytest.raises(ConfigError) as refused:
            configs.check_opened(["--config.eval.tta=True", f"--config.{key}=1"])
        said = str(refused.value)
        assert said.startswith(f"--config.{key} cannot be changed after training; you can change: dataset.manual_dir")
        assert said.endswith("mesh.*, eval.*") and "retrieval.strategy" in said


def test_all_differences_are_shown_on_a_resume(tmp_path):
    saved = ml_collections.ConfigDict(with_values({"seed": 1, "eval.tta": True, "train.log_every": 7}))
    saved.backbone.options.update({"levels": 4, "base_channels": 8})
    saved.fusion.options.mask = "index"
    del saved.retriever.dropout
    saved.of_an_older_version = 3
    now = configs.parse(with_values({"backbone.options": {"levels": 5}, "dataset.percentiles": (1, 99)}))
    found = configs.differences(saved, now)
    assert found == {
        "seed": ("1", "0"),
        "dataset.percentiles": ("[0.5, 99.5]", "[1.0, 99.0]"),
        "backbone.options.levels": ("4", "5"),
        "retriever.dropout": ("not set", "0.0"),
        "backbone.options.base_channels": ("8", "not set"),
        "fusion.options.mask": ("'index'", "not set"),
    }
    with pytest.raises(ConfigError) as refused:
        configs.check_resumed(saved, now, tmp_path)
    said = str(refused.value)
    assert all(f" config.{key}: {a} -> {b}" in said for key, (a, b) in found.items()) and "\n" not in said


def test_a_saved_run_resumes_with_its_own_settings_and_those_that_may_change(tmp_path):
    config = configs.parse(configs.load("acdc_sam"))
    configs.save(config, tmp_path / "config.json")
    assert json.loads((tmp_path / "config.json").read_text())["backbone"]["frozen"]
    saved = configs.load_saved(tmp_path / "config.json")
    configs.check_resumed(saved, config, tmp_path)
    moved = [
        f"--config.{key}=2" for key in ("train.log_every", "train.checkpoint_every", "mesh.data", "dataset.data_dir")
    ]
    configs.check_resumed(saved, configs.parse(configs.override(saved, moved)), tmp_path)
