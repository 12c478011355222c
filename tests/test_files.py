"""Small files: whole or not at all, and errors that name the file and say what to do."""

import errno
import hashlib
import os
import stat

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from jras_jax import files
from jras_jax.errors import UserError


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_json_comes_back_and_its_folder_is_made(tmp_path):
    path = tmp_path / "a" / "b" / "facts.json"
    files.write_json(path, {"name": "Müller", "steps": [1, 2], "none": None})
    assert files.read_json(path, remedy="") == {"name": "Müller", "steps": [1, 2], "none": None}
    assert path.read_text(encoding="utf-8").endswith("\n") and names(path.parent) == ["facts.json"]


def test_a_failed_block_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError, match="half way"), files.replacing(path) as temporary:
        temporary.write_text("new, but not all of it")
        raise RuntimeError("half way")
    assert path.read_text() == "old" and names(tmp_path) == ["x.txt"]


def test_the_old_file_is_there_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "x.txt"
    files.write_text(path, "old")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == path.parent
    assert path.read_text() == "new" and names(tmp_path) == ["x.txt"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "No space left on device.*free some space"),
        (errno.EDQUOT, "quota is used up"),
        (errno.EACCES, "no permission there"),
        (errno.EROFS, "read-only; choose another folder"),
        (errno.EIO, "the disk reports a fault"),
        (errno.ENXIO, "check the path and the disk"),
    ],
)
def test_an_error_of_the_system_names_the_file_and_a_way_out(tmp_path, monkeypatch, code, words):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})

    def refuse(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(files.FileError, match=words) as error:
        files.write_json(path, {"a": 2})
    assert isinstance(error.value, UserError) and str(error.value).startswith(f"{path} cannot be written")
    assert files.read_json(path, remedy="") == {"a": 1} and names(tmp_path) == ["x.json"]


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(files.FileError, match="a file is in the way of a folder"):
        files.write_text(tmp_path / "file" / "x.txt", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(files.FileError, match="a folder is in the way of a file"):
        files.write_text(tmp_path / "folder", "")
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("length", [100, 255])
def test_long_names_can_be_written(tmp_path, length):
    files.write_text(tmp_path / ("x" * length), "content")
    assert names(tmp_path) == ["x" * length]
    with pytest.raises(files.FileError, match="name is too long"):
        files.write_text(tmp_path / ("x" * 256), "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is missing: train first"),
        (b"", r"is damaged \(.*\): train first"),
        (b'{"a": 1', r"is damaged \(.*\): train first"),
        (b"\xff\xfe\x00", r"is damaged \(.*\): train first"),
        (b"[1, 2]", "holds a list instead of an object: train first"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_remedy(tmp_path, content, words):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(files.FileError, match=words) as error:
        files.read_json(path, remedy="train first")
    assert str(path) in str(error.value)


def test_a_folder_is_not_read_as_a_file(tmp_path):
    with pytest.raises(files.FileError, match=r"cannot be read .*a folder is in the way"):
        files.read_json(tmp_path, remedy="")


def test_tensors_come_back_with_their_metadata_and_everyday_permissions(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "turned": np.arange(6, dtype=np.int32).reshape(2, 3).T}
    path = tmp_path / "x.safetensors"
    files.save_tensors(path, arrays, {"kind": "test"})
    found = safetensors.numpy.load_file(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():  # the second is not contiguous in memory
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    with safetensors.safe_open(path, "np") as opened:
        assert opened.metadata() == {"kind": "test"}
    (tmp_path / "plain").write_text("")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("x.safetensors", "plain")]
    assert modes[0] == modes[1] and names(tmp_path) == ["plain", "x.safetensors"]


def test_the_checksum_is_that_of_the_content(tmp_path):
    (tmp_path / "x").write_bytes(b"content" * 1000)
    assert files.sha256(tmp_path / "x") == hashlib.sha256(b"content" * 1000).hexdigest()
