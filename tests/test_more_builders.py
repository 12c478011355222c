"""BUSI, COVID-19-CT-Seg and M&Ms-2 from small folders in the layout of their official downloads."""

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

import tfds_builders
from jras_jax.commands.cli import main
from jras_jax.data import prepared
from jras_jax.data.description import KNOWN
from jras_jax.errors import UserError
from tests.own_folders import write_picture, write_volume

MASK = np.zeros((12, 10), np.uint8)
MASK[2:5, 2:6] = 255
OTHER = np.zeros((12, 10), np.uint8)
OTHER[7:9, 1:4] = 255


def load(name, folder, tmp_path, split="train"):
    built = tfds_builders.build(name, folder, tmp_path / "cache", say=lambda line: None)
    return prepared.load_volumes(built, split, prepared.describe(built, name))


def busi(folder):
    """benign (1) has two lesions in two masks, normal (1) none; one mask is an image of one bit."""
    rng = np.random.default_rng(0)
    for group, numbers in (("benign", (1, 2)), ("malignant", (1,)), ("normal", (1,))):
        for number in numbers:
            grey = rng.integers(0, 200, (12, 10)).astype(np.uint8)
            write_picture(folder / group / f"{group} ({number}).png", np.repeat(grey[..., None], 3, 2))
            drawn = MASK * (group != "normal")
            write_picture(folder / group / f"{group} ({number})_mask.png", drawn)
    write_picture(folder / "benign" / "benign (1)_mask_1.png", OTHER)
    PIL.Image.fromarray(MASK.T > 0).save(folder / "malignant" / "malignant (1)_mask.png")
    return folder


