"""SAM: equal to transformers' block by block and whole; image size, parameter counts, LoRA, frozen parts, precision."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax import convert, models
from jras_jax.models import sam
from tests import reference_parity as parity

SMALL = {
    "width": 24,
    "depth": 2,
    "heads": 3,
    "global_blocks": (1,),
    "window": 3,
    "patch": 8,
    "position_grid": 5,
    "neck": 16,
    "decoder_heads": 2,
    "decoder_hidden": 20,
}


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def small():
    model = models.create("sam", **SMALL, num_classes=5)
    return model, parity.filled(model, (1, 40, 40, 3))


@pytest.mark.parametrize(
    ("variant", "encoder"),
    # transformers' counts of the vision encoders of facebook/sam-vit-{base,large,huge}.
    [("vit_b", 89_670_912), ("vit_l", 308_278_272), ("vit_h", 637_026_048)],
)
def test_parameter_count(variant, encoder):
    model = models.create("sam", variant=variant, num_classes=4)
    params = models.abstract_variables(model, (1, 64, 64, 3))["params"]
    assert models.parameter_count(params["encoder"]) == encoder
    # transformers' mask decoder (4,058,340) less the head of mask quality, with no_mask_embed and the frequencies.
    assert models.parameter_count(params["decoder"]) == 4_058_340 - 132_612 + 256 + 2 * 128


@pytest.mark.parametrize("size", [(64, 64), (100, 70), (7, 9)])
def test_shapes_at_any_image_size(size):
    model = models.create("sam", variant="tiny", num_classes=3, dtype="bfloat16")
    variables = models.abstract_variables(model, (1, 64, 64, 7))
    x = jnp.zeros((2, *size, 7))
    maps = jax.eval_shape(lambda v: model.apply(v, x, method="encode"), variables)
    assert [m.shape for m in maps] == [(2, -(-size[0] // 16), -(-size[1] // 16), 64)]
    assert [maps[level].shape[-1] for level in model.fusion_levels] == [64]
    logits = jax.eval_shape(lambda v: model.apply(v, x), variables)
    assert logits.shape == (2, *size, 3) and logits.dtype == jnp.float32


def test_windows_do_not_see_each_other_and_global_blocks_do():
    """A change in one window of a map stays there, unless the block attends to the whole map."""
    x = images(1, 6, 6, 8)
    moved = x.copy()
    moved[:, 4, 5, 0] += 1.0  # in the last of four windows of 3x3
    for window, spreads in ((3, False), (0, True)):
        block = sam.Block(heads=2, window=window, position_grid=6)
        variables = parity.filled(block, x.shape)
        apply = jax.jit(block.apply)
        change = np.abs(np.asarray(apply(variables, x) - apply(variables, moved))).max(-1)[0]
        assert change[3:, 3:].min() > 1e-6
        assert (change[:3, :].min() > 1e-6) == spreads and (change[3:, :3].min() > 1e-6) == spreads
        assert spreads or change[:3].max() == change[3:, :3].max() == 0.0


def test_lora_sits_on_query_and_value_and_starts_as_the_identity():
    model = models.create("sam", **SMALL, lora_rank=2)
    names = _names(models.abstract_variables(model, (1, 40, 40, 3))["params"])
    assert {name for name in names if "lora" in name} == {
        f"backbone/encoder/block_{i}/attention/{target}/lora_{side}"
        for i in range(2)
        for target in ("query", "value")
        for side in "ab"
    }
    x = images(1, 3, 4, 8)
    adapted = sam.RelativeAttention(heads=2, side=3, lora_rank=2)
    variables = jax.jit(adapted.init)(jax.random.key(0), x)
    plain = sam.RelativeAttention(heads=2, side=3)
    expected = jax.jit(plain.apply)(variables, x)
    np.testing.assert_array_equal(jax.jit(adapted.apply)(variables, x), expected)
    variables["params"]["value"]["lora_b"] += 1.0
    assert np.abs(jax.jit(adapted.apply)(variables, x) - expected).max() > 1e-4


def _names(params):
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"backbone/" + "/".join(key.key for key in path) for path, _ in leaves}


@pytest.mark.parametrize("way", ["full", "frozen", "lora"])
def test_frozen_patterns_say_what_trains(way):
    model = models.create("sam", **SMALL, num_classes=2, lora_rank=3)
    params = models.abstract_variables(model, (1, 40, 40, 3))["params"]
    names = _names(params)
    hits = {pattern: {name for name in names if re.search(pattern, name)} for pattern in sam.FROZEN[way]}
    assert all(hits.values())
    trained = names - set().union(*hits.values())
    decoder = {name for name in names if name.startswith("backbone/decoder/")} - {
        "backbone/decoder/position_frequencies"
    }
    encoder = {name for name in names if name.startswith("backbone/encoder/")}
    lora = {name for name in encoder if name.endswith(("lora_a", "lora_b"))}
    assert len(lora) == 8
    assert trained == decoder | {"full": encoder, "frozen": set(), "lora": lora}[way]


def test_position_frequencies_get_no_gradient():
    decoder = sam.Decoder(num_classes=2, heads=2, hidden=8)
    x = images(1, 2, 3, 16)
    variables = parity.filled(decoder, x.shape)
    gradient = jax.jit(jax.grad(lambda v: jnp.square(decoder.apply(v, x)).mean()))(variables)["params"]
    assert not np.any(gradient["position_frequencies"])
    assert np.abs(gradient["class_tokens"]).max() > 0 and np.abs(gradient["no_mask"]).max() > 0


def test_remat_changes_no_gradient(small):
    model, variables = small
    remat = models.create("sam", **SMALL, num_classes=5, remat=True)
    x = images(1, 24, 24, 3)

    def gradient(module):
        def loss(params):
            return jnp.square(module.apply({"params": {"encoder": params}}, x, method="encode")[0]).mean()

        return jax.jit(jax.grad(loss))(variables["params"]["encoder"])

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient(model), gradient(remat))


def test_bfloat16_computes_in_bfloat16_with_float32_parameters_and_logits(small):
    model, variables = small
    half = models.create("sam", **SMALL, num_classes=5, dtype="bfloat16")
    x = images(1, 40, 40, 3)

    def parts(module):
        embedding = module.encode(x)
        return embedding[0], module.decode(embedding, (40, 40))

    embedding, logits = jax.jit(lambda v: half.apply(v, method=parts))(variables)
    expected = jax.jit(model.apply)(variables, x)
    assert embedding.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(models.abstract_variables(half, (1, 40, 40, 3))))
    assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()


# Parity with transformers.


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    torch, transformers = parity.torch_and_transformers()
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": SMALL["width"],
            "num_hidden_layers": SMALL["depth"],
            "num_attention_heads": SMALL["heads"],
            "global_attn_indexes": list(SMALL["global_blocks"]),
            "window_size": SMALL["window"],
            "image_size": 40,
            "patch_size": SMALL["patch"],
            "output_channels": SMALL["neck"],
            "num_pos_feats": SMALL["neck"] // 2,
        },
        prompt_encoder_config={"hidden_size": SMALL["neck"], "image_size": 40, "patch_size": SMALL["patch"]},
        mask_decoder_config={
            "hidden_size": SMALL["neck"],
            "mlp_dim": SMALL["decoder_hidden"],
            "num_attention_heads": SMALL["decoder_heads"],
            "num_multimask_outputs": 4,
            "iou_head_hidden_dim": 12,
        },
        attn_implementation="eager",
    )
    theirs = parity.randomise(torch, transformers.SamModel(config))
    ours = models.create("sam", **SMALL, num_classes=5)
    return torch, theirs, ours, parity.converted(theirs, "sam", tmp_path_factory.mktemp("sam"))


def all_masks(torch, theirs, embedding):
    """The reference's masks of all tokens (it gives the first, or the others) without prompts: (B, tokens, 4h, 4w)."""
    prompts = theirs.config.prompt_encoder_config
    stored = prompts.image_embedding_size
    height, width = embedding.shape[2:]
    ys, xs = torch.meshgrid(*((torch.arange(n, dtype=torch.float32) + 0.5) / n for n in (height, width)), indexing="ij")
    positions = theirs.shared_image_embedding(torch.stack([xs, ys], -1)).permute(2, 0, 1)[None]
    if (height, width) == (stored, stored):
        torch.testing.assert_close(positions, theirs.get_image_wide_positional_embeddings())
    dense = theirs.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    several = [
        theirs.mask_decoder(
            image_embeddings=embedding,
            image_positional_embeddings=positions.repeat(len(embedding), 1, 1, 1),
            sparse_prompt_embeddings=None,
            dense_prompt_embeddings=dense.expand(len(embedding), -1, height, width),
            multimask_output=multiple,
        )[0][:, 0]
        for multiple in (False, True)
    ]
    return torch.cat(several, 1)


