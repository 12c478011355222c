"""Losses: perfect, disjoint and uniform cases, bounds, invariances, deep supervision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax.joint import losses


def labels(seed=0, b=3, s=12):
    return jax.random.randint(jax.random.key(seed), (b, s, s), 0, 4)


def test_perfect_is_zero_and_disjoint_near_one():
    t = jax.nn.one_hot(labels(), 4)
    assert float(losses.soft_dice(t, t)) == pytest.approx(0.0, abs=1e-6)
    wrong = jnp.roll(t, 1, -1)
    assert 0.95 < float(losses.soft_dice(wrong, t)) <= 1.0


def test_soft_dice_is_the_formula():
    p = np.asarray(jax.nn.softmax(jax.random.normal(jax.random.key(1), (3, 12, 12, 4))))
    t = np.eye(4)[np.asarray(labels())]
    want = 1 - np.mean(
        [(2 * (p[..., c] * t[..., c]).sum() + 1) / (p[..., c].sum() + t[..., c].sum() + 1) for c in range(4)]
    )
    assert float(losses.soft_dice(jnp.asarray(p), jnp.asarray(t))) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("batch", [True, False])
def test_order_of_the_batch_does_not_matter(batch):
    p, t = jax.nn.softmax(jax.random.normal(jax.random.key(2), (3, 8, 8, 4))), jax.nn.one_hot(labels(s=8), 4)
    a, b = losses.soft_dice(p, t, batch=batch), losses.soft_dice(p[::-1], t[::-1], batch=batch)
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_weights_remove_slices():
    logits, t = jax.random.normal(jax.random.key(3), (3, 8, 8, 4)), labels(s=8)
    w = jnp.array([1.0, 0.0, 1.0])
    kept = jnp.array([0, 2])
    a = losses.cross_entropy(logits, t, w)
    np.testing.assert_allclose(a, losses.cross_entropy(logits[kept], t[kept]), rtol=1e-6)
    p, one = jax.nn.softmax(logits), jax.nn.one_hot(t, 4)
    np.testing.assert_allclose(losses.soft_dice(p, one, weights=w), losses.soft_dice(p[kept], one[kept]), rtol=1e-5)


def test_uniform_logits_cost_log_classes():
    assert float(losses.cross_entropy(jnp.zeros((2, 4, 4, 4)), labels(b=2, s=4))) == pytest.approx(np.log(4), rel=1e-6)


def test_deep_supervision_weighs_and_normalises():
    full, half = jax.random.normal(jax.random.key(4), (2, 8, 8, 4)), jax.random.normal(jax.random.key(5), (2, 4, 4, 4))
    t = labels(b=2, s=8)
    a, _ = losses.segmentation_loss(full, t)
    b, _ = losses.segmentation_loss(half, t)
    both, parts = losses.segmentation_loss((full, half), t, deep_weight=0.5)
    assert float(both) == pytest.approx((float(a) + 0.5 * float(b)) / 1.5, rel=1e-5)
    assert float(parts["dice_loss"] + parts["ce_loss"]) == pytest.approx(float(a), rel=1e-5)


def test_per_slice_loss_ranks_slices():
    t = labels(b=2, s=8)
    good = 10.0 * jax.nn.one_hot(t, 4)
    out = losses.per_slice_loss(jnp.stack([good[0], -good[1]]), t)
    assert out.shape == (2,) and out[0] < 0.01 < out[1]


def test_hard_dice_counts_absent_classes_as_perfect():
    t = jnp.zeros((1, 4, 4), jnp.int32).at[0, 0].set(1)
    out = losses.hard_dice(t, t, 4)
    np.testing.assert_allclose(out, [1, 1, 1])
    np.testing.assert_allclose(losses.hard_dice(jnp.zeros_like(t), t, 4), [0, 1, 1])
