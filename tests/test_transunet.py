"""TransUNet: the encoder equal to timm's hybrid, Google's npz read; sizes, odd images, training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.ndimage

from jras_jax import convert, models
from jras_jax.convert import converter
from jras_jax.errors import UserError
from jras_jax.models import transunet
from jras_jax.models.layers import resize
from tests import reference_parity as parity

# Two units in one stage: the second has no projection. Shapes of the decoder do not matter to the encoder.
SMALL = {
    **transunet.VARIANTS["tiny"],
    "width": 24,
    "heads": 3,
    "stages": (1, 2, 1),
    "stem_width": 8,
    "groups": 4,
    "decoder_stem": 12,
    "decoder_widths": (12, 8, 8, 4),
}
PLAIN = {**SMALL, "stages": ()}


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def filled(model, shape, seed=0):
    return jax.tree.map(np.float32, parity.filled(model, shape, seed))


@pytest.fixture(scope="module", autouse=True)
def variants():
    """The converter takes sizes by name; here are two small ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(transunet.VARIANTS, "small", SMALL)
        patch.setitem(transunet.VARIANTS, "plain", PLAIN)
        yield


@pytest.mark.parametrize(
    ("variant", "parameters"),
    # The two large counts are the published PyTorch code's with 9 classes.
    [("tiny", 398_441), ("r50_vit_b16", 105_277_081), ("vit_b16", 91_674_201)],
)
def test_parameter_count(variant, parameters):
    model = models.create("transunet", variant=variant, num_classes=9)
    assert models.parameter_count(models.abstract_variables(model, (1, 64, 64, 3))["params"]) == parameters


def test_the_default_is_the_hybrid():
    assert models.create("transunet") == models.create("transunet", variant="r50_vit_b16")


