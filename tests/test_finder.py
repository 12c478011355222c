"""Which files of a folder are read: links, capitals, hidden files, and the reasons for whatever is passed over."""

import os

import numpy as np
import pytest

from jras_jax.commands import cli
from jras_jax.data import finder, pairs
from jras_jax.data.description import KNOWN
from jras_jax.errors import UserError
from tests.masks import LABELS, heart, save


def touch(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(found):
    return [path.name for path in found.files]


def reasons(found):
    return {path.name: reason for path, reason in found.skipped}


def test_capitals_and_links_are_found_and_hidden_files_ignored(tmp_path):
    for name in ("a.nii.gz", "B.NII.GZ", "c.Nii", "sub/d.nii", "._a.nii.gz", ".DS_Store", ".hidden/e.nii", "note.txt"):
        touch(tmp_path / "scans" / name)
    touch(tmp_path / "scans" / "__MACOSX" / "f.nii")
    touch(tmp_path / "elsewhere" / "g.nii.gz")
    os.symlink(tmp_path / "elsewhere", tmp_path / "scans" / "linked")
    os.symlink(tmp_path / "elsewhere" / "g.nii.gz", tmp_path / "scans" / "h.nii.gz")
    found = finder.find(tmp_path / "scans")
    assert sorted(names(found)) == ["B.NII.GZ", "a.nii.gz", "c.Nii", "d.nii", "g.nii.gz", "h.nii.gz"]
    assert found.skipped == []
    assert [finder.stem(path) for path in found.files][:2] == ["B", "a"]


def test_loops_of_links_end_and_no_file_is_found_twice(tmp_path):
    touch(tmp_path / "a" / "x.nii")
    touch(tmp_path / "b" / "y.nii")
    os.symlink(tmp_path, tmp_path / "a" / "up")
    os.symlink(tmp_path / "b", tmp_path / "a" / "across")
    os.symlink(tmp_path / "a", tmp_path / "b" / "across")
    os.symlink("itself", tmp_path / "itself")
    found = finder.find(tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in found.files] == ["a/x.nii", "b/y.nii"]
    assert all("is read already" in reasons(found)[name] for name in ("up", "across"))


def test_what_looks_like_a_scan_but_is_none_is_named_with_the_reason(tmp_path):
    touch(tmp_path / "fine.nii")
    (tmp_path / "folder.nii").mkdir()
    os.symlink(tmp_path / ".git/annex/objects/x", tmp_path / "annexed.nii.gz")
    os.symlink(tmp_path / "gone", tmp_path / "patient009")
    os.mkfifo(tmp_path / "pipe.nii")
    for name in ("a.nii.gz.part", "b.nii.bz2", "c.nrrd", "d.hdr"):
        touch(tmp_path / name)
    found = finder.find(tmp_path)
    assert names(found) == ["fine.nii"]
    expected = {"folder.nii": "is a folder", "annexed.nii.gz": "git annex get", "patient009": "link"}
    expected |= {"pipe.nii": "regular", "a.nii.gz.part": "rename", "b.nii.bz2": "convert", "c.nrrd": "convert"}
    assert all(words in reasons(found)[name] for name, words in expected.items())
    assert set(reasons(found)) == {*expected, "d.hdr"}


def test_one_scan_in_two_files_is_refused_by_every_reader(tmp_path, capsys):
    for name in ("a.nii", "a.nii.gz", "a_gt.nii.gz"):
        save(tmp_path / "pairs" / name, heart())
    with pytest.raises(UserError, match=r"a\.nii\.gz: a\.nii is beside it"):
        pairs.read_pairs(tmp_path / "pairs", pairs.parse_labels("LV:1,MYO:2,RV:3"))
    for name in ("ref/m.nii", "pred/m.nii", "pred/m.NII.GZ"):
        save(tmp_path / name.replace("NII.GZ", "nii.gz"), heart())
    (tmp_path / "pred/m.nii.gz").rename(tmp_path / "pred/m.NII.GZ")
    assert cli.main(["score", str(tmp_path / "ref"), str(tmp_path / "pred"), LABELS]) == 2
    error = capsys.readouterr().err
    assert "m.nii" in error and "m.NII.GZ" in error and len(error.splitlines()) == 1


def test_pairs_are_found_through_links_and_in_capitals(tmp_path, capsys):
    ring = np.zeros((24, 24, 3), np.uint8)
    ring[4:16, 4:16], ring[7:13, 7:13], ring[16:22, 6:14] = 2, 3, 1
    save(tmp_path / "far" / "a.nii.gz", ring)
    save(tmp_path / "far" / "a_gt.nii.gz", ring)
    for name in ("a", "a_gt"):
        (tmp_path / "far" / f"{name}.nii.gz").rename(tmp_path / "far" / f"{name}.NII.GZ")
    (tmp_path / "gallery").mkdir()
    os.symlink(tmp_path / "far", tmp_path / "gallery" / "linked")
    os.symlink("nowhere.nii.gz", tmp_path / "gallery" / "lost_gt.nii.gz")
    (volume,) = pairs.read_pairs(tmp_path / "gallery", KNOWN["acdc"].structure_values)
    assert volume.patient == "a"
    assert "lost_gt.nii.gz: passed over, it is a link" in capsys.readouterr().err
