"""The joint model: slices are standardised, guides come from the gallery, and what cannot be retrieved is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax import joint
from jras_jax.errors import UserError
from jras_jax.joint.build import build_model, init_variables
from jras_jax.retrieval.gallery import QueryKeys
from tests.test_gallery import BATCH, CLASSES, DIM, ROWS, gallery_on, table, unit

TOP = joint.Selection("top_k", 2, temperature=0.1, exclude="patient")


def test_standardised_slices_have_mean_0_deviation_1_and_forget_the_scanner():
    images = jnp.asarray(np.random.default_rng(0).random((3, 8, 8)), jnp.float32)
    plain = joint.standardise(images)
    np.testing.assert_allclose(plain.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(plain.std((1, 2)), 1, atol=0.01)
    np.testing.assert_allclose(joint.standardise(0.5 * images + 0.3), plain, atol=0.03)
    assert np.isfinite(joint.standardise(jnp.zeros((1, 8, 8)))).all()


def test_retrieved_guides_are_the_rows_they_name():
    rows, gallery = table(), gallery_on(None)
    own = np.arange(BATCH, dtype=np.int32)
    queries = QueryKeys(jnp.asarray(rows.patient[own]), jnp.asarray(own))
    found = joint.retrieve(gallery.embeddings[:BATCH], gallery, queries=queries, selection=TOP, num_classes=CLASSES)
    indices = np.asarray(found.indices)
    np.testing.assert_allclose(found.images, rows.images[indices] / np.float32(255), atol=1e-6)
    np.testing.assert_array_equal(found.masks.argmax(-1), rows.masks[indices])
    assert (rows.patient[indices] != rows.patient[own][:, None]).all()
    free = joint.retrieve(
        gallery.embeddings[:BATCH],
        gallery,
        queries=queries,
        selection=TOP._replace(exclude="none"),
        num_classes=CLASSES,
    )
    np.testing.assert_array_equal(free.indices[:, 0], own)  # without a rule a slice finds itself


def test_the_oracle_is_led_by_scores_alone_and_needs_them():
    gallery, rng = gallery_on(None), np.random.default_rng(0)
    queries = QueryKeys(jnp.full(BATCH, -1), jnp.full(BATCH, -1))
    oracle = TOP._replace(strategy="oracle")
    embeddings, scores = unit(rng, BATCH, DIM), rng.random((BATCH, ROWS)).astype(np.float32)
    found = joint.retrieve(
        embeddings, gallery, queries=queries, selection=oracle, num_classes=CLASSES, scores=jnp.asarray(scores)
    )
    np.testing.assert_array_equal(found.indices, np.argsort(-scores, 1)[:, :2])
    ignored = joint.retrieve(
        embeddings, gallery, queries=queries, selection=TOP, num_classes=CLASSES, scores=jnp.asarray(scores)
    )
    plain = joint.retrieve(embeddings, gallery, queries=queries, selection=TOP, num_classes=CLASSES)
    np.testing.assert_array_equal(ignored.indices, plain.indices)
    with pytest.raises(UserError, match=r"strategy='oracle' needs the queries' true masks"):
        joint.retrieve(embeddings, gallery, queries=queries, selection=oracle, num_classes=CLASSES)


@pytest.mark.parametrize("kind", ["prototype", "concat"])
def test_parameters_of_the_baseline_are_those_of_the_backbone(tiny, kind):
    """By shapes alone: retrieval adds retriever and fusion, and concat widens the first convolution."""
    shapes = {}
    for enabled in (True, False):
        config = tiny.config(retrieval__enabled=enabled, fusion__name=kind)
        model = build_model(config)
        shapes[enabled] = jax.eval_shape(lambda m=model, c=config: init_variables(m, c))["params"]
    assert set(shapes[False]) == {"backbone"}
    assert {"backbone", "retriever"} <= set(shapes[True])
    pairs = zip(jax.tree.leaves(shapes[True]["backbone"]), jax.tree.leaves(shapes[False]["backbone"]), strict=True)
    different = [(a.shape, b.shape) for a, b in pairs if a.shape != b.shape]
    assert different == ([] if kind == "prototype" else [((3, 3, 2 + CLASSES, 8), (3, 3, 1, 8))])