@pytest.mark.parametrize("size", [(64, 64), (37, 50)])
def test_shapes(size):
    model = models.create("transunet", **SMALL, num_classes=5, dtype="bfloat16", remat=True)
    variables = models.abstract_variables(model, (1, 64, 64, 7))
    x = jnp.zeros((2, *size, 7))
    maps = jax.eval_shape(lambda v: model.apply(v, x, method="encode"), variables)
    padded = [-(-n // 16) * 16 for n in size]
    sides = [tuple(n // stride for n in padded) for stride in (2, 4, 8, 16)]
    assert [m.shape for m in maps] == [(2, *s, c) for s, c in zip(sides, (8, 32, 64, 24), strict=True)]
    assert [sides[level] for level in model.fusion_levels] == [tuple(n // s for n in padded) for s in (4, 8)]
    logits = jax.eval_shape(lambda v: model.apply(v, x), variables)
    assert logits.shape == (2, *size, 5) and logits.dtype == jnp.float32


@pytest.mark.parametrize("size", [(32, 48), (17, 33)])
def test_shapes_without_convolutions(size):
    model = models.create("transunet", **PLAIN)
    variables = models.abstract_variables(model, (1, 64, 64, 1))
    x = jnp.zeros((1, *size, 1))
    maps = jax.eval_shape(lambda v: model.apply(v, x, method="encode"), variables)
    assert [m.shape for m in maps] == [(1, 2, 3, 24)] and model.fusion_levels == (0,)
    assert jax.eval_shape(lambda v: model.apply(v, x), variables).shape == (1, *size, 4)


def test_two_stages_are_an_error():
    with pytest.raises(UserError, match="three stages"):
        models.create("transunet", **{**SMALL, "stages": (1, 1)}).init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))


def test_remat_is_the_same_function():
    x = images(1, 16, 16, 1)
    plain, remat = (models.create("transunet", **{**PLAIN, "depth": 1}, remat=remat) for remat in (False, True))
    params = filled(plain, x.shape)["params"]

    def gradient(model):
        return jax.grad(lambda params: model.apply({"params": params}, x, method="encode")[-1].std())

    programs = [str(jax.make_jaxpr(gradient(model))(params)) for model in (plain, remat)]
    assert ["checkpoint" in program or "remat" in program for program in programs] == [False, True]
    ours, theirs = (jax.jit(gradient(model))(params) for model in (remat, plain))
    parity.assert_trees_close(ours, theirs, 1e-5)


def test_training_moves_the_batch_statistics_and_drops_at_random():
    model = models.create("transunet", **SMALL, dropout=0.5)
    x = images(2, 32, 32, 3)
    variables = filled(model, (1, 32, 32, 3))
    step = jax.jit(lambda v, key: model.apply(v, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}))
    (a, stats), (b, _) = (step(variables, jax.random.key(i)) for i in (1, 2))
    assert np.abs(a - b).max() > 1e-4
    before, after = (s["batch_stats"]["decoder"] for s in (variables, stats))
    assert set(before) == {"stem", *(f"up_{i}_{j}" for i in range(4) for j in range(2))}
    for name in before:
        assert np.abs(before[name]["norm"]["mean"] - after[name]["norm"]["mean"]).max() > 1e-6, name


def test_skips_reach_the_logits():
    model = models.create("transunet", **SMALL)
    variables = filled(model, (1, 32, 32, 1))
    maps = jax.jit(lambda x: model.apply(variables, x, method="encode"))(images(1, 32, 32, 1))
    decode = jax.jit(lambda maps: model.apply(variables, maps, (32, 32), method="decode"))
    for level in range(4):
        changed = [m + 0.5 * (i == level) for i, m in enumerate(maps)]
        assert np.abs(decode(changed) - decode(list(maps))).max() > 1e-4, level


@pytest.mark.parametrize("shape", [(1, 5, 7, 3), (2, 1, 4, 1), (1, 2, 1, 2)])
def test_doubling_is_bilinear_with_coinciding_corners(shape):
    x = images(*shape)
    size = (2 * shape[1], 2 * shape[2])
    np.testing.assert_allclose(transunet.double(x), resize(x, size, align_corners=True), atol=1e-6)


def test_positions_are_interpolated_as_the_published_code_does():
    """It calls scipy's zoom of order 1 on the stored grid (here 4 x 4) of a loaded file."""
    model = models.create("transunet", **{**PLAIN, "depth": 0})
    zeros = np.zeros((1, 96, 80, 1), np.float32)
    variables = filled(model, (1, 64, 64, 1))
    variables["params"]["patch_embedding"]["bias"] *= 0
    variables["params"]["norm"] = {"scale": np.ones(24, np.float32), "bias": np.zeros(24, np.float32)}
    stored = np.array(variables["params"]["positions"][0], np.float64)
    zoomed = scipy.ndimage.zoom(stored, (6 / 4, 5 / 4, 1), order=1)
    expected = (zoomed - zoomed.mean(-1, keepdims=True)) / np.sqrt(zoomed.var(-1, keepdims=True) + 1e-6)
    (ours,) = model.apply(variables, zeros, method="encode")
    np.testing.assert_allclose(ours[0], expected, atol=1e-4)


# Google's npz.


def google_npz(params):
    """Arrays in the layout of R50+ViT-B_16.npz, with a class head, from params in our names."""
    heads = SMALL["heads"]
    rng = np.random.default_rng(0)
    width = SMALL["width"]
    grid = np.asarray(params["positions"]).reshape(1, -1, width)
    out = {
        "cls": rng.normal(size=(1, 1, width)),
        "Transformer/posembed_input/pos_embedding": np.concatenate([rng.normal(size=(1, 1, width)), grid], 1),
        "head/kernel": rng.normal(size=(width, 9)),
        "head/bias": rng.normal(size=9),
        "pre_logits/kernel": rng.normal(size=(width, width)),
        "pre_logits/bias": rng.normal(size=width),
        "Transformer/encoder_norm/scale": params["norm"]["scale"],
        "Transformer/encoder_norm/bias": params["norm"]["bias"],
        "embedding/kernel": params["patch_embedding"]["kernel"],
        "embedding/bias": params["patch_embedding"]["bias"],
    }
    for i in range(SMALL["depth"]):
        block, root = params[f"block_{i}"], f"Transformer/encoderblock_{i}"
        for theirs, ours in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            out |= {f"{root}/{theirs}/{leaf}": block[ours][leaf] for leaf in ("scale", "bias")}
        for j in range(2):
            out |= {f"{root}/MlpBlock_3/Dense_{j}/{k}": v for k, v in block["mlp"][f"fc{j + 1}"].items()}
        attention = f"{root}/MultiHeadDotProductAttention_1"
        for name in ("query", "key", "value"):
            out[f"{attention}/{name}/kernel"] = block["attention"][name]["kernel"].reshape(width, heads, -1)
            out[f"{attention}/{name}/bias"] = block["attention"][name]["bias"].reshape(heads, -1)
        out[f"{attention}/out/kernel"] = block["attention"]["output"]["kernel"].reshape(heads, -1, width)
        out[f"{attention}/out/bias"] = block["attention"]["output"]["bias"]
    if "stem" in params:
        out["conv_root/kernel"] = params["stem"]["kernel"]
        out |= {f"gn_root/{leaf}": params["stem_norm"][leaf].reshape(1, 1, 1, -1) for leaf in ("scale", "bias")}
    for stage, units in enumerate(SMALL["stages"] if "stem" in params else ()):
        for unit in range(units):
            ours, root = params[f"stage_{stage}_{unit}"], f"block{stage + 1}/unit{unit + 1}"
            names = {f"conv{i}": f"conv{i}" for i in (1, 2, 3)} | {"projection": "conv_proj"}
            out |= {f"{root}/{theirs}/kernel": ours[name]["kernel"] for name, theirs in names.items() if name in ours}
            names = {f"norm{i}": f"gn{i}" for i in (1, 2, 3)} | {"projection_norm": "gn_proj"}
            for name, theirs in names.items():
                for leaf in ("scale", "bias") if name in ours else ():
                    out[f"{root}/{theirs}/{leaf}"] = ours[name][leaf].reshape(1, 1, 1, -1)
    return {name: np.asarray(value, np.float32) for name, value in out.items()}


@pytest.mark.parametrize("variant", ["small", "plain"])
def test_google_npz_becomes_the_encoder_and_leaves_the_decoder_new(variant, tmp_path):
    model = models.create("transunet", variant=variant)
    source = filled(model, (1, 64, 64, 3))["params"]
    np.savez(tmp_path / "google.npz", **google_npz(source))
    converter.convert(str(tmp_path / "google.npz"), "transunet", output=tmp_path / "ours", variant=variant)
    loaded = convert.load(tmp_path / "ours")["params"]
    parity.assert_trees_close(loaded, {k: v for k, v in source.items() if k != "decoder"}, 0.0)

    new = filled(model, (1, 64, 64, 3), seed=1)
    started = convert.init_from(new, tmp_path / "ours")
    parity.assert_trees_close(started["params"], {**source, "decoder": new["params"]["decoder"]}, 0.0)
    parity.assert_trees_close(started["batch_stats"], new["batch_stats"], 0.0)


@pytest.mark.parametrize(("variant", "stem"), [("small", "stem"), ("plain", "patch_embedding")])
def test_the_first_convolution_widens_to_fused_inputs(variant, stem, tmp_path):
    model = models.create("transunet", variant=variant)
    source = filled(model, (1, 64, 64, 3))["params"]
    np.savez(tmp_path / "google.npz", **google_npz(source))
    converter.convert(str(tmp_path / "google.npz"), "transunet", output=tmp_path / "ours", variant=variant)
    new = filled(model, (1, 64, 64, 7), seed=1)["params"]
    kernel = convert.init_from(new, tmp_path / "ours")[stem]["kernel"]
    np.testing.assert_array_equal(kernel[:, :, :3], source[stem]["kernel"])
    assert np.abs(kernel[:, :, 3:]).min() > 0


def test_what_is_missing_or_left_over_is_named(tmp_path):
    params = filled(models.create("transunet", variant="small"), (1, 64, 64, 3))["params"]
    arrays = google_npz(params)
    del arrays["block2/unit2/conv2/kernel"]
    arrays["block4/unit1/conv1/kernel"] = arrays["conv_root/kernel"]
    np.savez(tmp_path / "google.npz", **arrays)
    with pytest.raises(convert.ConversionError) as caught:
        converter.convert(str(tmp_path / "google.npz"), "transunet", output=tmp_path / "ours", variant="small")
    for part in ("2 problems", "missing: params/stage_1_1/conv2/kernel", "left over: block4/unit1/conv1/kernel"):
        assert part in str(caught.value)


# Parity with timm's hybrid.


def timm_hybrid(torch, timm, size, state=None):
    """timm's hybrid at SMALL sizes: its own ResNet and transformer, as TransUNet uses them, without a class token.

    Google adds 1e-6 to the variance of group norm, and 1e-5 to the deviation of kernels, where timm's defaults are 1e-5
    and 1e-8 to the variance. The first is an option of timm; the second vanishes beside the deviation here, 4.
    """
    from timm.layers import GroupNormAct, HybridEmbed, StdConv2dSame
    from timm.models.resnetv2 import ResNetV2
    from timm.models.vision_transformer import VisionTransformer

    stem = SMALL["stem_width"]
    backbone = ResNetV2(
        layers=SMALL["stages"],
        channels=(4 * stem, 8 * stem, 16 * stem),
        stem_chs=stem,
        num_classes=0,
        global_pool="",
        preact=False,
        stem_type="same",
        conv_layer=functools.partial(StdConv2dSame, eps=1e-8),
        norm_layer=functools.partial(GroupNormAct, num_groups=SMALL["groups"], eps=1e-6),
    )
    model = VisionTransformer(
        img_size=size,
        patch_size=1,
        num_classes=0,
        global_pool="",
        embed_dim=SMALL["width"],
        depth=SMALL["depth"],
        num_heads=SMALL["heads"],
        class_token=False,
        embed_layer=functools.partial(HybridEmbed, backbone=backbone),
    )
    if state is None:
        parity.randomise(torch, model)
        for name, tensor in model.state_dict().items():
            if "conv" in name:
                tensor.mul_(4.0 / tensor.std())
            elif name == "patch_embed.proj.weight":
                tensor.mul_(tensor.shape[1] ** -0.5)
    else:
        grid = (size[0] // 16, size[1] // 16)
        stored = state["pos_embed"].reshape(4, 4, -1).double().numpy()
        zoomed = scipy.ndimage.zoom(stored, (grid[0] / 4, grid[1] / 4, 1), order=1).reshape(1, -1, SMALL["width"])
        model.load_state_dict({**state, "pos_embed": torch.from_numpy(zoomed).float()})
    return model.eval()


def converted(torch, state, folder):
    """timm's tensors, with the class token, its position and the head that a published file has, converted."""
    extra = {"cls_token": torch.ones(1, 1, SMALL["width"]), "head.weight": torch.ones(9, SMALL["width"])}
    positions = torch.cat([torch.ones(1, 1, SMALL["width"]), state["pos_embed"]], 1)
    arrays = {name: t.detach().numpy().copy() for name, t in {**state, **extra, "pos_embed": positions}.items()}
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(arrays, folder / "timm.safetensors")
    converter.convert(str(folder / "timm.safetensors"), "transunet", output=folder / "ours", variant="small")
    return convert.load(folder / "ours")["params"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory, variants):
    torch, timm = parity.torch_and_timm()
    theirs = timm_hybrid(torch, timm, (64, 64))
    ours = models.create("transunet", variant="small")
    params = converted(torch, theirs.state_dict(), tmp_path_factory.mktemp("transunet"))
    return torch, timm, theirs, ours, params


def stages_and_blocks(torch, model, x):
    """Outputs of the stem, of each stage, of each block, and the last norm's, of timm's model."""
    outputs = []
    backbone = model.patch_embed.backbone
    watched = [backbone.stem.norm, *backbone.stages, *model.blocks, model.norm]
    hooks = [module.register_forward_hook(lambda m, i, o: outputs.append(o)) for module in watched]
    with torch.no_grad():
        model(parity.channels_first(torch, x))
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (75, 41)])
def test_encoder_equals_timm(reference, size):
    torch, timm, trained, ours, params = reference
    x = images(2, *size, 3)
    padded = np.asarray(transunet.pad_to_multiple(x, 16))
    theirs = timm_hybrid(torch, timm, size=padded.shape[1:3], state=trained.state_dict())
    stem, *rest = stages_and_blocks(torch, theirs, padded)
    stages, blocks = rest[:3], rest[3:]

    @jax.jit
    def run(variables):
        def keep(module, name):
            return name == "__call__" and (module.name or "").startswith(("block_", "stage_"))

        return ours.apply(variables, x, method="encode", capture_intermediates=keep)

    maps, captured = run({"params": params})
    parity.assert_close(maps[0], parity.channels_last(stem))
    for index, stage in enumerate(stages):
        last = captured["intermediates"][f"stage_{index}_{SMALL['stages'][index] - 1}"]["__call__"][0]
        parity.assert_close(last, parity.channels_last(stage))
    parity.assert_close(maps[1], parity.channels_last(stages[0]))
    parity.assert_close(maps[2], parity.channels_last(stages[1]))
    for index, block in enumerate(blocks[:-1]):
        parity.assert_close(captured["intermediates"][f"block_{index}"]["__call__"][0], block.numpy())
    parity.assert_close(maps[3].reshape(2, -1, SMALL["width"]), blocks[-1].numpy())


@pytest.mark.slow
def test_gradients_equal_timm(reference, tmp_path):
    """Of every parameter; the position embedding's among them, and of a unit with and without a projection."""
    torch, _, theirs, ours, params = reference
    x, weights = images(1, 64, 64, 3), images(1, 16, SMALL["width"], seed=1)
    theirs.zero_grad()
    (theirs(parity.channels_first(torch, x)) * torch.from_numpy(weights)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected = converted(torch, gradients, tmp_path)

    def loss(params):
        return (ours.apply({"params": params}, x, method="encode")[-1].reshape(weights.shape) * weights).sum()

    parity.assert_trees_close(jax.jit(jax.grad(loss))(params), expected)
