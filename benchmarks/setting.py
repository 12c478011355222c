"""The setting of the joint step that is measured and counted: that of the PyTorch reference."""

from __future__ import annotations

from benchmarks.sizes import Sizes
from jras_jax import config as configs

CHANNELS = 7  # query 3, guide image 3, guide mask 1, as in the reference
DIM = 128  # width of an embedding


def joint_config(name: str, retriever_name: str, sizes: Sizes) -> configs.Config:
    """The reference's setting: concatenation in its seven channels, Adam, batch 4; no augmentation and no further loss.

    The small retriever trains whole; of ViT-B/14 the last block does, as in the authors' later scripts.
    """
    c = configs.defaults()
    c.dataset.name = "phantom"
    c.dataset.image_size = sizes.image
    c.dataset.frame = "whole"  # the reference has no locator
    c.augment.enabled = False
    c.backbone.name, _, c.backbone.variant = name.partition("-")
    if name == "unet":
        c.backbone.options.update(sizes.unet)
    c.backbone.in_channels = 3
    c.retriever.variant = retriever_name
    c.retriever.image_size = sizes.retriever_images.get(retriever_name, 224)
    c.retriever.trained_blocks = -1 if retriever_name == "tiny" else 1
    c.retrieval.overlap_weight = 0.0
    c.fusion.name = "concat"
    c.fusion.options.mask = "index"
    c.optim.name = "adam"
    c.optim.lr_backbone = c.optim.lr_retriever = 1e-4
    c.optim.weight_decay = c.optim.grad_clip = 0.0
    c.optim.warmup_steps = 0
    c.train.batch_size = sizes.batch
    c.train.dtype = sizes.dtype
    c.mesh.data = 1
    return configs.parse(c)
