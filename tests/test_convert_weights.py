"""Models that start from converted weights: every value is taken, new channels and heads are drawn, misfits listed."""

import flax.traverse_util
import jax
import numpy as np
import pytest

from jras_jax import convert, models
from jras_jax.convert.rules import ConversionError
from jras_jax.convert.tables import TABLES
from jras_jax.errors import UserError
from jras_jax.models import vit
from tests import reference_parity as parity
from tests.small_dinov2 import DEPTH, FIELDS, WIDTH, arange, converted_folder, dinov2_tensors, write_folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    return converted_folder(tmp_path_factory.mktemp("dinov2"))


def vit_params(channels=3, seed=7, **options):
    return parity.filled(vit.ViT(**(FIELDS | options)), (1, 8, 8, channels), seed)["params"]


def leaves(tree):
    return flax.traverse_util.flatten_dict(dict(tree), sep="/")


@pytest.mark.parametrize("collections", [("params",), ("params", "batch_stats")])
def test_save_and_load_give_back_every_bit(tmp_path, collections):
    rng = np.random.default_rng(0)
    tree = {
        name: {"a": {"b": rng.normal(size=(2, 3)).astype(np.float32)}, "c": rng.normal(size=4)} for name in collections
    }
    convert.save(tmp_path / "deep" / convert.weights.FILE, tree, {"note": "é"})
    for path in (tmp_path / "deep", tmp_path / "deep" / convert.weights.FILE):
        loaded = convert.load(path)
        assert jax.tree.structure(loaded) == jax.tree.structure(tree)
        jax.tree.map(np.testing.assert_array_equal, loaded, tree)
    assert convert.provenance(tmp_path / "deep") == {"note": "é"}
    assert [file.name for file in (tmp_path / "deep").iterdir()] == [convert.weights.FILE]


def test_bare_params_are_saved_as_params(tmp_path):
    convert.save(tmp_path / "a.safetensors", {"norm": {"scale": arange(2)}})
    np.testing.assert_array_equal(convert.load(tmp_path / "a.safetensors")["params"]["norm"]["scale"], arange(2))


def test_init_from_takes_every_value(converted):
    started = convert.init_from(vit_params(), converted)
    jax.tree.map(np.testing.assert_array_equal, started, convert.load(converted)["params"])


def test_one_channel_is_exact_for_grey(converted):
    grey = np.random.default_rng(0).normal(size=(2, 12, 12, 1)).astype(np.float32)
    one = convert.init_from(vit_params(1), converted)
    three = convert.init_from(vit_params(3), converted)
    apply = jax.jit(vit.ViT(**FIELDS).apply)
    expected = apply({"params": three}, np.repeat(grey, 3, -1))
    np.testing.assert_allclose(apply({"params": one}, grey), expected, atol=1e-5)


def test_seven_channels_keep_the_first_three_and_draw_the_rest(converted):
    stem = convert.load(converted)["params"]["patch_embedding"]["kernel"]
    wide = convert.init_from(vit_params(7), converted)["patch_embedding"]["kernel"]
    assert wide.shape == (4, 4, 7, WIDTH)
    np.testing.assert_array_equal(wide[:, :, :3], stem)
    bound = (6 / (16 * (7 + WIDTH))) ** 0.5  # Xavier, over the widened kernel's fans
    new = wide[:, :, 3:]
    assert np.abs(new).max() <= bound and abs(new.std() / (bound / 3**0.5) - 1) < 0.1
    again, other = (convert.init_from(vit_params(7), converted, seed=s)["patch_embedding"]["kernel"] for s in (0, 1))
    np.testing.assert_array_equal(wide, again)
    assert np.abs(wide - other)[:, :, 3:].max() > 0.01


def test_zeros_make_the_model_blind_to_new_channels(converted):
    stem = convert.load(converted)["params"]["patch_embedding"]["kernel"]
    blind = convert.init_from(vit_params(7), converted, new_channels="zeros")["patch_embedding"]["kernel"]
    np.testing.assert_array_equal(blind[:, :, :3], stem)
    assert not blind[:, :, 3:].any()
    grey = convert.init_from(vit_params(5), converted, new_channels="zeros", query_channels=1)
    np.testing.assert_allclose(grey["patch_embedding"]["kernel"][:, :, 0], stem.sum(2), atol=1e-6)
    assert not grey["patch_embedding"]["kernel"][:, :, 1:].any()


def test_two_channels_are_not_guessed(converted):
    with pytest.raises(ConversionError, match="wrong shape: params/patch_embedding/kernel"):
        convert.init_from(vit_params(2), converted)


