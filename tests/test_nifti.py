"""The geometry contract: what is read, what is refused and why, and that a mask goes out on its scan's very grid."""

import gzip
import os

import nibabel as nib
import numpy as np
import pytest

from jras_jax import files
from jras_jax.data import nifti
from jras_jax.errors import UserError

OBLIQUE = np.array([[-1.1, -0.5, 4.1, 122.9], [0.0, -1.0, -6.5, 152.6], [0.8, -0.7, 5.8, -91.0], [0, 0, 0, 1]])


def image(array, affine=OBLIQUE, units="mm", kind=nib.Nifti1Image):
    img = kind(array, affine)
    img.header.set_xyzt_units(units, "sec" if units != "unknown" else "unknown")
    return img


def voxels(shape=(5, 4, 3), dtype=np.int16, seed=0):
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def patched(path, img, offset, value):
    """Saves an image with bytes of its header overwritten."""
    data = bytearray(img.to_bytes())
    data[offset : offset + len(value)] = value
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_reads_values_and_geometry(tmp_path, kind, name):
    array = voxels((5, 4, 3, 2))
    nib.save(image(array, kind=kind), tmp_path / name)
    scan = nifti.read_scan(tmp_path / name)
    np.testing.assert_array_equal(scan.array, array)
    assert scan.array.dtype == np.float32
    assert scan.affine.dtype == np.float64
    np.testing.assert_allclose(scan.affine, OBLIQUE, atol=1e-6)
    np.testing.assert_allclose(scan.spacing, np.linalg.norm(OBLIQUE[:3, :3], axis=0), rtol=1e-5)
    assert scan.spacing_known


