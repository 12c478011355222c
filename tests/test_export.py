"""Challenge layouts: names, labels, frames and the scan's own geometry."""

import nibabel as nib
import numpy as np
import pytest

from jras_jax import files
from jras_jax.data import Volume, nifti
from jras_jax.errors import UserError
from jras_jax.evaluation import export

AFFINE = np.array([[0, 1.2, 0.1, 5], [1.2, 0, 0, -7], [0, 0.1, 9, 30], [0, 0, 0, 1.0]])
SHAPE = (6, 5, 3)


def scan(path, frames=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.ones((*SHAPE, frames) if frames else SHAPE, np.int16), AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)


def volume(source, patient="patient101", phase="ED", frame=0):
    return Volume(
        np.zeros(SHAPE, np.float32),
        None,
        affine=AFFINE,
        spacing=np.ones(3),
        spacing_known=True,
        patient=patient,
        phase=phase,
        frame=frame,
        source=source,
    )


def labels(seed=0):
    out = np.random.default_rng(seed).integers(0, 4, SHAPE).astype(np.uint8)
    out[0, 0] = [1, 2, 3]
    return out


def same_geometry(a, b):
    np.testing.assert_array_equal(a.affine, b.affine)
    np.testing.assert_array_equal(a.spacing, b.spacing)
    assert a.header["sform_code"] == b.header["sform_code"] and a.header["xyzt_units"] == b.header["xyzt_units"]


def test_acdc_submission(tmp_path):
    found = []
    for phase, frame in (("ED", 1), ("ES", 12)):
        scan(tmp_path / "scans" / f"patient101_frame{frame:02d}.nii.gz")
        found.append((volume(f"patient101_frame{frame:02d}.nii.gz", phase=phase), labels(frame)))
    written = export.export_acdc(iter(found), tmp_path / "out", tmp_path / "scans")
    assert [p.name for p in written] == ["patient101_ED.nii.gz", "patient101_ES.nii.gz"]
    for path, (v, expected) in zip(written, found, strict=True):
        back = nifti.read_labels(path)
        np.testing.assert_array_equal(back.array, expected)  # the project's labels are ACDC's
        same_geometry(back, nifti.read_scan(tmp_path / "scans" / v.source))


def test_acdc_submission_from_a_4d_scan_is_3d(tmp_path):
    scan(tmp_path / "cine.nii.gz", frames=4)
    (path,) = export.export_acdc([(volume("cine.nii.gz", frame=2), labels())], tmp_path / "out", tmp_path)
    image = nib.load(path)
    assert image.shape == SHAPE
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)


def test_mnms_masks_are_4d_with_labels_at_ed_and_es_alone(tmp_path):
    scan(tmp_path / "scans" / "A1" / "A1_sa.nii.gz", frames=5)
    ed, es = (volume("A1/A1_sa.nii.gz", "A1", phase=phase, frame=frame) for phase, frame in (("ED", 0), ("ES", 3)))
    (path,) = export.export_mnms([(es, labels(1)), (ed, labels(0))], tmp_path / "out", tmp_path / "scans")
    assert path == tmp_path / "out" / "A1" / "A1_sa_pred.nii.gz"
    back = nifti.read_labels(path)
    assert back.array.shape == (*SHAPE, 5)
    for frame, ours in ((0, labels(0)), (3, labels(1))):
        for own, theirs in ((1, 3), (2, 2), (3, 1)):  # RV 1 -> 3, MYO 2, LV 3 -> 1
            np.testing.assert_array_equal(back.array[..., frame] == theirs, ours == own)
    assert not back.array[..., [1, 2, 4]].any()
    same_geometry(back, nifti.read_scan(tmp_path / "scans" / "A1" / "A1_sa.nii.gz"))


def test_mnms_export_of_the_truth_is_the_official_mask(shared, tmp_path):
    root = shared / "data" / "mnms"
    source = "Testing/H1N8S6/H1N8S6_sa.nii.gz"
    truth = nifti.read_labels(root / "Testing" / "H1N8S6" / "H1N8S6_sa_gt.nii.gz")
    ours = np.array([0, 3, 2, 1], np.uint8)[truth.array]
    cases = [
        (volume(source, "H1N8S6", phase=phase, frame=frame), ours[..., frame])
        for phase, frame in (("ED", 0), ("ES", 1))
    ]
    (path,) = export.export_mnms(cases, tmp_path, root, suffix="_sa_gt")
    back = nifti.read_labels(path)
    np.testing.assert_array_equal(back.array, truth.array)
    np.testing.assert_allclose(back.affine, truth.affine, atol=1e-4)


