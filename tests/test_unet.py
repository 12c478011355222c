"""U-Net: equal to a torch module written here; parameter counts and receptive field as documented; odd sizes."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax import models
from jras_jax.models import unet
from tests import reference_parity as parity

SMALL = {"base_channels": 4, "levels": 4}
TABLE = [
    (int(levels), int(base), int(parameters.replace(",", "")), int(field))
    for levels, base, parameters, field in re.findall(
        r"^\| (\d+) \| (\d+) \| ([\d,]+) \| (\d+) \|$", unet.__doc__, re.M
    )
]


def receptive_field(levels):
    """Side in pixels of the square that an output pixel sees through the convolutions (largest over alignments).

    Instance norm adds two numbers per channel that depend on the whole image; they are not counted.
    """

    def extent(pixel):
        low, high = pixel, pixel
        for _ in range(levels - 1):
            low, high = (low - 2) // 2, (high + 2) // 2
        for _ in range(levels - 1):
            low, high = 2 * (low - 1) - 1, 2 * (high + 1) + 1
        return high - low + 5

    return max(extent(pixel) for pixel in range(2 ** (levels - 1)))


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def filled(model, shape, seed=0):
    return jax.tree.map(np.float32, parity.filled(model, shape, seed))


def test_the_docstring_has_its_table():
    assert [row[:2] for row in TABLE] == [(5, 16), (5, 32), (6, 32)]


@pytest.mark.parametrize(("levels", "base", "parameters", "field"), TABLE)
def test_documented_parameters_and_receptive_field(levels, base, parameters, field):
    model = models.create("unet", levels=levels, base_channels=base)
    assert models.parameter_count(models.abstract_variables(model, (1, 64, 64, 1))["params"]) == parameters
    assert receptive_field(levels) == field


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_receptive_field_is_what_a_gradient_sees(levels, monkeypatch):
    """Kernels of ones and no norm: every pixel that an output depends on has a positive gradient, and no other has."""
    monkeypatch.setattr(unet, "NormAndActivation", lambda name: lambda x: x)
    model = models.create("unet", levels=levels, base_channels=1, num_classes=1)
    claimed, period = receptive_field(levels), 2 ** (levels - 1)
    side = 3 * claimed // period * period  # room for the whole field around the middle
    x = jnp.ones((1, side, side, 1))
    shapes = models.abstract_variables(model, x.shape)
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shapes)

    @jax.jit
    def seen(row):
        def pixel(x):
            return model.apply(variables, x)[0, row, side // 2, 0]

        return jax.grad(pixel)(x)[0, :, :, 0] > 0

    heights = []
    for row in range(side // 2, side // 2 + period):
        rows = np.flatnonzero(np.asarray(seen(row)).any(1))
        assert rows[0] > 0 and rows[-1] < side - 1  # the field does not touch the border
        heights.append(rows[-1] - rows[0] + 1)
    assert max(heights) == claimed


@pytest.mark.parametrize("size", [(32, 48), (37, 50), (5, 9)])
def test_shapes(size):
    model = models.create("unet", **SMALL, num_classes=5, dtype="bfloat16")
    variables = models.abstract_variables(model, (1, 32, 32, 3))
    x = jnp.zeros((2, *size, 3))
    maps = jax.eval_shape(lambda v: model.apply(v, x, method="encode"), variables)
    padded = [-(-n // 8) * 8 for n in size]
    assert [m.shape for m in maps] == [(2, padded[0] >> i, padded[1] >> i, 4 << i) for i in range(4)]
    assert [padded[0] // maps[level].shape[1] for level in model.fusion_levels] == [4, 8]
    logits = jax.eval_shape(lambda v: model.apply(v, x), variables)
    assert logits.shape == (2, *size, 5) and logits.dtype == jnp.float32


def test_channels_stop_growing():
    assert models.create("unet", base_channels=32, levels=7).features == (32, 64, 128, 256, 512, 512, 512)


def test_shallow_nets_fuse_at_the_levels_that_they_have():
    assert [models.create("unet", levels=levels).fusion_levels for levels in (2, 3, 4)] == [(), (2,), (2, 3)]


@pytest.mark.parametrize("size", [(32, 48), (37, 50)])
def test_deep_supervision_gives_a_map_for_each_decoder_stage_in_training_alone(size):
    model = models.create("unet", **SMALL, deep_supervision=True)
    variables = filled(model, (1, 32, 32, 1))
    x = images(1, *size, 1)
    logits = jax.jit(lambda v: model.apply(v, x, True))(variables)
    assert [m.shape for m in logits] == [(1, -(-size[0] // 2**i), -(-size[1] // 2**i), 4) for i in range(3)]
    assert all(m.dtype == jnp.float32 for m in logits)
    np.testing.assert_allclose(jax.jit(lambda v: model.apply(v, x))(variables), logits[0], atol=1e-5)


def test_an_image_may_be_of_any_size_without_changing_what_is_inside():
    """Padding by hand, as `encode` does it, gives the same logits."""
    model = models.create("unet", **SMALL)
    variables = filled(model, (1, 32, 32, 1))
    x = images(1, 27, 30, 1)
    padded = np.pad(x, ((0, 0), (0, 5), (0, 2), (0, 0)))
    apply = jax.jit(lambda x: model.apply(variables, x))
    np.testing.assert_allclose(apply(x), apply(padded)[:, :27, :30], atol=1e-5)


# Parity with torch.


def torch_unet(torch, inputs, features, classes):
    """The network of unet.py's docstring in torch."""
    nn = torch.nn

    def stage(inputs, outputs, stride):
        layers = []
        for channels, step in ((inputs, stride), (outputs, 1)):
            conv = nn.Conv2d(channels, outputs, 3, step, 1, bias=False)
            layers += [conv, nn.InstanceNorm2d(outputs, eps=1e-5, affine=True), nn.LeakyReLU(0.01)]
        return nn.Sequential(*layers)

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.ModuleList(
                stage(a, b, 1 + bool(i)) for i, (a, b) in enumerate(zip((inputs, *features), features, strict=False))
            )
            pairs = list(itertools.pairwise(features))
            self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2, bias=False) for a, b in pairs)
            self.merge = nn.ModuleList(stage(2 * a, a, 1) for a, _ in pairs)
            self.head = nn.ModuleList(nn.Conv2d(a, classes, 1) for a, _ in pairs)

        def forward(self, x):
            skips = []
            for part in self.down:
                x = part(x)
                skips.append(x)
            x, logits = skips.pop(), []
            for i in reversed(range(len(self.up))):
                x = self.merge[i](torch.cat([self.up[i](x), skips.pop()], 1))
                logits.insert(0, self.head[i](x))
            return logits

    return UNet()


