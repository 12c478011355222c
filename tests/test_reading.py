"""What builders read and refuse: tables as programs save them, label order, links, stale and damaged data sets."""

import gzip
import os
import pathlib
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

import tfds_builders
from jras_jax.commands import cli
from jras_jax.data import nifti, prepared, tables
from jras_jax.errors import UserError
from tests.official_folders import CSV, change, frame_of, left_in, mask_of, write_mnms


def build(root, data, name="acdc"):
    """Exit status of `jras build`."""
    return cli.main(["build", name, f"--manual_dir={root}", f"--data_dir={data}"])


def refused(capsys, root, data, *words, name="acdc"):
    assert build(root, data, name) == 2
    error = capsys.readouterr().err
    assert all(str(word) in error for word in words), error
    assert len(error.strip().splitlines()) == 1 and not left_in(data)


SAVED = {
    "semicolons": lambda text: text.replace(",", ";"),
    "tabs": lambda text: text.replace(",", "\t"),
    "blank rows": lambda text: text + ",,,,\r\n\r\n" + "," * 11 + "\r\n",
    "spaces": lambda text: text.replace("External code", " External  Code ").replace(",", " , "),
    "a title above": lambda text: "M&Ms data set,,,\n\n" + text,
    "quotes": lambda text: "\n".join(",".join(f'"{c}"' for c in row.split(",")) for row in text.splitlines()),
    "frames as decimals": lambda text: text.replace(",2,0,,HCM", ',"2,0",0.0,,HCM'),
}


@pytest.mark.parametrize("how", SAVED)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_is_read_as_a_person_reads_it(tmp_path, how, encoding):
    root = write_mnms(tmp_path / "mnms")
    text = (root / CSV).read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    (root / CSV).write_text(SAVED[how](text), encoding=encoding)
    (root / "unrelated.csv").write_bytes(b"\xff\x00a,b\nExternal,1\n")
    (root / f"._{CSV}").write_bytes(b"\0\5\x16\7")
    inventory = __import__("tfds_builders.mnms").mnms.Builder.inventory(root)
    found = [(c.patient, c.phase, c.frame, c.group) for cases in inventory.cases.values() for c in cases]
    expected = [(p, phase, f, "HCM") for p in ("A1B2C3", "D4E5F6", "G7H8I9") for phase, f in (("ED", 2), ("ES", 0))]
    assert found == expected


def test_a_fault_in_a_table_names_file_row_and_column(tmp_path, capsys):
    root = write_mnms(tmp_path / "mnms")
    text = (root / CSV).read_text(encoding="utf-8-sig")
    for old, new, words in (
        ("B,2,2,0", "B,2,two,0", ("row 3", "column ED", "'two'")),
        ("B,2,2,0", "B,2,2,0,,,,,,,9", ("row 3", "cells")),
        ("D4E5F6", "A1B2C3", ("two rows, 2 and 3",)),
        ("VendorName", "Maker", ("VendorName", CSV)),
    ):
        (root / CSV).write_text(text.replace(old, new))
        refused(capsys, root, tmp_path / "data", CSV, *words, name="mnms")


@pytest.mark.parametrize(
    "text", ["\ufeffED: 1\nES: 9\nGroup: DCM", "ED = 1 \r\nES=9\t\r\nGroup =DCM\r\n", " ED :1\nES  : 9\n\nGroup: DCM"]
)
def test_info_cfg_is_read_however_it_is_saved(tmp_path, text):
    (tmp_path / "Info.cfg").write_text(text, encoding="utf-8", newline="")
    assert tables.read_info(tmp_path / "Info.cfg") == {"ED": "1", "ES": "9", "Group": "DCM"}


def test_masks_in_the_other_order_are_refused(scans, tmp_path, capsys):
    for path in scans.rglob("*_gt.nii.gz"):
        change(path, lambda a: np.array([0, 3, 2, 1], np.uint8)[a])
    refused(capsys, scans, tmp_path / "data", "_gt.nii.gz", "LV and RV seem exchanged", "RV 1, MYO 2, LV 3", "of mnms")


