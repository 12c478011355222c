"""Maps beside masks: what they hold, on which grid, and that nobody takes them for scans or masks."""

import shutil

import nibabel as nib
import numpy as np
import pytest

import jras_jax
from jras_jax.data import nifti
from jras_jax.errors import UserError
from jras_jax.evaluation.matching import match
from jras_jax.inference import maps, scans
from tests.commands import call

CLASSES = ("background", "RV", "MYO", "LV")


@pytest.fixture(scope="module")
def cine(tiny, run_with_gallery, tmp_path_factory):
    """A 4-D scan of two frames, of a test patient."""
    folder = tmp_path_factory.mktemp("cine")
    first, second = sorted((tiny.data_dir / "scans").rglob("testing/patient101/*_frame??.nii.gz"))
    images = [nib.load(path) for path in (first, second)]
    array = np.stack([image.get_fdata() for image in images], -1).astype(np.float32)
    image = nib.Nifti1Image(array, images[0].affine)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, folder / "someone.nii.gz")
    return folder / "someone.nii.gz"


@pytest.fixture(scope="module")
def written(cine, run_with_gallery, tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    where = [f"--workdir={run_with_gallery}", f"--input={cine}", f"--output={folder}"]
    assert call("predict", *where, "--probabilities", "--uncertainty") == 0
    return folder


def test_maps_are_the_models_own_numbers_on_the_scans_grid(written, cine, run_with_gallery):
    run = jras_jax.open_run(run_with_gallery)
    scan = nifti.read_scan(cine)
    predictions = run.segment_volumes(scans.frames(scan, run.description), run.open_gallery())
    expected = np.stack([p.probabilities for p in predictions], 3)  # (X, Y, Z, T, C)
    for label, name in enumerate(CLASSES):
        image = nib.load(written / f"someone_probability_{name}.nii.gz")
        assert image.shape == scan.array.shape and image.get_data_dtype() == np.uint16
        np.testing.assert_allclose(image.affine, scan.affine, atol=1e-6)
        # Half a step, and what another batch changes by rounding.
        np.testing.assert_allclose(image.get_fdata(), expected[..., label], atol=0.5 / maps.STEPS + 2e-6)
    uncertainty = nib.load(written / "someone_uncertainty.nii.gz").get_fdata()
    entropy = -(expected * np.log(np.maximum(expected, 1e-12))).sum(-1) / np.log(4)
    np.testing.assert_allclose(uncertainty, entropy, atol=1e-4)
    assert uncertainty.shape == scan.array.shape and uncertainty.min() >= 0 and uncertainty.max() <= 1


def test_the_mask_is_the_most_probable_class(written):
    mask = np.asarray(nib.load(written / "someone.nii.gz").dataobj)
    shares = np.stack([nib.load(written / f"someone_probability_{c}.nii.gz").get_fdata() for c in CLASSES], -1)
    np.testing.assert_allclose(shares.sum(-1), 1, atol=4 / maps.STEPS)
    chosen = np.take_along_axis(shares, mask[..., None].astype(int), -1)[..., 0]
    assert (chosen >= shares.max(-1) - 1 / maps.STEPS).all()


def test_maps_are_taken_neither_for_scans_nor_for_masks(written, cine, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(written, folder)
    with pytest.raises(UserError, match="holds nothing but masks"):
        scans.tasks(folder, tmp_path / "out")
    references = tmp_path / "references"
    references.mkdir()
    shutil.copy(written / "someone.nii.gz", references / "someone_gt.nii.gz")
    found = match(references, folder)
    assert [pair.prediction.name for pair in found.pairs] == ["someone.nii.gz"] and not found.alone


def test_only_what_is_asked_for_is_written_and_again_replaces_it(cine, run_with_gallery, tmp_path):
    where = [f"--workdir={run_with_gallery}", f"--input={cine}", f"--output={tmp_path}"]
    for _ in range(2):
        call("predict", *where, "--uncertainty")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"someone.nii.gz", "someone.json", "someone_uncertainty.nii.gz"}


def test_a_foreign_file_in_the_place_of_a_map_is_kept_and_nothing_is_written(cine, run_with_gallery, tmp_path):
    shutil.copy(cine, tmp_path / "someone_probability_LV.nii.gz")
    before = (tmp_path / "someone_probability_LV.nii.gz").read_bytes()
    where = [f"--workdir={run_with_gallery}", f"--input={cine}", f"--output={tmp_path}"]
    with pytest.raises(UserError, match="exists and is not a map of this program"):
        call("predict", *where, "--probabilities")
    assert [p.name for p in tmp_path.iterdir()] == ["someone_probability_LV.nii.gz"]
    assert (tmp_path / "someone_probability_LV.nii.gz").read_bytes() == before