HOSTILE = ("../../x", "..", ".x", "a/b", "/etc/x", "a\\b", "a\0b", "a\nb", "", " ", "x" * 300, "a\u2028b", "a\ud800")


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_patients_name_never_leads_out_of_the_folder(tmp_path, name):
    scan(tmp_path / "scans" / "a.nii.gz")
    scan(tmp_path / "scans" / "b.nii.gz", frames=2)
    before = sorted(tmp_path.rglob("*"))
    acdc, mnms = volume("a.nii.gz", name), volume("b.nii.gz", name)
    out, scans = tmp_path / "o" / "u" / "t", tmp_path / "scans"
    for call in (
        lambda: export.export_acdc([(acdc, labels())], out, scans),
        lambda: export.export_mnms([(mnms, labels())], out, scans),
        lambda: export.check([acdc], out, scans=scans, convention="acdc"),
        lambda: export.check([mnms], out, scans=scans, convention="mnms"),
    ):
        with pytest.raises(UserError, match=r"the patient .* no file can be named after it") as error:
            call()
        assert str(error.value).isprintable()
    assert sorted(tmp_path.rglob("*")) == before


def test_names_in_any_script_are_fine():
    for name in ("patient001_ED", "A0S9V9", "山田太郎", "Müller-Lüdenscheidt", "سارا", "a b.c"):
        assert files.safe_name(name) == name


def test_an_export_is_checked_before_the_evaluation(tmp_path):
    scan(tmp_path / "scans" / "a.nii.gz")
    (tmp_path / "file").write_text("notes")
    theirs = tmp_path / "theirs" / "patient101_ED.nii.gz"
    scan(theirs)
    good, scans = volume("a.nii.gz"), tmp_path / "scans"
    export.check([good], tmp_path / "new" / "folder", scans=scans, convention="acdc")
    assert not (tmp_path / "new").exists()
    for words, volumes, folder, where in (
        ("is a file", [good], tmp_path / "file", scans),
        ("is a file", [good], tmp_path / "file" / "sub", scans),
        ("phase is unknown", [volume("a.nii.gz", phase="")], tmp_path / "out", scans),
        ("gone.nii.gz is not there", [good, volume("gone.nii.gz")], tmp_path / "out", scans),
        ("is not there", [good], tmp_path / "out", tmp_path / "elsewhere"),
        ("is not a mask of this program", [good], theirs.parent, scans),
    ):
        with pytest.raises(UserError, match=words):
            export.check(volumes, folder, scans=where, convention="acdc")


def test_what_does_not_fit_is_refused(tmp_path):
    scan(tmp_path / "a.nii.gz")
    scan(tmp_path / "b.nii.gz", frames=2)
    good = (volume("a.nii.gz"), labels())
    cases = [
        ("phase", export.export_acdc, [(volume("a.nii.gz", phase=""), labels())]),
        ("twice", export.export_acdc, [good, good]),
        ("not there", export.export_acdc, [(volume("gone.nii.gz"), labels())]),
        ("not there", export.export_acdc, [(volume(""), labels())]),
        ("shape", export.export_acdc, [(volume("a.nii.gz"), labels()[1:])]),
        ("no time frames", export.export_mnms, [good]),
        ("frames, none of number 2", export.export_mnms, [(volume("b.nii.gz", frame=2), labels())]),
        ("two predictions", export.export_mnms, [(volume("b.nii.gz"), labels())] * 2),
        ("different scans", export.export_mnms, [good, (volume("b.nii.gz", phase="ES", frame=1), labels())]),
    ]
    for rule, function, predictions in cases:
        with pytest.raises(UserError, match=rule):
            function(predictions, tmp_path / "out", tmp_path)
    with pytest.raises(ValueError, match="labels"):
        export.export_acdc([(volume("a.nii.gz"), labels() + 1)], tmp_path / "out", tmp_path)
