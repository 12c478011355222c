"""Contrastive losses against brute force, their limits, and gradients that stay finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax.retrieval import losses as retrieval_losses


def unit(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def nt_xent_by_loops(a, b, temperature, ignore):
    z, n = np.concatenate([a, b]).astype(np.float64), len(a)
    losses = []
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        compared = [j for j in range(2 * n) if j != i and (j == partner or not ignore[i % n, j % n])]
        logits = np.array([z[i] @ z[j] / temperature for j in compared])
        losses.append(np.log(np.exp(logits).sum()) - z[i] @ z[partner] / temperature)
    return np.mean(losses)


@pytest.mark.parametrize(("seed", "temperature"), [(0, 0.1), (1, 0.1), (2, 2.0)])
def test_nt_xent_equals_its_definition(seed, temperature):
    a, b = unit(5, 8, seed=seed), unit(5, 8, seed=seed + 50)
    patient = np.array([0, 0, 1, 2, 2])
    ignore = patient[:, None] == patient[None]
    for rule in (np.zeros((5, 5), bool), ignore):
        loss, _ = retrieval_losses.nt_xent(a, b, temperature=temperature, ignore=jnp.asarray(rule))
        np.testing.assert_allclose(loss, nt_xent_by_loops(a, b, temperature=temperature, ignore=rule), rtol=1e-5)
    without, _ = retrieval_losses.nt_xent(a, b, temperature=temperature)
    np.testing.assert_allclose(
        without, nt_xent_by_loops(a, b, temperature=temperature, ignore=np.eye(5, dtype=bool) & False), rtol=1e-5
    )


def test_nt_xent_of_perfect_pairs_is_near_zero_and_finds_every_partner():
    a = jnp.eye(6)
    loss, accuracy = retrieval_losses.nt_xent(a, a, temperature=0.05)
    assert loss < 1e-6 and accuracy == 1
    loss, accuracy = retrieval_losses.nt_xent(a, jnp.roll(a, 1, 0), temperature=0.05)
    assert loss > 10 and accuracy == 0


def test_slices_of_one_patient_do_not_push_each_other_away():
    a, b = unit(4, 8), unit(4, 8, seed=1)
    everyone = jnp.ones((4, 4), bool)
    loss = lambda a: retrieval_losses.nt_xent(a, b, temperature=0.1, ignore=everyone)[0]  # noqa: E731
    assert loss(a) == 0  # a pair's partner is all that it is compared with
    np.testing.assert_allclose(jax.grad(loss)(a), 0, atol=1e-6)
    assert retrieval_losses.nt_xent(a, b, temperature=0.1, ignore=everyone)[1] == 1


def test_candidate_loss_equals_its_definition():
    similarity = np.random.default_rng(0).uniform(-1, 1, (3, 5)).astype(np.float32)
    judged = np.random.default_rng(1).uniform(0, 2, (3, 5)).astype(np.float32)
    p = np.exp(similarity / 0.2) / np.exp(similarity / 0.2).sum(1, keepdims=True)
    helps = judged < judged.mean(1, keepdims=True)
    want = -np.log((p * helps).sum(1)).mean()
    ours = retrieval_losses.candidate_loss(jnp.asarray(similarity), jnp.asarray(judged), temperature=0.2)
    np.testing.assert_allclose(ours, want, rtol=1e-5)


def test_candidate_loss_pulls_helpers_and_pushes_the_others():
    similarity, judged = jnp.zeros((1, 4)), jnp.asarray([[0.1, 0.2, 0.9, 1.0]])
    slope = jax.grad(lambda s: retrieval_losses.candidate_loss(s, judged, temperature=0.1))(similarity)[0]
    assert (slope[:2] < 0).all() and (slope[2:] > 0).all()


def test_candidates_that_are_all_alike_teach_nothing():
    similarity, judged = unit(2, 4), jnp.asarray([[1.0] * 4, [0.0, 1.0, 1.0, 1.0]])
    loss = lambda s: retrieval_losses.candidate_loss(s, judged, temperature=0.1)  # noqa: E731
    slope = jax.grad(loss)(similarity)
    assert np.isfinite(slope).all() and (slope[0] == 0).all() and (slope[1] != 0).any()


def test_candidates_are_all_alike_although_their_mean_is_rounded_up():
    judged = jnp.full((1, 3), 1.1)
    assert (judged < judged.mean(-1, keepdims=True)).all()
    loss, slope = jax.value_and_grad(lambda s: retrieval_losses.candidate_loss(s, judged, temperature=0.1))(unit(1, 3))
    assert loss == 0 and (slope == 0).all()


def test_overlap_loss_is_a_divergence():
    overlap = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (3, 6)), jnp.float32)
    allowed = jnp.asarray(np.random.default_rng(1).random((3, 6)) > 0.3).at[:, :2].set(True)
    ours = lambda s: retrieval_losses.overlap_loss(s, overlap, allowed, temperature=0.1, sharpness=0.05)  # noqa: E731
    agreeing = overlap * (0.1 / 0.05)
    np.testing.assert_allclose(ours(agreeing), 0, atol=1e-5)
    np.testing.assert_allclose(jax.grad(ours)(agreeing), 0, atol=1e-5)
    for seed in range(5):
        assert ours(unit(3, 6, seed=seed)) > 0.01


def test_overlap_loss_does_not_see_forbidden_rows():
    similarity, overlap = unit(2, 6), jnp.abs(unit(2, 6, seed=1))
    allowed = jnp.asarray([[True, True, False, True, False, True]] * 2)
    loss = lambda s, o: retrieval_losses.overlap_loss(s, o, allowed, temperature=0.1, sharpness=0.05)  # noqa: E731
    changed = jnp.where(allowed, 0.0, 1.0)
    np.testing.assert_allclose(loss(similarity, overlap), loss(similarity + changed, overlap + changed), rtol=1e-6)
    slope = jax.grad(loss)(similarity, overlap)
    assert (np.asarray(slope)[~np.asarray(allowed)] == 0).all() and np.isfinite(slope).all()
