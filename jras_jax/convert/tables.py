"""What the converter knows of each published model: which tensor becomes which of our parameters, and which sizes it
has.

| model | layout | example |
|---|---|---|
| dinov2 | transformers' Dinov2Model | microsoft/rad-dino, facebook/dinov2-base |
| segformer | transformers' SegformerForSemanticSegmentation, or its bare encoder |
nvidia/segformer-b4-finetuned-ade-512-512 |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from jras_jax import models
from jras_jax.convert.rules import Arrays, Rule
from jras_jax.errors import UserError
from jras_jax.models import segformer, vit

Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """One model's conversion.

    Attributes:
      rules: tensor names to our paths.
      model_types: config.json's model_type values that it takes.
      from_config: config.json -> fields of our module.
      from_arrays: fields that only the converted arrays tell (number of classes, grid of the position embeddings).
      build: fields -> module. variants: fields by the name of a size.
      stem: path of the first convolution. heads: glob patterns of the class heads. optional: prefixes of parts that a
        source may lack as a whole. All within params.
      side: of an image, in pixels, that the module takes.
    """

    rules: tuple[Rule, ...]
    model_types: tuple[str, ...]
    from_config: Callable[[Mapping[str, Any]], Fields]
    from_arrays: Callable[[Arrays], Fields]
    build: Callable[[Fields], nn.Module]
    variants: Mapping[str, Mapping[str, Any]]
    stem: str
    heads: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    side: int = 64


def affine(source: str, target: str, transform: str = "linear") -> tuple[Rule, Rule]:
    """The rules of a weight and a bias."""
    return Rule(rf"{source}\.weight", f"{target}/kernel", transform), Rule(rf"{source}\.bias", f"{target}/bias")


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """The rules of a norm's scale and bias."""
    return Rule(rf"{source}\.weight", f"{target}/scale"), Rule(rf"{source}\.bias", f"{target}/bias")


def demand(config: Mapping[str, Any], **values: Any) -> None:
    """Raises UserError where config.json asks for a variation that our module does not have."""
    wrong = [
        f"{key}={config[key]!r} (we have {value!r})" for key, value in values.items() if config.get(key, value) != value
    ]
    if wrong:
        raise UserError(f"config.json describes a variation that is not supported: {', '.join(wrong)}")


_BLOCK = r"(?:dinov2\.)?encoder\.layer\.(\d+)"
DINOV2_RULES = (
    Rule(r"(?:dinov2\.)?embeddings\.cls_token", "cls"),
    Rule(r"(?:dinov2\.)?embeddings\.mask_token", None),
    Rule(r"classifier\.(weight|bias)", None),
    Rule(r"(?:dinov2\.)?embeddings\.position_embeddings", "positions"),
    *affine(r"(?:dinov2\.)?embeddings\.patch_embeddings\.projection", "patch_embedding", "conv"),
    *norm(_BLOCK + r"\.norm([12])", r"block_\1/norm\2"),
    *affine(_BLOCK + r"\.attention\.attention\.(query|key|value)", r"block_\1/attention/\2"),
    *affine(_BLOCK + r"\.attention\.output\.dense", r"block_\1/attention/output"),
    Rule(_BLOCK + r"\.layer_scale([12])\.lambda1", r"block_\1/scale\2"),
    *affine(_BLOCK + r"\.mlp\.(fc[12])", r"block_\1/mlp/\2"),
    *affine(_BLOCK + r"\.mlp\.weights_in", r"block_\1/mlp/fc1"),
    *affine(_BLOCK + r"\.mlp\.weights_out", r"block_\1/mlp/fc2"),
    *norm(r"(?:dinov2\.)?layernorm", "norm"),
)


def _dinov2_fields(config: Mapping[str, Any]) -> Fields:
    demand(config, hidden_act="gelu", qkv_bias=True, mlp_ratio=4, layer_norm_eps=1e-6)
    return {
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "patch": config["patch_size"],
        "mlp": "swiglu" if config.get("use_swiglu_ffn") else "gelu",
    }


