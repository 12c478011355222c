"""Prediction on whole folders: what is left out, what is refused, what a bad file leaves behind, and what masks say."""

import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from jras_jax.commands import cli
from jras_jax.data import nifti
from jras_jax.errors import UserError
from jras_jax.inference import scans as inference
from jras_jax.inference.scans import tasks

ZOOMS = np.array([2.5, 2.5, 8.0])
LPS = np.diag([-2.5, -2.5, 8.0, 1.0])


def scan(path, seed=0, affine=LPS, **header):
    """A noisy disc of 32 x 32 x 4 voxels."""
    x, y = np.mgrid[:32, :32]
    disc = np.hypot(x - 16, y - 16)[..., None] < np.array([8, 7, 6, 5])
    image = nib.Nifti1Image(
        (80 + 120 * disc + np.random.default_rng(seed).integers(0, 30, disc.shape)).astype("i2"), affine
    )
    image.header.set_xyzt_units("mm", "sec")
    for field, value in header.items():
        image.header[field] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def predict(capsys, run, source, output, *more):
    """Exit status, standard output and the lines of standard error of `jras predict`."""
    status = cli.main(["predict", f"--workdir={run}", f"--input={source}", f"--output={output}", *more])
    out, err = capsys.readouterr()
    return status, out, err.splitlines()


