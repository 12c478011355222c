"""Conversion: rules and their faults, sources that never unpickle, the command, and models that start from it."""

import hashlib
import json
import os
import pickle
import sys
import types

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy

from jras_jax import convert, models
from jras_jax.convert import __main__ as converter
from jras_jax.convert import rules, sources
from jras_jax.convert.rules import ConversionError, Rule
from jras_jax.errors import UserError
from jras_jax.models import vit
from tests import reference_parity as parity

WIDTH, DEPTH = 8, 2
FIELDS = {"width": WIDTH, "depth": DEPTH, "heads": 2, "patch": 4, "position_grid": 3}
CONFIG = {
    "model_type": "dinov2",
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "patch_size": 4,
}


def arange(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


# The engine.


@pytest.mark.parametrize(
    ("transform", "shape", "expected"),
    [
        ("same", (2, 3), lambda x: x),
        ("flat", (1, 1, 4), lambda x: x[0, 0]),
        ("linear", (5, 3), lambda x: x.T),
        ("conv", (5, 3, 2, 4), lambda x: np.moveaxis(np.moveaxis(x, 0, -1), 0, -2)),
        ("conv1x1", (5, 3, 1, 1), lambda x: x[:, :, 0, 0].T),
        ("depthwise", (5, 1, 3, 3), lambda x: np.moveaxis(x[:, 0], 0, -1)),
        ("transposed", (5, 3, 2, 2), lambda x: np.moveaxis(x, 1, -1)),
        ("split_heads", (6, 2, 3), lambda x: x.reshape(6, 6)),
        ("merge_heads", (2, 3, 6), lambda x: x.reshape(6, 6)),
        ("drop_first_position", (1, 10, 4), lambda x: x[:, 1:].reshape(1, 3, 3, 4)),
    ],
)
def test_transforms(transform, shape, expected):
    x = arange(*shape)
    arrays, faults = rules.translate({"a": x}, [Rule("a", "b", transform)])
    assert not faults
    np.testing.assert_array_equal(arrays["params/b"], expected(x))
    assert arrays["params/b"].flags.c_contiguous


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        ("linear", (2, 3, 1)),
        ("conv", (2, 3)),
        ("conv1x1", (2, 3, 3, 3)),
        ("depthwise", (2, 2, 3, 3)),
        ("split_heads", (2, 3)),
        ("merge_heads", (2, 3)),
        ("drop_first_position", (1, 9, 4)),
    ],
)
def test_a_transform_of_the_wrong_shape_is_a_fault(transform, shape):
    arrays, (fault,) = rules.translate({"a": arange(*shape)}, [Rule("a", "b", transform)])
    assert not arrays and fault.startswith(f"wrong shape: a {shape}")


def test_groups_collections_parts_and_unneeded_tensors():
    tensors = {"l.3.qkv": arange(6, 2).astype(np.float16), "l.3.mean": arange(2), "l.3.steps": arange(1)}
    table = [
        *(Rule(r"l\.(\d)\.qkv", rf"block_\1/{name}", "linear", (i, 3)) for i, name in enumerate("qkv")),
        Rule(r"l\.(\d)\.mean", r"batch_stats/block_\1/mean"),
        Rule(r".*\.steps", None),
    ]
    arrays, faults = rules.translate(tensors, table)
    assert not faults
    assert set(arrays) == {f"params/block_3/{name}" for name in "qkv"} | {"batch_stats/block_3/mean"}
    joined = np.concatenate([arrays[f"params/block_3/{name}"].T for name in "qkv"])
    np.testing.assert_array_equal(joined, tensors["l.3.qkv"])
    assert all(array.dtype == np.float32 for array in arrays.values())


def test_a_rule_matches_whole_names_only():
    _, faults = rules.translate({"norm.weight.extra": arange(1)}, [Rule(r"norm\.weight", "norm/scale")])
    assert len(faults) == 1 and "no rule takes it" in faults[0]


def test_two_tensors_for_one_parameter_and_uneven_parts_are_faults():
    _, faults = rules.translate({"a": arange(1), "b": arange(1)}, [Rule("[ab]", "c")])
    assert faults == ["twice: params/c from a and from b"]
    _, faults = rules.translate({"a": arange(4)}, [Rule("a", "b", part=(0, 3))])
    assert len(faults) == 1 and "does not divide into 3" in faults[0]


def test_compare_names_whatever_differs():
    arrays = {"params/a": arange(2), "params/b": arange(3), "params/x": arange(1)}
    expected = {"params/a": (2,), "params/b": (4,), "params/c": (1,), "params/head/d": (1,)}
    faults = rules.compare(arrays, expected, optional=("params/head/",))
    assert [fault.partition(":")[0] for fault in faults] == ["wrong shape", "missing", "left over"]
    assert all(name in fault for name, fault in zip(("params/b", "params/c", "params/x"), faults, strict=True))
    # An optional part that is there in pieces must be there as a whole.
    faults = rules.compare(arrays | {"params/head/e": arange(1)}, expected | {"params/head/e": (1,)}, ("params/head/",))
    assert any("missing: params/head/d" in fault for fault in faults)


