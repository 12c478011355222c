"""Labelled scans outside any data set: names, frames, label values, and the faults that are named."""

import nibabel as nib
import numpy as np
import pytest

from jras_jax.data import STRUCTURES, pairs
from jras_jax.data.description import KNOWN
from jras_jax.errors import UserError

ACDC = KNOWN["acdc"].structure_values
MNMS = KNOWN["mnms"].structure_values


def write(folder, name, mask, *, image=None, zooms=(1.5, 1.5, 8.0)):
    """A pair of NIfTI files; the image is noise if none is given."""
    folder.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).normal(100, 20, mask.shape) if image is None else image
    for suffix, array in (("", image.astype(np.float32)), ("_gt", mask.astype(np.uint8))):
        nifti = nib.Nifti1Image(array, np.diag([*zooms, 1.0]))
        nifti.header.set_xyzt_units("mm")
        nib.save(nifti, folder / f"{name}{suffix}.nii.gz")


def heart(labels=(1, 2, 3), shape=(24, 20, 3)):
    """A mask with each of three labels on every slice."""
    mask = np.zeros(shape, np.uint8)
    for i, label in enumerate(labels):
        mask[4 + 4 * i : 8 + 4 * i, 5:12] = label
    return mask


def test_acdc_folders_give_patient_phase_frame_and_group(tmp_path):
    folder = tmp_path / "patient007"
    for frame in (1, 9):
        write(folder, f"patient007_frame{frame:02d}", heart())
    (folder / "Info.cfg").write_text("ED: 1\nES: 9\nGroup: HCM\nNbFrame: 20\n")
    write(folder, "patient007_4d", np.zeros((24, 20, 3, 2)))
    (folder / "patient007_4d_gt.nii.gz").unlink()  # the cine has no mask, and is passed over
    found = pairs.read_pairs(tmp_path, ACDC)
    assert [(v.case, v.patient, v.phase, v.frame, v.group) for v in found] == [
        ("patient007_ED", "patient007", "ED", 0, "HCM"),
        ("patient007_ES", "patient007", "ES", 8, "HCM"),
    ]
    assert found[0].spacing == pytest.approx([1.5, 1.5, 8.0]) and found[0].spacing_known


def test_4d_pairs_give_their_labelled_frames_alone(tmp_path):
    mask = np.zeros((24, 20, 3, 5), np.uint8)
    mask[..., 1], mask[..., 4] = heart(MNMS.values()), heart(MNMS.values())[::-1]
    image = np.arange(mask.size, dtype=np.float32).reshape(mask.shape)
    write(tmp_path / "A1", "A1_sa", mask, image=image)
    first, second = pairs.read_pairs(tmp_path, MNMS)
    assert (first.case, second.case) == ("A1_frame01", "A1_frame04")
    assert np.array_equal(first.image, image[..., 1]) and np.array_equal(second.image, image[..., 4])
    assert np.array_equal(first.mask, heart()) and np.array_equal(second.mask, heart()[::-1])


def test_label_values_become_the_projects(tmp_path):
    write(tmp_path, "a", heart((40, 20, 10)))
    (volume,) = pairs.read_pairs(tmp_path, pairs.parse_labels("LV:10,MYO:20,RV:40", STRUCTURES))
    assert np.array_equal(volume.mask, heart())


def test_patients_are_read_from_names():
    names = {"patient001_frame12": "patient001", "patient101_ED": "patient101", "A0S9V9_sa": "A0S9V9", "x": "x"}
    names |= {"site_7_scan": "site_7_scan", "B2_sa_ES": "B2"}
    assert {name: pairs.patient_of(name) for name in names} == names


FAULTY = ("LV:1", "LV:1,MYO:2,RV:2", "LV:1,MYO:2,RA:3", "LV:0,MYO:2,RV:3", "LV:1,LV:2,MYO:3,RV:4", "1,2,3", "")


@pytest.mark.parametrize("text", FAULTY)
def test_labels_that_are_incomplete_or_ambiguous_are_refused(text):
    with pytest.raises(UserError, match=r"--labels=.*LV:1,MYO:2,RV:3"):
        pairs.parse_labels(text, STRUCTURES)


def ring(lv, rv, shape=(30, 40, 2)):
    """The LV in a ring of myocardium, the RV beside it."""
    x, y = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, np.uint8)
    mask[np.hypot(x - 15, y - 14) < 10] = rv
    mask[np.hypot(x - 15, y - 24) < 11] = 2
    mask[np.hypot(x - 15, y - 24) < 7] = lv
    return mask


def test_lv_and_rv_exchanged_are_noticed_although_the_values_are_the_same(tmp_path):
    write(tmp_path, "a", ring(lv=1, rv=3))
    assert len(pairs.read_pairs(tmp_path, MNMS)) == 1
    with pytest.raises(UserError, match=r"LV and RV seem exchanged.*--labels=LV:1,MYO:2,RV:3"):
        pairs.read_pairs(tmp_path, ACDC)
    assert len(pairs.read_pairs(tmp_path, pairs.parse_labels("LV:1,MYO:2,RV:3", STRUCTURES))) == 1


@pytest.mark.parametrize(("name", "labels"), [("acdc/training/patient001", ACDC), ("mnms", MNMS)])
def test_real_scans_are_read_under_their_own_convention_alone(shared, name, labels):
    found = pairs.read_pairs(shared / "data" / name, labels)
    assert {v.mask.max() for v in found} == {3} and len(found) >= 2
    with pytest.raises(UserError, match="LV and RV seem exchanged"):
        pairs.read_pairs(shared / "data" / name, MNMS if labels is ACDC else ACDC)


def test_faulty_pairs_are_named(tmp_path):
    def refused(name, message, labels=ACDC):
        with pytest.raises(UserError, match=message):
            pairs.read_pairs(tmp_path / name, labels)

    (tmp_path / "none").mkdir()
    refused("none", "none: holds no labelled scans; a pair is NAME.nii.gz and its mask NAME_gt.nii.gz")
    refused("absent", "absent: no such folder")
    write(tmp_path / "foreign", "a", heart((1, 2, 7)))
    refused("foreign", r"a_gt\.nii\.gz: holds the labels \[7\], but RV:1,MYO:2,LV:3 .*--labels=")
    write(tmp_path / "alone", "a", heart())
    (tmp_path / "alone" / "a.nii.gz").unlink()
    refused("alone", r"a_gt\.nii\.gz: its scan a\.nii\.gz is not beside it")
    write(tmp_path / "shape", "a", heart(), image=np.ones((24, 20, 4)))
    refused("shape", "its shape .* is not that of its image")
    write(tmp_path / "twice" / "x", "a", heart())
    write(tmp_path / "twice" / "y", "a", heart())
    refused("twice", "are both case a_frame00; keep one")
    write(tmp_path / "empty", "a", np.zeros((24, 20, 3)))
    refused("empty", "the mask of every pair is empty")
