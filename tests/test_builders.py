"""From official folders to prepared data sets and back to volumes; and every fault stops the build, whole."""

import csv
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

import tfds_builders
from jras_jax.data import nifti, phantom, prepared
from jras_jax.errors import UserError
from tfds_builders.__main__ import main

ROOT = pathlib.Path(__file__).resolve().parents[1]
CSV = "201014_M&Ms_Dataset_Information_-_opendataset.csv"
AFFINE = np.array([[-1.1, -0.5, 4.1, 122.9], [0.0, -1.0, -6.5, 152.6], [0.8, -0.7, 5.8, -91.0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def acdc(tmp_path_factory):
    """A small phantom, its groups in turn; read only."""
    folder = tmp_path_factory.mktemp("acdc")
    phantom.write_acdc(folder, train_patients=3, test_patients=1, seed=5)
    return folder


@pytest.fixture(scope="module")
def prepared(acdc, tmp_path_factory):
    return tfds_builders.build("acdc", acdc, tmp_path_factory.mktemp("data"))


@pytest.fixture
def scans(acdc, tmp_path):
    """A copy of the phantom to break."""
    return pathlib.Path(shutil.copytree(acdc, tmp_path / "acdc"))


@pytest.fixture
def mnms(tmp_path):
    return write_mnms(tmp_path / "mnms")


def write_mnms(root):
    """Three patients in the official M&Ms layout, 4 frames, ED at 2 and ES at 0, in M&Ms labels."""
    rng = np.random.default_rng(0)
    rows = []
    for code, split, vendor, letter, centre in (
        ("A1B2C3", "Training/Labeled", "Siemens", "A", 1),
        ("D4E5F6", "Validation", "Philips", "B", 2),
        ("G7H8I9", "Testing", "GE", "C", 4),
    ):
        image = rng.integers(0, 900, (9, 7, 3, 4)).astype(np.int16)
        mask = np.zeros(image.shape, np.uint8)
        mask[..., [0, 2]] = rng.integers(0, 4, (9, 7, 3, 2))
        save(root / split / code / f"{code}_sa.nii.gz", image)
        save(root / split / code / f"{code}_sa_gt.nii.gz", mask)
        rows.append([len(rows), code, vendor, letter, centre, 2, 0, "", "HCM", "", "", ""])
    header = [
        "",
        "External code",
        "VendorName",
        "Vendor",
        "Centre",
        "ED",
        "ES",
        "Age",
        "Pathology",
        "Sex",
        "Height",
        "Weight",
    ]
    with (root / CSV).open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([header, *rows])
    return root


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)


def frame_of(folder, phase):
    """Path of the scan of a phase in an ACDC patient's folder."""
    info = dict(line.split(": ") for line in (folder / "Info.cfg").read_text().splitlines())
    return folder / f"{folder.name}_frame{int(info[phase]):02d}.nii.gz"


def mask_of(scan):
    return scan.with_name(scan.name.replace(".nii.gz", "_gt.nii.gz"))


def edit_info(path, key, value):
    """Sets a line of an Info.cfg, or takes it out (None)."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{key}:")]
    path.write_text("\n".join(lines + ([] if value is None else [f"{key}: {value}"])) + "\n")


def edit_csv(path, code, column, value):
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["External code"] == code:
            row[column] = value
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def change(path, function):
    """Rewrites a scan's voxels, its header kept."""
    image = nib.load(path)
    array = function(np.asarray(image.dataobj).copy())
    image.header.set_data_dtype(array.dtype)
    nib.save(nib.Nifti1Image(array, image.affine, image.header), path)


def poke(value):
    def function(array):
        array = array.astype(np.float32)
        array[1, 1, 1] = value
        return array

    return function


def left_in(folder):
    return [p for p in folder.rglob("*") if p.is_file()] if folder.exists() else []


def test_the_phantom_goes_round(acdc, prepared):
    assert prepared.name == "1.0.0" and prepared.parent.name == "acdc"
    assert prepared.splits(prepared) == {"train": 6, "test": 2}
    train, test = prepared.load_volumes(prepared, "train"), prepared.load_volumes(prepared, "test")
    assert [v.case for v in train] == [f"patient{n:03d}_{phase}" for n in (1, 2, 3) for phase in ("ED", "ES")]
    assert [v.case for v in test] == ["patient101_ED", "patient101_ES"]
    assert [v.group for v in train] == ["NOR", "NOR", "DCM", "DCM", "HCM", "HCM"]
    for v in train + test:
        path = frame_of(acdc / pathlib.Path(v.source).parent, v.phase)
        assert (acdc / v.source) == path
        scan, mask = nifti.read_scan(path), nifti.read_labels(mask_of(path))
        np.testing.assert_array_equal(v.image, scan.array)
        np.testing.assert_array_equal(v.mask, mask.array)
        np.testing.assert_array_equal(v.affine, scan.affine)
        np.testing.assert_array_equal(v.spacing, scan.spacing)
        dtypes = [a.dtype for a in (v.image, v.mask, v.affine, v.spacing)]
        assert dtypes == [np.float32, np.uint8, np.float64, np.float32]
        assert v.spacing_known is True and v.frame == 0
        assert (v.vendor, v.centre) == ("Siemens", "Dijon")


def test_tensorflow_is_never_imported(acdc, tmp_path):
    code = (
        "import sys, tfds_builders\nfrom jras_jax.data import store\n"
        f"d = tfds_builders.build('acdc', {str(acdc)!r}, {str(tmp_path)!r})\n"
        "assert len(store.load_volumes(d, 'train')) == 6\n"
        "assert 'tensorflow' not in sys.modules\nassert 'jax' not in sys.modules\nprint('fine')"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and run.stdout.endswith("fine\n"), run.stderr


def test_the_builder_itself_works_through_tfds(acdc, tmp_path):
    import tensorflow_datasets as tfds

    from tfds_builders.acdc import Builder

    builder = Builder(data_dir=tmp_path)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=acdc))
    source = builder.as_data_source("test")
    assert len(source) == 2 and source[0]["patient"] == b"patient101"
    assert list(tmp_path.rglob("*.array_record*"))


def test_mnms_labels_frames_and_splits(mnms, tmp_path):
    folder = tfds_builders.build("mnms", mnms, tmp_path / "data")
    assert prepared.splits(folder) == {"train": 2, "validation": 2, "test": 2}
    theirs_to_ours = np.array([0, 3, 2, 1])  # M&Ms: 1 LV, 2 myocardium, 3 RV
    for split, code, vendor, centre in (
        ("train", "A1B2C3", "Siemens", "1"),
        ("validation", "D4E5F6", "Philips", "2"),
        ("test", "G7H8I9", "GE", "4"),
    ):
        volumes = prepared.load_volumes(folder, split)
        assert [(v.case, v.frame) for v in volumes] == [(f"{code}_ED", 2), (f"{code}_ES", 0)]
        for v in volumes:
            path = mnms / v.source
            assert path.name == f"{code}_sa.nii.gz"
            np.testing.assert_array_equal(v.image, nib.load(path).get_fdata()[..., v.frame])
            theirs = np.asarray(nib.load(mask_of(path)).dataobj)[..., v.frame]
            np.testing.assert_array_equal(v.mask, theirs_to_ours[theirs])
            assert (v.vendor, v.centre, v.group) == (vendor, centre, "HCM")
            np.testing.assert_allclose(v.affine, AFFINE, atol=1e-5)


def test_absent_splits_are_said_and_allowed_but_not_all(scans, mnms, tmp_path):
    said = []
    shutil.rmtree(scans / "testing")
    folder = tfds_builders.build("acdc", scans, tmp_path / "data", say=said.append)
    assert prepared.splits(folder) == {"train": 6}
    assert sum("'test'" in line for line in said) == 1
    said.clear()
    for gone in ("Training", "Validation"):
        shutil.rmtree(mnms / gone)
    assert prepared.splits(tfds_builders.build("mnms", mnms, tmp_path / "data", say=said.append)) == {"test": 2}
    assert sum("'train'" in line for line in said) == sum("'validation'" in line for line in said) == 1
    for name, root, last in (("acdc", scans, "training"), ("mnms", mnms, "Testing")):
        for patient in (root / last).iterdir():
            shutil.rmtree(patient)
        with pytest.raises(UserError, match="no patients"):
            tfds_builders.build(name, root, tmp_path / "none")
        (root / last).rmdir()
        with pytest.raises(UserError, match="holds none of"):
            tfds_builders.build(name, root, tmp_path / "none")
    assert not left_in(tmp_path / "none")


def test_height_weight_and_frame_count_may_be_absent(scans, tmp_path):
    for key in ("Height", "Weight", "NbFrame"):
        edit_info(scans / "training/patient001/Info.cfg", key, None)
    (scans / "MANDATORY_CITATION.md").write_text("the archive holds such files too")
    (scans / "training" / ".DS_Store").write_text("")
    assert prepared.splits(tfds_builders.build("acdc", scans, tmp_path / "data")) == {"train": 6, "test": 2}


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
    edit_csv(table, "D4E5F6", column, value)
    if fault == "no vendor":
        edit_csv(table, "D4E5F6", "Vendor", "")
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


@pytest.mark.parametrize("what", ["voxels", "table", "patients"])
def test_a_data_set_is_reused_only_for_the_same_scans(scans, tmp_path, what):
    data, said = tmp_path / "data", []
    folder = tfds_builders.build("acdc", scans, data)
    stamp = {p: p.stat().st_mtime_ns for p in left_in(data)}
    moved = scans.rename(tmp_path / "moved")
    tfds_builders.build("acdc", moved, data, say=said.append)
    assert {p: p.stat().st_mtime_ns for p in left_in(data)} == stamp and "already" in said[-1]
    if what == "voxels":
        change(frame_of(moved / "training/patient001", "ED"), lambda a: a + 1)
    elif what == "table":
        edit_info(moved / "training/patient001/Info.cfg", "Group", "DCM")
    else:
        shutil.rmtree(moved / "training/patient001")
    tfds_builders.build("acdc", moved, data, say=said.append)
    assert any("building it again" in line for line in said)
    volume = prepared.load_volumes(folder, "train")[0]
    if what == "voxels":
        np.testing.assert_array_equal(volume.image, nifti.read_scan(moved / volume.source).array)
    assert (volume.group, volume.patient) == ("NOR" if what == "voxels" else "DCM", volume.patient)
    assert (volume.patient == "patient002") == (what == "patients")


def test_the_archives_own_top_folder_is_found(acdc, tmp_path):
    (tmp_path / "ACDC").mkdir()
    os.symlink(acdc, tmp_path / "ACDC" / "database")
    folder = tfds_builders.build("acdc", tmp_path / "ACDC", tmp_path / "data")
    assert prepared.load_volumes(folder, "test")[0].source.startswith("testing/")


def test_wrong_arguments_are_said(acdc, tmp_path, capsys):
    for arguments, words in (
        (("acdc", tmp_path / "nowhere", tmp_path), "no folder"),
        (("acdc", "", tmp_path), "empty"),
        (("brats", acdc, tmp_path), "acdc and mnms"),
        (("acdc", acdc, __file__), "cannot be written"),
    ):
        with pytest.raises(UserError, match=words):
            tfds_builders.build(*arguments)
    with pytest.raises(SystemExit) as error:
        main(["acdc"])
    assert error.value.code == 2 and "--manual_dir" in capsys.readouterr().err


def test_store_says_what_is_wrong(prepared, tmp_path):
    with pytest.raises(UserError, match="has no split 'validation', it has"):
        prepared.load_volumes(prepared, "validation")
    with pytest.raises(UserError, match="no prepared data set"):
        prepared.splits(tmp_path)
    copy = pathlib.Path(shutil.copytree(prepared, tmp_path / "acdc" / "1.0.0"))
    (record,) = copy.glob("*train*")
    record.write_bytes(record.read_bytes()[: record.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot be read"):
        prepared.load_volumes(copy, "train")


def test_real_acdc(shared, tmp_path):
    real = shared / "data/acdc/training"
    (tmp_path / "acdc/training").mkdir(parents=True)
    for name in ("patient001", "patient023"):
        os.symlink(real / name, tmp_path / "acdc/training" / name)
    volumes = prepared.load_volumes(tfds_builders.build("acdc", tmp_path / "acdc", tmp_path / "data"), "train")
    assert [(v.case, v.group) for v in volumes[::2]] == [("patient001_ED", "DCM"), ("patient023_ED", "HCM")]
    assert not any(v.spacing_known for v in volumes)
    np.testing.assert_array_equal(volumes[0].image, nib.load(real.parent / volumes[0].source).get_fdata())


def test_real_mnms(shared, tmp_path):
    volumes = prepared.load_volumes(tfds_builders.build("mnms", shared / "data/mnms", tmp_path), "test")
    assert [(v.case, v.vendor) for v in volumes[::2]] == [
        ("C8O0P2_ED", "GE"),
        ("G1K1V3_ED", "Philips"),
        ("H1N8S6_ED", "Siemens"),
    ]
    for v in volumes:
        scan = nib.load(shared / "data/mnms" / v.source)
        np.testing.assert_allclose(v.affine, scan.affine)
        np.testing.assert_allclose(v.spacing, scan.header.get_zooms()[:3])
        lv, rv = ((v.mask == k).sum() for k in (3, 1))
        theirs = np.asarray(nib.load(mask_of(shared / "data/mnms" / v.source)).dataobj)[..., v.frame]
        assert (lv, rv) == ((theirs == 1).sum(), (theirs == 3).sum())
        assert {f.name for f in dataclasses.fields(v)} >= {"phase", "source"}
