"""The joint step as the paper's authors wrote it (arXiv 2510.09953), in PyTorch, from the method's description.

Retriever (DINOv2 and a projection head) -> softmax over the k highest similarities, scattered into weights over the
whole gallery -> einsum of those weights with every gallery image and mask -> concatenation with the query (3 + 3 + 1
channels) -> backbone -> soft Dice over all classes + cross-entropy -> Adam on both. At the start of every epoch the
gallery's embeddings are recomputed by a full forward pass. No line here is theirs.

Axes as in PyTorch: B queries, N gallery rows, C channels, H, W.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from jras_jax.models import segformer, vit

try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):
    # A torchvision that does not load beside torch's CPU build stops transformers as well; its models do not need it.
    sys.modules["torchvision"] = None  # type: ignore[assignment]
import transformers

NUM_CLASSES = 4
FUSED_CHANNELS = 7  # query 3, guide image 3, guide mask 1 (a weighted mean of class indices)


class Stage(nn.Module):
    """Two 3x3 convolutions, each with instance norm and leaky ReLU; the twin of `jras_jax.models.unet.Stage`."""

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        self.layers = nn.Sequential()
        for step in (stride, 1):
            self.layers.append(nn.Conv2d(inputs, features, 3, step, 1, bias=False))
            self.layers.append(nn.InstanceNorm2d(features, affine=True))
            self.layers.append(nn.LeakyReLU(0.01, inplace=True))
            inputs = features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class UNet(nn.Module):
    """The twin of `jras_jax.models.unet.UNet`: the same layers, channels-last (PyTorch's fast layout on CPU)."""

    def __init__(self, base_channels: int, levels: int, in_channels: int = FUSED_CHANNELS):
        super().__init__()
        features = [min(base_channels * 2**i, 512) for i in range(levels)]
        self.down = nn.ModuleList(
            Stage(features[i - 1] if i else in_channels, f, 2 if i else 1) for i, f in enumerate(features)
        )
        pairs = list(itertools.pairwise(features))
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, 2, bias=False) for fine, coarse in pairs)
        self.merge = nn.ModuleList(Stage(2 * fine, fine, 1) for fine, _ in pairs)
        self.head = nn.Conv2d(features[0], NUM_CLASSES, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = self.merge[level](torch.cat([self.up[level](x), skips[level]], 1))
        return self.head(x)


class SegFormer(nn.Module):
    """transformers' SegFormer, its logits upsampled to the image."""

    def __init__(self, variant: str, in_channels: int = FUSED_CHANNELS):
        super().__init__()
        ours = segformer.SegFormer(**segformer.VARIANTS[variant])
        config = transformers.SegformerConfig(
            num_channels=in_channels,
            num_labels=NUM_CLASSES,
            depths=list(ours.depths),
            hidden_sizes=list(ours.widths),
            num_attention_heads=list(ours.heads),
            sr_ratios=list(ours.reductions),
            decoder_hidden_size=ours.decoder_width,
        )
        self.model = transformers.SegformerForSemanticSegmentation(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.model(x).logits
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)


def backbone(name: str, unet: dict[str, int]) -> nn.Module:
    """'unet' (with fields `unet`) or 'segformer-VARIANT'."""
    return UNet(**unet) if name == "unet" else SegFormer(name.removeprefix("segformer-"))


class Retriever(nn.Module):
    """DINOv2's CLS token -> Linear 256, dropout 0.3, ReLU, Linear 128 -> norm 1.

    `tiny` trains whole; of `vitb14` the last block, the final layer norm and the head do, as in the authors' later
    scripts.
    """

    def __init__(self, variant: str, image_size: int):
        super().__init__()
        ours = vit.create(variant)
        config = transformers.Dinov2Config(
            hidden_size=ours.width,
            num_hidden_layers=ours.depth,
            num_attention_heads=ours.heads,
            patch_size=ours.patch,
            image_size=ours.position_grid * ours.patch,
            mlp_ratio=4,
        )
        self.model = transformers.Dinov2Model(config)
        self.image_size = image_size
        self.head = nn.Sequential(nn.Linear(ours.width, 256), nn.Dropout(0.3), nn.ReLU(), nn.Linear(256, 128))
        if variant != "tiny":
            last = f"encoder.layer.{ours.depth - 1}."
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name.startswith((last, "layernorm.")))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        size = (self.image_size, self.image_size)
        images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        return F.normalize(self.head(self.model(pixel_values=images).last_hidden_state[:, 0]), dim=-1)


