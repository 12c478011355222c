"""DICOM series: the same voxels at the same places in the patient as in nibabel's NIfTI of the series."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest

from jras_jax.data import dicom
from jras_jax.errors import UserError
from tests.commands import call

pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install '.[dicom]'")
pydicom = pytest.importorskip("pydicom", reason="pydicom, which writes the series of these tests, is not installed")

SHAPE, SIZES = (20, 16, 4), (1.4, 1.8, 8.0)


def oblique() -> np.ndarray:
    """The affine (RAS+ mm) of a stack that is turned about all three axes, with different voxel sizes."""
    x = np.array([0.8, 0.5, -0.33])
    y = np.cross([0.2, -0.4, 0.9], x)
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([x, y, np.cross(x, y)], 1) * SIZES
    affine[:3, 3] = (12.5, -40.25, 7.75)
    return affine


def write_series(folder, array, affine, series=5, order=None):
    """Writes (X, Y, Z, T) uint16 as DICOM images in files whose names say nothing of their order."""
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    x, y = (lps[:3, i] / np.linalg.norm(lps[:3, i]) for i in (0, 1))
    uid, depth = generate_uid(), array.shape[2]
    numbers = np.random.default_rng(0).permutation(depth * array.shape[3])
    for at, number in enumerate(numbers):
        z, t = at % depth, at // depth
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"  # MR image
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        image.SeriesInstanceUID, image.StudyInstanceUID, image.FrameOfReferenceUID = uid, uid, uid
        image.Modality, image.SeriesNumber, image.InstanceNumber = "MR", series, int(number) + 1
        image.TriggerTime = float(40 * t)
        image.ImagePositionPatient = [f"{v:.10g}" for v in (lps @ [0, 0, z, 1])[:3]]
        image.ImageOrientationPatient = [f"{v:.10g}" for v in (*x, *y)]
        image.PixelSpacing, image.SliceThickness = [SIZES[1], SIZES[0]], 6.0  # rows first; thinner than the distance
        image.Rows, image.Columns = array.shape[1], array.shape[0]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 0
        image.PixelData = np.ascontiguousarray(array[:, :, z, t].T).tobytes()
        image.save_as(folder / f"{number:04d}", enforce_file_format=True)


@pytest.fixture
def cine() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2000, (*SHAPE, 3)).astype(np.uint16)


@pytest.mark.parametrize("frames", [1, 3])
def test_voxels_and_places_are_those_of_the_nifti(tmp_path, cine, frames):
    affine = oblique()
    write_series(tmp_path / "scan", cine[..., :frames], affine)
    (path,) = dicom.convert(tmp_path, tmp_path / "out", pytest.fail)
    assert path == tmp_path / "out" / "scan" / "scan.nii.gz"
    expected = nib.Nifti1Image(cine[..., 0] if frames == 1 else cine, affine)
    found = nib.load(path)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    np.testing.assert_allclose(found.header.get_zooms()[:3], expected.header.get_zooms()[:3], atol=1e-4)
    np.testing.assert_array_equal(found.get_fdata(), expected.get_fdata())
    assert found.header.get_xyzt_units()[0] == "mm"


def test_several_series_of_a_folder_are_several_scans(tmp_path, cine):
    for series in (5, 9):
        write_series(tmp_path / "study" / str(series), cine[..., :1], affine=oblique(), series=series)
    for file in [*(tmp_path / "study").rglob("0*")]:
        file.rename(tmp_path / "study" / f"{file.parent.name}_{file.name}")
    found = dicom.convert(tmp_path / "study", tmp_path / "out", pytest.fail)
    assert sorted(p.name for p in found) == ["study_5.nii.gz", "study_9.nii.gz"]


def test_a_series_that_is_no_stack_is_named_and_the_others_are_read(tmp_path, cine):
    write_series(tmp_path / "in" / "good", cine, oblique())
    write_series(tmp_path / "in" / "gap", cine[..., :1], oblique())
    write_series(tmp_path / "in" / "uneven", cine, oblique())
    for name, keep in (("gap", 1), ("uneven", None)):
        for path in sorted((tmp_path / "in" / name).iterdir()):
            image = pydicom.dcmread(path)
            z = round(float(np.linalg.norm(np.array(image.ImagePositionPatient) - lps_origin()) / SIZES[2]))
            if z == 1 and (keep == 1 or image.TriggerTime > 0):
                path.unlink()
    notes: list[str] = []
    found = dicom.convert(tmp_path / "in", tmp_path / "out", notes.append)
    assert [p.name for p in found] == ["good.nii.gz"]
    assert len(notes) == 2 and "is a slice missing?" in notes[0] and "has 1 to 3 frames" in notes[1]
    with pytest.raises(UserError, match="none of its DICOM series can be read"):
        dicom.convert(tmp_path / "in" / "gap", tmp_path / "other", notes.append)


def lps_origin():
    return (np.diag([-1.0, -1.0, 1.0, 1.0]) @ oblique())[:3, 3]


def test_predict_segments_a_series_on_its_own_grid(run_with_gallery, tmp_path, cine):
    write_series(tmp_path / "in" / "someone", cine, oblique())
    call("predict", f"--workdir={run_with_gallery}", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}")
    (mask,) = (tmp_path / "out").rglob("*.nii.gz")
    assert mask.name == "someone.nii.gz" and nib.load(mask).shape == cine.shape
    np.testing.assert_allclose(nib.load(mask).affine, oblique(), atol=1e-4)
    evidence = json.loads(mask.with_name("someone.json").read_text())
    assert evidence["spacing_unit"] == "mm" and len(evidence["frames"]) == 3


def test_without_the_package_the_remedy_is_named(tmp_path, cine, monkeypatch):
    write_series(tmp_path / "in", cine[..., :1], oblique())
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(UserError, match=r"need SimpleITK: pip install '\.\[dicom\]'"):
        dicom.convert(tmp_path / "in", tmp_path / "out", pytest.fail)
