"""Retriever, selection, fusion and backbone as one model: slices and a gallery in, logits out, all differentiable.

Axes: B queries, N gallery rows, K guides per query, S model grid, C classes, D embedding.

The gradient of the segmentation loss reaches the retriever through the weights of the selected guides and the query's
embedding; the gallery's embeddings are constants between two refreshes (arXiv 2510.09953).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jras_jax.errors import UserError
from jras_jax.retrieval.gallery import Gallery, Guides, QueryKeys
from jras_jax.retrieval.search import fetch, mix, search
from jras_jax.retrieval.selection import Selection

Variables = dict[str, Any]  # {'params': ..., and 'batch_stats' where the backbone has batch norm}
Logits = jax.Array | tuple[jax.Array, ...]


def standardise(images: jax.Array, *, channels_last: bool = False) -> jax.Array:
    """(..., S, S) in [0, 1] -> zero mean and unit deviation, slice by slice: scanners differ in both.

    With `channels_last` (..., S, S, C), channel by channel.
    """
    axes = (-3, -2) if channels_last else (-2, -1)
    mean = images.mean(axes, keepdims=True)
    deviation = images.std(axes, keepdims=True)
    return (images - mean) / (deviation + 1e-3)


class JointModel(nn.Module):
    """Parameters and forward passes of a J-RAS model; `retriever` and `fusion` are None for the baseline.

    Attributes:
      backbone, retriever, fusion: see docs/ARCHITECTURE.md for their contracts.
      in_channels: of the backbone's input: 1, or 3 to repeat grey for weights trained on RGB; of a data set of several
        channels their number.
      channels: of the images below, which are (B, S, S, C) if it is above 1; the retriever then sees their mean.
      neighbours: whether the three channels of an image are a slice and its neighbours (`data.grid.stacked`): the
        retriever sees all, the backbone the slice itself.
      locator: the small backbone that finds the heart in whole slices; None if the model sees whole slices itself.
      guide_gradient: whether the encoder also trains through the guides' features. Without it they cost a forward pass
        only; the retriever's gradient, which goes through the weights, is the same.
    """

    backbone: nn.Module
    retriever: nn.Module | None
    fusion: nn.Module | None
    in_channels: int = 1
    guide_gradient: bool = False
    channels: int = 1
    locator: nn.Module | None = None
    neighbours: bool = False

    @property
    def num_classes(self) -> int:
        """C, the background among them."""
        return int(self.backbone.num_classes)

    def states(self, images: jax.Array) -> jax.Array:
        """(B, S, S) in [0, 1] -> the retriever's frozen states (B, T, D): constant in training, so they can be kept."""
        assert self.retriever is not None
        return jax.lax.stop_gradient(self.retriever.states(self._retrievers(images)))

    def embed(self, states: jax.Array, train: bool = False) -> jax.Array:
        """States (B, T, D) -> embeddings (B, dim) of norm 1."""
        assert self.retriever is not None
        return self.retriever.embed(states, train)

    def embed_images(self, images: jax.Array, train: bool = False) -> jax.Array:
        """(B, S, S) in [0, 1] -> embeddings (B, dim) of norm 1; gradients reach every trained parameter."""
        assert self.retriever is not None
        return self.retriever(self._retrievers(images), train)

    def project_images(self, images: jax.Array, train: bool = False) -> jax.Array:
        """(B, S, S) in [0, 1] -> the projection head's output (B, dim), not normalised."""
        assert self.retriever is not None
        return self.retriever.project_images(self._retrievers(images), train)

    def segment(self, images: jax.Array, guides: Guides | None, train: bool = False) -> Logits:
        """Query slices (B, S, S) in [0, 1] and their guides -> logits (B, S, S, C); several if deep supervision."""
        if self.neighbours:
            images = images[..., 1]
            guides = None if guides is None else guides.replace(images=guides.images[..., 1])
        query = self._channels(self._standardised(images))
        size = images.shape[1:3]
        if self.fusion is None or guides is None:
            return self.backbone.decode(self.backbone.encode(query, train), size, train)
        shown = guides.replace(images=self._standardised(guides.images))
        fused = self.fusion.fuse_input(query, shown)
        features = self.backbone.encode(fused, train)
        if self.fusion.needs_guide_features:
            b, k = guides.images.shape[:2]
            guided = self.backbone.encode(self._channels(shown.images).reshape(b * k, *fused.shape[1:]), train)
            if not self.guide_gradient:
                guided = jax.lax.stop_gradient(guided)
            guided = tuple(f.reshape(b, k, *f.shape[1:]) for f in guided)
            features = self.fusion.fuse_features(features, guided, shown)
        logits = self.backbone.decode(features, size, train)
        if isinstance(logits, tuple):
            return self.fusion.fuse_logits(logits[0], shown), *logits[1:]
        return self.fusion.fuse_logits(logits, shown)

    def locate(self, wholes: jax.Array) -> jax.Array:
        """Whole slices (B, L, L) in [0, 1] -> logits (B, L, L, C), which the frame of the heart is made of."""
        assert self.locator is not None
        return self.locator(standardise(wholes)[..., None])

    def __call__(
        self, images: jax.Array, guides: Guides | None, wholes: jax.Array | None = None, train: bool = False
    ) -> Logits:
        """Touches every parameter, for initialisation."""
        if self.locator is not None and wholes is not None:
            self.locate(wholes)
        if self.retriever is not None:
            self.embed_images(images, train)
        return self.segment(images, guides, train)

    def _standardised(self, images: jax.Array) -> jax.Array:
        return standardise(images, channels_last=self._several)

    def _retrievers(self, images: jax.Array) -> jax.Array:
        """(B, S, S[, C]) -> (B, S, S), what the retriever sees, or (B, S, S, 3) with neighbours."""
        return images.mean(-1) if self._several else images

    def _channels(self, images: jax.Array) -> jax.Array:
        return images if self._several else jnp.repeat(images[..., None], self.in_channels, -1)

    @property
    def _several(self) -> bool:
        """Whether the backbone sees several channels of the data set."""
        return self.channels > 1 and not self.neighbours


