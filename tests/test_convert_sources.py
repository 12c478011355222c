"""Sources of weights: folders, shards, single files and the hub; nothing is ever unpickled."""

import hashlib
import json
import os
import pickle
import sys
import types

import numpy as np
import pytest
import safetensors.numpy

from jras_jax.convert import rules, sources
from jras_jax.convert.rules import Rule
from jras_jax.errors import UserError
from tests.small_dinov2 import CONFIG, arange, dinov2_tensors, write_folder


@pytest.mark.parametrize("shards", [1, 3])
def test_folder_whole_or_sharded(tmp_path, shards):
    tensors = dinov2_tensors()
    source = sources.read(str(write_folder(tmp_path, tensors, shards=shards)))
    assert source.config == CONFIG and len(source.files) == shards
    assert set(source.tensors) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(source.tensors[name], tensor)
    for file, digest in source.files.items():
        assert digest == hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()


def test_a_lost_shard_is_named(tmp_path):
    write_folder(tmp_path, dinov2_tensors(), shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00003"):
        sources.read(str(tmp_path))


def test_single_files(tmp_path):
    x = {"a": arange(2, 3)}
    safetensors.numpy.save_file(x, tmp_path / "other.safetensors")
    np.savez(tmp_path / "google.npz", **{"block/kernel": x["a"]})
    np.testing.assert_array_equal(sources.read(str(tmp_path / "other.safetensors")).tensors["a"], x["a"])
    np.testing.assert_array_equal(sources.read(str(tmp_path / "google.npz")).tensors["block/kernel"], x["a"])
    # The only safetensors file of a folder needs no particular name; of two, none is guessed.
    np.testing.assert_array_equal(sources.read(str(tmp_path)).tensors["a"], x["a"])
    safetensors.numpy.save_file(x, tmp_path / "another.safetensors")
    with pytest.raises(UserError, match="2 other"):
        sources.read(str(tmp_path))


def test_half_precision_is_read_exactly(tmp_path):
    """Halves become float32 of the same values; NumPy has no bfloat16 of its own, so that file is written by hand."""
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes([0x80, 0x3F, 0x40, 0xC0])
    (tmp_path / "b.safetensors").write_bytes(content)
    safetensors.numpy.save_file({"a": np.array([1.0, -3.0], np.float16)}, tmp_path / "h.safetensors")
    for name in ("b", "h"):
        tensors = sources.read(str(tmp_path / f"{name}.safetensors")).tensors
        arrays, faults = rules.translate(tensors, [Rule("a", "a")])
        assert not faults and arrays["params/a"].dtype == np.float32
        np.testing.assert_array_equal(arrays["params/a"], [1.0, -3.0])


class _Trap:
    """Makes the folder `path` when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "sam_vit_b.pth", "model.ckpt", "model.safetensors", "model.npz"])
def test_pickles_are_refused_and_never_opened(tmp_path, name):
    sprung = tmp_path / "sprung"
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / name
    file.write_bytes(pickle.dumps(_Trap(sprung)))
    for source in (file, file.parent) if name != "model.npz" else (file,):
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            sources.read(str(source))
    assert not sprung.exists()


def test_objects_within_an_npz_are_refused(tmp_path):
    sprung = tmp_path / "sprung"
    np.savez(tmp_path / "a.npz", x=np.array([_Trap(sprung)], dtype=object))
    with pytest.raises(UserError, match="plain arrays"):
        sources.read(str(tmp_path / "a.npz"))
    assert not sprung.exists()


@pytest.mark.parametrize("keep", [0, 4, 200, -100])
def test_damaged_files_are_user_errors(tmp_path, keep):
    file = write_folder(tmp_path, dinov2_tensors()) / sources.WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="not a readable safetensors"):
        sources.read(str(tmp_path))


def test_absent_or_unknown_sources(tmp_path):
    with pytest.raises(UserError, match="hf:org/name"):
        sources.read("microsoft/rad-dino")
    (tmp_path / "weights.txt").write_text("x")
    with pytest.raises(UserError, match="neither"):
        sources.read(str(tmp_path / "weights.txt"))
    write_folder(tmp_path / "folder", dinov2_tensors())
    (tmp_path / "folder" / "config.json").write_text("{")
    with pytest.raises(UserError, match="JSON"):
        sources.read(str(tmp_path / "folder"))


def test_hub_names_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        sources.read("hf:microsoft/rad-dino")


def test_hub_names_without_network_and_with_it(monkeypatch, tmp_path):
    calls = []

    def snapshot_download(name, *, revision, allow_patterns):
        calls.append((name, revision, allow_patterns))
        if revision is None:
            raise OSError("no route to host")
        return str(tmp_path)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(UserError, match=r"microsoft/rad-dino.*no route to host.*local copy"):
        sources.read("hf:microsoft/rad-dino")
    write_folder(tmp_path, dinov2_tensors())
    assert sources.read("hf:microsoft/rad-dino@main").config == CONFIG
    assert calls[1][:2] == ("microsoft/rad-dino", "main")
    # No pickle is even downloaded.
    assert set(calls[1][2]) == {"*.safetensors", "*.json"}
