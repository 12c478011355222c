"""The sections on the models, retrieval and fusion. METHOD and sources: see `config.schema`."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

from jras_jax.config.limits import MAX_BATCH, MAX_STEPS, Rules
from jras_jax.config.setting import setting


def _are_patterns(patterns: tuple[str, ...]) -> bool:
    """Whether every pattern is a regular expression."""
    try:
        return all(re.compile(p) for p in patterns)
    except re.error:
        return False


@dataclasses.dataclass(frozen=True)
class Backbone:
    """The segmentation model."""

    name: Literal["unet", "segformer", "transunet", "sam"] = setting("unet", "model")
    variant: str = setting("", "size of the model: 'b0' to 'b5' for segformer, 'vit_b' ... for sam, '' for the U-Net")
    options: dict[str, Any] = setting({}, "further keywords of the model class")  # noqa: RUF009 - makes a factory
    in_channels: Literal[1, 3] = setting(
        1,
        "channels of the input; 3 repeats grey as RGB, which ImageNet weights expect. A data set of several channels "
        "has as many, whatever is set here",
    )
    init_from: str = setting("", "converted weights (jras convert); '' starts from scratch")
    frozen: tuple[str, ...] = setting(
        (),
        "regular expressions of parameter paths that do not train",
        must=(_are_patterns, "valid regular expressions"),
    )


@dataclasses.dataclass(frozen=True)
class Locator:
    """The small U-Net that finds the heart in whole slices, trained beside the model (dataset.frame='heart')."""

    base_channels: int = setting(8, "channels of its finest stage", at_least=1, at_most=512, before=8)
    levels: int = setting(4, "its stages", at_least=2, at_most=8, before=4)
    batch_size: int = setting(8, "slices per step, over all devices", at_least=1, at_most=MAX_BATCH, before=8)
    lr: float = setting(3e-3, "peak learning rate", above=0, at_most=1, before=3e-3)


@dataclasses.dataclass(frozen=True)
class Retriever:
    """The model that embeds slices for retrieval."""

    variant: Literal["tiny", "vits14", "vitb14", "vitl14", "vitg14", "pixels"] = setting(
        "tiny",
        "size of the ViT; RAD-DINO is 'vitb14' (METHOD). 'pixels' learns nothing and embeds a slice by its own pixels, "
        "shrunk until they fit dim (1024: 32 x 32), so that similarity is normalised cross-correlation",
    )
    image_size: int = setting(
        64,
        "side of the retriever's input in pixels, a multiple of the patch (8 for tiny, 14 for the others)",
        at_least=8,
        at_most=2048,
    )
    trained_blocks: int = setting(
        -1,
        "-1 trains everything, 0 the projection only, n the last n blocks (METHOD's later scripts: 1)",
        at_least=-1,
        at_most=40,
    )
    lora_rank: int = setting(
        0, "above 0, the blocks that train do so only through LoRA matrices of this rank", at_least=0, at_most=1024
    )
    pool: Literal["cls", "grid"] = setting(
        "grid", "what the head sees: 'cls', the CLS token (METHOD), or 'grid', the CLS token and the patch tokens"
    )
    hidden: int = setting(256, "width of the head's hidden layer (METHOD)", at_least=1, at_most=65_536)
    dim: int = setting(128, "width of the embedding (METHOD)", at_least=1, at_most=65_536)
    dropout: float = setting(0.0, "dropout rate before the head's ReLU (METHOD: 0.3)", at_least=0, below=1)
    init_from: str = setting(
        "", "converted DINOv2 weights, or the workdir of a jras pretrain run; '' starts from scratch"
    )

    def rules(self) -> Rules:
        """See the module."""
        yield (
            "init_from",
            self.variant != "pixels" or not self.init_from,
            "'' with variant 'pixels', which has no weights",
        )


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """How guides are chosen from the gallery, and how the retriever learns."""

    enabled: bool = setting(True, "False trains the same backbone without guides, the baseline")
    strategy: Literal["top_k", "softmax", "gumbel_top_k", "sparsemax", "random", "oracle"] = setting(
        "top_k",
        "how guides are chosen: 'top_k' (METHOD), 'softmax' over the whole gallery, 'gumbel_top_k', 'sparsemax', or as "
        "controls 'random' and 'oracle'",
        change="open",
    )
    top_k: int = setting(2, "guides per query (METHOD)", at_least=1, at_most=10_000)
    temperature: float = setting(
        0.1, "temperature of the softmax over cosine similarities (METHOD)", above=0, at_most=1000
    )
    exclude: Literal["patient", "slice", "none"] = setting(
        "patient",
        "gallery slices that never guide: the query's own 'patient', its own 'slice', or 'none' (METHOD, leaks)",
        change="open",
    )
    recall_target: float = setting(
        1.0,
        "recall of the search; below 1 it is approximate (jax.lax.approx_max_k)",
        above=0,
        at_most=1,
        change="open",
    )
    embeddings: Literal["float32", "int8"] = setting(
        "float32",
        "how the gallery's embeddings are kept: 'float32', or 'int8' with one scale a row in about a quarter of the "
        "bytes; the search is then approximate (its recall: benchmarks/RESULTS.md)",
        change="open",
    )
    gallery_memory: Literal["device", "host"] = setting(
        "device", "where the gallery's images and masks are; 'host' for galleries that do not fit", change="open"
    )
    refresh: Literal["epochs", "steps", "rolling"] = setting(
        "epochs", "unit of refresh_every: 'epochs', 'steps', or 'rolling' (steps, with a part refreshed at each)"
    )
    refresh_every: int = setting(
        1, "interval between refreshes of the gallery's embeddings (METHOD: 1 epoch)", at_least=1, at_most=MAX_STEPS
    )
    overlap_weight: float = setting(
        1.0, "weight of the loss that ranks the gallery by the overlap of masks; 0 is off", at_least=0, at_most=1000
    )
    overlap_sharpness: float = setting(
        0.05, "softmax temperature of that ranking's target, in Dice", above=0, at_most=1000
    )
    overlap_rows: int = setting(
        16_384,
        "rows of the gallery that this loss ranks per step, drawn at each and shared over the batch; a gallery of no "
        "more rows is ranked whole, and so is every gallery with 0",
        at_least=0,
        at_most=10**9,
        before=0,
    )
    contrast_weight: float = setting(
        0.0, "weight of the contrastive loss over candidates (METHOD v3); 0 is off", at_least=0, at_most=1000
    )
    contrast_candidates: int = setting(
        4, "candidates per query that are judged by their segmentation loss", at_least=2, at_most=10_000
    )
    contrast_every: int = setting(4, "steps between two contrastive terms", at_least=1, at_most=MAX_STEPS)
    contrast_temperature: float = setting(
        0.1, "temperature of the contrastive softmax over cosine similarities", above=0, at_most=1000
    )

    def rules(self) -> Rules:
        """See the module."""
        ranks_all = self.overlap_weight > 0 and self.overlap_rows == 0
        reads_every_mask = self.strategy in ("softmax", "oracle") or ranks_all
        yield (
            "gallery_memory",
            self.gallery_memory == "device" or not reads_every_mask,
            "'device' with strategy 'softmax' or 'oracle', and with overlap_weight above 0 if overlap_rows is 0, which "
            "read every mask",
        )


@dataclasses.dataclass(frozen=True)
class Fusion:
    """How guides enter the backbone."""

    name: Literal["prototype", "concat", "adapter", "cross_attention", "prior"] = setting(
        "prior",
        "kind of fusion; the paper's is 'concat' (METHOD). Measured on ACDC (docs/STUDY.md): with 'prior', retrieved "
        "guides beat blank ones by 0.001 to 0.003 Dice in four runs of four; with 'prototype' they lost by 0.001 to "
        "0.005 in three of three",
    )
    blank_share: float = setting(
        -1.0,
        "share of training queries whose guides are blank (images and masks zero), so that evaluation can compare with "
        "blank guides; -1: 0.1 in the frame of the heart, 0 in whole slices",
        at_least=-1,
        at_most=1,
        must=(lambda share: share == -1 or share >= 0, "-1 or not negative"),
        before=0.0,
    )
    guide_gradient: bool = setting(
        False, "whether the encoder also trains through the features of the guides (a slower step)"
    )
    options: dict[str, Any] = setting({}, "further keywords of the fusion class")  # noqa: RUF009 - makes a factory