def retrieve(
    embeddings: jax.Array,
    gallery: Gallery,
    queries: QueryKeys,
    selection: Selection,
    num_classes: int,
    *,
    scores: jax.Array | None = None,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> Guides:
    """Finds and fetches the guides of a batch of embeddings (B, dim); differentiable in the embeddings.

    `scores` (B, N) rank and weigh in place of the similarities: the oracle's, see `selection.STRATEGIES`.
    """
    if selection.strategy == "oracle" and scores is None:
        raise UserError("config.retrieval.strategy='oracle' needs the queries' true masks: labelled data only")
    indices, weights, similarity = search(
        gallery,
        embeddings,
        queries,
        strategy=selection.strategy,
        k=selection.top_k,
        temperature=selection.temperature,
        exclude=selection.exclude,
        recall_target=selection.recall_target,
        scores=scores if selection.strategy == "oracle" else None,
        key=key,
        mesh=mesh,
    )
    if selection.strategy == "softmax":
        return mix(gallery, weights=weights, similarity=similarity, num_classes=num_classes)
    return fetch(gallery, indices, weights=weights, similarity=similarity, num_classes=num_classes, mesh=mesh)


def first_guides(batch: int, k: int, size: int, num_classes: int, channels: int = 1) -> Guides:
    """Guides of the right shapes for initialisation."""
    return Guides(
        images=jnp.zeros((batch, k, size, size) + ((channels,) if channels > 1 else ())),
        masks=jnp.zeros((batch, k, size, size, num_classes)),
        weights=jnp.full((batch, k), 1 / k),
        indices=jnp.zeros((batch, k), jnp.int32),
        similarity=jnp.zeros((batch, k)),
    )