def guide(
    queries: torch.Tensor,
    embeddings: torch.Tensor,
    images: torch.Tensor,
    masks: torch.Tensor,
    *,
    k: int = 2,
    temperature: float = 0.1,
) -> torch.Tensor:
    """Queries (B, D) and a gallery -> the guide's image and mask, (B, 3 + 1, H, W).

    Args:
      queries: of norm 1. embeddings: (N, D) of norm 1.
      images: (N, 3, H, W) float32; masks: (N, 1, H, W) float32 class indices.
      k, temperature: of the softmax over the k highest similarities; every other weight is 0.
    """
    top, where = (queries @ embeddings.T).topk(k, dim=-1)
    weights = torch.zeros(len(queries), len(embeddings)).scatter(1, where, F.softmax(top.float() / temperature, -1))
    parts = [torch.einsum("bn,nchw->bchw", weights, x) for x in (images, masks)]
    return torch.cat(parts, 1)


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """1 - mean soft Dice over the classes, and cross-entropy; logits (B, C, H, W), labels (B, H, W) int64."""
    p = logits.softmax(1)
    t = F.one_hot(labels, NUM_CLASSES).permute(0, 3, 1, 2).float()
    overlap = (2 * (p * t).sum((0, 2, 3)) + 1) / (p.sum((0, 2, 3)) + t.sum((0, 2, 3)) + 1)
    return 1 - overlap.mean() + F.cross_entropy(logits, labels)


class Joint:
    """One training step: `step(images, labels)`; and `refresh`, `predict`.

    Args:
      segmenter: of `backbone`. retriever: a `Retriever`.
      images: (N, 3, H, W) float32; masks: (N, 1, H, W) float32: the gallery.
      compiled: run the forward pass and the loss through torch.compile.
    """

    def __init__(
        self,
        segmenter: nn.Module,
        retriever: Retriever,
        images: torch.Tensor,
        masks: torch.Tensor,
        compiled: bool = False,
    ):
        self.segmenter, self.retriever, self.images, self.masks = segmenter, retriever, images, masks
        self.embeddings = F.normalize(torch.randn(len(images), 128), dim=-1)
        trained = [p for m in (segmenter, retriever) for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=1e-4)
        self._loss: Callable[..., Any] = torch.compile(self._forward) if compiled else self._forward

    def logits(self, images: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, C, H, W)."""
        found = guide(self.retriever(images), embeddings, images=self.images, masks=self.masks)
        return self.segmenter(torch.cat([images, found], 1))

    def _forward(self, images: torch.Tensor, labels: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        return loss(self.logits(images, embeddings), labels)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """One update; returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        value = self._loss(images, labels, self.embeddings)
        value.backward()
        self.optimizer.step()
        return float(value.detach())

    @torch.no_grad()
    def refresh(self, rows: int, batch: int) -> torch.Tensor:
        """Embeddings of the first `rows` gallery images, by a full forward pass."""
        self.retriever.eval()
        found = torch.cat([self.retriever(self.images[i : i + batch]) for i in range(0, rows, batch)])
        self.retriever.train()
        return found

    @torch.no_grad()
    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, C, H, W)."""
        for module in (self.retriever, self.segmenter):
            module.eval()
        return self.logits(images, self.embeddings).softmax(1)
