"""Patients whom a gallery knows: by a slice's pixels first, by the name second, and never guided by themselves."""

import dataclasses
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from jras_jax.commands import cli
from jras_jax.data.grid import Grid
from jras_jax.data.slice_table import joined, slice_table
from jras_jax.errors import UserError
from jras_jax.inference.trained_run import open_run
from jras_jax.retrieval.known import KnownPatients
from tests.volumes import blob, volume

GRID = Grid(32, 0.0, unknown_spacing="fit", percentiles=(0.0, 100.0))


def table(*patients):
    """A gallery's slices, each patient with his own heart."""
    volumes = [volume(blob(centre=(20 + 3 * i, 22)), patient=name) for i, name in enumerate(patients)]
    return slice_table(volumes, GRID, drop_empty=False)


def named(known, name, images=None):
    images = np.zeros((2, 32, 32), np.uint8) if images is None else images
    found = known.find(name, [images])
    return {known._table.patients[number]: how for number, how in found.patients.items()}


@pytest.mark.parametrize(
    "name",
    ["patient901", "patient901_4d", "patient901_frame07", "patient901_0000", "patient901_frame01_0000", "patient901_ES"]
    + ["patient901_SA", "patient901_LA", "patient901_sa_ED", "patient901_gt", "Patient901_4D"],
)
def test_another_acquisition_is_known_by_its_name(name):
    assert named(KnownPatients(table("patient901", "patient902")), name) == {"patient901": "name"}


@pytest.mark.parametrize("name", ["patient90", "patient9010", "patient901b", "xpatient901", "901", "scan"])
def test_other_names_are_other_patients(name):
    assert named(KnownPatients(table("patient901", "patient902")), name) == {}


def test_pixels_come_before_the_name_and_neither_hides_the_other():
    known = KnownPatients(rows := table("a", "b", "c"))
    of_b = rows.images[rows.patient == 1][:2]
    assert named(known, "somebody", of_b) == {"b": "pixels"}
    assert named(known, "b", of_b) == {"b": "pixels"}
    found = known.find("a_4d", [of_b])
    assert list(found.patients.items()) == [(1, "pixels"), (0, "name")] and found.first == 1
    assert known.slices_of(found) == 8 and len(rows) == 12


def test_a_patient_whom_the_gallery_knows_twice_is_left_out_twice():
    same = volume(blob(), patient="a")
    again = volume(blob(centre=(20, 20)), patient="a_4d")
    rows = slice_table([same, dataclasses.replace(same, patient="renamed"), again], GRID, drop_empty=False)
    known = KnownPatients(rows)
    assert named(known, "x", rows.images[:1]) == {"a": "pixels", "renamed": "pixels"}
    assert named(known, "a", rows.images[:1]) == {"a": "pixels", "renamed": "pixels", "a_4d": "name"}


def test_an_empty_slice_is_nobodys():
    rows = joined(table("a"), table("b"))
    assert named(KnownPatients(rows), "x", np.full((3, 32, 32), 7, np.uint8)) == {}


def test_too_few_slices_of_others_are_refused():
    known = KnownPatients(rows := table("a", "b"))
    known.check(known.find("a", [rows.images[:1]]), 4)
    with pytest.raises(UserError, match="4 slices of patients other than a, whose scan this is, but 5 guides"):
        known.check(known.find("a", [rows.images[:1]]), 5)
    known.check(known.find("nobody", [np.zeros((1, 32, 32), np.uint8)]), 5)


def predict(capsys, folder, source, output, *more):
    """Evidence and the lines of standard error."""
    assert cli.main(["predict", f"--workdir={folder}", f"--input={source}", f"--output={output}", *more]) == 0
    name = source.name.replace(".nii.gz", ".json")
    return json.loads((output / name).read_text()), capsys.readouterr().err.splitlines()


def guides_of(evidence):
    return {g["case"].rpartition("_")[0] for f in evidence["frames"] for s in f["slices"] for g in s["guides"]}


def test_the_terminal_says_who_was_recognised_by_what(run, phantom_scans, tmp_path, capsys):
    own, another = open_run(run).splits["train"][:2]
    source = next(phantom_scans.rglob(f"{own}_frame01.nii.gz"))
    changed = nib.load(source)
    changed = nib.Nifti1Image(
        (np.asarray(changed.dataobj) * 0.5 + 3).astype("i2")[::-1], changed.affine, changed.header
    )
    cases = {
        "somebody": {own: "pixels"},
        f"{own}_4d": {own: "name"},
        f"{another}_frame03": {own: "pixels", another: "name"},
    }
    for name, expected in cases.items():
        file = tmp_path / f"{name}.nii.gz"
        if "name" in expected.values() and own in expected and len(expected) == 1:
            nib.save(changed, file)
        else:
            shutil.copy(source, file)
        evidence, err = predict(capsys, run, source=file, output=tmp_path / "out")
        (first, how), *others = expected.items()
        assert (evidence["gallery_patient"], evidence["matched_by"]) == (first, how)
        assert evidence["other_gallery_patients"] == dict(others)
        assert guides_of(evidence) and not guides_of(evidence) & expected.keys()
        who = " and ".join(f"{patient} (by its {how})" for patient, how in expected.items())
        count = evidence["gallery_slices_left_out"]
        assert count > 0 and len(err) == 1
        assert err[0].startswith(f"note: {file}: is a scan of the gallery's {who}; {count} of ")
        assert err[0].endswith(" gallery slices are left out")


def test_a_stranger_is_not_talked_about(run, phantom_scans, tmp_path, capsys):
    evidence, err = predict(
        capsys, run, source=next(phantom_scans.rglob("patient101_frame01.nii.gz")), output=tmp_path / "out"
    )
    assert err == [] and evidence["gallery_patient"] is evidence["matched_by"] is None
    assert evidence["gallery_slices_left_out"] == 0


def test_a_leak_that_was_asked_for_is_said(run, phantom_scans, tmp_path, capsys):
    own = open_run(run).splits["train"][0]
    source = next(phantom_scans.rglob(f"{own}_frame01.nii.gz"))
    evidence, err = predict(capsys, run, source, tmp_path / "out", "--config.retrieval.exclude=none")
    assert own in guides_of(evidence) and evidence["gallery_slices_left_out"] == 0
    assert "its slices may guide it, because config.retrieval.exclude=none" in err[-1]
