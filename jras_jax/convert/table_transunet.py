"""TransUNet's encoder: from Google's npz of R50+ViT-B/16 and ViT-B/16, or timm's vit_base_r50_s16 and vit_base_patch16.

Neither has a decoder. What served classification goes: the class token and its position, `pre_logits`, `head`.
"""

from __future__ import annotations

from jras_jax.convert.rules import Arrays, Rule

STEMS = ("stem/kernel", "patch_embedding/kernel")  # of the hybrid, of the plain ViT
R50 = (3, 4, 9)  # units of a stage, which Google counts from 1 and we from 0

_BLOCK = r"Transformer/encoderblock_(\d+)"
_ATTENTION = _BLOCK + r"/MultiHeadDotProductAttention_\d"


def _google_unit(stage: int, unit: int) -> tuple[Rule, ...]:
    theirs, ours = f"block{stage + 1}/unit{unit + 1}", f"stage_{stage}_{unit}"
    return (
        Rule(rf"{theirs}/conv([123])/kernel", rf"{ours}/conv\1/kernel"),
        Rule(rf"{theirs}/gn([123])/(scale|bias)", rf"{ours}/norm\1/\2", "flat"),
        Rule(rf"{theirs}/conv_proj/kernel", f"{ours}/projection/kernel"),
        Rule(rf"{theirs}/gn_proj/(scale|bias)", rf"{ours}/projection_norm/\1", "flat"),
    )


_GOOGLE = (
    Rule(r"cls|(pre_logits|head)/(kernel|bias)", None),
    Rule(r"conv_root/kernel", "stem/kernel"),
    Rule(r"gn_root/(scale|bias)", r"stem_norm/\1", "flat"),
    *(rule for stage, units in enumerate(R50) for unit in range(units) for rule in _google_unit(stage, unit)),
    Rule(r"embedding/(kernel|bias)", r"patch_embedding/\1"),
    Rule(r"Transformer/posembed_input/pos_embedding", "positions", "drop_first_position"),
    Rule(_BLOCK + r"/LayerNorm_0/(scale|bias)", r"block_\1/norm1/\2"),
    Rule(_BLOCK + r"/LayerNorm_[12]/(scale|bias)", r"block_\1/norm2/\2"),
    Rule(_ATTENTION + r"/(query|key|value)/kernel", r"block_\1/attention/\2/kernel", "split_heads"),
    Rule(_ATTENTION + r"/(query|key|value)/bias", r"block_\1/attention/\2/bias", "flat"),
    Rule(_ATTENTION + r"/out/kernel", r"block_\1/attention/output/kernel", "merge_heads"),
    Rule(_ATTENTION + r"/out/bias", r"block_\1/attention/output/bias"),
    Rule(_BLOCK + r"/MlpBlock_\d/Dense_0/(kernel|bias)", r"block_\1/mlp/fc1/\2"),
    Rule(_BLOCK + r"/MlpBlock_\d/Dense_1/(kernel|bias)", r"block_\1/mlp/fc2/\2"),
    Rule(r"Transformer/encoder_norm/(scale|bias)", r"norm/\1"),
)

_RESNET = r"patch_embed\.backbone\."
_UNIT = _RESNET + r"stages\.(\d)\.blocks\.(\d+)\."
_TIMM_BLOCK = r"blocks\.(\d+)\."
_TIMM = (
    Rule(r"cls_token|(pre_logits\.fc|fc_norm|head)\.(weight|bias)", None),
    Rule(_RESNET + r"stem\.conv\.weight", "stem/kernel", "conv"),
    Rule(_RESNET + r"stem\.norm\.weight", "stem_norm/scale"),
    Rule(_RESNET + r"stem\.norm\.bias", "stem_norm/bias"),
    Rule(_UNIT + r"conv([123])\.weight", r"stage_\1_\2/conv\3/kernel", "conv"),
    Rule(_UNIT + r"norm([123])\.weight", r"stage_\1_\2/norm\3/scale"),
    Rule(_UNIT + r"norm([123])\.bias", r"stage_\1_\2/norm\3/bias"),
    Rule(_UNIT + r"downsample\.conv\.weight", r"stage_\1_\2/projection/kernel", "conv"),
    Rule(_UNIT + r"downsample\.norm\.weight", r"stage_\1_\2/projection_norm/scale"),
    Rule(_UNIT + r"downsample\.norm\.bias", r"stage_\1_\2/projection_norm/bias"),
    Rule(r"patch_embed\.proj\.weight", "patch_embedding/kernel", "conv"),
    Rule(r"patch_embed\.proj\.bias", "patch_embedding/bias"),
    Rule(r"pos_embed", "positions", "drop_first_position"),
    Rule(_TIMM_BLOCK + r"norm([12])\.weight", r"block_\1/norm\2/scale"),
    Rule(_TIMM_BLOCK + r"norm([12])\.bias", r"block_\1/norm\2/bias"),
    *(
        Rule(
            _TIMM_BLOCK + rf"attn\.qkv\.{theirs}",
            target=rf"block_\1/attention/{name}/{ours}",
            transform=transform,
            part=(i, 3),
        )
        for theirs, ours, transform in (("weight", "kernel", "linear"), ("bias", "bias", "same"))
        for i, name in enumerate(("query", "key", "value"))
    ),
    Rule(_TIMM_BLOCK + r"attn\.proj\.weight", r"block_\1/attention/output/kernel", "linear"),
    Rule(_TIMM_BLOCK + r"attn\.proj\.bias", r"block_\1/attention/output/bias"),
    Rule(_TIMM_BLOCK + r"mlp\.(fc[12])\.weight", r"block_\1/mlp/\2/kernel", "linear"),
    Rule(_TIMM_BLOCK + r"mlp\.(fc[12])\.bias", r"block_\1/mlp/\2/bias"),
    Rule(r"norm\.weight", "norm/scale"),
    Rule(r"norm\.bias", "norm/bias"),
)

RULES = (*_GOOGLE, *_TIMM)


def grid(arrays: Arrays) -> dict[str, int]:
    """The side of the stored position embeddings, which --variant does not tell."""
    positions = arrays.get("params/positions")
    return {} if positions is None else {"position_grid": positions.shape[1]}