# Sources.


def dinov2_tensors(seed=0):
    """A DINOv2 in the names of transformers, without transformers."""
    rng = np.random.default_rng(seed)
    shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.position_embeddings": (1, 10, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 4, 4),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    for i in range(DEPTH):
        block = f"encoder.layer.{i}"
        linear = {f"attention.attention.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value")}
        linear |= {
            "attention.output.dense": (WIDTH, WIDTH),
            "mlp.fc1": (4 * WIDTH, WIDTH),
            "mlp.fc2": (WIDTH, 4 * WIDTH),
        }
        for name, shape in linear.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for j in (1, 2):
            vectors = (f"norm{j}.weight", f"norm{j}.bias", f"layer_scale{j}.lambda1")
            shapes |= {f"{block}.{name}": (WIDTH,) for name in vectors}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_folder(folder, tensors, config=CONFIG, shards=1):
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / sources.WEIGHTS)
        return folder
    names = sorted(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i::shards]
        safetensors.numpy.save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / sources.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The folder that the converter made of `dinov2_tensors()`."""
    folder = tmp_path_factory.mktemp("dinov2")
    converter.convert(str(write_folder(folder / "source", dinov2_tensors())), "dinov2", folder / "ours")
    return folder / "ours"


@pytest.mark.parametrize("shards", [1, 3])
def test_folder_whole_or_sharded(tmp_path, shards):
    tensors = dinov2_tensors()
    source = sources.read(str(write_folder(tmp_path, tensors, shards=shards)))
    assert source.config == CONFIG and len(source.files) == shards
    assert set(source.tensors) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(source.tensors[name], tensor)
    for file, digest in source.files.items():
        assert digest == hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()


def test_a_lost_shard_is_named(tmp_path):
    write_folder(tmp_path, dinov2_tensors(), shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00003"):
        sources.read(str(tmp_path))


def test_single_files(tmp_path):
    x = {"a": arange(2, 3)}
    safetensors.numpy.save_file(x, tmp_path / "other.safetensors")
    np.savez(tmp_path / "google.npz", **{"block/kernel": x["a"]})
    np.testing.assert_array_equal(sources.read(str(tmp_path / "other.safetensors")).tensors["a"], x["a"])
    np.testing.assert_array_equal(sources.read(str(tmp_path / "google.npz")).tensors["block/kernel"], x["a"])
    # The only safetensors file of a folder needs no particular name; of two, none is guessed.
    np.testing.assert_array_equal(sources.read(str(tmp_path)).tensors["a"], x["a"])
    safetensors.numpy.save_file(x, tmp_path / "another.safetensors")
    with pytest.raises(UserError, match="2 other"):
        sources.read(str(tmp_path))


def test_half_precision_is_read_exactly(tmp_path):
    """Halves become float32 of the same values; NumPy has no bfloat16 of its own, so that file is written by hand."""
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes([0x80, 0x3F, 0x40, 0xC0])
    (tmp_path / "b.safetensors").write_bytes(content)
    safetensors.numpy.save_file({"a": np.array([1.0, -3.0], np.float16)}, tmp_path / "h.safetensors")
    for name in ("b", "h"):
        tensors = sources.read(str(tmp_path / f"{name}.safetensors")).tensors
        arrays, faults = rules.translate(tensors, [Rule("a", "a")])
        assert not faults and arrays["params/a"].dtype == np.float32
        np.testing.assert_array_equal(arrays["params/a"], [1.0, -3.0])


class _Trap:
    """Makes the folder `path` when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "sam_vit_b.pth", "model.ckpt", "model.safetensors", "model.npz"])
def test_pickles_are_refused_and_never_opened(tmp_path, name):
    sprung = tmp_path / "sprung"
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / name
    file.write_bytes(pickle.dumps(_Trap(sprung)))
    for source in (file, file.parent) if name != "model.npz" else (file,):
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            sources.read(str(source))
    assert not sprung.exists()


def test_objects_within_an_npz_are_refused(tmp_path):
    sprung = tmp_path / "sprung"
    np.savez(tmp_path / "a.npz", x=np.array([_Trap(sprung)], dtype=object))
    with pytest.raises(UserError, match="plain arrays"):
        sources.read(str(tmp_path / "a.npz"))
    assert not sprung.exists()


@pytest.mark.parametrize("keep", [0, 4, 200, -100])
def test_damaged_files_are_user_errors(tmp_path, keep):
    file = write_folder(tmp_path, dinov2_tensors()) / sources.WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="not a readable safetensors"):
        sources.read(str(tmp_path))