def test_one_patient_in_the_other_order_is_found(scans, tmp_path, capsys):
    mask = mask_of(frame_of(scans / "training/patient002", "ES"))
    change(mask, lambda a: np.array([0, 3, 2, 1], np.uint8)[a])
    refused(capsys, scans, tmp_path / "data", mask, "LV and RV seem exchanged")


def test_mirrored_masks_sideways_scans_and_twin_files_are_refused(scans, tmp_path, capsys):
    scan = frame_of(scans / "training/patient002", "ED")
    whole = {path: path.read_bytes() for path in (scan, mask_of(scan))}
    image = nib.load(mask_of(scan))
    mirrored = image.affine @ np.diag([-1, 1, 1, 1.0])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), mirrored), mask_of(scan))
    refused(capsys, scans, tmp_path / "data", mask_of(scan), "first axis is mirrored", scan)
    for path, content in whole.items():
        path.write_bytes(content)
        turned = nib.load(path)
        array = np.ascontiguousarray(np.moveaxis(np.asarray(turned.dataobj), 2, 0))
        nib.save(nib.Nifti1Image(array, turned.affine[:, [2, 0, 1, 3]]), path)
    refused(capsys, scans, tmp_path / "data", scan, "slices seem to run along the first axis")
    for path, content in whole.items():
        path.write_bytes(content)
    twin = scan.with_name(scan.name.removesuffix(".gz"))
    twin.write_bytes(gzip.decompress(whole[scan]))
    refused(capsys, scans, tmp_path / "data", scan.name, twin.name)


def test_patients_are_found_through_links_and_whatever_is_not_is_named(scans, tmp_path, capsys):
    training = scans / "training"
    (training / "patient001").rename(tmp_path / "far")
    os.symlink(tmp_path / "far", training / "patient001")
    for name in ("Patient003", "patient_004", "patient002_corrected"):
        shutil.copytree(training / "patient003", training / name)
    os.symlink("/nowhere/annex", training / "patient009")
    (training / "patient010.nii.gz").write_bytes(b"")
    for path in (training / "patient002").glob("*.nii.gz"):
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
    (training / "patient002" / "._patient002_frame01.nii.gz").write_bytes(b"\0\5\x16\7")
    assert build(scans, tmp_path / "data") == 0
    error = capsys.readouterr().err
    passed_over = ("Patient003", "patient_004", "patient002_corrected", "patient009", "patient010.nii.gz")
    assert all(f"/{name}: passed over" in error for name in passed_over) and "._" not in error
    volumes = prepared.load_volumes(tmp_path / "data/acdc/1.0.0", "train")
    assert [v.patient for v in volumes[::2]] == ["patient001", "patient002", "patient003"]


def plain(path):
    """The file unzipped, its name kept."""
    path.write_bytes(gzip.decompress(path.read_bytes()))


def members(path):
    """The file as several gzip members, as bgzip writes them."""
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(b"".join(gzip.compress(data[i : i + 50_000], 0, mtime=0) for i in range(0, len(data), 50_000)))


@pytest.mark.parametrize("pack", [plain, members])
def test_a_change_is_noticed_in_whatever_container(scans, tmp_path, capsys, pack):
    mask = mask_of(frame_of(scans / "training/patient001", "ED"))
    original = mask.read_bytes()
    pack(mask)
    assert build(scans, tmp_path / "data") == 0
    status = mask.stat()
    before = prepared.load_volumes(tmp_path / "data/acdc/1.0.0", "train")[0].mask
    mask.write_bytes(original)
    change(mask, lambda a: np.roll(a, 2, 0))
    pack(mask)
    assert mask.stat().st_size == status.st_size  # as large as before, and of the same time: only its content tells
    os.utime(mask, ns=(status.st_atime_ns, status.st_mtime_ns))
    capsys.readouterr()
    assert build(scans, tmp_path / "data") == 0
    said = capsys.readouterr().out
    assert "is replaced" in said and "already" not in said
    after = prepared.load_volumes(tmp_path / "data/acdc/1.0.0", "train")[0].mask
    np.testing.assert_array_equal(after, np.roll(before, 2, 0))
    assert build(scans, tmp_path / "data") == 0 and "built already" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["cut record", "flipped bit", "no dataset_info.json", "old fingerprint"])
