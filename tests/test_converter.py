"""The converter and its command: what it writes, and everything that does not fit in one error."""

import json

import jax
import numpy as np
import pytest

from jras_jax import convert, models
from jras_jax.commands import cli
from jras_jax.convert import converter
from jras_jax.convert.rules import ConversionError
from jras_jax.models import vit
from tests.small_dinov2 import CONFIG, DEPTH, FIELDS, WIDTH, arange, converted_folder, dinov2_tensors, write_folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    return converted_folder(tmp_path_factory.mktemp("dinov2"))


def test_command_writes_weights_that_a_model_takes(converted, tmp_path, capsys):
    source = write_folder(tmp_path / "source", dinov2_tensors(), shards=2)
    assert cli.main(["convert", str(source), "--model=dinov2", f"--output={tmp_path / 'ours'}"]) == 0
    count = models.parameter_count(models.abstract_variables(vit.ViT(**FIELDS), (1, 8, 8, 3))["params"])
    assert f"{count:,} parameters" in capsys.readouterr().out
    facts = json.loads((tmp_path / "ours" / "provenance.json").read_text())
    assert facts == convert.provenance(tmp_path / "ours")
    assert facts["source"] == str(source) and len(facts["files"]) == 2 and facts["fields"]["depth"] == DEPTH
    ours = convert.load(tmp_path / "ours")
    jax.tree.map(np.testing.assert_array_equal, ours, convert.load(converted))
    kernel = dinov2_tensors()["encoder.layer.1.mlp.fc1.weight"]
    np.testing.assert_array_equal(ours["params"]["block_1"]["mlp"]["fc1"]["kernel"], kernel.T)


def test_everything_that_does_not_fit_is_in_one_error(tmp_path):
    tensors = dinov2_tensors()
    del tensors["layernorm.bias"]
    tensors["encoder.layer.1.mlp.fc1.bias"] = arange(3)
    tensors["encoder.layer.0.norm1.weight"] = arange(5)
    tensors["head.weight"] = arange(2, 2)
    tensors["encoder.layer.7.norm1.bias"] = arange(WIDTH)
    source = write_folder(tmp_path / "source", tensors)
    with pytest.raises(ConversionError) as caught:
        converter.convert(str(source), "dinov2", tmp_path / "ours")
    message = str(caught.value)
    for part in (
        "5 problems",
        "missing: params/norm/bias (8,)",
        "wrong shape: params/block_1/mlp/fc1/bias (3,), but the model has (32,)",
        "wrong shape: params/block_0/norm1/scale (5,), but the model has (8,)",
        "left over: head.weight (2, 2)",
        "left over: params/block_7/norm1/bias (8,)",
    ):
        assert part in message
    assert not (tmp_path / "ours").exists()


def test_command_errors(tmp_path, capsys):
    source = write_folder(tmp_path / "source", dinov2_tensors())
    bare = write_folder(tmp_path / "bare", dinov2_tensors(), config=None)
    swapped = write_folder(tmp_path / "swapped", dinov2_tensors(), config=CONFIG | {"hidden_act": "relu"})
    short = write_folder(tmp_path / "short", dinov2_tensors(), config={"model_type": "dinov2"})
    for arguments, expected in (
        ((source, "--model=resnet"), "it is one of dinov2"),
        ((source, "--model=segformer"), "model_type='dinov2'"),
        ((source, "--model=dinov2", "--variant=huge"), "vitb14"),
        ((bare, "--model=dinov2"), "--variant=tiny|vits14"),
        ((swapped, "--model=dinov2"), "hidden_act='relu'"),
        ((short, "--model=dinov2"), "hidden_size"),
        ((tmp_path / "nothing", "--model=dinov2"), "no such file or folder"),
    ):
        assert cli.main(["convert", *map(str, arguments), f"--output={tmp_path / 'ours'}"]) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()
