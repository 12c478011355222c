"""Geometry that a header claims: what contradicts itself is refused in every command, what is unusual is said."""

import nibabel as nib
import numpy as np
import pytest

from jras_jax.commands import cli
from jras_jax.data import geometry, nifti, pairs
from jras_jax.data.description import KNOWN
from jras_jax.errors import UserError
from tests.masks import LABELS, heart

PLAIN = np.diag([-1.5, -1.5, 8.0, 1.0])
TILTED = PLAIN @ np.array([[0.866, 0.5, 0, 0], [-0.5, 0.866, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def write(path, array=None, affine=PLAIN, *, unit="mm", codes=(1, 1), qform=None, pixdim=None):
    """A NIfTI file; `codes` are of sform and qform, `pixdim` overwrites the zooms."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(heart() if array is None else array, affine)
    image.header.set_xyzt_units(unit)
    image.set_sform(affine, codes[0])
    image.set_qform(affine if qform is None else qform, codes[1])
    if pixdim is not None:
        image.header["pixdim"][1 : 1 + len(pixdim)] = pixdim
    path.write_bytes(image.to_bytes())
    return path


CONTRADICTIONS = {
    "pixdim against affine": ({"pixdim": (1, 1, 1)}, r"1 x 1 x 1 mm by pixdim, but 1\.5 x 1\.5 x 8 mm by its affine"),
    "pixdim of one axis": ({"pixdim": (1.5, 1.5, 10)}, r"1\.5 x 1\.5 x 10 mm by pixdim"),
    "zooms of 1 without unit": ({"pixdim": (1, 1, 1), "unit": "unknown"}, "contradicts itself"),
    "sform against qform": ({"qform": PLAIN @ np.diag([-1, 1, 1, 1.0])}, "first axis points 180 degrees apart"),
    "a turned qform": ({"qform": TILTED}, "points 30 degrees apart"),
    "metres called mm": ({"affine": np.diag([0.0015, 0.0015, 0.008, 1])}, r"in metres they would be 1\.5 x 1\.5"),
    "mm called metres": ({"unit": "meter"}, r"1500 x 1500 x 8000 mm .*in millimetres they would be 1\.5 x 1\.5 x 8 mm"),
    "mm called microns": ({"unit": "micron"}, "in millimetres they would be"),
    "microns called mm": ({"affine": np.diag([1500.0, 1500, 8000, 1])}, "in microns they would be"),
    "metres without unit": ({"affine": np.diag([0.0015, 0.0015, 0.008, 1]), "unit": "unknown"}, "unit not given"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, case):
    arguments, words = CONTRADICTIONS[case]
    path = write(tmp_path / "scan.nii", **arguments)
    with pytest.raises(nifti.ScanError, match=words) as error:
        nifti.read_scan(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_headers_may_say_passes_without_a_word(tmp_path):
    shifted = PLAIN.copy()
    shifted[:3, 3] = 30.0
    for arguments in (
        {},
        {"affine": TILTED},
        {"codes": (1, 0)},
        {"codes": (0, 1)},
        {"codes": (0, 1), "qform": TILTED},
        {"qform": shifted},
        {"pixdim": (1.5005, 1.4995, 8.003)},
        {"affine": np.diag([0.0015, 0.0015, 0.008, 1]), "unit": "meter"},
        {"affine": np.diag([0.09, 0.09, 1.0, 1])},  # of a mouse
        {"array": heart()[..., :1], "affine": np.diag([1.5, 1.5, 100.0, 1])},  # the thickness of a single slice
    ):
        scan = nifti.read_scan(write(tmp_path / "scan.nii", **arguments))
        assert scan.remarks == () and scan.spacing_known


def test_what_is_unusual_is_a_remark(tmp_path):
    path = tmp_path / "scan.nii"
    unknown = {"affine": np.eye(4), "unit": "unknown", "codes": (0, 0)}
    sheared = PLAIN @ np.array([[1, 0, 0, 0], [0, 1, 0.4, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    for arguments, remark in (
        (unknown, "no spacing"),
        ({"codes": (0, 0)}, "no orientation"),
        (unknown | {"array": np.moveaxis(heart(), 2, 0)}, "fewest voxels along the first axis"),
        ({"affine": sheared, "qform": PLAIN, "pixdim": np.linalg.norm(sheared[:3, :3], axis=0)}, "differ by"),
        ({"array": np.stack([heart()] * 2, -1), "pixdim": (1.5, 1.5, 8, -2)}, "-2 as the time between two frames"),
    ):
        assert any(remark in line for line in nifti.read_scan(write(path, **arguments)).remarks), remark
    assert nifti.read_labels(write(path, 0 * heart())).remarks == (geometry.EMPTY_MASK,)


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (PLAIN @ np.diag([-1, 1, 1, 1.0]), "first axis is mirrored"),
        (PLAIN @ np.diag([1, 1, -1, 1.0]), "third axis is mirrored"),
        (PLAIN[:, [1, 0, 2, 3]], "runs in another direction"),
        (np.diag([-1.5, -1.5, 9.0, 1.0]), r"1\.5 x 1\.5 x 9 mm, those of its image 1\.5 x 1\.5 x 8 mm"),
    ],
)
def test_a_mask_on_another_grid_than_its_image_is_refused(tmp_path, affine, words):
    image = write(tmp_path / "a.nii", heart())
    mask = write(tmp_path / "a_gt.nii", heart(), affine)
    with pytest.raises(nifti.ScanError, match=words) as error:
        nifti.read_labels(mask, like=nifti.read_scan(image))
    assert str(mask) in str(error.value)
    with pytest.raises(UserError, match=words):
        pairs.read_pairs(tmp_path, KNOWN["mnms"].structure_values)


def test_a_mask_without_geometry_or_a_little_off_is_only_remarked_on(tmp_path):
    image = nifti.read_scan(write(tmp_path / "a.nii"))
    shifted = PLAIN.copy()
    shifted[0, 3] = 2.0
    for arguments, remark in (
        ({"affine": np.eye(4), "unit": "unknown"}, "no voxel size; that of its image"),
        ({"affine": shifted}, "up to 2 mm off"),
    ):
        mask = nifti.read_labels(write(tmp_path / "b.nii", **arguments), like=image)
        assert any(remark in line for line in mask.remarks)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("known", [True, False])
def test_slices_along_another_axis_are_named(tmp_path, axis, known):
    order = [2, 1, 0] if axis == 0 else [0, 2, 1]
    affine = PLAIN[:, [*order, 3]] if known else np.eye(4)
    unit = "mm" if known else "unknown"
    for name in ("a.nii", "a_gt.nii"):
        write(tmp_path / name, np.ascontiguousarray(heart().transpose(order)), affine, unit=unit)
    with pytest.raises(UserError, match=rf"a\.nii: its slices seem to run along the {('first', 'second')[axis]} axis"):
        pairs.read_pairs(tmp_path, KNOWN["mnms"].structure_values)


def test_isotropic_and_thin_stacks_keep_their_third_axis():
    assert geometry.suspected_slice_axis((160, 160, 120), (1.4, 1.4, 1.2), True) == 2
    assert geometry.suspected_slice_axis((60, 160, 12), (2.0, 2.0, 8.0), True) == 2
    assert geometry.suspected_slice_axis((256, 216, 10), (1, 1, 1), False) == 2
    assert geometry.suspected_slice_axis((10, 216, 256), (1, 1, 1), False) == 0


def test_scoring_refuses_what_contradicts_itself_and_says_the_rest(tmp_path, capsys):
    for name in ("a", "b"):
        for folder in ("ref", "pred"):
            write(tmp_path / folder / f"{name}.nii", pixdim=(1, 1, 1) if name == "a" else None, codes=(0, 0))
    for folder in ("ref", "pred"):
        write(tmp_path / folder / "a.nii", pixdim=(1, 1, 1))
    assert cli.main(["score", str(tmp_path / "ref"), str(tmp_path / "pred"), LABELS]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "a.nii" in error and "by pixdim" in error and "b.nii: its header gives no orientation" in error


def test_the_same_remark_on_many_files_is_one_line(tmp_path, capsys):
    from jras_jax.data import remarks

    lines = [f"{tmp_path}/p{n}/scan.nii: no spacing" for n in range(160)] + ["x.nii: the mask is empty"]
    remarks.tell(lines + lines)
    assert capsys.readouterr().err.splitlines() == [
        f"note: {tmp_path}: no spacing (scan.nii, scan.nii and 158 other files)",
        "note: x.nii: the mask is empty",
    ]
    teller = remarks.Teller()
    for line in lines + lines:
        teller(line)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 7 and "and files after it: no spacing" in said[5]


def test_real_scans_pass(shared):
    for path in sorted((shared / "data/mnms").rglob("*_sa.nii.gz")):
        scan = nifti.read_scan(path)
        geometry.require_slices_last(scan)
        assert scan.remarks == ()
        assert nifti.read_labels(path.with_name(path.name.replace("_sa", "_sa_gt")), like=scan).remarks == ()
    scan = nifti.read_scan(shared / "data/acdc/training/patient001/patient001_frame01.nii.gz")
    geometry.require_slices_last(scan)
    assert scan.remarks == (geometry.NO_SPACING,)
