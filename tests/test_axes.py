"""Scans are stored in any order of axes: which axis holds the slices, and that the order changes no voxel of a mask."""

import itertools
import json

import nibabel as nib
import numpy as np
import pytest

from jras_jax.commands import cli
from jras_jax.data import axes
from jras_jax.inference.trained_run import open_run

# Every order of the three axes, each as stored or reversed.
ORDERS = [(p, f) for p in itertools.permutations(range(3)) for f in itertools.product((False, True), repeat=3)]


@pytest.mark.parametrize(
    ("spacing", "known", "axis"),
    [
        ((1.4, 1.4, 8.0), True, 2),
        ((8.0, 1.4, 1.4), True, 0),
        ((1.4, 8.0, 1.3), True, 1),
        ((1.4, 1.4, 1.4), True, 2),  # nothing tells
        ((1.4, 1.4, 1.3), True, 2),
        ((0.7, 2.6, 11.0), True, 2),
        ((2.5, 2.5, 2.0), True, 2),
        ((8.0, 1.0, 1.0), False, 2),
    ],
)
def test_the_slices_lie_along_the_clearly_thickest_axis(spacing, known, axis):
    assert axes.slice_axis_to_read(np.array(spacing, np.float32), known) == axis


@pytest.fixture
def scan(phantom_scans):
    """A scan of a test patient."""
    return phantom_scans / "testing" / "patient101" / "patient101_frame01.nii.gz"


def stored(image, order, flips):
    """The same scan with its axes in another order, some reversed, and the affine that says so."""
    array, affine = np.asarray(image.dataobj).transpose(order), image.affine[:, [*order, 3]].copy()
    for axis in np.flatnonzero(flips):
        array = np.flip(array, axis)
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1
    out = nib.Nifti1Image(np.ascontiguousarray(array), affine)
    out.header.set_xyzt_units("mm", "sec")
    return out


def restored(array, order, flips):
    """What `stored` did to the array, undone."""
    return np.flip(array, tuple(np.flatnonzero(flips))).transpose(np.argsort(order))


def all_orders(capsys, folder, image, tmp_path):
    """The mask of each of the 48 orders mapped back, and the lines of standard error."""
    (tmp_path / "scans").mkdir()
    for number, (order, flips) in enumerate(ORDERS):
        nib.save(stored(image, order, flips), tmp_path / "scans" / f"o{number:02d}.nii.gz")
    command = ["predict", f"--workdir={folder}", f"--input={tmp_path}/scans", f"--output={tmp_path}/masks"]
    assert cli.main(command) == 0
    masks = []
    for number, (order, flips) in enumerate(ORDERS):
        mask = nib.load(tmp_path / "masks" / f"o{number:02d}.nii.gz")
        assert mask.shape == nib.load(tmp_path / "scans" / f"o{number:02d}.nii.gz").shape
        masks.append(restored(np.asarray(mask.dataobj), order, flips))
        evidence = json.loads((tmp_path / "masks" / f"o{number:02d}.json").read_text())
        assert evidence["slice_axis"] == order.index(2)
        assert len(evidence["frames"][0]["slices"]) == image.shape[2]
    return masks, capsys.readouterr().err.splitlines()


def check(masks, err):
    assert masks[0].any()
    for mask, how in zip(masks, ORDERS, strict=True):
        assert np.array_equal(mask, masks[0]), (how, int((mask != masks[0]).sum()))
    said = [line for line in err if "its slices run along the" in line]
    # Each axis is remarked on for a few files and then once for the rest; files with slices last give no remark.
    assert len(said) == 12 and sum("first axis" in line for line in said) == 6
    assert sum("and files after it" in line for line in said) == 2


@pytest.mark.slow
def test_the_phantom_has_one_mask_in_all_48_orders_of_its_axes(run, scan, tmp_path, capsys):
    check(*all_orders(capsys, run, image=nib.load(scan), tmp_path=tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("code", ["G1K1V3", "H1N8S6", "C8O0P2"])
def test_real_scans_have_one_mask_in_all_48_orders_of_their_axes(run, shared, tmp_path, capsys, code):
    image = nib.load(shared / "data" / "mnms" / "Testing" / code / f"{code}_sa.nii.gz")
    check(*all_orders(capsys, run, image=image.slicer[..., 0], tmp_path=tmp_path))


def test_slices_along_the_first_axis_give_the_mask_of_slices_last(run, scan, tmp_path, capsys):
    image = nib.load(scan)
    for name, order in (("plain", (0, 1, 2)), ("sideways", (2, 1, 0))):
        nib.save(stored(image, order, (False,) * 3), tmp_path / f"{name}.nii.gz")
        command = [f"--input={tmp_path}/{name}.nii.gz", f"--output={tmp_path}/masks"]
        assert cli.main(["predict", f"--workdir={run}", *command]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"note: {tmp_path}/sideways.nii.gz: its slices run along the first axis; so do those of the mask"
    ]
    plain, sideways = (np.asarray(nib.load(tmp_path / "masks" / f"{n}.nii.gz").dataobj) for n in ("plain", "sideways"))
    assert plain.any() and np.array_equal(sideways.transpose(2, 1, 0), plain)


def test_an_array_with_slices_first_is_segmented_as_one_with_slices_last(run, scan):
    opened = open_run(run)
    image = nib.load(scan)
    array, gallery = np.asarray(image.dataobj, np.float32), opened.open_gallery()
    zooms = np.array(image.header.get_zooms())
    plain = opened.segment(array, spacing=zooms, affine=image.affine, gallery=gallery)
    turned = [2, 0, 1]
    other = opened.segment(
        array.transpose(turned), spacing=zooms[turned], affine=image.affine[:, [*turned, 3]], gallery=gallery
    )
    np.testing.assert_array_equal(other.labels, plain.labels.transpose(turned))
    np.testing.assert_array_equal(other.probabilities, plain.probabilities.transpose(*turned, 3))