def ours_from(tensors):
    """The torch module's tensors (name -> array) as our params."""
    params = {}
    for name, value in tensors.items():
        part, index, *rest = name.split(".")
        own = params.setdefault(f"{part}_{index}", {})
        if part == "up":
            own["kernel"] = value.transpose(0, 2, 3, 1)
        elif part == "head":
            own["kernel" if rest[0] == "weight" else "bias"] = value.transpose(2, 3, 1, 0) if value.ndim > 1 else value
        elif value.ndim == 4:
            own[f"conv_{int(rest[0]) // 3}"] = {"kernel": value.transpose(2, 3, 1, 0)}
        else:
            leaf = {"weight": "scale", "bias": "bias"}[rest[1]]
            own.setdefault(f"norm_{int(rest[0]) // 3}", {})[leaf] = value
    return params


@pytest.fixture(scope="module")
def reference():
    torch = parity.reference("torch")
    ours = models.create("unet", **SMALL, num_classes=5, deep_supervision=True)
    theirs = parity.randomise(torch, torch_unet(torch, 3, features=ours.features, classes=5))
    params = ours_from({name: t.detach().numpy().copy() for name, t in theirs.named_parameters()})
    return torch, theirs, ours, params


def test_logits_equal_torch(reference):
    torch, theirs, ours, params = reference
    x = images(2, 32, 48, 3)
    with torch.no_grad():
        expected = theirs(parity.channels_first(torch, x))
    logits = jax.jit(lambda p: ours.apply({"params": p}, x, True))(params)
    for mine, other in zip(logits, expected, strict=True):
        parity.assert_close(mine, parity.channels_last(other))


def test_gradients_equal_torch(reference):
    torch, theirs, ours, params = reference
    x = images(1, 24, 16, 3)
    weights = [images(1, 24 >> i, 16 >> i, 5, seed=i) for i in range(3)]
    theirs.zero_grad()
    logits = theirs(parity.channels_first(torch, x))
    sum((m * parity.channels_first(torch, w)).sum() for m, w in zip(logits, weights, strict=True)).backward()
    expected = ours_from({name: p.grad.numpy() for name, p in theirs.named_parameters()})

    def loss(params):
        logits = ours.apply({"params": params}, x, True)
        return sum((m * w).sum() for m, w in zip(logits, weights, strict=True))

    parity.assert_trees_close(jax.jit(jax.grad(loss))(params), expected)
