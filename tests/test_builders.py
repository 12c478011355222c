"""From official folders to prepared data sets and back to volumes."""

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
from jras_jax.commands import cli
from jras_jax.data import nifti, prepared
from jras_jax.errors import UserError
from tests.official_folders import AFFINE, change, edit_info, frame_of, left_in, mask_of

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def dataset(acdc, tmp_path_factory):
    return tfds_builders.build("acdc", acdc, tmp_path_factory.mktemp("data"))


def test_the_phantom_goes_round(acdc, dataset):
    assert dataset.name == "1.0.0" and dataset.parent.name == "acdc"
    assert prepared.splits(dataset) == {"train": 6, "test": 2}
    train, test = prepared.load_volumes(dataset, "train"), prepared.load_volumes(dataset, "test")
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
        "import sys, tfds_builders\nfrom jras_jax.data import prepared\n"
        f"d = tfds_builders.build('acdc', {str(acdc)!r}, {str(tmp_path)!r})\n"
        "assert len(prepared.load_volumes(d, 'train')) == 6\n"
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


def test_the_command_prepares_what_the_function_does(acdc, dataset, tmp_path):
    assert cli.main(["build", "acdc", f"--manual_dir={acdc}", f"--data_dir={tmp_path}"]) == 0
    ours, theirs = (prepared.load_volumes(folder, "train") for folder in (tmp_path / "acdc" / "1.0.0", dataset))
    assert [v.case for v in ours] == [v.case for v in theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.mask, b.mask)


def test_the_archives_own_top_folder_is_found(acdc, tmp_path):
    (tmp_path / "ACDC").mkdir()
    os.symlink(acdc, tmp_path / "ACDC" / "database")
    folder = tfds_builders.build("acdc", tmp_path / "ACDC", tmp_path / "data")
    assert prepared.load_volumes(folder, "test")[0].source.startswith("testing/")


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
