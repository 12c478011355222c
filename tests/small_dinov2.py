"""A DINOv2 of two blocks as published weights hold it."""

import json
import pathlib

import numpy as np
import safetensors.numpy

from jras_jax.convert import converter, sources

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


def converted_folder(folder: pathlib.Path) -> pathlib.Path:
    """The folder that the converter makes of `dinov2_tensors()`."""
    converter.convert(str(write_folder(folder / "source", dinov2_tensors())), "dinov2", folder / "ours")
    return folder / "ours"
