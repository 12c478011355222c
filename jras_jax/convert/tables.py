"""What the converter knows of each published model: which tensor becomes which of our parameters, and which sizes it
has.

| model | layout | example |
|---|---|---|
| dinov2 | transformers' Dinov2Model | microsoft/rad-dino, facebook/dinov2-base |
| segformer | transformers' SegformerModel or with its decoder | nvidia/segformer-b4-finetuned-ade-512-512 |
| sam | transformers' SamModel or SamVisionModel | facebook/sam-vit-base |
| transunet | Google's npz, timm's vit_base_r50_s16 | R50+ViT-B_16.npz, timm/vit_base_r50_s16_224.orig_in21k |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from jras_jax import models
from jras_jax.convert import table_transunet
from jras_jax.convert.rules import Arrays, Rule
from jras_jax.errors import UserError
from jras_jax.models import sam, segformer, transunet, vit

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
      stem: paths of the first convolution; the first one that there is counts. heads: glob patterns of the class heads.
      optional: prefixes of parts that a source may lack as a whole. All within params.
      side: of an image, in pixels, that the module takes.
    """

    rules: tuple[Rule, ...]
    model_types: tuple[str, ...]
    from_config: Callable[[Mapping[str, Any]], Fields]
    from_arrays: Callable[[Arrays], Fields]
    build: Callable[[Fields], nn.Module]
    variants: Mapping[str, Mapping[str, Any]]
    stem: tuple[str, ...]
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


_SAM_BLOCK = r"vision_encoder\.layers\.(\d+)"
_SAM_TWO_WAY = r"mask_decoder\.transformer\.layers\.(\d+)"


def _sam_attention(source: str, target: str) -> tuple[Rule, ...]:
    """The rules of an attention of the mask decoder."""
    names = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "output"))
    return tuple(rule for theirs, ours in names for rule in affine(rf"{source}\.{theirs}", f"{target}/{ours}"))


SAM_RULES = (
    Rule(r"vision_encoder\.pos_embed", "encoder/positions"),
    *affine(r"vision_encoder\.patch_embed\.projection", "encoder/patch_embedding", "conv"),
    *norm(_SAM_BLOCK + r"\.layer_norm([12])", r"encoder/block_\1/norm\2"),
    *(
        Rule(
            _SAM_BLOCK + rf"\.attn\.qkv\.{theirs}",
            target=rf"encoder/block_\1/attention/{name}/{ours}",
            transform=transform,
            part=(i, 3),
        )
        for theirs, ours, transform in (("weight", "kernel", "linear"), ("bias", "bias", "same"))
        for i, name in enumerate(("query", "key", "value"))
    ),
    *affine(_SAM_BLOCK + r"\.attn\.proj", r"encoder/block_\1/attention/output"),
    Rule(_SAM_BLOCK + r"\.attn\.rel_pos_h", r"encoder/block_\1/attention/rows"),
    Rule(_SAM_BLOCK + r"\.attn\.rel_pos_w", r"encoder/block_\1/attention/columns"),
    *affine(_SAM_BLOCK + r"\.mlp\.lin([12])", r"encoder/block_\1/mlp/fc\2"),
    Rule(r"vision_encoder\.neck\.conv1\.weight", "encoder/neck_conv1/kernel", "conv1x1"),
    Rule(r"vision_encoder\.neck\.conv2\.weight", "encoder/neck_conv2/kernel", "conv"),
    *norm(r"vision_encoder\.neck\.layer_norm([12])", r"encoder/neck_norm\1"),
    Rule(r"shared_image_embedding\.positional_embedding", "decoder/position_frequencies"),
    Rule(r"prompt_encoder\.no_mask_embed\.weight", "decoder/no_mask", "flat"),
    # Of prompts, which we do not give, and the shared embedding again, under its second name.
    Rule(r"prompt_encoder\.(mask_embed|point_embed|not_a_point_embed|shared_embedding)\..*", None),
    Rule(r"mask_decoder\.iou_prediction_head\..*", None),
    Rule(r"mask_decoder\.iou_token\.weight", "decoder/quality_token"),
    Rule(r"mask_decoder\.mask_tokens\.weight", "decoder/class_tokens"),
    *_sam_attention(_SAM_TWO_WAY + r"\.self_attn", r"decoder/block_\1/self_attention"),
    *_sam_attention(_SAM_TWO_WAY + r"\.cross_attn_token_to_image", r"decoder/block_\1/token_to_image"),
    *_sam_attention(_SAM_TWO_WAY + r"\.cross_attn_image_to_token", r"decoder/block_\1/image_to_token"),
    *norm(_SAM_TWO_WAY + r"\.layer_norm([1-4])", r"decoder/block_\1/norm\2"),
    *affine(_SAM_TWO_WAY + r"\.mlp\.lin([12])", r"decoder/block_\1/fc\2"),
    *_sam_attention(r"mask_decoder\.transformer\.final_attn_token_to_image", "decoder/token_to_image"),
    *norm(r"mask_decoder\.transformer\.layer_norm_final_attn", "decoder/norm"),
    *affine(r"mask_decoder\.upscale_conv([12])", r"decoder/up\1", "transposed"),
    *norm(r"mask_decoder\.upscale_layer_norm", "decoder/up_norm"),
    *affine(r"mask_decoder\.output_hypernetworks_mlps\.(\d+)\.proj_in", r"decoder/hyper_\1/fc1"),
    *affine(r"mask_decoder\.output_hypernetworks_mlps\.(\d+)\.layers\.0", r"decoder/hyper_\1/fc2"),
    *affine(r"mask_decoder\.output_hypernetworks_mlps\.(\d+)\.proj_out", r"decoder/hyper_\1/fc3"),
)


