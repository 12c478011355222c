"""Every config: its model is built at full size (by shapes); at reduced size it starts and trains for two steps."""

import dataclasses
import functools
import itertools
import json
import pathlib

import jax
import numpy as np
import pytest

from jras_jax import config as configs
from jras_jax import mesh, models
from jras_jax.data.slice_table import SliceTable
from jras_jax.inference.embedder import Embedder
from jras_jax.joint.build import build_model, init_variables
from jras_jax.retrieval.gallery import gallery_from_table, with_embeddings
from jras_jax.training import state, step

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").glob("*.py"))
# Compiling takes nearly all of the time here, and what is compiled runs twice.
QUICK = {"xla_backend_optimization_level": 0}
SIDE, BATCH, PATIENTS, SLICES = 32, 2, 3, 2
# How each backbone gets small; options that a config sets and that matter (deep supervision, LoRA) stay.
SMALL = {
    "unet": ("", {"base_channels": 4, "levels": 4}),
    "segformer": ("b0", {"depths": (1, 1, 1, 1), "widths": (8, 16, 20, 32), "decoder_width": 16}),
    "transunet": ("tiny", {"depth": 1, "decoder_stem": 16, "decoder_widths": (16, 8, 8, 8)}),
    "sam": ("tiny", {"depth": 1, "global_blocks": (0,), "width": 32, "neck": 32, "decoder_heads": 2}),
}


@functools.cache
def parsed(file):
    return configs.parse(configs.load(file))


def reduced(config):
    """The config at a size for two cores; what is left of it decides what the steps do."""
    variant, options = SMALL[config.backbone.name]
    default = configs.Config()
    return dataclasses.replace(
        config,
        name="reduced",
        dataset=dataclasses.replace(default.dataset, image_size=SIDE),
        backbone=dataclasses.replace(config.backbone, variant=variant, options={**config.backbone.options, **options}),
        retriever=dataclasses.replace(config.retriever, variant="tiny", image_size=16),
        optim=dataclasses.replace(config.optim, lr_backbone=1e-3, lr_retriever=1e-3, warmup_steps=0),
        train=dataclasses.replace(default.train, dtype="float32", batch_size=BATCH, num_steps=100),
        eval=default.eval,
    )


def built(config):
    """Model, shapes of the variables, and the group of each parameter."""
    model = build_model(config)
    shapes = jax.eval_shape(lambda: init_variables(model, config))
    return model, shapes, state.parameter_groups(shapes["params"], config.backbone.frozen, config.retriever)


def table():
    """Discs of three brightnesses around a shifting centre: slices that can be learnt."""
    rows = PATIENTS * SLICES
    y, x = np.mgrid[:SIDE, :SIDE]
    radius = np.hypot(y - 15.5, (x - 12 - np.arange(rows)[:, None, None]))
    masks = np.digitize(radius, (4, 7, 10)).astype(np.uint8)
    masks = np.array([3, 2, 1, 0], np.uint8)[masks]
    return SliceTable(
        images=(60 * masks + 20).astype(np.uint8),
        masks=masks,
        case=np.repeat(np.arange(PATIENTS, dtype=np.int32), SLICES),
        patient=np.repeat(np.arange(PATIENTS, dtype=np.int32), SLICES),
        phase=np.zeros(rows, np.int32),
        slice_index=np.tile(np.arange(SLICES, dtype=np.int32), PATIENTS),
        position=np.tile(np.linspace(0, 1, SLICES, dtype=np.float32), PATIENTS),
        vendor=np.zeros(rows, np.int32),
        neighbours=np.full((rows, 2), -1, np.int32),
        cases=tuple("abc"),
        patients=tuple("abc"),
        vendors=("v",),
    )


