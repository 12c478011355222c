"""From a config to a model and its first, random variables."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jras_jax import config as configs
from jras_jax import models
from jras_jax.config import Config
from jras_jax.data.description import DatasetDescription, named
from jras_jax.joint import fusion
from jras_jax.joint.model import JointModel, Variables, first_guides
from jras_jax.retrieval.retriever import PIXELS, PixelRetriever, Retriever


def build_model(config: Config, description: DatasetDescription | None = None) -> JointModel:
    """The model that a config describes; without retrieval it has neither retriever nor fusion.

    Args:
      config: the run, whole: the sections backbone, retriever, fusion, retrieval and train all decide the model.
      description: of its data set; None: that of a data set that the project knows, by its name.

    Raises:
      UserError: a name or option that the model tables do not have.
    """
    dtype = jnp.dtype(config.train.dtype)
    description = description or named(config.dataset.name)
    num_classes, channels = description.num_classes, len(description.channels)
    options = dict(config.backbone.options)
    if config.backbone.variant:
        options["variant"] = config.backbone.variant
    backbone = models.create(config.backbone.name, num_classes=num_classes, dtype=dtype, **options)
    locator = None
    if config.dataset.frame == "heart":
        sizes: dict[str, Any] = {"base_channels": config.locator.base_channels, "levels": config.locator.levels}
        locator = models.create("unet", num_classes=num_classes, dtype=dtype, **sizes)
    retriever = fuse = None
    if config.retrieval.enabled:
        fuse_options = dict(config.fusion.options)
        if config.fusion.name in fusion.ON_FEATURES:
            fuse_options.setdefault("levels", backbone.fusion_levels)
        fuse = fusion.create(config.fusion.name, num_classes=num_classes, **fuse_options)
        retriever = build_retriever(config.retriever, dtype)
    return JointModel(
        backbone,
        retriever=retriever,
        fusion=fuse,
        in_channels=config.backbone.in_channels if channels == 1 else channels,
        guide_gradient=config.fusion.guide_gradient,
        channels=3 if config.dataset.neighbours else channels,
        locator=locator,
        neighbours=config.dataset.neighbours,
    )


def build_retriever(r: configs.Retriever, dtype: Any) -> Retriever | PixelRetriever:
    """The retriever of a config's section; `dtype` is that of its computation."""
    if r.variant == PIXELS:
        return PixelRetriever(dim=r.dim)
    return Retriever(
        variant=r.variant,
        image_size=r.image_size,
        trained_blocks=r.trained_blocks,
        lora_rank=r.lora_rank,
        pool=r.pool,
        hidden=r.hidden,
        dim=r.dim,
        dropout=r.dropout,
        dtype=dtype,
    )


def init_variables(model: JointModel, config: Config) -> Variables:
    """Random parameters by config.seed (jit-able).

    It takes the config that the model was built from: `dataset.image_size`, `retrieval.top_k` and `seed` must be its.
    """
    size, k = config.dataset.image_size, config.retrieval.top_k
    guides = None
    if model.fusion is not None:
        guides = first_guides(1, k=k, size=size, num_classes=model.num_classes, channels=model.channels)
    images = jnp.zeros((1, size, size) + ((model.channels,) if model.channels > 1 else ()))
    # 'rbg' compiles several times faster than the default generator; `create_state` runs this on one device, since its
    # values depend on how a computation is split.
    key, dropout = jax.random.split(jax.random.key(config.seed, impl="rbg"))
    wholes = jnp.zeros((1, *2 * [config.dataset.whole_size])) if model.locator is not None else None
    return dict(model.init({"params": key, "dropout": dropout}, images, guides, wholes))


def drawn_variables(model: JointModel, config: Config) -> Variables:
    """`init_variables` as host arrays, computed on the processor whatever the accelerator.

    An accelerator's compiler takes as long for this program as for a training step, and its random bits differ.
    """
    with contextlib.ExitStack() as stack:
        # Without a processor among JAX's platforms (JAX_PLATFORMS=cuda) the default device does it.
        with contextlib.suppress(RuntimeError):
            stack.enter_context(jax.default_device(jax.local_devices(backend="cpu")[0]))
        return dict(jax.tree.map(np.asarray, jax.jit(lambda: init_variables(model, config))()))
