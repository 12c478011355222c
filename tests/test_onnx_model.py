"""A model as ONNX equals the model in JAX, and one that cannot be converted is refused."""

import sys

import numpy as np
import pytest

import jras_jax
from jras_jax.errors import UserError
from jras_jax.inference import onnx_model
from tests.commands import call


@pytest.fixture
def converter():
    for name in ("onnx", "jax2onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: {onnx_model.INSTALL}")


def test_onnx_gives_what_the_run_gives(converter, run_with_gallery, tmp_path):
    import onnxruntime

    call("export", run_with_gallery, tmp_path, "--onnx", "--onnx_batch=3")
    session = onnxruntime.InferenceSession(str(tmp_path / onnx_model.MODEL), providers=["CPUExecutionProvider"])
    run = jras_jax.open_run(run_with_gallery)
    gallery = run.open_gallery()
    images, patient = gallery.table.images[-3:], int(gallery.table.patient[-1])  # others than the export compared
    found = session.run(["probabilities", "guides"], {"images": images, "patient": np.full(3, patient, np.int32)})
    expected = run.segmenter(gallery.arrays).slices(images, patient)
    np.testing.assert_allclose(found[0], expected.probabilities, atol=1e-4)
    np.testing.assert_array_equal(found[1], expected.indices)


def test_a_model_that_is_not_carried_is_refused_and_nothing_is_written(converter, run_with_gallery, tmp_path):
    # Test-time augmentation draws from images at fractional coordinates, in operations that the converter lacks.
    with pytest.raises(UserError, match=r"cannot be converted to ONNX \(.*leave --onnx out"):
        call("export", run_with_gallery, tmp_path / "out", "--onnx", "--config.eval.tta=True")
    assert not (tmp_path / "out").exists()


def test_a_model_that_differs_is_refused(converter, run_with_gallery, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model, "TOLERANCE", 0.0)
    with pytest.raises(UserError, match=r"differs from this one by .*, so it is not kept"):
        call("export", run_with_gallery, tmp_path / "out", "--onnx")
    assert not (tmp_path / "out").exists()


def test_options_that_contradict_and_missing_packages_are_named(run_with_gallery, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="leave --gallery_as_argument or --onnx out"):
        call("export", run_with_gallery, tmp_path, "--onnx", "--gallery_as_argument")
    with pytest.raises(UserError, match="give 1 to 4096 slices"):
        call("export", run_with_gallery, tmp_path, "--onnx", "--onnx_batch=0")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"--onnx needs the package .*pip install '\.\[onnx\]'"):
        call("export", run_with_gallery, tmp_path, "--onnx")
