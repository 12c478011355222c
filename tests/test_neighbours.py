"""dataset.neighbours: the retriever sees the slices before and after in the stack, the backbone the slice alone."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax.data.description import CARDIAC
from jras_jax.data.grid import grey, stacked
from jras_jax.data.load import grid_of
from jras_jax.errors import UserError
from jras_jax.inference.standalone import program
from jras_jax.inference.trained_run import open_run
from jras_jax.joint import build_model, fusion, init_variables
from jras_jax.joint.model import first_guides
from jras_jax.report import write_report
from jras_jax.retrieval.retriever import PixelRetriever, Retriever
from tests.commands import evaluate, predict

PIXELS = {"retriever__variant": "pixels", "retriever__dim": 192, "retrieval__overlap_weight": 0}


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(0).uniform(size=shape), jnp.float32)


def test_a_stack_is_the_slice_between_its_neighbours():
    slices = np.arange(4 * 9, dtype=np.uint8).reshape(4, 3, 3)
    found = stacked(slices)
    assert found.shape == (4, 3, 3, 3)
    np.testing.assert_array_equal(grey(found, 3, channels=1), slices)
    np.testing.assert_array_equal(found[..., 0], slices[[0, 0, 1, 2]])
    np.testing.assert_array_equal(found[..., 2], slices[[1, 2, 3, 3]])
    np.testing.assert_array_equal(stacked(slices[:1]), np.repeat(slices[:1, ..., None], 3, -1))


@pytest.mark.parametrize("retriever", [Retriever(image_size=16), PixelRetriever(dim=192)], ids=["learnt", "pixels"])
def test_equal_neighbours_are_the_slice_alone_and_others_are_not(retriever):
    slices = drawn(2, 16, 16)
    alone, equal = slices, jnp.repeat(slices[..., None], 3, -1)
    other = equal.at[..., 2].set(slices[::-1])
    variables = retriever.init(jax.random.key(0), equal)
    embed = jax.jit(lambda images: retriever.apply(variables, images))
    assert float(jnp.abs(embed(other) - embed(equal)).max()) > 0.01
    np.testing.assert_allclose(jnp.linalg.norm(embed(other), axis=-1), 1, atol=1e-5)
    if isinstance(retriever, Retriever):
        np.testing.assert_allclose(embed(equal), embed(alone), atol=1e-5)


@pytest.mark.parametrize("kind", sorted(fusion.KINDS))
def test_the_backbone_sees_the_slice_alone(tiny, kind):
    config = tiny.config(fusion__name=kind, dataset__neighbours=True)
    model = build_model(config)
    variables = jax.jit(lambda: init_variables(model, config))()
    k = config.retrieval.top_k
    guides = first_guides(2, k, size=32, num_classes=4, channels=3)
    guides = guides.replace(images=drawn(2, k, 32, 32, 3), masks=guides.masks.at[..., 1].set(1.0))
    segment = jax.jit(lambda images, guides: model.apply(variables, images, guides, method="segment"))
    images = drawn(2, 32, 32, 3)
    logits = segment(images, guides)
    changed = segment(
        images.at[..., 0].set(0.0).at[..., 2].set(1.0), guides.replace(images=guides.images.at[..., 0].set(0.5))
    )
    np.testing.assert_array_equal(changed, logits)
    assert float(jnp.abs(segment(images.at[..., 1].set(images[::-1, ..., 1]), guides) - logits).max()) > 0.0
    plain = build_model(tiny.config(fusion__name=kind))
    own = plain.apply(variables, images[..., 1], guides.replace(images=guides.images[..., 1]), method="segment")
    np.testing.assert_allclose(logits, own, atol=1e-5)


@pytest.fixture(scope="module", params=["whole", "heart"])
def run(request, tiny, tmp_path_factory):
    more = {"dataset__frame": request.param, "train__num_steps": 2}
    return tiny.train(tmp_path_factory.mktemp(f"neighbours_{request.param}") / "run", dataset__neighbours=True, **more)


def test_a_run_with_neighbours_evaluates_predicts_and_reports(run, tiny, tmp_path, phantom_scans):
    summary = evaluate(run, "--config.eval.split=test", "--config.eval.evidence_cases=1")
    assert np.isfinite(summary["mean"]["dice"]) and "retrieval_certificate" in summary
    opened = open_run(run)
    assert opened.grid.neighbours and not opened.grid.whole.neighbours
    gallery = opened.train_gallery(tiny.data(opened))
    assert gallery.table.images.shape[1:] == (32, 32, 3) and gallery.table.masks.shape[1:] == (32, 32)
    (evidence,) = (run / "evaluation" / "test").rglob("*.npz")
    with np.load(evidence) as arrays:
        assert arrays["image"].shape == arrays["truth"].shape
        assert arrays["guide_images"].shape == arrays["guide_masks"].shape
        first = gallery.table.images[..., 1]
        assert all((first == x).all((1, 2)).any() for x in arrays["guide_images"].reshape(-1, 32, 32))
    assert write_report(run, split="test").is_file()
    scan = next(phantom_scans.rglob("patient101_frame01.nii.gz"))
    (mask,) = predict(run, scan, tmp_path / "masks")
    said = json.loads(mask.with_name(mask.name.replace(".nii.gz", ".json")).read_text())
    assert len(said["frames"][0]["slices"][0]["guides"]) == opened.config.retrieval.top_k
    exported = program(opened, gallery)
    assert exported.image == (32, 32, 3)


def test_a_gallery_made_without_neighbours_is_another_retrievers(run):
    opened = open_run(run)
    without = dataclasses.replace(opened.config, dataset=dataclasses.replace(opened.config.dataset, neighbours=False))
    assert dataclasses.replace(opened, config=without).fingerprint != opened.fingerprint


@pytest.mark.parametrize("changes", [PIXELS, {"retrieval__enabled": False}], ids=["pixels", "no retrieval"])
def test_pixels_and_the_twin_without_retrieval_take_stacks_too(tiny, tmp_path, changes):
    folder = tiny.train(tmp_path / "run", dataset__neighbours=True, train__num_steps=2, **changes)
    assert np.isfinite(evaluate(folder, "--config.eval.split=test")["mean"]["dice"])


def test_neighbours_need_volumes_of_one_channel(tiny):
    dataset = tiny.config(dataset__neighbours=True).dataset
    several = dataclasses.replace(CARDIAC, name="three", channels=("a", "b", "c"))
    with pytest.raises(UserError, match=r"config\.dataset\.neighbours=True: three has 3 channels"):
        grid_of(dataset, several)
    with pytest.raises(UserError, match="holds single images"):
        grid_of(dataset, dataclasses.replace(CARDIAC, name="flat", dimensions=2))
    with pytest.raises(UserError, match=r"config\.dataset\.neighbours=True"):
        tiny.config(dataset__neighbours=True, protocol="paper")
