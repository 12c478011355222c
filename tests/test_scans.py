"""Prediction on scans from outside: geometry kept to the bit, evidence beside every mask, mistakes named."""

import json
import pathlib
import shutil

import nibabel as nib
import numpy as np
import pytest

from jras_jax.data import STRUCTURES
from jras_jax.data.description import KNOWN
from jras_jax.errors import UserError
from jras_jax.inference.trained_run import open_run
from tests.commands import predict


@pytest.fixture(scope="module")
def scan(phantom_scans):
    """One scan of a test patient, as nibabel has it."""
    return nib.load(next(p for p in sorted(phantom_scans.glob("testing/*/*_frame01.nii.gz"))))


def save(path, array, affine, zooms=None, codes=(1, 1)):
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    if zooms is not None:
        image.header.set_zooms(zooms)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def segment(run, source, output, *more):
    (mask,) = predict(run, source, output, *more)
    return nib.load(mask), json.loads(mask.with_name(mask.name.replace(".nii.gz", ".json")).read_text())


def same_geometry(mask, scan):
    assert mask.shape == scan.shape
    assert mask.header.get_zooms() == scan.header.get_zooms()
    assert np.array_equal(mask.affine, scan.affine)
    for form in ("qform", "sform"):
        assert mask.header[f"{form}_code"] == scan.header[f"{form}_code"]
    assert np.array_equal(mask.get_sform(), scan.get_sform()) and np.array_equal(mask.get_qform(), scan.get_qform())
    assert mask.header["xyzt_units"] == scan.header["xyzt_units"]
    assert np.issubdtype(mask.get_data_dtype(), np.integer)


OBLIQUE = np.array([[1.1, 0.2, 3.0, -90], [-0.3, 1.2, 4.0, -70], [0.1, -0.4, 8.0, 20], [0, 0, 0, 1]])


@pytest.mark.parametrize("case", ["plain", "flipped", "swapped", "oblique", "anisotropic"])
def test_mask_has_the_geometry_of_its_scan(run, scan, tmp_path, case):
    array, affine = np.asarray(scan.dataobj), scan.affine.copy()
    if case == "flipped":
        array, affine = array[::-1, :, ::-1], affine @ np.diag([-1.0, 1, -1, 1])
    if case == "swapped":
        array, affine = array.swapaxes(0, 1), affine[:, [1, 0, 2, 3]]
    if case == "oblique":
        affine = OBLIQUE
    if case == "anisotropic":
        affine = np.diag([0.7, 2.6, 11.0, 1.0])
    source = save(tmp_path / "in" / "scan.nii.gz", np.ascontiguousarray(array), affine, codes=(1, 2))
    mask, _ = segment(run, source, tmp_path / "out")
    same_geometry(mask, nib.load(source))


def test_mask_of_a_cine_has_every_frame(run, scan, tmp_path):
    still = np.asarray(scan.dataobj)
    cine = np.stack([still, still[::-1], still], -1)
    zooms = (*scan.header.get_zooms()[:3], 0.04)
    source = save(tmp_path / "cine.nii.gz", cine, affine=scan.affine, zooms=zooms)
    mask, evidence = segment(run, source, tmp_path / "out")
    same_geometry(mask, nib.load(source))
    labels = np.asarray(mask.dataobj)
    assert np.array_equal(labels[..., 0], labels[..., 2]) and not np.array_equal(labels[..., 0], labels[..., 1])
    assert [f["frame"] for f in evidence["frames"]] == [0, 1, 2]
    alone, _ = segment(run, save(tmp_path / "still.nii.gz", still, scan.affine), tmp_path / "out")
    assert np.array_equal(np.asarray(alone.dataobj), labels[..., 0])


def test_how_a_scan_is_stored_does_not_change_its_segmentation(run, scan, tmp_path):
    array = np.asarray(scan.dataobj)
    plain, _ = segment(run, save(tmp_path / "a.nii.gz", array, scan.affine), tmp_path / "out")
    centre = np.eye(4)
    centre[0, 3] = array.shape[0] - 1
    flip = centre @ np.diag([-1.0, 1, 1, 1])
    stored = np.ascontiguousarray(array[::-1].swapaxes(0, 1))
    affine = (scan.affine @ flip)[:, [1, 0, 2, 3]]
    other, _ = segment(run, save(tmp_path / "b.nii.gz", stored, affine), tmp_path / "out")
    back = np.asarray(other.dataobj).swapaxes(0, 1)[::-1]
    agree = (back == np.asarray(plain.dataobj)).mean()
    assert np.asarray(plain.dataobj).any() and agree > 0.999  # rounding may turn a pixel on an edge


