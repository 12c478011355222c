"""Fusion: shapes, identity at the start, guides as a set, and the gradient that teaches the retriever."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax.errors import UserError
from jras_jax.joint import controls, fusion
from jras_jax.retrieval import selection
from jras_jax.retrieval.gallery import Guides

B, S, C, ROWS, DIM = 2, 16, 4, 6, 8
SIZES, WIDTHS = (8, 4), (6, 10)  # feature maps: side and channels
KINDS = tuple(fusion.KINDS)
DIFFERENTIABLE = ("top_k", "softmax", "gumbel_top_k", "sparsemax")
AT_INIT_IDENTITY = ("adapter", "cross_attention", "prototype", "prior")


def create(kind):
    return fusion.create(kind, **({"levels": (0, 1)} if kind in fusion.ON_FEATURES else {}))


def guides(k, seed=0, weights=None):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, (B, k, S // 4, S // 4)).repeat(4, 2).repeat(4, 3)
    weights = rng.dirichlet(np.ones(k), B) if weights is None else weights
    return Guides(
        images=jnp.asarray(rng.normal(size=(B, k, S, S)), jnp.float32),
        masks=jax.nn.one_hot(labels, C),
        weights=jnp.asarray(weights, jnp.float32),
        indices=jnp.zeros((B, k), jnp.int32),
        similarity=jnp.zeros((B, k)),
    )


def maps(k=None, seed=1):
    rng = np.random.default_rng(seed)
    lead = (B,) if k is None else (B, k)
    return tuple(
        jnp.asarray(rng.normal(size=(*lead, s, s, w)), jnp.float32) for s, w in zip(SIZES, WIDTHS, strict=True)
    )


def all_places(kind, variables, query, query_maps, guide_maps, shown):
    """(fused input, fused features, fused logits)."""
    module = create(kind)
    fused = module.apply(variables, query, shown, method="fuse_input")
    features = module.apply(variables, query_maps, guide_maps, shown, method="fuse_features")
    return fused, features, module.apply(variables, logits(), shown, method="fuse_logits")


@functools.cache
def initial(kind, k):
    """Parameters of whichever place the kind has."""
    module, shown = create(kind), guides(k)
    method, args = "fuse_input", (query(), shown)
    if module.needs_guide_features:
        method, args = "fuse_features", (maps(), maps(k), shown)
    elif kind == "prior":
        method, args = "fuse_logits", (logits(), shown)
    return module.init(jax.random.key(0), *args, method=method)


def perturbed(variables, seed=3):
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(seed), max(len(leaves), 1))
    moved = [x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=False)]
    return jax.tree.unflatten(tree, moved)


def logits():
    return jnp.asarray(np.random.default_rng(6).normal(size=(B, S, S, C)), jnp.float32)


def query(channels=1):
    return jnp.asarray(np.random.default_rng(2).normal(size=(B, S, S, channels)), jnp.float32)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes(kind, k):
    fused, features, final = all_places(
        kind, initial(kind, k), query=query(), query_maps=maps(), guide_maps=maps(k), shown=guides(k)
    )
    assert fused.shape == (B, S, S, 2 + C if kind == "concat" else 1)
    assert [f.shape for f in features] == [f.shape for f in maps()]
    assert final.shape == logits().shape
    assert all(np.isfinite(x).all() for x in (fused, *features, final))


@pytest.mark.parametrize("channels", [1, 3])
def test_concat_stacks_query_mixed_image_and_mixed_mask(channels):
    shown = guides(2)
    x = query(channels)
    fused = fusion.create("concat").apply({}, x, shown, method="fuse_input")
    w = np.asarray(shown.weights)
    np.testing.assert_array_equal(fused[..., :channels], x)
    image = np.einsum("bk,bkhw->bhw", w, shown.images)
    for channel in range(channels):
        np.testing.assert_allclose(fused[..., channels + channel], image, atol=1e-6)
    np.testing.assert_allclose(fused[..., 2 * channels :], np.einsum("bk,bkhwc->bhwc", w, shown.masks), atol=1e-6)


def test_concat_with_class_numbers_is_their_weighted_mean():
    shown = guides(2)
    fused = fusion.create("concat", mask="index").apply({}, query(), shown, method="fuse_input")
    assert fused.shape[-1] == 3
    want = np.einsum("bk,bkhw->bhw", shown.weights, shown.masks.argmax(-1))
    np.testing.assert_allclose(fused[..., 2], want, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("kind", AT_INIT_IDENTITY)
def test_a_run_begins_as_its_baseline(kind, k):
    fused, features, final = all_places(
        kind, initial(kind, k), query=query(), query_maps=maps(), guide_maps=maps(k), shown=guides(k)
    )
    np.testing.assert_array_equal(fused, query())
    for ours, plain in zip(features, maps(), strict=True):
        np.testing.assert_array_equal(ours, plain)
    np.testing.assert_array_equal(final, logits())


@pytest.mark.parametrize("kind", AT_INIT_IDENTITY)
def test_it_does_not_stay_the_identity(kind):
    fused, features, final = all_places(
        kind, perturbed(initial(kind, 2)), query=query(), query_maps=maps(), guide_maps=maps(2), shown=guides(2)
    )
    changes = [np.abs(fused - query()), np.abs(features[0] - maps()[0]), np.abs(final - logits())]
    assert max(x.max() for x in changes) > 0.01


@pytest.mark.parametrize("kind", ["concat", "cross_attention", "prototype", "prior"])
def test_guides_are_a_set(kind):
    variables, shown, shown_maps = perturbed(initial(kind, 3)), guides(3), maps(3)
    order = np.array([2, 0, 1])
    moved = jax.tree.map(lambda x: x[:, order], (shown, shown_maps))
    a = all_places(kind, variables, query=query(), query_maps=maps(), guide_maps=shown_maps, shown=shown)
    b = all_places(kind, variables, query=query(), query_maps=maps(), guide_maps=moved[1], shown=moved[0])
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_guide_of_weight_0_has_no_effect(kind):
    variables, shown, shown_maps = perturbed(initial(kind, 2)), guides(2, weights=[[1.0, 0.0]] * B), maps(2)
    other, other_maps = guides(2, seed=9), maps(2, seed=8)
    swapped = shown.replace(
        images=shown.images.at[:, 1].set(other.images[:, 1]), masks=shown.masks.at[:, 1].set(other.masks[:, 1])
    )
    swapped_maps = tuple(x.at[:, 1].set(y[:, 1]) for x, y in zip(shown_maps, other_maps, strict=True))
    a = all_places(kind, variables, query=query(), query_maps=maps(), guide_maps=shown_maps, shown=shown)
    b = all_places(kind, variables, query=query(), query_maps=maps(), guide_maps=swapped_maps, shown=swapped)
    # A guide that attention may not see keeps a millionth of the mass.
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-3 if kind == "cross_attention" else 1e-6)


def test_a_class_that_no_guide_shows_adds_nothing():
    shown = guides(2)
    without = shown.replace(masks=shown.masks.at[..., 0].add(shown.masks[..., 3]).at[..., 3].set(0))
    module, variables = create("prototype"), initial("prototype", 2)
    only_last = jax.tree.map(jnp.zeros_like, variables)
    params = only_last["params"]
    params["scale_0"] = jnp.asarray(4.0)
    params["project_0"]["kernel"] = params["project_0"]["kernel"].at[3].set(1.0)
    added = module.apply(only_last, maps(), maps(2), without, method="fuse_features")[0] - maps()[0]
    assert np.abs(added).max() == 0
    seen = module.apply(only_last, maps(), maps(2), shown, method="fuse_features")[0] - maps()[0]
    assert np.abs(seen).max() > 0.1


def test_a_trusted_prior_moves_the_logits_to_the_masks_of_the_guides():
    shown = guides(2)
    variables = jax.tree.map(jnp.zeros_like, initial("prior", 2))
    variables["params"]["gate"]["bias"] += 30.0  # certain that the guides are right
    moved = create("prior").apply(variables, logits(), shown, method="fuse_logits")
    mix = np.einsum("bk,bkhwc->bhwc", shown.weights, shown.masks)
    clear = mix.max(-1) > 0.6
    assert clear.any() and (np.argmax(moved, -1) == mix.argmax(-1))[clear].all()


@pytest.mark.parametrize("strategy", DIFFERENTIABLE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_correct_gradient_reaches_the_retriever(kind, strategy):
    """d loss / d embedding, through weights and fusion, against finite differences along a random direction.

    gumbel_top_k: its forward pass has equal weights, so the differences are those of the soft weights at that point.
    """
    rng = np.random.default_rng(4)
    k = ROWS if strategy == "softmax" else 2
    variables = perturbed(initial(kind, k))
    rows = jnp.asarray(rng.normal(size=(ROWS, DIM)) / np.sqrt(DIM), jnp.float32)
    embeddings = jnp.asarray(rng.normal(size=(B, DIM)) / np.sqrt(DIM), jnp.float32)
    direction = jnp.asarray(rng.normal(size=(B, DIM)) / np.sqrt(DIM), jnp.float32)
    every = guides(ROWS)
    every_maps = maps(ROWS)
    readout = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32),
        jax.eval_shape(
            lambda: all_places(kind, variables, query=query(), query_maps=maps(), guide_maps=maps(k), shown=guides(k))
        ),
    )
    key = jax.random.key(5)

    def selected(embeddings):
        similarity = embeddings @ rows.T
        return selection.select(
            similarity, jnp.ones_like(similarity, bool), strategy=strategy, k=k, temperature=0.5, key=key
        )

    def outcome(weights, indices):
        take = lambda x: jnp.take_along_axis(x, indices.reshape(B, k, *(1,) * (x.ndim - 2)), 1)  # noqa: E731
        shown = Guides(take(every.images), take(every.masks), weights=weights, indices=indices, similarity=weights)
        out = all_places(
            kind,
            variables,
            query=query(),
            query_maps=maps(),
            guide_maps=tuple(take(x) for x in every_maps),
            shown=shown,
        )
        return sum(jnp.vdot(x, r) for x, r in zip(jax.tree.leaves(out), jax.tree.leaves(readout), strict=True))

    @jax.jit
    def loss(embeddings):
        chosen = selected(embeddings)
        return outcome(chosen.weights, chosen.indices)

    exact = jnp.vdot(jax.grad(loss)(embeddings), direction)
    step = 3e-3
    if strategy == "gumbel_top_k":
        # The straight-through estimate is linear: weights move from 1/k as the soft ones do.
        soft = [_soft_gumbel(embeddings + s * step * direction, rows, key=key, k=k) for s in (1, -1)]
        chosen = selected(embeddings)
        moved = [chosen.weights + (x - (soft[0] + soft[1]) / 2) for x in soft]
        measured = (outcome(moved[0], chosen.indices) - outcome(moved[1], chosen.indices)) / (2 * step)
    else:
        measured = (loss(embeddings + step * direction) - loss(embeddings - step * direction)) / (2 * step)
    assert abs(exact) > 1e-2
    np.testing.assert_allclose(exact, measured, rtol=0.03, atol=0.02 * float(jnp.abs(exact)) + 1e-2)


def _soft_gumbel(embeddings, rows, key, k):
    similarity = embeddings @ rows.T
    noise = selection.ranking_noise("gumbel_top_k", B, rows=ROWS, temperature=0.5, key=key)
    indices = selection.pick(similarity, jnp.ones_like(similarity, bool), noise=noise, strategy="gumbel_top_k", k=k)
    return jax.nn.softmax(jnp.take_along_axis(similarity + noise, indices, 1) / 0.5)


def test_unknown_names_and_options_are_refused():
    with pytest.raises(UserError, match=r"fusion.name='mean'.*prototype"):
        fusion.create("mean")
    with pytest.raises(UserError, match=r"concat has no option levels"):
        fusion.create("concat", levels=(0,))
    with pytest.raises(UserError, match=r"mask='words'"):
        fusion.create("concat", mask="words").apply({}, query(), guides(1), method="fuse_input")


def _blank_outputs(kind, shown):
    """What a perturbed fusion gives; the guides' features are alike, as an encoder has them of empty images."""
    alike = tuple(jnp.broadcast_to(m[:1, :1], m.shape) for m in maps(2))
    return all_places(
        kind, perturbed(initial(kind, 2)), query=query(), query_maps=maps(), guide_maps=alike, shown=shown
    )