def files_of(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_masks_among_the_scans_are_left_out_and_that_is_said(run, tmp_path, capsys):
    for name in "ab":
        scan(tmp_path / "scans" / f"{name}.nii.gz")
    once = ["a.json", "a.nii.gz", "b.json", "b.nii.gz"]
    for count in range(3):
        status, out, err = predict(capsys, run, source=tmp_path / "scans", output=tmp_path / "scans" / "masks")
        assert status == 0 and "[2/2]" in out and files_of(tmp_path / "scans" / "masks") == once
        assert err == ([f"note: {tmp_path}/scans: leaves out 2 masks written by this program, such as "
                        f"{tmp_path}/scans/masks/a.nii.gz"] if count else [])  # fmt: skip
    shutil.copy(tmp_path / "scans/masks/a.nii.gz", tmp_path / "scans/renamed.nii.gz")  # without its JSON
    status, out, _ = predict(capsys, run, source=tmp_path / "scans", output=tmp_path / "elsewhere")
    assert status == 0 and files_of(tmp_path / "elsewhere") == once
    status, _, err = predict(capsys, run, source=tmp_path / "scans/masks/a.nii.gz", output=tmp_path / "again")
    assert status == 2 and "is a mask written by this program; give the scans" in err[-1]
    assert not (tmp_path / "again").exists()


def test_masks_of_earlier_versions_are_known_by_the_file_beside_them(tmp_path):
    scan(tmp_path / "a.nii.gz")
    scan(tmp_path / "old" / "a.nii.gz")  # it has no mark in its header
    facts = {"input": "a.nii.gz", "run": "r", "checkpoint_step": 1, "frames": []}
    (tmp_path / "old" / "a.json").write_text(json.dumps(facts))
    said = []
    assert [t.scan for t in tasks(tmp_path, tmp_path / "out", said.append)] == [tmp_path / "a.nii.gz"]
    assert len(said) == 1 and "old/a.nii.gz" in said[0]


def shadowing(tmp_path):
    """(input, output) that would put masks where the next reader takes them for scans, or over other files."""
    plain = scan(tmp_path / "plain" / "x.nii")
    nested = scan(tmp_path / "nested" / "a.nii.gz").parent
    scan(tmp_path / "nested" / "sub" / "b.nii.gz")
    other = scan(tmp_path / "other" / "x.nii.gz", 1).parent
    sidecar = tmp_path / "sidecar" / "x.json"
    sidecar.parent.mkdir()
    sidecar.write_text('{"RepetitionTime": 3}')
    return {
        "own folder": (plain.parent, plain.parent),
        "beside the one scan": (plain, plain.parent),
        "a folder of scans in the input": (nested, nested / "sub"),
        "another scan of that name": (plain, other),
        "somebody's JSON": (plain, sidecar.parent),
        "a mask's name for a folder": (nested, tmp_path / "mask.nii.gz"),
        "a reference's name": (plain, tmp_path / "new" / "x_gt.nii.gz"),
        "a name over the scan": (plain, plain),
        "a name that shadows the scan": (plain, plain.with_name("x.nii.gz")),
    }


def test_masks_that_would_shadow_or_overwrite_are_refused(run, tmp_path, capsys):
    for what, (source, output) in shadowing(tmp_path).items():
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        status, _, err = predict(capsys, run, source=source, output=output)
        assert status == 2 and len(err) == 1 and err[0].startswith("error: --output="), (what, err)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before, what


def test_a_folder_that_cannot_be_written_is_named_before_the_run_is_opened(tmp_path, capsys):
    source, file = scan(tmp_path / "a.nii.gz"), tmp_path / "notes"
    file.write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for output in (file, file / "masks", tmp_path / "dangling"):
        status, _, err = predict(capsys, tmp_path / "no_run", source=source, output=output)
        assert status == 2 and len(err) == 1 and str(output) in err[0] and "no_run" not in err[0]
    assert file.read_text() == "mine"


def test_a_single_mask_may_be_given_its_name(run, tmp_path, capsys):
    source = scan(tmp_path / "a.nii.gz")
    for name in ("heart.nii.gz", "heart.nii"):
        status, _, _ = predict(capsys, run, source=source, output=tmp_path / name[5:] / name)
        assert status == 0 and files_of(tmp_path / name[5:]) == ["heart.json", name]
        assert nib.load(tmp_path / name[5:] / name).shape == (32, 32, 4)


def test_one_bad_scan_does_not_stop_the_others(run, tmp_path, capsys):
    for name in "abcd":
        file = scan(tmp_path / "scans" / f"{name}.nii.gz")
        if name in "bd":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    status, out, err = predict(capsys, run, source=tmp_path / "scans", output=tmp_path / "out")
    assert status == 1 and files_of(tmp_path / "out") == ["a.json", "a.nii.gz", "c.json", "c.nii.gz"]
    assert "2 masks in" in out
    assert [line.startswith("not segmented: ") for line in err] == [True, True, False]
    assert "b.nii.gz" in err[0] and "d.nii.gz" in err[1] and "damaged or cut short" in err[0]
    assert err[2] == "error: 2 of 4 scans could not be segmented; they are named above"


def test_if_no_scan_can_be_segmented_that_is_an_error(run, tmp_path, capsys):
    for name in "ab":
        (tmp_path / f"{name}.nii.gz").write_text("no scan")
    status, _, err = predict(capsys, run, source=tmp_path, output=tmp_path / "out")
    assert status == 2 and err[-1].startswith("error: none of the 2 scans could be segmented")
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_of_a_mask_whose_evidence_cannot_be_written(run, tmp_path, monkeypatch, capsys):
    for name in "ab":
        scan(tmp_path / "scans" / f"{name}.nii.gz")

    def fail(number, error):
        def write(path, content):
            raise (inference.files.FileError("x") if number is None else KeyboardInterrupt) from error

        monkeypatch.setattr(inference.files, "write_json", write)

    fail(None, OSError(28, "No space left on device"))  # the next scan would meet the same: it is not tried
    status, out, err = predict(capsys, run, source=tmp_path / "scans", output=tmp_path / "out")
    assert status == 2 and err == ["error: x"] and "[2/2]" not in out and files_of(tmp_path / "out") == []
    fail(130, None)
    status, _, err = predict(capsys, run, source=tmp_path / "scans", output=tmp_path / "out")
    assert status == 130 and err == ["interrupted"]
    assert files_of(tmp_path / "out") == []


def test_masks_hold_nothing_of_the_scans_texts(run, tmp_path, capsys):
    texts = {
        "descrip": b"DOE^JANE 19700101 MRN0012345",
        "aux_file": b"jane.dcm",
        "db_name": b"JANE",
        "intent_name": b"DOE",
    }
    affine = LPS + np.array([[0, 0.1, 0, 7], [0.1, 0, 0, 8], [0, 0, 0, 9], [0, 0, 0, 0]])
    source = scan(tmp_path / "in" / "jane_folder" / "a.nii.gz", affine=affine, **texts)
    original = nib.load(source)
    original.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"JANE DOE"))
    original.header["dim_info"], original.header["slice_code"] = 57, 1
    nib.save(original, source)
    assert predict(capsys, run, source=tmp_path / "in" / "jane_folder", output=tmp_path / "out")[0] == 0
    raw = gzip.decompress((tmp_path / "out" / "a.nii.gz").read_bytes())
    assert not any(text in raw for text in (*texts.values(), b"JANE", b"DOE", b"jane"))
    assert raw[148:228].rstrip(b"\0") == nifti.MARK
    mask = nib.load(tmp_path / "out" / "a.nii.gz")
    assert np.array_equal(mask.affine, original.affine) and mask.header.get_zooms() == original.header.get_zooms()
    for field in ("qform_code", "sform_code", "xyzt_units", "dim_info", "slice_code"):
        assert mask.header[field] == original.header[field]
    evidence = (tmp_path / "out" / "a.json").read_text()
    assert "jane" not in evidence and json.loads(evidence)["input"] == "a.nii.gz"


def test_long_names_work_or_are_refused_in_one_line(run, tmp_path, capsys):
    fits, long = "n" * 240, "n" * 251
    scan(tmp_path / "scans" / f"{fits}.nii.gz")
    scan(tmp_path / "scans" / f"{long}.nii")  # its mask would end in .nii.gz
    status, _, err = predict(capsys, run, source=tmp_path / "scans", output=tmp_path / "out")
    assert status == 1 and files_of(tmp_path / "out") == [f"{fits}.json", f"{fits}.nii.gz"]
    assert len(err) == 2 and "the name is too long" in err[0]


def test_a_mask_is_no_scan_to_the_readers_of_pairs(tmp_path):
    source = nifti.read_scan(scan(tmp_path / "a.nii.gz"))
    nifti.write_mask(tmp_path / "mask.nii.gz", np.ones((32, 32, 4), np.uint8), source)
    with pytest.raises(UserError, match=r"mask\.nii\.gz: is a mask written by this program, not a scan"):
        nifti.read_labels(tmp_path / "mask.nii.gz", like=nifti.read_scan(tmp_path / "mask.nii.gz"))
