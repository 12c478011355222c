"""Measures of the retriever: overlaps by their definition, controls in their order, drift from 0 to 1."""

import jax
import numpy as np
import pytest

from jras_jax.retrieval import measures

SIDE = 8


def masks(n, seed=0, side=SIDE):
    """Random blobs: rectangles of each class, some classes absent, one mask empty."""
    rng = np.random.default_rng(seed)
    out = np.zeros((n, side, side), np.uint8)
    for i in range(1, n):
        for label in rng.permutation([1, 2, 3])[: rng.integers(1, 4)]:
            y, x = rng.integers(0, side - 3, 2)
            out[i, y : y + rng.integers(1, 4), x : x + rng.integers(1, 4)] = label
    return out


def dice_by_definition(a, b):
    scores = [
        2 * ((a == c) & (b == c)).sum() / ((a == c).sum() + (b == c).sum())
        for c in (1, 2, 3)
        if (a == c).any() or (b == c).any()
    ]
    return np.mean(scores) if scores else 1.0


def test_overlap_is_the_mean_foreground_dice_of_every_pair():
    a, b = masks(5), masks(7, seed=1)
    want = np.array([[dice_by_definition(x, y) for y in b] for x in a])
    np.testing.assert_allclose(jax.jit(measures.overlap)(a, b), want, atol=1e-6)
    assert want[0, 0] == 1.0  # both empty
    np.testing.assert_allclose(np.diag(measures.overlap(a, a)), 1.0)


def test_pairwise_dice_is_the_same_measure():
    a, b = masks(6), masks(6, seed=2)
    want = [dice_by_definition(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(measures.pairwise_dice(a, b), want)


def test_fine_grids_are_thinned_for_the_overlap_of_all_pairs():
    a, b = (np.kron(masks(4, seed), np.ones((1, 16, 16), np.uint8)) for seed in (0, 1))
    assert a.shape[-1] > measures.GRID
    np.testing.assert_allclose(measures.overlap(a, b), measures.overlap(masks(4, 0), masks(4, 1)), atol=1e-6)


def test_summary_of_a_perfect_first_guide():
    gallery = masks(5)
    indices = np.array([[0, 1], [1, 2], [2, 3]])
    weights = np.array([[0.9, 0.1]] * 3)
    found = measures.summary(gallery[:3], indices, weights=weights, masks=gallery)
    assert found["retrieval_dice_1"] == 1.0 > found["retrieval_dice_k"]  # the other guide has a tenth of every pixel
    assert found["gallery_used"] == pytest.approx(4 / 5)
    assert found["weight_entropy"] == pytest.approx(-(0.9 * np.log(0.9) + 0.1 * np.log(0.1)))
    same = measures.summary(gallery[:3], indices[:, [0, 0]], weights=weights, masks=gallery)
    assert same["retrieval_dice_k"] == pytest.approx(1.0)


def test_the_heaviest_guide_counts_at_any_place():
    gallery = masks(3, seed=4)
    found = measures.summary(gallery[[1]], np.array([[2, 1]]), weights=np.array([[0.2, 0.8]]), masks=gallery)
    assert found["retrieval_dice_1"] == 1.0


def test_the_mix_is_the_soft_dice_of_the_mean_of_one_hot_masks():
    truth, gallery = masks(6, 5), masks(8, 6)
    rng = np.random.default_rng(0)
    indices, weights = rng.integers(0, 8, (6, 2)), rng.dirichlet([1, 1], 6)
    want = []
    for t, rows, w in zip(truth, indices, weights, strict=True):
        scores = []
        for label in (1, 2, 3):
            soft, true = sum(v * (gallery[r] == label) for v, r in zip(w, rows, strict=True)), t == label
            if soft.sum() + true.sum():
                scores.append(2 * (soft * true).sum() / (soft.sum() + true.sum()))
        want.append(np.mean(scores) if scores else 1.0)
    found = measures.guide_dice(truth, indices, weights=weights, masks=gallery)
    np.testing.assert_allclose(found[1], want, atol=1e-12)
    assert (np.abs(found[0] - found[1]) > 1e-3).any()  # at two guides, too, it is another number than the first guide's
    one = measures.guide_dice(truth, indices[:, :1], weights=np.ones((6, 1)), masks=gallery)
    np.testing.assert_allclose(one[1], one[0])


def test_controls_by_their_definition_and_in_their_order():
    rng = np.random.default_rng(0)
    truth, gallery = masks(6, 1), masks(9, 2)
    images, rows = (rng.integers(0, 256, (n, SIDE, SIDE), np.uint8) for n in (6, 9))
    rows[4] = 255 - images[3] // 2  # an inverted copy: the least similar of all
    rows[5] = images[3] // 2  # darker, but the same picture
    allowed = rng.random((6, 9)) > 0.3
    allowed[:, :2], allowed[3, 4:6] = True, True
    found = measures.controls(truth, images, allowed=allowed, masks=gallery, gallery_images=rows)
    dice = np.array([[dice_by_definition(x, y) for y in gallery] for x in truth])
    assert found["retrieval_random"] == pytest.approx(
        np.mean([d[a].mean() for d, a in zip(dice, allowed, strict=True)]), abs=1e-5
    )
    assert found["retrieval_oracle"] == pytest.approx(
        np.mean([d[a].max() for d, a in zip(dice, allowed, strict=True)]), abs=1e-5
    )
    assert found["retrieval_oracle"] >= max(found["retrieval_random"], found["retrieval_pixel"])
    only = measures.controls(truth[[3]], images[[3]], allowed=np.ones((1, 9), bool), masks=gallery, gallery_images=rows)
    assert only["retrieval_pixel"] == pytest.approx(dice[3, 5], abs=1e-6)


def test_controls_never_use_a_forbidden_row():
    truth = masks(4, 3)
    images = np.random.default_rng(1).integers(0, 256, truth.shape, np.uint8)
    allowed = ~np.eye(4, dtype=bool)
    found = measures.controls(
        truth, images, allowed=allowed, masks=truth, gallery_images=images
    )  # each query's copy is in the gallery
    dice = np.array([[dice_by_definition(x, y) for y in truth] for x in truth])
    assert found["retrieval_oracle"] == pytest.approx(np.where(allowed, dice, -1).max(1).mean(), abs=1e-5)
    assert found["retrieval_pixel"] < 1


def test_nothing_to_measure_is_nan():
    none = np.zeros((0, SIDE, SIDE), np.uint8)
    found = measures.summary(none, np.zeros((0, 2), int), weights=np.zeros((0, 2)), masks=masks(2))
    found |= measures.controls(none, none, allowed=np.zeros((0, 2), bool), masks=masks(2), gallery_images=masks(2))
    assert len(found) == 7 and all(np.isnan(v) for v in found.values())


def test_drift_is_none_for_a_rotation_and_large_for_a_new_draw():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 8)), rng.normal(size=(60, 8))
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    patient = np.arange(60) // 6
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert measures.neighbour_drift(x, x @ turn, patient) < 0.02
    assert measures.neighbour_drift(x, x, patient) == 0
    assert measures.neighbour_drift(x, y, patient) > 0.6


def test_drift_looks_at_other_patients_only():
    x = np.eye(8, dtype=np.float32)[np.repeat(np.arange(4), 3)]  # slices of a patient are alike
    patient = np.repeat(np.arange(4), 3)
    near = np.asarray(measures._neighbours(x, patient, 5))
    assert (patient[near] != patient[:, None]).all()