def test_busi_unites_an_images_masks_and_keeps_normal_images(tmp_path):
    busi(tmp_path / "BUSI" / "Dataset_BUSI_with_GT")
    found = {v.case: v for v in load("busi", tmp_path / "BUSI", tmp_path)}
    assert list(found) == ["benign (1)", "benign (2)", "malignant (1)", "normal (1)"]
    assert np.array_equal(found["benign (1)"].mask[..., 0], (MASK + OTHER) // 255)
    assert np.array_equal(found["malignant (1)"].mask[..., 0], MASK // 255)
    assert not found["normal (1)"].mask.any() and found["normal (1)"].group == "normal"
    assert found["benign (2)"].image.shape == (12, 10, 1) and found["benign (2)"].description == KNOWN["busi"]
    assert main(["check", str(tmp_path / "BUSI"), "--dataset=busi", f"--picture={tmp_path / 'x.png'}"]) == 0


def test_busi_without_a_mask_is_named(tmp_path):
    busi(tmp_path)
    (tmp_path / "benign" / "benign (2)_mask.png").unlink()
    with pytest.raises(UserError, match=r"benign \(2\)\.png: its mask benign \(2\)_mask\.png is not beside it"):
        load("busi", tmp_path, tmp_path)


CASES = ("coronacases_001", "radiopaedia_10_85902_1", "radiopaedia_10_85902_3", "radiopaedia_29_86490_1")


def covid(folder):
    rng = np.random.default_rng(0)
    for number, name in enumerate(CASES):
        image = rng.integers(-1000, 400, (10, 12, 4)).astype(np.int16)
        mask = np.zeros((10, 12, 4), np.uint8)
        mask[1:4, 2:9], mask[6:9, 2:9], mask[2:4, 3:5, number] = 1, 2, 3
        write_volume(folder / "COVID-19-CT-Seg_20cases" / f"{name}.nii.gz", image, (0.8, 0.8, 1.0))
        write_volume(folder / "Lung_and_Infection_Mask" / f"{name}.nii.gz", mask, (0.8, 0.8, 1.0))
    return folder


def test_covids_volumes_of_one_case_are_one_patient(tmp_path):
    found = load("covid", covid(tmp_path / "covid"), tmp_path)
    assert [(v.case, v.patient, v.group) for v in found] == [
        ("coronacases_001", "coronacases_001", "coronacases"),
        ("radiopaedia_10_85902_1", "radiopaedia_10", "radiopaedia"),
        ("radiopaedia_10_85902_3", "radiopaedia_10", "radiopaedia"),
        ("radiopaedia_29_86490_1", "radiopaedia_29", "radiopaedia"),
    ]
    assert [list(np.unique(v.mask)) for v in found] == [[0, 1, 2, 3]] * 4 and found[0].image.min() < -900


def test_covid_without_masks_says_what_to_unpack(tmp_path):
    covid(tmp_path)
    for path in (tmp_path / "Lung_and_Infection_Mask").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"its mask coronacases_001\.nii\.gz is not in"):
        load("covid", tmp_path, tmp_path)
    (tmp_path / "Lung_and_Infection_Mask").rmdir()
    with pytest.raises(UserError, match=r"unpack Lung_and_Infection_Mask\.zip"):
        load("covid", tmp_path, tmp_path)


def ring(shape, inner, outer):
    """The LV in a ring of myocardium with the RV beside it, in M&Ms-2's values."""
    x, y = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    radius = np.hypot(x - 8, y - 10)
    mask = np.zeros(shape, np.uint8)
    mask[(np.hypot(x - 15, y - 10) < 4)] = 3
    mask[radius < outer] = 2
    mask[radius < inner] = 1
    return mask


def mnms2(folder, patients=("001", "161", "201")):
    rng = np.random.default_rng(0)
    lines = ["SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD"]
    for code in patients:
        lines.append(f"{int(code)},HCM,Philips Medical Systems,Achieva,1.5")
        for phase in ("ED", "ES"):
            for view, shape in (("SA", (22, 20, 3)), ("LA", (22, 24, 1))):
                image = rng.integers(0, 300, shape).astype(np.int16)
                place = folder / "dataset" / code
                write_volume(place / f"{code}_{view}_{phase}.nii.gz", image, (1.4, 1.4, 9.0))
                write_volume(place / f"{code}_{view}_{phase}_gt.nii.gz", ring(shape, 3, 5), (1.4, 1.4, 9.0))
    (folder / "dataset_information.csv").write_text("\n".join(lines))
    return folder


def test_mnms2_reads_short_axes_alone_by_the_challenges_split(tmp_path):
    folder = mnms2(tmp_path / "data" / "MnM2")
    for split, code in (("train", "001"), ("validation", "161"), ("test", "201")):
        found = load("mnms2", tmp_path / "data", tmp_path=tmp_path, split=split)
        assert [(v.patient, v.phase) for v in found] == [(code, "ED"), (code, "ES")]
        assert all("_SA_" in v.source and v.image.shape == (22, 20, 3) for v in found)
        assert found[0].vendor == "Philips Medical Systems" and found[0].group == "HCM"
    stored = np.asarray(nib.load(folder / "dataset" / "201" / "201_SA_ED_gt.nii.gz").dataobj)
    assert np.array_equal(found[0].mask, np.array([0, 3, 2, 1])[stored])


def test_mnms2_says_that_long_axes_are_passed_over_and_names_what_is_missing(tmp_path):
    folder = mnms2(tmp_path / "data")
    said = []
    tfds_builders.build("mnms2", folder, tmp_path / "cache", say=said.append)
    assert any("passes over 12 long-axis files" in line for line in said)
    (folder / "dataset" / "161" / "161_SA_ES_gt.nii.gz").unlink()
    with pytest.raises(UserError, match="161_SA_ES_gt"):
        tfds_builders.build("mnms2", folder, tmp_path / "cache")
    (folder / "dataset" / "161" / "161_SA_ES_gt.nii.gz").write_bytes(b"")
    (folder / "dataset_information.csv").write_text("SUBJECT_CODE,DISEASE,VENDOR\n1,HCM,GE")
    with pytest.raises(UserError, match="has no row for patient 161"):
        tfds_builders.build("mnms2", folder, tmp_path / "cache")