def test_lora_may_be_new_and_the_rest_is_taken(converted):
    own = vit_params(lora_rank=2)
    started, flat = leaves(convert.init_from(own, converted)), leaves(convert.load(converted)["params"])
    new = set(started) - set(flat)
    assert len(new) == DEPTH * 3 * 2 and all(name.endswith(("lora_a", "lora_b")) for name in new)
    for name, value in started.items():
        np.testing.assert_array_equal(value, leaves(own)[name] if name in new else flat[name])


def test_an_encoder_fills_its_part_of_a_retriever(converted):
    own = {"vit": vit_params(), "projection": {"kernel": arange(WIDTH, 2)}}
    started = convert.init_from(own, converted)
    jax.tree.map(np.testing.assert_array_equal, started["vit"], convert.load(converted)["params"])
    np.testing.assert_array_equal(started["projection"]["kernel"], own["projection"]["kernel"])


def test_misfits_are_all_listed_unless_named_as_new(converted):
    own = vit_params(depth=3)
    own["norm"]["scale"] = arange(5)
    del own["block_0"]["scale1"]
    with pytest.raises(ConversionError) as caught:
        convert.init_from(own, converted)
    message = str(caught.value)
    assert "wrong shape: params/norm/scale: the file has (8,), the model (5,)" in message
    assert "left over: params/block_0/scale1" in message
    assert message.count("missing: params/block_2/") == len(leaves(own["block_2"]))
    deeper = vit_params(depth=3)
    started = convert.init_from(deeper, converted, allow_new=("block_2/*",))
    jax.tree.map(np.testing.assert_array_equal, started["block_2"], deeper["block_2"])


def test_files_that_are_not_ours_or_damaged(converted, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        convert.init_from(vit_params(), tmp_path / "nowhere")
    raw = write_folder(tmp_path / "raw", dinov2_tensors())
    with pytest.raises(UserError, match=r"not converted yet: jras convert"):
        convert.init_from(vit_params(), raw)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((converted / convert.weights.FILE).read_bytes()[:-8])
    with pytest.raises(UserError, match="not a readable safetensors"):
        convert.init_from(vit_params(), damaged)


SEGFORMER = {"depths": (1, 1, 1, 1), "widths": (4, 4, 4, 4), "heads": (1, 1, 1, 1), "decoder_width": 6}


def segformer(classes, channels=3, seed=0):
    return parity.filled(models.create("segformer", **SEGFORMER, num_classes=classes), (1, 32, 32, channels), seed)


@pytest.fixture
def segformer_file(tmp_path):
    """SegFormer's variables of 5 classes, saved with what the converter's table declares; the variables."""
    table = TABLES["segformer"]
    variables = segformer(5, seed=1)
    facts = {"stem": "stage_0/patch/kernel", "heads": table.heads}
    convert.save(tmp_path / "segformer.safetensors", variables, facts)
    return tmp_path / "segformer.safetensors", variables


@pytest.mark.parametrize("classes", [3, 5])
def test_class_heads_start_anew_even_where_they_would_fit(segformer_file, classes):
    path, given = segformer_file
    own = segformer(classes, channels=7)
    started = convert.init_from(own, path)
    jax.tree.map(
        np.testing.assert_array_equal,
        started["params"]["decoder"]["classifier"],
        own["params"]["decoder"]["classifier"],
    )
    for name in ("fuse", "linear_0", "norm"):
        jax.tree.map(
            np.testing.assert_array_equal, started["params"]["decoder"][name], given["params"]["decoder"][name]
        )
    np.testing.assert_array_equal(
        started["params"]["stage_0"]["patch"]["kernel"][:, :, :3], given["params"]["stage_0"]["patch"]["kernel"]
    )


def test_heads_are_kept_on_demand(segformer_file):
    path, given = segformer_file
    started = convert.init_from(segformer(5), path, keep_heads=True)
    jax.tree.map(np.testing.assert_array_equal, started, given)
    with pytest.raises(ConversionError, match="classifier"):
        convert.init_from(segformer(3), path, keep_heads=True)


def test_batch_statistics_come_along_with_whole_variables(segformer_file):
    path, given = segformer_file
    started = convert.init_from(segformer(3), path)
    jax.tree.map(np.testing.assert_array_equal, started["batch_stats"], given["batch_stats"])
    # Params alone get params alone.
    assert "batch_stats" not in convert.init_from(segformer(3)["params"], path)