def test_absent_or_unknown_sources(tmp_path):
    with pytest.raises(UserError, match="hf:org/name"):
        sources.read("microsoft/rad-dino")
    (tmp_path / "weights.txt").write_text("x")
    with pytest.raises(UserError, match="neither"):
        sources.read(str(tmp_path / "weights.txt"))
    write_folder(tmp_path / "folder", dinov2_tensors())
    (tmp_path / "folder" / "config.json").write_text("{")
    with pytest.raises(UserError, match="JSON"):
        sources.read(str(tmp_path / "folder"))


def test_hub_names_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        sources.read("hf:microsoft/rad-dino")


def test_hub_names_without_network_and_with_it(monkeypatch, tmp_path):
    calls = []

    def snapshot_download(name, *, revision, allow_patterns):
        calls.append((name, revision, allow_patterns))
        if revision is None:
            raise OSError("no route to host")
        return str(tmp_path)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(UserError, match=r"microsoft/rad-dino.*no route to host.*local copy"):
        sources.read("hf:microsoft/rad-dino")
    write_folder(tmp_path, dinov2_tensors())
    assert sources.read("hf:microsoft/rad-dino@main").config == CONFIG
    assert calls[1][:2] == ("microsoft/rad-dino", "main")
    # No pickle is even downloaded.
    assert set(calls[1][2]) == {"*.safetensors", "*.json"}


# The command.


def test_command_writes_weights_that_a_model_takes(converted, tmp_path, capsys):
    source = write_folder(tmp_path / "source", dinov2_tensors(), shards=2)
    assert converter.main([str(source), "--model=dinov2", f"--output={tmp_path / 'ours'}"]) == 0
    count = models.parameter_count(models.abstract_variables(vit.ViT(**FIELDS), (1, 8, 8, 3))["params"])
    assert f"{count:,} parameters" in capsys.readouterr().out
    facts = json.loads((tmp_path / "ours" / "provenance.json").read_text())
    assert facts == convert.provenance(tmp_path / "ours")
    assert facts["source"] == str(source) and len(facts["files"]) == 2 and facts["fields"]["depth"] == DEPTH
    ours = convert.load(tmp_path / "ours")
    jax.tree.map(np.testing.assert_array_equal, ours, convert.load(converted))
    kernel = dinov2_tensors()["encoder.layer.1.mlp.fc1.weight"]
    np.testing.assert_array_equal(ours["params"]["block_1"]["mlp"]["fc1"]["kernel"], kernel.T)


def test_everything_that_does_not_fit_is_in_one_error(tmp_path):
    tensors = dinov2_tensors()
    del tensors["layernorm.bias"]
    tensors["encoder.layer.1.mlp.fc1.bias"] = arange(3)
    tensors["encoder.layer.0.norm1.weight"] = arange(5)
    tensors["head.weight"] = arange(2, 2)
    tensors["encoder.layer.7.norm1.bias"] = arange(WIDTH)
    source = write_folder(tmp_path / "source", tensors)
    with pytest.raises(ConversionError) as caught:
        converter.convert(str(source), "dinov2", tmp_path / "ours")
    message = str(caught.value)
    for part in (
        "5 problems",
        "missing: params/norm/bias (8,)",
        "wrong shape: params/block_1/mlp/fc1/bias (3,), but the model has (32,)",
        "wrong shape: params/block_0/norm1/scale (5,), but the model has (8,)",
        "left over: head.weight (2, 2)",
        "left over: params/block_7/norm1/bias (8,)",
    ):
        assert part in message
    assert not (tmp_path / "ours").exists()


def test_command_errors(tmp_path, capsys):
    source = write_folder(tmp_path / "source", dinov2_tensors())
    bare = write_folder(tmp_path / "bare", dinov2_tensors(), config=None)
    swapped = write_folder(tmp_path / "swapped", dinov2_tensors(), config=CONFIG | {"hidden_act": "relu"})
    short = write_folder(tmp_path / "short", dinov2_tensors(), config={"model_type": "dinov2"})
    for arguments, expected in (
        ((source, "--model=resnet"), "it is one of dinov2"),
        ((source, "--model=segformer"), "model_type='dinov2'"),
        ((source, "--model=dinov2", "--variant=huge"), "vitb14"),
        ((bare, "--model=dinov2"), "--variant=tiny|vits14"),
        ((swapped, "--model=dinov2"), "hidden_act='relu'"),
        ((short, "--model=dinov2"), "hidden_size"),
        ((tmp_path / "nothing", "--model=dinov2"), "no such file or folder"),
    ):
        assert converter.main([*map(str, arguments), f"--output={tmp_path / 'ours'}"]) == 1
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


# Starting from the result.


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
    with pytest.raises(UserError, match=r"not converted yet: python -m jras_jax\.convert"):
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
    table = converter.TABLES["segformer"]
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