def test_json_names_the_cases_and_weights_of_every_slice(run, scan, tmp_path):
    mask, evidence = segment(run, save(tmp_path / "s.nii.gz", np.asarray(scan.dataobj), scan.affine), tmp_path / "out")
    opened = open_run(run)
    known = {f"{p}_{phase}" for p in opened.splits["train"] for phase in ("ED", "ES")}
    (frame,) = evidence["frames"]
    assert [s["slice"] for s in frame["slices"]] == list(range(mask.shape[2]))
    for entry in frame["slices"]:
        weights = [g["weight"] for g in entry["guides"]]
        assert len(weights) == opened.config.retrieval.top_k and weights == sorted(weights, reverse=True)
        assert sum(weights) == pytest.approx(1, abs=1e-5) and min(weights) >= 0
        assert {g["case"] for g in entry["guides"]} <= known
    assert evidence["checkpoint_step"] == opened.step
    assert evidence["labels"] == STRUCTURES


def test_labels_are_those_of_the_data_sets_own_convention(run, scan, tmp_path):
    """M&Ms writes 1 for the LV and 3 for the RV, ACDC the other way round."""
    source = save(tmp_path / "s.nii.gz", np.asarray(scan.dataobj), scan.affine)
    acdc, _ = segment(run, source, tmp_path / "acdc")
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "dataset.json").write_text(json.dumps(KNOWN["mnms"].to_json()))
    mnms, evidence = segment(other, source, tmp_path / "mnms")
    a, b = np.asarray(acdc.dataobj), np.asarray(mnms.dataobj)
    assert len(np.unique(a)) > 1
    assert np.array_equal(np.array([0, 3, 2, 1])[a], b)
    assert evidence["labels"] == {"RV": 3, "MYO": 2, "LV": 1}


@pytest.mark.parametrize("name", ["own", "renamed"])
def test_a_training_patients_scan_is_never_guided_by_its_own_slices(run, phantom_scans, tmp_path, name):
    """By the file's name or, if it was renamed, by the slices themselves."""
    patient = open_run(run).splits["train"][0]
    source = next(phantom_scans.rglob(f"{patient}_frame01.nii.gz"))
    file = tmp_path / (source.name if name == "own" else "somebody.nii.gz")
    shutil.copy(source, file)
    _, evidence = segment(run, file, tmp_path / "out")
    assert evidence["gallery_patient"] == patient
    cases = {g["case"] for s in evidence["frames"][0]["slices"] for g in s["guides"]}
    assert cases and not any(c.startswith(patient) for c in cases)
    # Without the rule the nearest slice is the scan's own: what is tested is the rule, not chance.
    _, leaking = segment(run, file, tmp_path / "leak", "--config.retrieval.exclude=none")
    cases = {s["guides"][0]["case"] for s in leaking["frames"][0]["slices"]}
    assert f"{patient}_ED" in cases


def test_a_folder_is_segmented_with_its_subfolders_and_without_its_masks(run, phantom_scans, tmp_path):
    scans = phantom_scans / "testing"
    written = predict(run, scans, tmp_path)
    found = [p for p in sorted(scans.rglob("*.nii.gz")) if not p.name.endswith("_gt.nii.gz")]
    assert sorted(written) == [tmp_path / p.relative_to(scans) for p in found] and len(found) == 6


def bad_scans(tmp_path, scan):
    array = np.asarray(scan.dataobj, np.float32)
    nan = array.copy()
    nan[3, 4, 1] = np.nan
    (tmp_path / "text.nii.gz").write_text("this is no scan")
    (tmp_path / "cut.nii.gz").write_bytes(pathlib.Path(scan.get_filename()).read_bytes()[:5000])
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    return {
        "not a NIfTI image": tmp_path / "text.nii.gz",
        "damaged or cut short": tmp_path / "cut.nii.gz",
        "1 of its .* voxels are NaN": save(tmp_path / "nan.nii.gz", nan, scan.affine),
        "must have 3 axes": save(tmp_path / "flat.nii.gz", array[..., 0], scan.affine),
        "not a NIfTI file": tmp_path / "notes.txt",
        "no such file or folder": tmp_path / "absent.nii.gz",
        "no .nii or .nii.gz file in this folder": tmp_path / "empty",
    }


def test_what_cannot_be_segmented_is_named_with_its_fault(run, scan, tmp_path):
    for fault, source in bad_scans(tmp_path, scan).items():
        with pytest.raises(UserError, match=fault) as e:
            predict(run, source, tmp_path / "out")
        assert source.name in str(e.value)
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_no_scan_is_overwritten_by_its_mask(run, scan, tmp_path):
    source = save(tmp_path / "s.nii.gz", np.asarray(scan.dataobj), scan.affine)
    before = source.read_bytes()
    for given in (source, tmp_path):
        with pytest.raises(UserError, match=r"would overwrite the scan .*s\.nii\.gz; choose another folder"):
            predict(run, given, tmp_path)
    assert source.read_bytes() == before


def test_two_scans_of_one_name_are_refused(run, scan, tmp_path):
    for suffix in (".nii", ".nii.gz"):
        save(tmp_path / f"s{suffix}", np.asarray(scan.dataobj), scan.affine)
    with pytest.raises(UserError, match=r"s\.nii\.gz: s\.nii is beside it"):
        predict(run, tmp_path, tmp_path / "out")