def test_whole_model_equals_transformers_on_its_own_size(reference):
    torch, theirs, ours, variables = reference
    x = images(2, 40, 40, 3)
    with torch.no_grad():
        output = theirs(parity.channels_first(torch, x), multimask_output=True)
        embedding = theirs.get_image_embeddings(parity.channels_first(torch, x))
        masks = all_masks(torch, theirs, embedding)
        full = torch.nn.functional.interpolate(masks, (40, 40), mode="bilinear", align_corners=False)
    torch.testing.assert_close(output.pred_masks[:, 0], masks[:, 1:])

    def parts(model):
        (maps,) = model.encode(x)
        return maps, model.decoder(maps), model(x)

    maps, coarse, logits = jax.jit(lambda v: ours.apply(v, method=parts))(variables)
    parity.assert_close(maps, parity.channels_last(embedding))
    parity.assert_close(coarse, parity.channels_last(masks))
    parity.assert_close(logits, parity.channels_last(full))


# transformers refuses other sizes than its own: its parts are called one by one, its positions interpolated as SAMed
# does.
@pytest.mark.parametrize("size", [(64, 64), (24, 56), (100, 70), (33, 17)])
def test_parts_equal_transformers_on_any_size(reference, size):
    torch, theirs, ours, variables = reference
    x = images(1, *size, 3)
    grid = tuple(-(-n // 8) for n in size)
    padded = np.zeros((1, 8 * grid[0], 8 * grid[1], 3), np.float32)
    padded[:, : size[0], : size[1]] = x
    encoder = theirs.vision_encoder
    with torch.no_grad():
        positions = encoder.pos_embed.permute(0, 3, 1, 2)
        positions = torch.nn.functional.interpolate(positions, grid, mode="bilinear", align_corners=False)
        state = encoder.patch_embed.projection(parity.channels_first(torch, padded)) + positions
        states = [state.permute(0, 2, 3, 1)]
        for layer in encoder.layers:
            states.append(layer(states[-1]))
        embedding = encoder.neck(states[-1])
        masks = all_masks(torch, theirs, embedding)
        full = torch.nn.functional.interpolate(masks, padded.shape[1:3], mode="bilinear", align_corners=False)
    for i, name in enumerate(("window", "global")):
        window = SMALL["window"] if name == "window" else 0
        block = sam.Block(SMALL["heads"], window, SMALL["position_grid"])
        mine = jax.jit(block.apply)({"params": variables["params"]["encoder"][f"block_{i}"]}, states[i].numpy())
        parity.assert_close(mine, states[i + 1])
    (mine,) = jax.jit(lambda v: ours.apply(v, x, method="encode"))(variables)
    parity.assert_close(mine, parity.channels_last(embedding))
    logits = jax.jit(ours.apply)(variables, x)
    parity.assert_close(logits, parity.channels_last(full)[:, : size[0], : size[1]])


@pytest.mark.parametrize("number", [0, 1])
def test_two_way_block_equals_transformers(reference, number):
    torch, theirs, _, variables = reference
    tokens, image, token_positions, image_positions = (images(2, n, 16, seed=n) for n in (6, 15, 7, 16))
    token_positions, image_positions = token_positions[:, :6], image_positions[:, :15]
    given = (tokens, image, token_positions, image_positions)
    with torch.no_grad():
        expected = theirs.mask_decoder.transformer.layers[number](
            *(torch.from_numpy(np.ascontiguousarray(x))[:, None] for x in given), None
        )
    block = sam.TwoWayBlock(SMALL["decoder_heads"], SMALL["decoder_hidden"], number == 0)
    mine = jax.jit(block.apply)({"params": variables["params"]["decoder"][f"block_{number}"]}, *given)
    for ours, reference_output in zip(mine, expected[:2], strict=True):
        parity.assert_close(ours, reference_output[:, 0])


def test_gradients_of_the_encoder_equal_transformers(reference, tmp_path):
    torch, theirs, ours, variables = reference
    x, weights = images(1, 40, 40, 3), images(1, 5, 5, 16, seed=1)
    theirs.zero_grad()
    embedding = theirs.vision_encoder(parity.channels_first(torch, x)).last_hidden_state
    (embedding * parity.channels_first(torch, weights)).sum().backward()
    expected = parity.converted_gradients(torch, theirs, name="sam", folder=tmp_path)["encoder"]

    def loss(params):
        (maps,) = ours.apply({"params": {"encoder": params}}, x, method="encode")
        return (maps * weights).sum()

    parity.assert_trees_close(jax.jit(jax.grad(loss))(variables["params"]["encoder"]), expected)


def test_gradients_of_the_decoder_equal_transformers(reference, tmp_path):
    torch, theirs, _, variables = reference
    maps, weights = images(1, 5, 5, 16), images(1, 20, 20, 5, seed=1)
    theirs.zero_grad()
    masks = all_masks(torch, theirs, parity.channels_first(torch, maps))
    (masks * parity.channels_first(torch, weights)).sum().backward()
    expected = parity.converted_gradients(torch, theirs, name="sam", folder=tmp_path)["decoder"]
    # Constants in SAM; transformers lets them train.
    expected["position_frequencies"][:] = 0.0
    decoder = sam.Decoder(5, SMALL["decoder_heads"], SMALL["decoder_hidden"])
    gradient = jax.jit(jax.grad(lambda p: (decoder.apply({"params": p}, maps) * weights).sum()))
    parity.assert_trees_close(gradient(variables["params"]["decoder"]), expected)


def test_bare_encoder_converts_and_starts_a_backbone(reference, tmp_path):
    _, theirs, ours, variables = reference
    import transformers

    bare = transformers.SamVisionModel(theirs.config.vision_config)
    bare.vision_encoder.load_state_dict(theirs.vision_encoder.state_dict())
    loaded = parity.converted(bare, "sam", tmp_path)
    assert set(loaded["params"]) == {"encoder"}
    started = convert.init_from(parity.filled(ours, (1, 40, 40, 3), seed=3)["params"], tmp_path / "ours")
    jax.tree.map(np.testing.assert_array_equal, started["encoder"], variables["params"]["encoder"])