def test_applies_slope_and_intercept(tmp_path):
    img = image(voxels())
    img.header.set_slope_inter(0.5, -3)
    patched(tmp_path / "a.nii", img, offset=112, value=np.array([0.5, -3], np.float32).tobytes())
    np.testing.assert_allclose(nifti.read_scan(tmp_path / "a.nii").array, voxels() * 0.5 - 3)


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1e3), ("mm", 1.0), ("micron", 1e-3), ("unknown", 1.0)])
def test_units_become_millimetres(tmp_path, unit, mm):
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    affine[:3, :3] /= mm
    affine[:3, 3] = np.array([10.0, 20.0, 30.0]) / mm
    nib.save(image(voxels(), affine, unit), tmp_path / "a.nii.gz")
    scan = nifti.read_scan(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(scan.spacing, [1.5, 1.5, 8.0], rtol=1e-5)
    np.testing.assert_allclose(scan.affine[:3, 3], [10, 20, 30], rtol=1e-5)
    assert scan.spacing_known


def test_spacing_is_unknown_only_without_unit_and_with_zooms_of_one(tmp_path):
    nib.save(image(voxels(), np.eye(4), "unknown"), tmp_path / "a.nii.gz")
    nib.save(image(voxels(), np.eye(4), "mm"), tmp_path / "b.nii.gz")
    unknown, isotropic = nifti.read_scan(tmp_path / "a.nii.gz"), nifti.read_scan(tmp_path / "b.nii.gz")
    assert not unknown.spacing_known and isotropic.spacing_known
    np.testing.assert_array_equal(unknown.spacing, 1)


@pytest.mark.parametrize("shape", [(5, 4, 3, 1), (5, 4, 3, 1, 1), (5, 4, 1), (5, 4, 3, 2, 1)])
def test_trailing_axes_of_one_are_dropped_and_written_back(tmp_path, shape):
    nib.save(image(voxels(shape)), tmp_path / "a.nii.gz")
    scan = nifti.read_scan(tmp_path / "a.nii.gz")
    assert scan.array.shape == {(5, 4, 1): (5, 4, 1), (5, 4, 3, 2, 1): (5, 4, 3, 2)}.get(shape, (5, 4, 3))
    nifti.write_mask(tmp_path / "m.nii.gz", np.ones(scan.array.shape, np.uint8), scan)
    assert nib.load(tmp_path / "m.nii.gz").shape == shape


def broken(path, how):
    """Writes a file that breaks one rule; the words its message must hold."""
    img = image(voxels())
    whole = img.to_bytes()
    fine = voxels(dtype=np.float32)
    if how == "missing":
        return "missing"
    if how == "text":
        path.write_bytes(b"this is no scan, it is a line of text" * 20)
        return "not a NIfTI"
    if how == "empty":
        path.write_bytes(b"")
        return "not a NIfTI"
    if how == "cut":
        path.write_bytes(whole[:-10])
        return "cut short"
    if how == "cut gzip":
        path.write_bytes(gzip.compress(whole)[:-12])
        return "cut short"
    if how == "flipped bit":
        data = bytearray(gzip.compress(whole, 0))  # stored, not packed: the flip meets a voxel
        data[-30] ^= 4
        path.write_bytes(bytes(data))
        return "damaged"
    if how == "two axes":
        path.write_bytes(image(voxels((5, 4))).to_bytes())
        return "3 axes"
    if how == "five axes":
        path.write_bytes(image(voxels((5, 4, 3, 2, 2))).to_bytes())
        return "3 axes"
    if how in ("nan", "inf"):
        fine[1, 2, 0] = float(how)
        path.write_bytes(image(fine).to_bytes())
        return "1 of its 60 voxels"
    if how == "complex":
        path.write_bytes(image(voxels(dtype=np.complex64)).to_bytes())
        return "greyscale"
    header = {
        "zoom of zero": (80, np.float32(0).tobytes(), "above 0"),
        "negative zoom": (88, np.float32(-8).tobytes(), "above 0"),
        "zoom of nan": (84, np.float32(np.nan).tobytes(), "above 0"),
        "odd unit": (123, b"\x07", "unit"),
        "singular affine": (280, np.zeros(12, np.float32).tobytes(), "affine"),
        "data type": (70, np.int16(999).tobytes(), "header"),
        "pair": (344, b"ni1\x00", "separate .img"),
    }
    offset, value, words = header[how]
    patched(path, img, offset=offset, value=value)
    return words


FAULTS = [
    *("missing", "text", "empty", "cut", "cut gzip", "flipped bit", "two axes", "five axes", "nan", "inf", "complex"),
    *("zoom of zero", "negative zoom", "zoom of nan", "odd unit", "singular affine", "data type", "pair"),
]


@pytest.mark.parametrize("how", FAULTS)
def test_a_fault_names_file_and_rule(tmp_path, how):
    path = tmp_path / "scan.nii"
    words = broken(path, how)
    with pytest.raises(nifti.ScanError, match=words) as error:
        nifti.read_scan(path)
    assert isinstance(error.value, UserError)
    assert str(path) in str(error.value)


def test_damaged_headers_never_raise_anything_else(tmp_path):
    rng = np.random.default_rng(0)
    whole, path, refused = image(voxels()).to_bytes(), tmp_path / "a.nii", 0
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(0, 352, 3):
            data[at] = rng.integers(0, 256)
        path.write_bytes(bytes(data))
        try:
            nifti.read_scan(path)
        except nifti.ScanError:
            refused += 1
    assert refused > 50


def test_labels_are_checked(tmp_path):
    labels = voxels() % 4
    scan_path, path = tmp_path / "a.nii.gz", tmp_path / "a_gt.nii.gz"
    nib.save(image(voxels()), scan_path)
    scan = nifti.read_scan(scan_path)
    nib.save(image(labels.astype(np.float32)), path)  # whole numbers stored as floats are labels
    read = nifti.read_labels(path, like=scan, allowed=range(4))
    assert read.array.dtype == np.uint8
    np.testing.assert_array_equal(read.array, labels)
    with pytest.raises(nifti.ScanError, match="only the labels"):
        nifti.read_labels(path, allowed=(0, 1, 2))
    for bad, words in ((labels + 0.5, "whole numbers"), (labels - 1.0, "0 to 255"), (labels + 300.0, "0 to 255")):
        nib.save(image(bad.astype(np.float32)), path)
        with pytest.raises(nifti.ScanError, match=words):
            nifti.read_labels(path)
    nib.save(image(labels[:-1]), path)
    with pytest.raises(nifti.ScanError, match=r"\(4, 4, 3\).*\(5, 4, 3\)"):
        nifti.read_labels(path, like=scan)


def header_geometry(path):
    header = nib.load(path).header
    names = "dim pixdim xyzt_units qform_code sform_code quatern_b quatern_c quatern_d qoffset_x qoffset_y qoffset_z "
    return {name: header[name].tobytes() for name in (names + "srow_x srow_y srow_z").split()}


@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (1, 0), (0, 0)])
@pytest.mark.parametrize("unit", ["mm", "micron", "unknown"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_mask_keeps_the_geometry_bit_for_bit(tmp_path, codes, unit, kind):
    oblique = np.diag([1000, 1000, 1000, 1]) @ OBLIQUE if unit == "micron" else OBLIQUE
    img = image(voxels((5, 4, 3, 2)), oblique, units=unit, kind=kind)
    tilted = oblique.copy()
    tilted[:3, 3] += 5  # qform and sform that disagree, as scanners write them
    img.header.set_qform(oblique, codes[0])
    img.header.set_sform(tilted, codes[1])
    img.header["pixdim"][4] = 0.035
    img.header.set_slope_inter(2.0, 1.0)
    (tmp_path / "a.nii").write_bytes(img.to_bytes())
    scan = nifti.read_scan(tmp_path / "a.nii")
    mask = (voxels((5, 4, 3, 2)) % 4).astype(np.uint8)
    nifti.write_mask(tmp_path / "sub" / "m.nii.gz", mask, scan)
    assert header_geometry(tmp_path / "sub" / "m.nii.gz") == header_geometry(tmp_path / "a.nii")
    back = nifti.read_labels(tmp_path / "sub" / "m.nii.gz", like=scan)
    np.testing.assert_array_equal(back.array, mask)
    np.testing.assert_array_equal(back.affine, scan.affine)
    assert nib.load(tmp_path / "sub" / "m.nii.gz").get_data_dtype() == np.uint8


def test_mask_leaves_out_extensions_and_time(tmp_path):
    img = image(voxels())
    img.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"the patient's name"))
    (tmp_path / "a.nii").write_bytes(img.to_bytes())
    scan = nifti.read_scan(tmp_path / "a.nii")
    for name in ("m.nii.gz", "n.nii.gz"):
        nifti.write_mask(tmp_path / name, np.ones((5, 4, 3), np.uint8), scan)
    assert (tmp_path / "m.nii.gz").read_bytes() == (tmp_path / "n.nii.gz").read_bytes()
    assert b"patient" not in gzip.decompress((tmp_path / "m.nii.gz").read_bytes())
    assert len(scan.header.extensions) == 1  # the scan itself is as it was


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    nib.save(image(voxels()), tmp_path / "a.nii.gz")
    scan = nifti.read_scan(tmp_path / "a.nii.gz")
    path = tmp_path / "m.nii.gz"
    nifti.write_mask(path, np.ones((5, 4, 3), np.uint8), scan)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(files.FileError, match="No space left"):
        nifti.write_mask(path, np.zeros((5, 4, 3), np.uint8), scan)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "m.nii.gz"]


def test_write_mask_refuses_another_grid(tmp_path):
    nib.save(image(voxels()), tmp_path / "a.nii.gz")
    scan = nifti.read_scan(tmp_path / "a.nii.gz")
    for wrong in (np.ones((4, 5, 3), np.uint8), np.ones((5, 4, 3), np.float32)):
        with pytest.raises(ValueError, match="it must be uint8"):
            nifti.write_mask(tmp_path / "m.nii.gz", wrong, scan)


def test_real_scans(shared):
    acdc = nifti.read_scan(shared / "data/acdc/training/patient001/patient001_frame01.nii.gz")
    assert acdc.array.shape == (216, 256, 10) and not acdc.spacing_known
    mnms = nifti.read_scan(shared / "data/mnms/Testing/H1N8S6/H1N8S6_sa.nii.gz")
    assert mnms.array.shape == (240, 196, 10, 2) and mnms.spacing_known
    np.testing.assert_allclose(mnms.spacing, [1.3333334, 1.3333334, 9.6], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(mnms.affine[:3, :3], axis=0), mnms.spacing, rtol=1e-4)
