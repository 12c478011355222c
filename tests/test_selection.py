"""Selection strategies: weights on the simplex, no forbidden row, no order of rows that matters, exact gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from jras_jax.errors import UserError
from jras_jax.retrieval import selection

QUERIES, ROWS, K, TEMPERATURE = 3, 9, 3, 0.2


def case(seed, rows=ROWS, forbidden=0.4):
    """Similarities (B, N) and allowed (B, N), at least K allowed in every row; the best row is often forbidden."""
    rng = np.random.default_rng(seed)
    similarity = rng.uniform(-1, 1, (QUERIES, rows)).astype(np.float32)
    allowed = rng.random((QUERIES, rows)) > forbidden
    np.put_along_axis(allowed, similarity.argmax(1)[:, None], False, 1)
    for row in range(QUERIES):
        others = np.setdiff1d(np.arange(rows), similarity[row].argmax())
        allowed[row, rng.choice(others, K, replace=False)] = True
    return jnp.asarray(similarity), jnp.asarray(allowed)


def chosen(similarity, allowed, strategy, seed=0, k=K):
    key = jax.random.key(seed)
    return selection.select(similarity, allowed, strategy=strategy, k=k, temperature=TEMPERATURE, key=key)


@pytest.mark.parametrize("strategy", selection.STRATEGIES)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_weights_lie_on_the_simplex_and_no_forbidden_row_has_any(strategy, seed):
    similarity, allowed = case(seed)
    indices, weights = (np.asarray(x) for x in chosen(similarity, allowed, strategy=strategy, seed=seed))
    np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-6)
    assert (weights >= 0).all()
    permitted = np.take_along_axis(np.asarray(allowed), indices, 1)
    if strategy == "softmax":  # it lists all rows
        assert (weights[~permitted] == 0).all()
    else:
        assert permitted.all()
        assert all(len(set(row)) == K for row in indices)


@pytest.mark.parametrize("strategy", [s for s in selection.STRATEGIES if s not in selection.NEEDS_KEY])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_the_order_of_the_rows_does_not_matter(strategy, seed):
    similarity, allowed = case(seed)
    order = np.random.default_rng(seed).permutation(ROWS)
    a = chosen(similarity, allowed, strategy)
    b = chosen(similarity[:, order], allowed[:, order], strategy)
    np.testing.assert_allclose(spread(a.indices, a.weights)[:, order], spread(b.indices, b.weights), atol=1e-6)


@pytest.mark.parametrize("strategy", selection.NEEDS_KEY)
def test_the_order_of_the_rows_does_not_matter_where_their_noise_moves_with_them(strategy):
    similarity, allowed = case(1)
    noise = selection.ranking_noise(strategy, QUERIES, rows=ROWS, temperature=TEMPERATURE, key=jax.random.key(3))
    order = np.random.default_rng(1).permutation(ROWS)
    a = selection.pick(similarity, allowed, noise=noise, strategy=strategy, k=K)
    b = selection.pick(similarity[:, order], allowed[:, order], noise=noise[:, order], strategy=strategy, k=K)
    np.testing.assert_array_equal(a, order[np.asarray(b)])


def spread(indices, weights):
    """(B, K) indices and weights -> (B, N) weights."""
    out = np.zeros((QUERIES, ROWS))
    np.put_along_axis(out, np.asarray(indices), np.asarray(weights), 1)
    return out


@pytest.mark.parametrize("strategy", ["top_k", "sparsemax", "softmax", "oracle"])
@pytest.mark.parametrize("seed", range(4))
def test_gradient_equals_finite_differences(strategy, seed):
    similarity, allowed = case(seed)
    similarity = similarity * 0.2  # near one another, so that sparsemax keeps several
    value = jnp.asarray(np.random.default_rng(seed).normal(size=ROWS), jnp.float32)
    direction = jnp.asarray(np.random.default_rng(seed + 9).normal(size=similarity.shape), jnp.float32)

    def outcome(s):
        indices, weights = chosen(s, allowed, strategy)
        return jnp.sum(weights * value[indices])

    exact = jnp.vdot(jax.grad(outcome)(similarity), direction)
    step = 1e-3
    measured = (outcome(similarity + step * direction) - outcome(similarity - step * direction)) / (2 * step)
    assert abs(exact) > 1e-3
    np.testing.assert_allclose(exact, measured, rtol=2e-2, atol=2e-3)


def test_gumbel_weights_are_equal_but_have_the_gradient_of_the_soft_ones():
    similarity, allowed = case(5)
    noise = selection.ranking_noise("gumbel_top_k", QUERIES, rows=ROWS, temperature=TEMPERATURE, key=jax.random.key(0))
    indices = selection.pick(similarity, allowed, noise=noise, strategy="gumbel_top_k", k=K)
    near, own = (jnp.take_along_axis(x, indices, 1) for x in (similarity, noise))
    value = jnp.arange(1.0, K + 1)
    all_there = jnp.ones(near.shape, bool)
    hard = lambda s: selection.weigh(s, own, all_there, strategy="gumbel_top_k", temperature=TEMPERATURE)  # noqa: E731
    soft = lambda s: jax.nn.softmax((s + own) / TEMPERATURE)  # noqa: E731
    np.testing.assert_allclose(hard(near), 1 / K, atol=1e-6)
    gradients = [jax.grad(lambda s, f=f: jnp.sum(f(s) * value))(near) for f in (hard, soft)]
    assert np.abs(gradients[1]).max() > 1e-2
    np.testing.assert_allclose(*gradients, atol=1e-6)


def test_gumbel_draws_rows_in_proportion_to_their_softmax():
    similarity = jnp.asarray([[0.3, 0.1, 0.0, -0.2]])
    allowed = jnp.ones_like(similarity, bool)
    draw = lambda key: selection.select(  # noqa: E731
        similarity, allowed, strategy="gumbel_top_k", k=1, temperature=TEMPERATURE, key=key
    ).indices[0, 0]
    drawn = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), 4000)))
    share = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(share, jax.nn.softmax(similarity[0] / TEMPERATURE), atol=0.03)


def test_gumbel_without_a_key_takes_the_best():
    similarity, allowed = case(2)
    drawn = selection.select(similarity, allowed, strategy="gumbel_top_k", k=K, temperature=TEMPERATURE)
    best = chosen(similarity, allowed, "top_k")
    np.testing.assert_array_equal(drawn.indices, best.indices)


@pytest.mark.parametrize("strategy", selection.NEEDS_KEY)
def test_noise_of_a_row_does_not_depend_on_the_padding_behind_it(strategy):
    key = jax.random.key(4)
    short = selection.ranking_noise(strategy, QUERIES, rows=ROWS, temperature=TEMPERATURE, key=key)
    long = selection.ranking_noise(strategy, QUERIES, rows=ROWS + 7, temperature=TEMPERATURE, key=key)
    np.testing.assert_array_equal(short, long[:, :ROWS])
    assert len(np.unique(short)) == short.size


@pytest.mark.parametrize("strategy", selection.NEEDS_KEY)
def test_another_key_draws_other_rows(strategy):
    similarity, allowed = case(0, rows=200, forbidden=0.1)
    a, b = (chosen(similarity * 0.01, allowed, strategy=strategy, seed=seed).indices for seed in (0, 1))
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("strategy", ["top_k", "sparsemax", "oracle"])
def test_ties_go_to_the_lowest_row(strategy):
    similarity = jnp.asarray([[0.5, 0.9, 0.5, 0.9, 0.5]])
    indices, weights = chosen(similarity, similarity > 0, strategy)
    assert indices.tolist() == [[1, 3, 0]]
    assert weights[0, 0] == weights[0, 1]


@pytest.mark.parametrize("strategy", selection.STRATEGIES)
def test_more_guides_than_rows_is_refused(strategy):
    similarity, allowed = case(0)
    if strategy == "softmax":  # takes all rows, whatever k says
        assert chosen(similarity, allowed, strategy, k=ROWS + 1).weights.shape == (QUERIES, ROWS)
        return
    with pytest.raises(UserError, match=rf"top_k={ROWS + 1}.*{ROWS} slices"):
        chosen(similarity, allowed, strategy, k=ROWS + 1)


def test_an_unknown_strategy_is_refused_and_the_known_are_named():
    similarity, allowed = case(0)
    with pytest.raises(UserError, match=r"nearest.*top_k"):
        chosen(similarity, allowed, "nearest")


@given(logits=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=7))
@settings(max_examples=60, deadline=None)
def test_sparsemax_is_the_projection_onto_the_simplex(logits):
    z = np.asarray(logits, np.float64)
    # The projection is max(z - t, 0) for the one t at which the sum is 1.
    threshold = scipy.optimize.brentq(lambda t: np.maximum(z - t, 0).sum() - 1, z.min() - 1, z.max())
    np.testing.assert_allclose(selection.sparsemax(jnp.asarray(z)), np.maximum(z - threshold, 0), atol=1e-5)


def test_no_point_of_the_simplex_is_nearer_than_sparsemax():
    rng = np.random.default_rng(0)
    z = rng.normal(size=4)
    ours = np.asarray(selection.sparsemax(jnp.asarray(z)))
    others = rng.dirichlet(np.full(4, 0.5), 20_000)
    assert np.square(others - z).sum(1).min() >= np.square(ours - z).sum() - 1e-6


def test_sparsemax_gives_some_rows_nothing_where_softmax_gives_all_something():
    logits = jnp.asarray([3.0, 2.5, 0.0])
    assert selection.sparsemax(logits).tolist() == pytest.approx([0.75, 0.25, 0.0])
    assert (jax.nn.softmax(logits) > 0).all()


@pytest.mark.parametrize("strategy", [s for s in selection.STRATEGIES if s != "softmax"])
def test_where_the_rule_leaves_fewer_rows_than_guides_the_rest_weigh_nothing(strategy):
    similarity = jnp.asarray([[0.9, 0.8, 0.1, 0.0], [0.9, 0.8, 0.1, 0.0]])
    allowed = jnp.asarray([[False, False, True, False], [False, False, True, True]])
    indices, weights = chosen(similarity, allowed, strategy)
    assert np.take_along_axis(np.asarray(allowed), np.asarray(indices), 1).all()
    np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-6)
    if strategy != "random":
        assert weights[0].tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_weights_of_gumbel_top_k_are_exactly_equal():
    """Whatever the compiler makes of it: the softmax gives the gradient, and nothing of it is left in the value."""
    for k in (2, 3, 5, 7):
        rng = np.random.default_rng(k)
        near, noise = (jnp.asarray(rng.normal(size=(500, k)), jnp.float32) for _ in range(2))
        weigh = functools.partial(selection.weigh, strategy="gumbel_top_k", temperature=0.1)
        weights = jax.jit(weigh)(near, noise, jnp.ones((500, k), bool))
        assert (np.asarray(weights) == np.float32(1 / k)).all()
