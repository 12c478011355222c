"""Dice's coefficient: the definition, its two kinds of arrays, and what two empty masks score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax.data import STRUCTURES
from jras_jax.data.dice import Counts, count, dice, mean_over_present, structure_counts


def sets(a, b):
    """Dice by its definition on sets of voxels; None if both are empty."""
    a, b = (set(zip(*np.nonzero(mask), strict=True)) for mask in (a, b))
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else None


def labels(seed, shape=(6, 5, 4)):
    return np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)


def test_structures_are_counted_as_sets_of_voxels():
    a, b = labels(0), labels(1)
    found = structure_counts(a, b)
    assert list(found) == list(STRUCTURES)
    for name, label in STRUCTURES.items():
        assert found[name].dice == pytest.approx(sets(a == label, b == label), abs=1e-15)
        assert found[name].jaccard == pytest.approx(found[name].dice / (2 - found[name].dice), abs=1e-15)
        assert found[name] == count(a == label, b == label)
    assert list(structure_counts(a, b, {"LV": 1})) == ["LV"]


@pytest.mark.parametrize(
    ("counts", "dice_", "jaccard", "empty"),
    [
        (Counts(0, 0, 0), 1.0, 1.0, "both"),
        (Counts(0, 3, 0), 0.0, 0.0, "reference"),
        (Counts(3, 0, 0), 0.0, 0.0, "prediction"),
        (Counts(3, 5, 0), 0.0, 0.0, ""),
        (Counts(4, 4, 4), 1.0, 1.0, ""),
        (Counts(4, 2, 2), 2 / 3, 0.5, ""),
    ],
)
def test_empty_and_full_masks(counts, dice_, jaccard, empty):
    assert counts.dice == pytest.approx(dice_, abs=1e-15) and isinstance(counts.dice, float)
    assert counts.jaccard == jaccard and counts.empty == empty


@pytest.mark.parametrize("empty", [0.0, 1.0])
def test_numpy_and_jax_agree_and_keep_their_kind(empty):
    common, total = np.array([0, 0, 1, 7], np.float32), np.array([0, 3, 4, 14], np.float32)
    here, there = dice(common, total, empty=empty), jax.jit(lambda c, t: dice(c, t, empty=empty))(common, total)
    assert isinstance(here, np.ndarray) and isinstance(there, jax.Array)
    np.testing.assert_array_equal(here, [empty, 0.0, 0.5, 1.0])
    np.testing.assert_array_equal(there, here)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("share", [1e-3, 0.4, 3.0])
def test_soft_sizes_of_any_amount_are_a_ratio(xp, share):
    assert float(dice(xp.asarray(share / 2), xp.asarray(2 * share))) == pytest.approx(0.5)
    assert float(dice(xp.asarray(share), xp.asarray(2 * share))) == pytest.approx(1.0)


def test_the_gradient_is_finite_for_empty_masks():
    gradient = jax.grad(lambda c: dice(c, jnp.zeros(())))(jnp.zeros(()))
    assert float(gradient) == 0.0


def test_the_mean_runs_over_the_structures_that_either_mask_has():
    a, b = labels(2, (4, 5, 5)), labels(3, (4, 5, 5))
    a[1], b[1] = 0, 0
    a[2][a[2] == 3], b[2][b[2] == 3] = 0, 0
    a[3][a[3] == 1] = 0
    found = mean_over_present(a, b, (1, 2, 3))
    for row, (x, y) in enumerate(zip(a, b, strict=True)):
        scores = [s for s in (sets(x == label, y == label) for label in (1, 2, 3)) if s is not None]
        assert found[row] == pytest.approx(np.mean(scores) if scores else 1.0, abs=1e-15)
    assert found.dtype == np.float64 and found[1] == 1.0
