"""The largest component per structure."""

import numpy as np
import pytest

from jras_jax.inference import postprocess


def scene():
    labels = np.zeros((12, 12, 3), np.uint8)
    labels[1:5, 1:5] = 3
    labels[9, 9, 1] = 3  # an island
    labels[6:8, 1:3] = 1
    return labels


def test_islands_become_background_and_the_rest_stays():
    labels = scene()
    before = labels.copy()
    out = postprocess.largest_component(labels)
    assert out[9, 9, 1] == 0 and out.dtype == labels.dtype
    out[9, 9, 1] = 3
    np.testing.assert_array_equal(out, before)
    np.testing.assert_array_equal(labels, before)  # the input is not changed


def test_idempotent_and_never_adds():
    labels = np.random.default_rng(0).integers(0, 4, (10, 10, 4)).astype(np.uint8)
    once = postprocess.largest_component(labels)
    np.testing.assert_array_equal(postprocess.largest_component(once), once)
    assert ((once == labels) | (once == 0)).all() and (once != labels).any()


def test_only_the_named_structures_are_cleaned():
    labels = scene()
    np.testing.assert_array_equal(postprocess.largest_component(labels, [1]), labels)


@pytest.mark.parametrize("step", [(1, 0, 0), (0, 1, 1), (1, 1, 1)])
def test_faces_edges_and_corners_connect(step):
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1, 1, 1] = labels[tuple(1 + s for s in step)] = 2
    assert np.count_nonzero(postprocess.largest_component(labels)) == 2


def test_an_absent_structure_is_no_error():
    assert not postprocess.largest_component(np.zeros((3, 3, 3), np.uint8)).any()
