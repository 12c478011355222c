"""The public API and its example: what `import jras_jax` offers, on a run of seconds."""

import importlib
import pathlib
import runpy
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

import jras_jax
from jras_jax.data import nifti
from jras_jax.inference.scans import Task

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run(tiny, trained_run):
    opened = jras_jax.open_run(trained_run)
    opened.train_gallery(tiny.data(opened))
    return opened


@pytest.fixture
def scan(tiny, run):
    """A test patient of the phantom, whom the gallery does not know."""
    return next((tiny.data_dir / "scans").glob("*/testing/patient101/patient101_frame??.nii.gz"))


def test_every_public_name_is_there_and_documented():
    for name in jras_jax.__all__:
        value = getattr(jras_jax, name)
        assert isinstance(value, str | tuple | dict) or value.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jras_jax.nothing  # noqa: B018


def test_importing_the_package_alone_loads_neither_jax_nor_orbax():
    heavy = "import sys, jras_jax; print([m for m in ('jax', 'orbax', 'tensorflow_datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_array_is_segmented_as_its_file_is(run, scan, tmp_path):
    gallery = run.open_gallery()
    (from_file,) = importlib.import_module("jras_jax.inference.scans").segment_file(
        run, Task(scan, tmp_path / "mask.nii.gz"), gallery
    )
    image = nifti.read_scan(scan)
    result = run.segment(image.array, spacing=image.spacing, affine=image.affine, gallery=gallery)
    np.testing.assert_array_equal(result.labels, from_file.labels)
    np.testing.assert_array_equal(result.labels, np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj))
    probabilities = result.probabilities
    assert probabilities.shape == (*image.array.shape, 4)
    np.testing.assert_array_equal(probabilities.argmax(-1), result.labels)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    guides = gallery.guides(result)
    assert len(guides) == image.array.shape[2] and all(len(g) == run.config.retrieval.top_k for g in guides)
    np.testing.assert_allclose([sum(g["weight"] for g in slices) for slices in guides], 1, atol=1e-5)


def test_a_patient_of_the_gallery_does_not_guide_himself(run, scan):
    gallery = run.open_gallery()
    image, patient = nifti.read_scan(scan), gallery.table.patients[0]
    result = run.segment(image.array, spacing=image.spacing, gallery=gallery, patient=patient)
    assert gallery.table.patients[result.patient] == patient
    assert not any(g["case"].startswith(patient) for slices in gallery.guides(result) for g in slices)


@pytest.mark.parametrize(
    ("image", "words"),
    [(np.zeros((4, 4)), r"must be a finite array \(X, Y, Z\)"), (np.full((4, 4, 2), np.nan), "must be a finite array")],
)
def test_arrays_that_are_no_stack_are_refused(run, image, words):
    with pytest.raises(jras_jax.UserError, match=words):
        run.segment(image, gallery=run.open_gallery())


def test_a_run_with_retrieval_asks_for_a_gallery(run):
    with pytest.raises(jras_jax.UserError, match=r"give it a gallery, such as run.open_gallery\(\)"):
        run.segment(np.zeros((8, 8, 2)))


def test_the_example_runs(run, scan, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["predict.py", str(run.folder), str(scan)])
    runpy.run_path(str(ROOT / "examples" / "predict.py"), run_name="__main__")
    lines = capsys.readouterr().out.strip().splitlines()
    depth = nib.load(scan).shape[2]
    assert sum(line.startswith("slice ") and "guided by patient0" in line for line in lines) == depth
