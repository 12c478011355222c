"""Which cases to check: the expected Dice by its definition, and what is said of how well a sign ranks."""

import numpy as np
import pytest

from jras_jax.evaluation import triage
from jras_jax.inference.predictions import expected_dice


def certain(labels):
    return np.eye(4, dtype=np.float32)[labels]


def test_expected_dice_is_the_dice_of_probabilities_and_their_own_mask():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), (3, 5, 5)).astype(np.float32)
    own = p.argmax(-1)
    want = [2 * p[..., c][own == c].sum() / (p[..., c].sum() + (own == c).sum()) for c in (1, 2, 3)]
    assert expected_dice(p) == pytest.approx(np.mean(want), abs=1e-6)
    labels = rng.integers(0, 4, (3, 5, 5))
    assert expected_dice(certain(labels)) == 1.0
    assert expected_dice(certain(np.zeros_like(labels))) == 1.0  # sure that there is nothing
    mild, strong = (certain(labels) * (1 - e) + e / 4 for e in (0.1, 0.6))
    assert 1 > expected_dice(mild) > expected_dice(strong) > 0


def test_expected_dice_of_calibrated_probabilities_is_near_the_true_dice():
    """A mask drawn from the probabilities scores about what they expect."""
    rng = np.random.default_rng(1)
    z, y, x = np.mgrid[:6, :48, :48]
    logits = np.stack([0.35 * np.hypot(y - 24, x - 24 + 4 * c) - 4 for c in range(3)], -1)
    p = np.exp(-np.concatenate([np.zeros((*z.shape, 1)), logits], -1))
    p = (p / p.sum(-1, keepdims=True)).astype(np.float32)
    drawn = (rng.random((*z.shape, 1)) > p.cumsum(-1)[..., :-1]).sum(-1)
    own = p.argmax(-1)
    true = [2 * ((own == c) & (drawn == c)).sum() / ((own == c).sum() + (drawn == c).sum()) for c in (1, 2, 3)]
    assert expected_dice(p) == pytest.approx(np.mean(true), abs=0.03)


def rows(expected, entropy, dice):
    names = ("expected_dice", "entropy", "dice")
    cases = zip(expected, entropy, dice, strict=True)
    return [{"patient": str(i), "phase": "ED"} | dict(zip(names, case, strict=True)) for i, case in enumerate(cases)]


def test_the_reading_says_which_sign_helps_and_when_none_does():
    rising, noise = np.arange(12.0), np.array([3, 9, 1, 11, 5, 0, 8, 2, 10, 4, 7, 6.0])
    both = triage.ranking(rows(rising, -rising, rising))
    assert both["expected_dice_vs_dice"]["spearman"] == pytest.approx(1) and both["expected_dice_vs_dice"]["helps"]
    assert both["entropy_vs_dice"]["spearman"] == pytest.approx(-1) and both["entropy_vs_dice"]["helps"]
    assert both["reading"].startswith("Check the cases of the lowest expected Dice")
    assert "guide_agreement_vs_dice" not in both
    second = triage.ranking(rows(noise, -rising, rising))
    assert not second["expected_dice_vs_dice"]["helps"] and "highest entropy" in second["reading"]
    for wrong in (rows(-rising, rising, rising), rows(noise, noise, rising), rows(rising[:2], -rising[:2], rising[:2])):
        assert triage.ranking(wrong)["reading"].startswith("No sign")


def test_a_sign_without_spread_is_no_sign():
    found = triage.ranking(rows(np.ones(8), np.ones(8), np.arange(8.0)))
    assert not found["expected_dice_vs_dice"]["helps"] and found["reading"].startswith("No sign")
