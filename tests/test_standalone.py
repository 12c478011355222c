"""An exported model gives what this project gives, in a process that has only JAX, on every platform's program."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax import export

import jras_jax
from jras_jax import joint, kernels
from jras_jax.errors import UserError
from jras_jax.inference import standalone
from tests.commands import call

# A whole user of the program: JAX and numpy, and the check that nothing of this project is loaded.
USER = """
import json, pathlib, sys
import numpy as np
from jax import export
folder, given = pathlib.Path(sys.argv[1]), dict(np.load(sys.argv[2]))
gallery = {k[8:]: v for k, v in given.items() if k.startswith("gallery.")}
program = export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
found = program.call(given["images"], given["patient"], *([gallery] if gallery else []))
assert not [name for name in sys.modules if name.split(".")[0] in ("jras_jax", "flax", "tensorflow")]
np.savez(sys.argv[3], **found)
"""


@pytest.fixture(scope="module")
def opened(run_with_gallery) -> jras_jax.TrainedRun:
    return jras_jax.open_run(run_with_gallery)


@pytest.fixture(scope="module")
def gallery(opened) -> jras_jax.RunGallery:
    return opened.open_gallery()


def used(folder, tmp_path, **given):
    """What the program of a folder gives in a process of its own."""
    np.savez(tmp_path / "in.npz", **given)
    command = [sys.executable, "-I", "-c", USER, folder, tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run([str(a) for a in command], check=True, timeout=120)
    return dict(np.load(tmp_path / "out.npz"))


@pytest.mark.parametrize("outside", [False, True], ids=["inside", "argument"])
def test_a_process_without_this_project_gets_the_same(opened, gallery, run_with_gallery, tmp_path, outside):
    call("export", run_with_gallery, tmp_path / "out", *(["--gallery_as_argument"] if outside else []))
    rows = np.arange(5)  # no multiple of the batch that the run itself uses
    images, patient = gallery.table.images[rows], int(gallery.table.patient[0])
    given = {"images": images, "patient": np.full(5, patient, np.int32)}
    stored = tmp_path / "out" / standalone.GALLERY
    assert stored.is_file() == outside
    if outside:
        given |= {f"gallery.{name}": array for name, array in safetensors.numpy.load_file(stored).items()}
    found = used(tmp_path / "out", tmp_path, **given)
    expected = opened.segmenter(gallery.arrays).slices(images, patient)
    np.testing.assert_allclose(found["probabilities"], expected.probabilities, atol=1e-5)
    np.testing.assert_array_equal(found["guides"], expected.indices)
    np.testing.assert_allclose(found["weights"], expected.weights, atol=1e-5)
    np.testing.assert_allclose(found["similarity"], expected.similarity, atol=1e-5)
    facts = json.loads((tmp_path / "out" / standalone.FACTS).read_text())
    guiding = [facts["rows"][row]["case"] for row in found["guides"].ravel()]
    assert guiding and not any(case.startswith(facts["patients"][patient]) for case in guiding)
    assert facts["classes"] == list(jras_jax.CLASSES) and facts["platforms"] == ["cpu", "cuda", "tpu"]


def test_a_shorter_gallery_can_be_given_as_the_argument(opened, gallery):
    it = standalone.program(opened, gallery, takes_gallery=True)
    few = {name: array[:7] for name, array in it.gallery.items()}
    found = standalone.exported(it, 2).call(gallery.table.images[:3], np.full(3, -1, np.int32), few)
    assert np.asarray(found["guides"]).max() < 7 and np.isfinite(found["probabilities"]).all()


BACKBONES = {"segformer": "b0", "transunet": "tiny", "sam": "tiny"}
OPTIONS = {
    "concat": {"fusion__name": "concat", "retrieval__strategy": "sparsemax"},
    "adapter": {"fusion__name": "adapter", "retrieval__strategy": "gumbel_top_k"},
    "cross_attention": {"fusion__name": "cross_attention", "retrieval__strategy": "softmax"},
    "tta": {"eval__tta": True, "retrieval__recall_target": 0.9},
}


@pytest.mark.parametrize("name", [*BACKBONES, *OPTIONS])
def test_every_model_has_a_program_for_any_batch(opened, gallery, tiny, name):
    config = tiny.config(**OPTIONS.get(name, {}))
    if name in BACKBONES:
        backbone = dataclasses.replace(config.backbone, name=name, variant=BACKBONES[name], in_channels=3, options={})
        config = dataclasses.replace(config, backbone=backbone)
    model = joint.build_model(config, opened.description)
    shapes = jax.eval_shape(lambda: joint.init_variables(model, config))
    run = dataclasses.replace(
        opened, config=config, variables=jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    )
    outside = name not in ("cross_attention", *BACKBONES)  # inside, the constants are larger but there is less to trace
    with kernels.using("cpu"):  # which must not reach the program
        found = standalone.exported(standalone.program(run, gallery, takes_gallery=outside), config.retrieval.top_k)
    shape = found.out_avals[standalone_names(found).index("probabilities")].shape
    assert str(shape[0]) == "b" and shape[1:] == (32, 32, 4) and found.platforms == ("cpu", "cuda", "tpu")


def standalone_names(found: export.Exported) -> list[str]:
    """The names of the outputs, in the order of their shapes."""
    return sorted(found.out_tree.unflatten(range(len(found.out_avals))))


def test_a_run_without_retrieval_takes_images_alone(tiny, tmp_path):
    folder = tiny.train(tmp_path / "run", retrieval__enabled=False, train__num_steps=2)
    call("export", folder, tmp_path / "out")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    program = export.deserialize(bytearray((tmp_path / "out" / standalone.PROGRAM).read_bytes()))
    found = program.call(images)
    assert list(found) == ["probabilities"]
    expected = jras_jax.open_run(folder).segmenter(None).slices(images)
    np.testing.assert_allclose(found["probabilities"], expected.probabilities, atol=1e-5)


def test_what_cannot_be_exported_is_refused(run_with_gallery, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="is a control and cannot be exported"):
        call("export", run_with_gallery, out, "--config.retrieval.strategy=random")
    with pytest.raises(UserError, match="reads the whole gallery, which must then be inside"):
        call("export", run_with_gallery, out, "--config.retrieval.strategy=softmax", "--gallery_as_argument")
    with pytest.raises(UserError, match="does not know which slice it sees"):
        call("export", run_with_gallery, out, "--config.retrieval.exclude=slice")
    weights = jax.tree.leaves(jras_jax.open_run(run_with_gallery).variables)
    monkeypatch.setattr(standalone, "LIMIT", sum(x.nbytes for x in weights) + 1)  # no room for the gallery
    with pytest.raises(UserError, match="leave the gallery out, with --gallery_as_argument"):
        call("export", run_with_gallery, out)
    assert not out.exists()


def test_an_own_gallery_that_is_missing_is_named(run_with_gallery, tmp_path):
    shutil.copytree(run_with_gallery, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "gallery")
    with pytest.raises(UserError, match="--gallery=FOLDER"):
        call("export", tmp_path / "run", tmp_path / "out")
