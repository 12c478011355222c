"""Passes of a step in parts and with recomputation: the same loss and gradient, and less that is kept."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax import joint, kernels, mesh
from jras_jax.commands import cli
from jras_jax.errors import UserError
from jras_jax.joint.build import build_model, init_variables
from jras_jax.retrieval.gallery import Gallery
from jras_jax.training import step
from jras_jax.training.passes import Passes

SIDE, BATCH, ROWS = 32, 4, 12
QUICK = {"xla_backend_optimization_level": 0}
SMALL = {"backbone__options__base_channels": 4, "backbone__options__deep_supervision": True, "retriever__hidden": 16}
SMALL |= {"retriever__dim": 8, "retriever__dropout": 0.0, "retrieval__contrast_weight": 0.5, "train__batch_size": BATCH}


class Loss:
    """The joint loss of a small run, with all its terms."""

    def __init__(self, config):
        rng = np.random.default_rng(0)
        self.config, self.model = config, build_model(config)
        self.variables = jax.jit(lambda: init_variables(self.model, config))()
        pixels = lambda n: jnp.asarray(rng.integers(0, 255, (n, SIDE, SIDE)), jnp.uint8)  # noqa: E731
        labels = lambda n: jnp.asarray(rng.integers(0, 4, (n, SIDE, SIDE)), jnp.uint8)  # noqa: E731
        embeddings = rng.normal(size=(ROWS, config.retriever.dim)).astype(np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        whose = jnp.arange(ROWS, dtype=jnp.int32) // 3
        self.gallery = Gallery(
            jnp.asarray(embeddings), pixels(ROWS), masks=labels(ROWS), patient=whose, valid=jnp.ones(ROWS, bool)
        )
        self.batch = {"image": pixels(BATCH), "mask": labels(BATCH), "patient": whose[:BATCH]}
        self.batch["row"] = jnp.arange(BATCH, dtype=jnp.int32)

    def __call__(self, params):
        c = self.config
        terms = step.LossTerms(
            Passes.of(self.model.apply, c.train, None),
            self.model.num_classes,
            augment=c.augment,
            retrieval=c.retrieval,
            loss=c.loss,
            mesh=None,
        )
        key = jax.random.key(0)
        return step.joint_loss(
            params, {}, batch=self.batch, gallery=self.gallery, cache=None, key=key, terms=terms, contrast=True
        )

    def gradient(self):
        jitted = jax.jit(jax.value_and_grad(self, has_aux=True))
        (loss, (metrics, _)), grads = jitted.lower(self.variables["params"]).compile(QUICK)(self.variables["params"])
        return float(loss), {k: float(v) for k, v in metrics.items()}, grads


@pytest.fixture(scope="module")
def whole(tiny):
    return Loss(tiny.config(**SMALL)).gradient()


@pytest.mark.parametrize(
    "change", [{"microbatches": 2}, pytest.param({"microbatches": 4, "remat": True}, marks=pytest.mark.slow)], ids=str
)
def test_loss_and_gradient_are_those_of_the_whole_batch(tiny, whole, change):
    """Batch Dice, deep supervision, overlap and contrast included."""
    config = tiny.config(**SMALL)
    loss, metrics, grads = Loss(
        dataclasses.replace(config, train=dataclasses.replace(config.train, **change))
    ).gradient()
    assert {"overlap_loss", "contrast_loss", "dice_loss"} <= metrics.keys()
    assert loss == pytest.approx(whole[0], abs=1e-6)
    for name, value in metrics.items():
        assert value == pytest.approx(whole[1][name], abs=1e-6), name
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(whole[2]))
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(whole[2]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6 * max(1.0, largest))


@pytest.mark.parametrize(("devices", "parts"), [(1, 4), (2, 2), (8, 2), (4, 1)])
def test_every_part_has_slices_of_every_device(devices, parts):
    made = mesh.make_mesh(devices, 1, jax.devices()[:devices])
    x = jnp.arange(16)[:, None] * jnp.ones((1, 3), jnp.int32)

    def apply(variables, x, train, method):
        return x + variables

    passes = Passes(apply, parts, remat=False, mesh=made)
    split = passes._split(x)
    assert split.shape == (parts, 16 // parts, 3)
    for part in np.asarray(split)[..., 0]:
        assert len({int(row) // (16 // devices) for row in part}) == devices
    np.testing.assert_array_equal(passes._join(split), x)
    out, _ = jax.jit(lambda x: passes(1, (x,), method="", key=None))(jax.device_put(x, mesh.by_rows(made)))
    np.testing.assert_array_equal(out, x + 1)


def test_what_cannot_be_split_is_refused(tiny):
    with pytest.raises(
        UserError, match=r"config.train.microbatches=2: must be 1 with backbone.name='segformer'.*remat"
    ):
        tiny.config(backbone__name="segformer", train__microbatches=2)
    train = dataclasses.replace(tiny.config().train, batch_size=6, microbatches=4)
    with pytest.raises(UserError, match=r"microbatches=4 does not divide the 6 slices .*batch_size=6"):
        Passes.of(None, train, None)


def kept_bytes(capsys, config):
    """Bytes that JAX keeps between a forward and a backward pass on an accelerator, its arguments left out."""
    model = build_model(config)
    variables = jax.jit(lambda: init_variables(model, config))()
    passes = Passes.of(model.apply, config.train, None)
    guides = joint.first_guides(BATCH, k=2, size=SIDE, num_classes=4)

    def loss(params):
        images = jnp.ones((BATCH, SIDE, SIDE))
        logits, _ = passes({"params": params}, (images, guides), method="segment", key=jax.random.key(0))
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(logits))

    with kernels.using("reference"):
        jax.ad_checkpoint.print_saved_residuals(loss, variables["params"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "argument" not in line]
    sizes = re.findall(rf"^f32\[{BATCH},([\d,]+)\]", "\n".join(lines), re.M)
    return sum(4 * BATCH * int(np.prod([int(n) for n in size.split(",")])) for size in sizes)


def test_recomputation_keeps_less(tiny, capsys):
    config = tiny.config(**SMALL)
    remat = dataclasses.replace(config, train=dataclasses.replace(config.train, remat=True))
    plain, less = kept_bytes(capsys, config), kept_bytes(capsys, remat)
    assert 0 < less < 0.6 * plain


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", "microbatches=2.*remat=True.*train.batch_size.*eval.batch_size"),
        ("predict", "lower config.eval.batch_size"),
    ],
)
def test_used_up_memory_is_one_line_that_says_what_to_do(monkeypatch, capsys, command, words):
    def full(*arguments):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1073741824 bytes.\nmore lines")

    monkeypatch.setattr(cli, "_run", full)
    assert cli.main([command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"error: the memory is used up \(1073741824 bytes more were needed\): .*{words}.*", line)