def test_a_damaged_data_set_is_built_again(acdc, tmp_path, capsys, fault):
    folder = tfds_builders.build("acdc", acdc, tmp_path)
    record = next(folder.glob("*train*"))
    data = bytearray(record.read_bytes())
    if fault == "cut record":
        record.write_bytes(data[: len(data) // 2])
    elif fault == "flipped bit":
        data[len(data) // 2] ^= 1
        record.write_bytes(data)
    elif fault == "old fingerprint":
        (folder / "built_from.json").write_text('{"files": {}}')
    else:
        (folder / "dataset_info.json").unlink()
    assert build(acdc, tmp_path) == 0
    assert "is replaced" in capsys.readouterr().out
    assert len(prepared.load_volumes(folder, "train")) == 6


def test_what_a_killed_build_left_is_removed_and_said(acdc, tmp_path, capsys):
    code = (
        "import os, signal, sys, tfds_builders\nfrom tfds_builders import common\n"
        "common.read_scan = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"tfds_builders.build('acdc', {str(acdc)!r}, {str(tmp_path)!r})"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=pathlib.Path(__file__).parents[1], check=False, capture_output=True
    )
    (left,) = tmp_path.glob(".building_*")
    (tmp_path / ".building_otherhost_12_x").mkdir()  # perhaps of a build that runs
    (tmp_path / ".building_old").mkdir()
    os.utime(tmp_path / ".building_old", (1e9, 1e9))
    assert build(acdc, tmp_path) == 0
    said = capsys.readouterr().out
    assert f"{left}: removed" in said and ".building_old: removed" in said
    assert [p.name for p in tmp_path.glob(".building_*")] == [".building_otherhost_12_x"]


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(scans, tmp_path, monkeypatch):
    monkeypatch.setattr("tfds_builders.acdc.Builder.inventory", lambda _: pytest.fail("read the scans"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file"):
        tfds_builders.build("acdc", scans, tmp_path / "file" / "data")


def test_a_bomb_is_refused_and_long_names_work(tmp_path, monkeypatch):
    image = nib.Nifti1Image(np.ones((9, 9, 3), np.int16), np.diag([1.5, 1.5, 8, 1]))
    image.header.set_xyzt_units("mm")
    path = tmp_path / f"{'x' * 240}.nii.gz"
    nifti.write_image(path, image)
    scan = nifti.read_scan(path)
    nifti.write_mask(path, np.ones((9, 9, 3), np.uint8), scan)
    assert nifti.read_labels(path).array.sum() == 243
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(image.to_bytes()) + gzip.compress(bytes(80 << 20), 9))
    with pytest.raises(nifti.ScanError, match=r"bomb\.nii\.gz: it unpacks to more than"):
        nifti.read_scan(tmp_path / "bomb.nii.gz")
    image.header["dim"][1:4] = 30_000
    (tmp_path / "huge.nii").write_bytes(bytes(image.header.binaryblock) + bytes(100))
    with pytest.raises(nifti.ScanError, match="its header describes 54000000000"):
        nifti.read_scan(tmp_path / "huge.nii")


def test_real_masks_pass_the_anatomical_check(shared, tmp_path):
    (tmp_path / "acdc" / "training").mkdir(parents=True)
    real = sorted((shared / "data/acdc/training").iterdir())[::13]
    for folder in real:
        os.symlink(folder, tmp_path / "acdc/training" / folder.name)
    assert build(tmp_path / "acdc", tmp_path / "data") == 0
    assert build(shared / "data/mnms", tmp_path / "data", "mnms") == 0