def _sam_fields(config: Mapping[str, Any]) -> Fields:
    encoder, decoder = config.get("vision_config", config), config.get("mask_decoder_config", {})
    width, patch, neck = encoder["hidden_size"], encoder["patch_size"], encoder["output_channels"]
    demand(encoder, hidden_act="gelu", layer_norm_eps=1e-6, qkv_bias=True, use_abs_pos=True, use_rel_pos=True)
    demand(encoder, mlp_dim=4 * width, num_pos_feats=neck // 2)
    demand(decoder, hidden_act="relu", layer_norm_eps=1e-6, hidden_size=neck, attention_downsample_rate=2)
    demand(decoder, num_hidden_layers=sam.DECODER_DEPTH)
    return {
        "width": width,
        "depth": encoder["num_hidden_layers"],
        "heads": encoder["num_attention_heads"],
        "global_blocks": tuple(encoder["global_attn_indexes"]),
        "window": encoder["window_size"],
        "patch": patch,
        "position_grid": encoder["image_size"] // patch,
        "neck": neck,
        "decoder_heads": decoder.get("num_attention_heads", 8),
        "decoder_hidden": decoder.get("mlp_dim", 2048),
    }


def _sam_classes(arrays: Arrays) -> Fields:
    tokens = arrays.get("params/decoder/class_tokens")
    return {} if tokens is None else {"num_classes": len(tokens)}


TABLES = {
    "dinov2": Table(
        rules=DINOV2_RULES,
        model_types=("dinov2",),
        from_config=_dinov2_fields,
        from_arrays=_dinov2_grid,
        build=lambda fields: vit.ViT(**fields),
        variants=vit.VARIANTS,
        stem=("patch_embedding/kernel",),
        side=28,
    ),
    "segformer": Table(
        rules=SEGFORMER_RULES,
        model_types=("segformer",),
        from_config=_segformer_fields,
        from_arrays=_segformer_classes,
        build=lambda fields: models.create("segformer", **fields),
        variants=segformer.VARIANTS,
        stem=("stage_0/patch/kernel",),
        heads=("decoder/classifier/*",),
        optional=("params/decoder/", "batch_stats/decoder/"),
    ),
    "sam": Table(
        rules=SAM_RULES,
        model_types=("sam", "sam_vision_model"),
        from_config=_sam_fields,
        from_arrays=_sam_classes,
        build=lambda fields: models.create("sam", **fields),
        variants=sam.VARIANTS,
        stem=("encoder/patch_embedding/kernel",),
        # As SAMed does: the rest of the mask decoder starts from SAM's.
        heads=("decoder/class_tokens", "decoder/hyper_*"),
        optional=("params/decoder/",),
    ),
    "transunet": Table(
        rules=table_transunet.RULES,
        model_types=(),
        from_config=dict,
        from_arrays=table_transunet.grid,
        build=lambda fields: models.create("transunet", **fields),
        variants=transunet.VARIANTS,
        stem=table_transunet.STEMS,
        optional=("params/decoder/", "batch_stats/decoder/"),
    ),
}