@functools.cache
def trained(text):
    """Metrics of two steps on one batch, the largest change of each parameter, its group, and the steps counted.

    Cached, as the configs of two data sets share a model.
    """
    config = configs.parse(json.loads(text))
    with jax.default_prng_impl("rbg"):  # compiles in a fraction of the default's time
        model, _, groups = built(config)
        device_mesh = mesh.make_mesh(1, 1, jax.devices()[:1])
        initial = jax.jit(lambda: init_variables(model, config)).lower().compile(QUICK)()
        before = jax.tree.map(np.array, initial)
        now, tx, shardings = state.create_state(model, config, device_mesh=device_mesh, initial=before)
        gallery, cache = gallery_of(table(), model, config=config, device_mesh=device_mesh, variables=now.variables)
        batch = mesh.put_rows(device_mesh, batch_of(table()))
        compiled = step.compile_step(
            step.make_step(model, tx, config=config, device_mesh=device_mesh), shardings, device_mesh
        )
        compiled = compiled.lower(now, batch, gallery, cache, False).compile(QUICK)
        history = []
        for _ in range(2):
            now, metrics = compiled(now, batch, gallery, cache)
            history.append({name: float(value) for name, value in metrics.items()})
    moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), now.params, before["params"])
    return history, moved, groups, int(now.step)


def gallery_of(rows, model, config, device_mesh, variables):
    """The gallery of these rows with random embeddings, and the frozen states that a run would keep."""
    embeddings = np.random.default_rng(0).normal(size=(len(rows), config.retriever.dim)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
    gallery = gallery_from_table(rows, config.retriever.dim, device_mesh)
    gallery = with_embeddings(gallery, embeddings, device_mesh)
    if config.retriever.trained_blocks < 0:
        return gallery, None
    return gallery, Embedder(model, device_mesh, batch_size=len(rows), images=rows.images).states(variables)


def batch_of(rows):
    """The first slices of the first patients."""
    chosen = np.arange(0, BATCH * SLICES, SLICES, dtype=np.int32)
    batch = {"image": rows.images[chosen], "mask": rows.masks[chosen]}
    batch |= {"whole": rows.images[chosen], "whole_mask": rows.masks[chosen]}
    return batch | {"patient": rows.patient[chosen], "row": chosen}


def test_every_backbone_has_a_config_for_each_data_set():
    there = {(parsed(file).dataset.name, parsed(file).backbone.name) for file in FILES}
    assert there >= set(itertools.product(("acdc", "mnms"), models.NAMES))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_full_size_model_has_parameters_that_train(file):
    config = parsed(file)
    _, shapes, groups = _built_once(_without_data(config))
    located = {"locator"} if config.dataset.frame == "heart" else set()
    assert {"backbone", "retriever"} | located <= set(jax.tree.leaves(groups))
    assert set(shapes["params"]) == {"backbone", "retriever", "fusion"} | located
    kernels = {leaf.dtype for leaf in jax.tree.leaves(shapes["params"])}
    assert kernels == {np.dtype("float32")}
    frozen = [name for name in groups["backbone"].values() if "frozen" in set(jax.tree.leaves(name))]
    assert bool(frozen) == bool(config.backbone.frozen)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_two_steps_train_what_should_train(file):
    history, moved, groups, steps = trained(_without_data(reduced(parsed(file))))
    assert steps == 2
    for metrics in history:
        assert all(np.isfinite(value) for value in metrics.values()), metrics
        assert metrics["grad_norm"] > 0
    flat = list(zip(jax.tree.leaves(groups), jax.tree.leaves(moved), strict=True))
    assert not any(change for group, change in flat if group == "frozen")
    for wanted in ("backbone", "retriever", "locator"):
        changes = np.array([change for group, change in flat if group == wanted])
        assert np.mean(changes > 0) > 0.5, wanted


def _without_data(config):
    """The config as text, without what tells its data set: configs with one model share it."""
    config = dataclasses.replace(config, name="any", dataset=dataclasses.replace(config.dataset, name="phantom"))
    return json.dumps(dataclasses.asdict(config))


@functools.cache
def _built_once(text):
    return built(configs.parse(json.loads(text)))
