"""Settings that several configs share."""

from __future__ import annotations

import dataclasses

import ml_collections

from jras_jax.config.schema import Config


def defaults() -> ml_collections.ConfigDict:
    """All defaults, for a config file to change; `backbone.options` and `fusion.options` take any key."""
    return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def paper(dataset: str, backbone: str, variant: str) -> ml_collections.ConfigDict:
    """The J-RAS paper's sizes and rates for a pre-trained backbone and RAD-DINO, at the paper's grid of 256 pixels.

    The last block of the retriever trains, as in the authors' later scripts. Fusion, leak rule and the ranking loss
    remain this project's; the paper's are --config.fusion.name=concat --config.retrieval.overlap_weight=0.0.

    Args:
      dataset: 'acdc' or 'mnms'.
      backbone: 'segformer', 'transunet' or 'sam'.
      variant: size of the backbone.

    References:
      The J-RAS paper, arXiv 2510.09953, and its authors' scripts.
    """
    c = defaults()
    c.name = f"{dataset}_{backbone}"
    c.dataset.name = dataset
    c.backbone.name = backbone
    c.backbone.variant = variant
    c.backbone.in_channels = 3
    c.retriever.variant = "vitb14"
    c.retriever.image_size = 224
    c.retriever.trained_blocks = 1
    c.retriever.pool = "cls"
    c.retriever.dropout = 0.3
    c.optim.name = "adam"
    c.optim.lr_backbone = 1e-4
    c.optim.lr_retriever = 1e-4
    c.optim.weight_decay = 0.0
    c.train.num_steps = 30_000
    c.train.batch_size = 4
    c.train.dtype = "bfloat16"
    return c
