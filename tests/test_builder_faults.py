"""Every fault in the official folders stops the build, whole, with a message that names file and rule."""

import shutil

import numpy as np
import pytest

import tfds_builders
from jras_jax.commands import cli
from jras_jax.data import prepared
from jras_jax.errors import UserError
from tests.official_folders import CSV, change, edit_csv, edit_info, frame_of, left_in, mask_of, poke
from tfds_builders.__main__ import main


def break_acdc(root, fault):
    """Breaks one rule; (the file the message must name, words of the rule)."""
    patient = root / "training/patient002"
    scan, info = frame_of(patient, "ES"), patient / "Info.cfg"
    if fault == "no scan":
        scan.unlink()
        return scan, "missing"
    if fault == "no mask":
        mask_of(scan).unlink()
        return mask_of(scan), "missing"
    if fault == "no Info.cfg":
        info.unlink()
        return info, "missing"
    if fault == "unreadable header":
        scan.write_bytes(b"\0" * 400)
        return scan, "NIfTI"
    if fault == "cut short":
        scan.write_bytes(scan.read_bytes()[:-500])
        return scan, "cut short"
    if fault == "four axes":
        change(scan, lambda a: np.stack([a, a], -1))
        change(mask_of(scan), lambda a: np.stack([a, a], -1))
        return scan, "3 axes"
    changes = {
        "nan": (scan, poke(np.nan), "NaN"),
        "infinity": (scan, poke(np.inf), "infinite"),
        "mask of another shape": (mask_of(scan), lambda a: a[:-1], "shape"),
        "unknown label": (mask_of(scan), poke(4), "labels"),
        "half a label": (mask_of(scan), poke(1.5), "whole numbers"),
        "empty mask": (mask_of(scan), np.zeros_like, "empty"),
    }
    if fault in changes:
        path, function, words = changes[fault]
        change(path, function)
        return path, words
    lines = {
        "ES outside": ("ES", "99", "outside"),
        "ES of zero": ("ES", "0", "1 or more"),
        "ED of letters": ("ED", "one", "1 or more"),
        "no ED": ("ED", None, "ED"),
        "no group": ("Group", None, "Group"),
        "ES is ED": ("ES", "1", "same frame"),
    }
    key, value, words = lines[fault]
    edit_info(info, key, value)
    return info, words


ACDC_FAULTS = [
    *("no scan", "no mask", "no Info.cfg", "unreadable header", "cut short", "four axes", "nan", "infinity"),
    *("mask of another shape", "unknown label", "half a label", "empty mask", "ES outside", "ES of zero"),
    *("ED of letters", "no ED", "no group", "ES is ED"),
]


@pytest.mark.parametrize("fault", ACDC_FAULTS)
def test_a_fault_in_acdc_stops_the_build(scans, tmp_path, capsys, fault):
    path, words = break_acdc(scans, fault)
    data = tmp_path / "data"
    assert main(["acdc", f"--manual_dir={scans}", f"--data_dir={data}"]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and words in error
    assert "Traceback" not in error and len(error.strip().splitlines()) == 1
    assert not left_in(data)


def test_both_programs_say_the_same_of_a_fault(scans, tmp_path, capsys):
    path, words = break_acdc(scans, "nan")
    arguments = ["acdc", f"--manual_dir={scans}", f"--data_dir={tmp_path / 'data'}"]
    assert main(arguments) == cli.main(["build", *arguments]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == second and str(path) in first and words in first


def test_missing_test_masks_are_one_message(scans, tmp_path):
    for path in (scans / "testing").rglob("*_gt.nii.gz"):
        path.unlink()
    with pytest.raises(UserError, match=r"testing: none of its 1 patients has a mask"):
        tfds_builders.build("acdc", scans, tmp_path / "data")


def break_mnms(root, fault):
    """Like `break_acdc`."""
    table, patient = root / CSV, root / "Validation/D4E5F6"
    scan = patient / "D4E5F6_sa.nii.gz"
    if fault == "no csv":
        table.unlink()
        return root, "External code"
    if fault == "no row":
        shutil.copytree(patient, root / "Validation/Z0Z0Z0")
        return table, "Z0Z0Z0"
    if fault == "two splits":
        shutil.copytree(patient, root / "Testing/D4E5F6")
        return root / "Testing/D4E5F6", "two splits"
    if fault == "no mask":
        mask_of(scan).unlink()
        return mask_of(scan), "missing"
    if fault == "mask of another shape":
        change(mask_of(scan), lambda a: a[..., :3])
        return mask_of(scan), "shape"
    if fault == "unknown label":
        change(mask_of(scan), poke(5))
        return mask_of(scan), "labels"
    column, value, name, words = {
        "ED outside": ("ED", "4", scan, "frames 0 to 3"),
        "ES is empty": ("ES", "", table, "ES"),
        "ED is negative": ("ED", "-1", table, "ED"),
        "ED without labels": ("ED", "1", mask_of(scan), "empty"),
        "no vendor": ("VendorName", "", table, "VendorName"),
    }[fault]
    edit_csv(table, "D4E5F6", column=column, value=value)
    if fault == "no vendor":
        edit_csv(table, "D4E5F6", column="Vendor", value="")
    return name, words


MNMS_FAULTS = [
    *("no csv", "no row", "two splits", "no mask", "mask of another shape", "unknown label", "ED outside"),
    *("ES is empty", "ED is negative", "ED without labels", "no vendor"),
]


@pytest.mark.parametrize("fault", MNMS_FAULTS)
def test_a_fault_in_mnms_stops_the_build(mnms, tmp_path, fault):
    path, words = break_mnms(mnms, fault)
    with pytest.raises(UserError) as error:
        tfds_builders.build("mnms", mnms, tmp_path / "data")
    assert str(path) in str(error.value) and words in str(error.value)
    assert not left_in(tmp_path / "data")


def test_a_fault_leaves_the_earlier_data_set_as_it_was(scans, tmp_path):
    data = tmp_path / "data"
    folder = tfds_builders.build("acdc", scans, data)
    before = {p: p.read_bytes() for p in left_in(data)}
    break_acdc(scans, "nan")
    with pytest.raises(UserError, match="NaN"):
        tfds_builders.build("acdc", scans, data)
    assert {p: p.read_bytes() for p in left_in(data)} == before
    assert len(prepared.load_volumes(folder, "train")) == 6


def test_wrong_arguments_are_said(acdc, tmp_path, capsys):
    for arguments, words in (
        (("acdc", tmp_path / "nowhere", tmp_path), "not a folder"),
        (("acdc", "", tmp_path), "empty"),
        (("brats", acdc, tmp_path), "there are acdc, mnms"),
        (("acdc", acdc, __file__), "cannot be written"),
    ):
        with pytest.raises(UserError, match=words):
            tfds_builders.build(*arguments)
    for command, arguments in ((main, ["acdc"]), (cli.main, ["build", "acdc"])):
        with pytest.raises(SystemExit) as error:
            command(arguments)
        assert error.value.code == 2 and "--manual_dir" in capsys.readouterr().err


def test_a_damaged_or_absent_data_set_is_named(acdc, tmp_path):
    folder = tfds_builders.build("acdc", acdc, tmp_path / "data")
    with pytest.raises(UserError, match="has no split 'validation', it has"):
        prepared.load_volumes(folder, "validation")
    with pytest.raises(UserError, match="no prepared data set"):
        prepared.splits(tmp_path)
    (record,) = folder.glob("*train*")
    record.write_bytes(record.read_bytes()[: record.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot be read"):
        prepared.load_volumes(folder, "train")
