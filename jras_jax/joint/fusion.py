"""Fusion of a query with its guides, for any backbone: at the input (`concat`, `adapter`), on features
(`cross_attention`, `prototype`) or on the logits (`prior`).

Axes: B queries, K guides, S model grid, C classes, H W a feature map, F its channels.

In every kind the weights of selection enter differentiably, so that the segmentation loss teaches the retriever. The
kinds that act on features or logits start as the identity (zero-initialised projections): a run begins as its
baseline.

References: `concat` and `adapter` are the J-RAS paper's (arXiv 2510.09953); `cross_attention` is its attention variant;
`prototype` follows few-shot segmentation by class prototypes (Wang et al., "PANet", ICCV 2019).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jras_jax.errors import UserError
from jras_jax.models.layers import LayerNorm, Linear
from jras_jax.retrieval.gallery import Guides

ZEROS = nn.initializers.zeros
Features = tuple[jax.Array, ...]


class Fusion(nn.Module):
    """What all kinds share: each of the three places is the identity unless a kind acts there."""

    num_classes: int = 4

    needs_guide_features = False
    # Whether `Guides.similarity` matters; guides that were not searched for must then have theirs computed.
    reads_similarity = False

    def fuse_input(self, query: jax.Array, guides: Guides) -> jax.Array:
        """The query (B, S, S, Cq), already standardised, and guides -> the backbone's input (B, S, S, Cin)."""
        return query

    def fuse_features(self, query: Features, guide: Features, guides: Guides) -> Features:
        """Feature maps of the query (B, Hi, Wi, Fi) and its guides (B, K, Hi, Wi, Fi) -> the query's, guided."""
        return query

    def fuse_logits(self, logits: jax.Array, guides: Guides) -> jax.Array:
        """The backbone's logits (B, S, S, C) at full resolution -> logits of the same shape, guided."""
        return logits


class Concat(Fusion):
    """One mixed guide stacked onto the query's channels: Cq + Cq + C channels.

    Attributes:
      mask: 'onehot' (C channels), or 'index': one channel, the weighted mean of class numbers as the paper's scripts
        have it (a mean of 1 and 3 reads as 2).
    """

    mask: str = "onehot"

    def fuse_input(self, query: jax.Array, guides: Guides) -> jax.Array:
        image = jnp.einsum("bk,bk...->b...", guides.weights, guides.images)
        image = image if image.ndim == 4 else jnp.repeat(image[..., None], query.shape[-1], -1)
        mask = jnp.einsum("bk,bkhwc->bhwc", guides.weights, guides.masks)
        if self.mask == "index":
            mask = (mask @ jnp.arange(self.num_classes, dtype=mask.dtype))[..., None]
        elif self.mask != "onehot":
            raise UserError(f"config.fusion.options.mask={self.mask!r}: choose 'onehot' or 'index'")
        return jnp.concatenate([query, image, mask], -1)


class Adapter(Fusion):
    """Separate guides through a 1x1 convolution back to the query's channels; it starts as the identity.

    Each guide's channels (image and one-hot mask) are scaled by K times its weight, so that equal weights leave them
    as they are.
    """

    @nn.compact
    def fuse_input(self, query: jax.Array, guides: Guides) -> jax.Array:
        k = guides.weights.shape[1]
        channels = query.shape[-1]
        images = guides.images
        images = images if images.ndim == 5 else jnp.repeat(images[..., None], channels, -1)
        scale = (k * guides.weights)[..., None, None, None]
        stacked = jnp.concatenate([images, guides.masks], -1) * scale
        stacked = jnp.moveaxis(stacked, 1, 3).reshape(*query.shape[:3], -1)
        return query + Linear(channels, kernel_init=ZEROS, name="adapter")(jnp.concatenate([query, stacked], -1))