@pytest.mark.parametrize("kind", KINDS)
def test_blank_guides_are_finite_and_alike_whatever_they_replace(kind):
    every = jnp.ones(B, bool)
    one, other = (_blank_outputs(kind, controls.blanked(guides(2, seed), every)) for seed in (0, 7))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert bool(jnp.isfinite(a).all())
        np.testing.assert_allclose(a, b, atol=1e-5)

    def total(weights):
        shown = controls.blanked(guides(2).replace(weights=jax.nn.softmax(weights)), every)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(_blank_outputs(kind, shown)))

    np.testing.assert_allclose(jax.grad(total)(jnp.array([[0.3, -0.3]] * B)), 0.0, atol=1e-4)


def test_only_the_named_queries_are_altered_and_each_as_its_name_says():
    shown, which = guides(2), jnp.array([True, False])
    blank, moved = controls.blanked(shown, which), controls.permuted(shown, which)
    assert not blank.images[0].any() and not blank.masks[0].any()
    labels = np.asarray(shown.masks[0].argmax(-1))
    np.testing.assert_array_equal(moved.masks[0].argmax(-1), np.array([0, 2, 3, 1])[labels])
    for altered in (blank, moved):
        for a, b in zip(jax.tree.leaves(altered), jax.tree.leaves(shown), strict=True):
            np.testing.assert_array_equal(a[1], b[1])
        np.testing.assert_array_equal(altered.weights, shown.weights)
    np.testing.assert_array_equal(moved.images, shown.images)
