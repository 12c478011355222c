"""TransUNet's decoder: equal to a torch module written here from the paper, in evaluation and in training."""

import jax
import numpy as np

from jras_jax.models import transunet
from tests import reference_parity as parity
from tests.test_transunet import SMALL, images


def torch_decoder(torch, skips):
    """The paper's cascaded upsampler, written from its description: (maps, finest first) -> logits."""
    nn = torch.nn

    def step(inputs, outputs):
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    class Cascade(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = step(SMALL["width"], SMALL["decoder_stem"])
            self.up = nn.UpsamplingBilinear2d(scale_factor=2)
            before = (SMALL["decoder_stem"], *SMALL["decoder_widths"])
            self.steps = nn.ModuleList(
                nn.Sequential(step(a + s, b), step(b, b))
                for a, b, s in zip(before, before[1:], (*skips, 0), strict=False)
            )
            self.head = nn.Conv2d(SMALL["decoder_widths"][-1], 4, 3, padding=1)

        def forward(self, maps):
            *finer, x = maps
            x = self.stem(x)
            for part in self.steps:
                x = self.up(x)
                x = part(torch.cat([x, finer.pop()], 1) if finer else x)
            return self.head(x)

    return Cascade()


def decoder_variables(module):
    """The torch decoder's parameters and running statistics in our names."""

    def conv_norm(part):
        conv, norm = part[0], part[1]
        params = {
            "conv": {"kernel": conv.weight.detach().numpy().transpose(2, 3, 1, 0)},
            "norm": {"scale": norm.weight.detach().numpy(), "bias": norm.bias.detach().numpy()},
        }
        return params, {"norm": {"mean": norm.running_mean.numpy().copy(), "var": norm.running_var.numpy().copy()}}

    parts = {"stem": module.stem} | {f"up_{i}_{j}": p for i, s in enumerate(module.steps) for j, p in enumerate(s)}
    params = {name: conv_norm(part)[0] for name, part in parts.items()}
    head = module.head
    params["head"] = {"kernel": head.weight.detach().numpy().transpose(2, 3, 1, 0), "bias": head.bias.detach().numpy()}
    return {"params": params, "batch_stats": {name: conv_norm(part)[1] for name, part in parts.items()}}


def test_decoder_equals_the_published_one():
    torch = parity.reference("torch")
    module = parity.randomise(torch, torch_decoder(torch, (64, 32, 8)))
    ours = transunet.Decoder(4, SMALL["decoder_stem"], SMALL["decoder_widths"])
    variables = decoder_variables(module)
    maps = [images(2, 48 // s, 32 // s, c, seed=s) for s, c in zip((2, 4, 8, 16), (8, 32, 64, 24), strict=True)]
    theirs = [parity.channels_first(torch, m) for m in maps]
    with torch.no_grad():
        parity.assert_close(ours.apply(variables, maps), parity.channels_last(module(theirs)))
        module.train()
        logits, updated = ours.apply(variables, maps, True, mutable=["batch_stats"])
        parity.assert_close(logits, parity.channels_last(module(theirs)))
    statistics = jax.tree.map(np.asarray, updated["batch_stats"])
    after = decoder_variables(module)["batch_stats"]
    for name, leaf in statistics.items():
        np.testing.assert_allclose(leaf["norm"]["mean"], after[name]["norm"]["mean"], atol=1e-5)
        # PyTorch keeps n / (n - 1) of the variance, n the number of pixels (12 at the least here).
        np.testing.assert_allclose(leaf["norm"]["var"], after[name]["norm"]["var"], rtol=0.02)
