"""What the parity tests share: a randomly initialised torch model goes through safetensors and our converter.

Back come its parameters, or its gradients, in our names.
"""

import copy
import functools
import importlib
import math
import os
import pathlib
import re
import sys

import flax.traverse_util
import jax
import numpy as np
import pytest

from jras_jax import convert, models
from jras_jax.convert import converter

TOLERANCE = 1e-4
EMBEDDING = re.compile(r"(embed|embedding|embeddings|tokens?)(\.weight)?$")  # parameters that are added, not multiplied


def torch_and_transformers():
    """The two modules; skips the test module where they are not installed, fails where JRAS_REQUIRE_PARITY=1."""
    torch = reference("torch")
    torch.manual_seed(0)
    _make_torchvision_importable(torch)
    return torch, reference("transformers")


def torch_and_timm():
    """As `torch_and_transformers`, with timm."""
    torch = reference("torch")
    torch.manual_seed(0)
    _make_torchvision_importable(torch)
    return torch, reference("timm")


def reference(name):
    """A module of requirements-parity.txt."""
    if os.environ.get("JRAS_REQUIRE_PARITY") == "1":
        return importlib.import_module(name)
    return pytest.importorskip(name, reason="parity tests need requirements-parity.txt")


@functools.cache
def _make_torchvision_importable(torch):
    """timm and transformers import torchvision, whose wheel fails beside torch's CPU build.

    Its compiled operators then do not load, and the Python side stumbles over two that it expects to be declared. None
    of them runs here, so that declarations will do. The library object lives as long as they do: the cache keeps it.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return None
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


def randomise(torch, model, scale=0.5):
    """Gives every parameter and running statistic a value that matters: zeros and ones hide wrong wiring."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim >= 2:
                fan = 1 if EMBEDDING.search(name) else max(tensor[0].numel(), 1)
                tensor.copy_(noise / fan**0.5)
            elif "var" in name:
                tensor.copy_(1.0 + 0.3 * noise.abs())
            elif name.endswith(("weight", "lambda1")):
                tensor.copy_(1.0 + scale * 0.3 * noise)
            else:
                tensor.copy_(0.1 * noise)
    return model.eval()


def converted(model, name: str, folder: pathlib.Path):
    """Saves a transformers model, converts it and loads the result: {'params': ..., maybe 'batch_stats': ...}."""
    model.save_pretrained(folder / "source")
    converter.convert(str(folder / "source"), name, folder / "ours")
    return convert.load(folder / "ours")


def converted_gradients(torch, model, name: str, folder: pathlib.Path):
    """The gradients of `model`'s parameters, in our names; zero where torch has none."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            mine.copy_(torch.zeros_like(theirs) if theirs.grad is None else theirs.grad)
    return converted(twin, name, folder)["params"]


def assert_close(ours, theirs, tolerance=TOLERANCE):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.isfinite(theirs).all()
    difference = np.abs(ours - theirs).max()
    assert difference <= tolerance, f"largest difference {difference} at values to {np.abs(theirs).max()}"


def assert_trees_close(ours, theirs, tolerance=TOLERANCE):
    """Leaf by leaf, relative to the largest value of each leaf where that is above 1."""
    ours, theirs = (flax.traverse_util.flatten_dict(dict(tree), sep="/") for tree in (ours, theirs))
    assert set(ours) == set(theirs)
    for name in ours:
        bound = tolerance * max(1.0, float(np.abs(theirs[name]).max()))
        difference = np.abs(np.asarray(ours[name]) - theirs[name]).max()
        assert difference <= bound, f"{name}: {difference}"


def channels_last(tensor):
    """(B, C, H, W) of torch -> (B, H, W, C) of numpy."""
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def channels_first(torch, array):
    return torch.from_numpy(np.ascontiguousarray(np.asarray(array).transpose(0, 3, 1, 2)))


def filled(model, shape, seed=0):
    """Variables of a model from NumPy, without compiling its initialisers: kernels by fan-in, scales near 1."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key in ("scale", "var"):
            return 1.0 + 0.1 * np.abs(noise)
        return noise * np.float32(math.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.1)

    return jax.tree_util.tree_map_with_path(fill, models.abstract_variables(model, shape))