def _dinov2_grid(arrays: Arrays) -> Fields:
    positions = arrays.get("params/positions")
    return {} if positions is None else {"position_grid": round((positions.shape[1] - 1) ** 0.5)}


_ENCODER = r"(?:segformer\.)?encoder"
_SEG_BLOCK = _ENCODER + r"\.block\.(\d+)\.(\d+)"
_SEG_OURS = r"stage_\1/block_\2"
SEGFORMER_RULES = (
    *affine(_ENCODER + r"\.patch_embeddings\.(\d+)\.proj", r"stage_\1/patch", "conv"),
    *norm(_ENCODER + r"\.patch_embeddings\.(\d+)\.layer_norm", r"stage_\1/patch_norm"),
    *norm(_ENCODER + r"\.layer_norm\.(\d+)", r"stage_\1/norm"),
    *norm(_SEG_BLOCK + r"\.layer_norm_([12])", _SEG_OURS + r"/norm\3"),
    *affine(_SEG_BLOCK + r"\.attention\.self\.(query|key|value)", _SEG_OURS + r"/attention/\3"),
    *affine(_SEG_BLOCK + r"\.attention\.output\.dense", _SEG_OURS + "/attention/output"),
    *affine(_SEG_BLOCK + r"\.attention\.self\.sr", _SEG_OURS + "/reduction", "conv"),
    *norm(_SEG_BLOCK + r"\.attention\.self\.layer_norm", _SEG_OURS + "/reduction_norm"),
    *affine(_SEG_BLOCK + r"\.mlp\.dense([12])", _SEG_OURS + r"/mlp/fc\3"),
    *affine(_SEG_BLOCK + r"\.mlp\.dwconv\.dwconv", _SEG_OURS + "/mlp/depthwise", "depthwise"),
    *affine(r"decode_head\.linear_c\.(\d+)\.proj", r"decoder/linear_\1"),
    Rule(r"decode_head\.linear_fuse\.weight", "decoder/fuse/kernel", "conv1x1"),
    *norm(r"decode_head\.batch_norm", "decoder/norm"),
    Rule(r"decode_head\.batch_norm\.running_mean", "batch_stats/decoder/norm/mean"),
    Rule(r"decode_head\.batch_norm\.running_var", "batch_stats/decoder/norm/var"),
    Rule(r"decode_head\.batch_norm\.num_batches_tracked", None),
    *affine(r"decode_head\.classifier", "decoder/classifier", "conv1x1"),
    Rule(r"classifier\.(weight|bias)", None),  # of the ImageNet classifier on the bare encoder
)


def _segformer_fields(config: Mapping[str, Any]) -> Fields:
    ratios = config.get("mlp_ratios", [4] * segformer.STAGES)
    demand(
        config, hidden_act="gelu", patch_sizes=[7, 3, 3, 3], strides=[4, 2, 2, 2], mlp_ratios=[ratios[0]] * len(ratios)
    )
    return {
        "depths": tuple(config["depths"]),
        "widths": tuple(config["hidden_sizes"]),
        "heads": tuple(config["num_attention_heads"]),
        "reductions": tuple(config["sr_ratios"]),
        "decoder_width": config["decoder_hidden_size"],
        "mlp_ratio": ratios[0],
    }


def _segformer_classes(arrays: Arrays) -> Fields:
    bias = arrays.get("params/decoder/classifier/bias")
    return {} if bias is None else {"num_classes": len(bias)}


TABLES = {
    "dinov2": Table(
        rules=DINOV2_RULES,
        model_types=("dinov2",),
        from_config=_dinov2_fields,
        from_arrays=_dinov2_grid,
        build=lambda fields: vit.ViT(**fields),
        variants=vit.VARIANTS,
        stem="patch_embedding/kernel",
        side=28,
    ),
    "segformer": Table(
        rules=SEGFORMER_RULES,
        model_types=("segformer",),
        from_config=_segformer_fields,
        from_arrays=_segformer_classes,
        build=lambda fields: models.create("segformer", **fields),
        variants=segformer.VARIANTS,
        stem="stage_0/patch/kernel",
        heads=("decoder/classifier/*",),
        optional=("params/decoder/", "batch_stats/decoder/"),
    ),
}