class CrossAttention(Fusion):
    """At chosen levels query features attend to the guides' features and masks; a residual that starts at zero.

    A guide's map is averaged down to `tokens` a side before it is attended to (16: 256 keys a guide); the logarithm of
    its weight is added to the logits of its keys, so that a guide of weight 0 is not attended to.

    Attributes:
      levels: indices into the backbone's feature maps.
      heads: of attention. width: channels of queries, keys and values. tokens: see above.
    """

    levels: Sequence[int] = ()
    heads: int = 4
    width: int = 64
    tokens: int = 16

    needs_guide_features = True

    @nn.compact
    def fuse_features(self, query: Features, guide: Features, guides: Guides) -> Features:
        out = list(query)
        for level in self.levels:
            out[level] = query[level] + self._attend(level, query=query[level], guide=guide[level], guides=guides)
        return tuple(out)

    def _attend(self, level: int, query: jax.Array, guide: jax.Array, guides: Guides) -> jax.Array:
        b, h, w, f = query.shape
        k = guide.shape[1]
        small = (min(h, self.tokens), min(w, self.tokens))
        keys = _shrunk(guide, small)
        masks = _shrunk(guides.masks, small)
        split = lambda x: x.reshape(b, -1, self.heads, self.width // self.heads)  # noqa: E731
        x = LayerNorm(name=f"query_norm_{level}")(query)
        y = LayerNorm(name=f"guide_norm_{level}")(keys)
        y = jnp.concatenate([y, masks], -1)
        q = split(Linear(self.width, name=f"query_{level}")(x))
        key = split(Linear(self.width, name=f"key_{level}")(y))
        value = split(Linear(self.width, name=f"value_{level}")(y))
        bias = jnp.log(jnp.maximum(guides.weights, 1e-6))
        bias = jnp.repeat(bias, small[0] * small[1], 1)[:, None, None, :]
        bias = jnp.broadcast_to(bias, (b, self.heads, h * w, k * small[0] * small[1]))
        attended = jax.nn.dot_product_attention(q, key, value, bias=bias).reshape(b, h, w, self.width)
        return Linear(f, kernel_init=ZEROS, name=f"output_{level}")(attended).astype(query.dtype)


class Prototype(Fusion):
    """Class prototypes: the guides' mean feature under each class of their masks, compared with the query's features.

    At each level, prototype c is the mean over guides and pixels of the guides' features, weighted by the selection's
    weights and the share of class c in the pixel; the cosine of every query feature with every prototype gives C
    maps, which are added to the query's features through a projection that starts at zero.

    Attributes:
      levels: indices into the backbone's feature maps.
      sharpness: initial factor on the cosines; learnt.
    """

    levels: Sequence[int] = ()
    sharpness: float = 4.0

    needs_guide_features = True

    @nn.compact
    def fuse_features(self, query: Features, guide: Features, guides: Guides) -> Features:
        out = list(query)
        for level in self.levels:
            x, y = query[level].astype(jnp.float32), guide[level].astype(jnp.float32)
            shares = _shrunk(guides.masks, (y.shape[2], y.shape[3])) * guides.weights[..., None, None, None]
            total = jnp.einsum("bkhwc,bkhwf->bcf", shares, y)
            prototypes = total / (shares.sum((1, 2, 3))[..., None] + 1e-6)
            # Features have a large common part (mean over the map); the cosine compares what is left without it.
            centre = jnp.einsum("bk,bkf->bf", guides.weights, y.mean((2, 3)))
            maps = jnp.einsum(
                "bhwf,bcf->bhwc", _unit(x - x.mean((1, 2), keepdims=True)), _unit(prototypes - centre[:, None])
            )
            # A class that no guide shows has no prototype: its map is 0, not the cosine with the common part.
            maps *= (shares.sum((1, 2, 3)) > 1e-3)[:, None, None, :]
            scale = self.param(f"scale_{level}", nn.initializers.constant(self.sharpness), (), jnp.float32)
            added = Linear(x.shape[-1], kernel_init=ZEROS, name=f"project_{level}")(scale * maps)
            out[level] = (x + added).astype(query[level].dtype)
        return tuple(out)


class Prior(Fusion):
    """The mix of the guides' masks as a prior on the logits, through a gate that learns when to trust it.

    With m the guides' masks mixed by weight and e = `floor`, log((m + e) / (1 + C e)), less its mean over the classes,
    is added to the logits, times a gate a pixel. A small network reads the gate from what tells whether the guides can
    be trusted: the backbone's own probabilities, m, and the largest similarity. It starts at zero. Blank guides add
    nothing.

    Attributes:
      floor: least probability of a class that no guide shows.
      width: channels of the gate's hidden layer.
    """

    floor: float = 0.05
    width: int = 16

    reads_similarity = True

    @nn.compact
    def fuse_logits(self, logits: jax.Array, guides: Guides) -> jax.Array:
        mix = jnp.einsum("bk,bkhwc->bhwc", guides.weights, guides.masks)
        own = jax.nn.softmax(jax.lax.stop_gradient(logits).astype(jnp.float32))
        near = guides.similarity.max(1)[:, None, None, None]
        seen = jnp.concatenate([own, mix, jnp.broadcast_to(near, (*mix.shape[:3], 1))], -1)
        gate = Linear(1, kernel_init=ZEROS, name="gate")(nn.relu(Linear(self.width, name="hidden")(seen)))
        evidence = jnp.log((mix + self.floor) / (1 + mix.shape[-1] * self.floor))
        evidence -= evidence.mean(-1, keepdims=True)
        shown = mix.sum(-1, keepdims=True) > 0.5  # a mask names a class at every pixel, a blank one none
        return (logits + jnp.where(shown, gate * evidence, 0.0)).astype(logits.dtype)


KINDS: dict[str, type[Fusion]] = {
    "prototype": Prototype,
    "cross_attention": CrossAttention,
    "concat": Concat,
    "adapter": Adapter,
    "prior": Prior,
}
ON_FEATURES = tuple(name for name, kind in KINDS.items() if kind.needs_guide_features)


def create(name: str, **options: Any) -> Fusion:
    """The fusion `name` with `options` as its fields.

    Raises:
      UserError: unknown name or option.
    """
    if name not in KINDS:
        raise UserError(f"config.fusion.name={name!r}: choose one of {', '.join(KINDS)}")
    allowed = {f.name for f in dataclasses.fields(KINDS[name])} - {"parent", "name"}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise UserError(
            f"config.fusion.options: {name} has no option {', '.join(unknown)}; it has {', '.join(sorted(allowed))}"
        )
    if isinstance(options.get("levels"), list):
        options["levels"] = tuple(options["levels"])
    return KINDS[name](**options)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-6)


def _shrunk(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """(B, K, H, W, F) averaged down to (B, K, *size, F): the share of each class, where F are one-hot classes."""
    b, k, h, w, f = x.shape
    if (h, w) == tuple(size):
        return x
    if h % size[0] == 0 and w % size[1] == 0:
        return x.reshape(b, k, size[0], h // size[0], size[1], w // size[1], f).mean((3, 5))
    return jax.image.resize(x, (b, k, *size, f), "linear", antialias=True)
