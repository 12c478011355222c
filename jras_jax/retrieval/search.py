"""Search and fetch: which gallery rows guide a query, with which weights, and their images and masks.

Axes: B queries, N gallery rows (padded to a multiple of the devices), K guides, S model grid, C classes, D embedding.

A search takes the top k on every device, gathers k candidates per device and merges them, which equals the dense
search. A fetch is a sum over devices to which only the owner of a row contributes. Both return row numbers and
constants. The gradient flows from the weights through the similarity of the query and the fetched rows' embeddings, so
it is exact on any number of devices.

Of a gallery with int8 embeddings, integers rank the rows (`quantised.rank_scores`). The K chosen rows are then
dequantised: weights, similarities and gradient are those of the float query and the dequantised rows, as if the gallery
held these in float32. The strategy 'softmax', which weighs every row, dequantises all.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jras_jax.errors import UserError
from jras_jax.retrieval import selection
from jras_jax.retrieval.gallery import Gallery, Guides, HostRows, QueryKeys, allowed_rows, data_devices
from jras_jax.retrieval.quantised import Int8Rows, as_float, rank_scores


def search(
    gallery: Gallery,
    embeddings: jax.Array,
    queries: QueryKeys,
    *,
    strategy: str,
    k: int,
    temperature: float,
    exclude: str,
    recall_target: float = 1.0,
    scores: jax.Array | None = None,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Chooses guides by cosine similarity under the leak rule.

    Args:
      gallery: N rows.
      embeddings: (B, D) float32 of norm 1, the queries'.
      queries: who asks.
      strategy, k, temperature: see `selection.select`; 'softmax' gives all N rows.
      exclude: the leak rule, see `allowed_rows`.
      recall_target: below 1: `jax.lax.approx_max_k` with this recall in place of the exact top-k.
      scores: (B, N), ranks and weighs in place of the similarity (the oracle's overlap).
      key: for strategies that draw.
      mesh: over whose data axis the gallery is split.

    Returns:
      indices (B, K) int32, weights (B, K) and similarity (B, K) float32; weights and similarity are differentiable in
      `embeddings`.
    """
    selection.check(strategy, k, gallery.rows)
    allowed = allowed_rows(gallery, queries, exclude)
    if strategy == "softmax":
        similarity = similarities(gallery, embeddings)
        indices, weights = selection.select(similarity, allowed, strategy=strategy, k=k, temperature=temperature)
        return indices, weights, similarity
    noise = selection.ranking_noise(
        strategy, queries=embeddings.shape[0], rows=gallery.rows, temperature=temperature, key=key
    )
    find = functools.partial(_local_top_k, strategy=strategy, k=k, recall_target=recall_target)
    fixed = jax.lax.stop_gradient(embeddings)
    if data_devices(mesh) == 1:
        indices = find(fixed, gallery.embeddings, allowed, noise, scores)[1]
    else:
        merge = _over_devices(find, k=k, scored=scores is not None, mesh=mesh)
        indices = merge(fixed, gallery.embeddings, allowed, noise, scores)
    indices, present = selection.settle(indices, allowed)
    similarity = similarities(gallery, embeddings, indices, mesh=mesh)
    noise = jnp.take_along_axis(noise, indices, 1)
    relevance = similarity if scores is None else jnp.take_along_axis(scores, indices, 1)
    weights = selection.weigh(relevance, noise, present, strategy=strategy, temperature=temperature)
    return indices, weights, similarity


def similarities(
    gallery: Gallery, embeddings: jax.Array, indices: jax.Array | None = None, *, mesh: Mesh | None = None
) -> jax.Array:
    """Cosine similarity of queries (B, D) with rows (B, K) of the gallery, or with all (B, N)."""
    if indices is None:
        return embeddings @ as_float(gallery.embeddings).T
    chosen = gather_embeddings(gallery, indices, mesh=mesh)
    return jnp.einsum("bd,bkd->bk", embeddings, chosen, precision=jax.lax.Precision.HIGHEST)


def _over_devices(find: Any, *, k: int, scored: bool, mesh: Mesh | None) -> Any:
    """`find` on every device's own rows, and the merge of their candidates."""
    over = P(None, "data")
    return jax.shard_map(
        functools.partial(_merged_top_k, find=find, k=k),
        mesh=mesh,
        in_specs=(P(), P("data"), over, over, over if scored else None),
        out_specs=P(),
        check_vma=False,  # an all-gather's result is equal on all devices, which the checker cannot see
    )


def _local_top_k(
    embeddings: jax.Array,
    rows: jax.Array | Int8Rows,
    allowed: jax.Array,
    noise: jax.Array,
    scores: jax.Array | None,
    *,
    strategy: str,
    k: int,
    recall_target: float,
) -> tuple[jax.Array, jax.Array]:
    """Ranks (B, k) and row numbers (B, k) of the best of these rows."""
    if scores is None:
        scores = rank_scores(embeddings, rows)
    ranked = selection.ranks(scores, allowed=allowed, noise=noise, strategy=strategy)
    k = min(k, ranked.shape[1])
    if recall_target < 1.0:
        best, indices = jax.lax.approx_max_k(ranked, k, recall_target=recall_target)
    else:
        best, indices = jax.lax.top_k(ranked, k)
    return best, indices.astype(jnp.int32)


def _merged_top_k(
    embeddings: jax.Array,
    rows: jax.Array | Int8Rows,
    allowed: jax.Array,
    noise: jax.Array,
    scores: jax.Array | None,
    *,
    find: Any,
    k: int,
) -> jax.Array:
    """On each device of the data axis: the global best (B, k), from its own rows and the others' candidates."""
    best, indices = find(embeddings, rows, allowed, noise, scores)
    indices += jax.lax.axis_index("data") * rows.shape[0]
    # Candidates are in the order of the devices, so that ties go to the lowest row, as in the dense search.
    best = jax.lax.all_gather(best, "data", axis=1, tiled=True)
    indices = jax.lax.all_gather(indices, "data", axis=1, tiled=True)
    return jnp.take_along_axis(indices, jax.lax.top_k(best, k)[1], 1)


def gather_embeddings(gallery: Gallery, indices: jax.Array, *, mesh: Mesh | None = None) -> jax.Array:
    """The embeddings (B, K, D) float32 of rows (B, K), constants; dequantised if the gallery holds int8."""
    fetched = jax.tree.map(lambda rows: gather_rows(rows, indices, mesh=mesh), gallery.embeddings)
    return jnp.asarray(as_float(fetched))


def gather_shared(
    rows: jax.Array | HostRows | Int8Rows, indices: jax.Array, *, mesh: Mesh | None = None, every: int = 1
) -> jax.Array:
    """Rows (N, ...) at indices (M,) that all queries share -> (M, ...), each fetched once; constants.

    `Int8Rows` are dequantised. `every` is as for `gather_rows`.
    """
    if isinstance(rows, Int8Rows):
        values, scale = (gather_shared(x, indices, mesh=mesh) for x in (rows.values, rows.scale))
        return as_float(Int8Rows(values, scale))
    devices, count = data_devices(mesh), len(indices)
    parts = jnp.pad(indices, (0, -count % devices)).reshape(devices, -1)  # each device has its part of them
    found = gather_rows(rows, parts, mesh=mesh, every=every)
    return found.reshape(-1, *found.shape[2:])[:count]


def gather_rows(
    rows: jax.Array | HostRows, indices: jax.Array, *, mesh: Mesh | None = None, every: int = 1
) -> jax.Array:
    """Rows (N, ...) at indices (B, K) -> (B, K, ...), split over the data axis by B if it divides; constants.

    With `every` above 1, only each `every`-th row and column of pixels of masks (N, S, S) leaves its device or host.
    """
    devices = data_devices(mesh)
    split = devices > 1 and indices.shape[0] % devices == 0
    if isinstance(rows, HostRows):
        read = functools.partial(_from_host, rows, every=every)
        if not split:
            return read(indices)
        return jax.shard_map(read, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)(indices)
    rows = jax.lax.stop_gradient(rows)
    if devices == 1:
        return _thinned(jnp.take(rows, indices, axis=0), every)

    def own(local: jax.Array, indices: jax.Array) -> jax.Array:
        at = indices - jax.lax.axis_index("data") * local.shape[0]
        mine = (at >= 0) & (at < local.shape[0])
        found = _thinned(jnp.take(local, jnp.clip(at, 0, local.shape[0] - 1), axis=0), every)
        found = jnp.where(mine.reshape(mine.shape + (1,) * (found.ndim - 2)), found, 0)
        if split:
            return jax.lax.psum_scatter(found, "data", scatter_dimension=0, tiled=True)
        return jax.lax.psum(found, "data")

    out = P("data") if split else P()
    return jax.shard_map(own, mesh=mesh, in_specs=(P("data"), P()), out_specs=out, check_vma=False)(rows, indices)


def _from_host(rows: HostRows, indices: jax.Array, *, every: int = 1) -> jax.Array:
    thin = _thinned(rows.rows, every)  # a view
    shape = jax.ShapeDtypeStruct((*indices.shape, *thin.shape[1:]), rows.dtype)
    last = len(thin) - 1  # stands for the padding, which no query may be guided by and which is not there
    return jax.pure_callback(lambda i: thin[np.minimum(i, last)], shape, indices)


def _thinned(masks: Any, every: int) -> Any:
    return masks if every == 1 else masks[..., ::every, ::every]


def fetch(
    gallery: Gallery,
    indices: jax.Array,
    weights: jax.Array,
    similarity: jax.Array,
    num_classes: int,
    *,
    mesh: Mesh | None = None,
) -> Guides:
    """The images and one-hot masks of chosen rows (B, K), with their weights."""
    images = gather_rows(gallery.images, indices, mesh=mesh).astype(jnp.float32) / 255.0
    masks = jax.nn.one_hot(gather_rows(gallery.masks, indices, mesh=mesh), num_classes)
    return Guides(images, masks=masks, weights=weights, indices=indices, similarity=similarity)


def mix(gallery: Gallery, weights: jax.Array, similarity: jax.Array, num_classes: int, *, chunk: int = 256) -> Guides:
    """One guide a query, mixed from the whole gallery by weights (B, N): the 'softmax' strategy.

    Images and one-hot masks are averaged `chunk` rows at a time; the gradient flows through the averages.
    `indices` and `similarity` (B, 1) are of the heaviest row.
    """
    if isinstance(gallery.images, HostRows) or isinstance(gallery.masks, HostRows):
        raise UserError("config.retrieval.strategy='softmax' reads the whole gallery: it needs gallery_memory='device'")
    n, size = gallery.rows, gallery.masks.shape[-1]
    pad = -n % chunk
    rows = lambda x: jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, chunk, *x.shape[1:])  # noqa: E731
    shares = jnp.pad(weights, ((0, 0), (0, pad))).reshape(weights.shape[0], -1, chunk).swapaxes(0, 1)

    @jax.checkpoint
    def add(total: tuple[jax.Array, jax.Array], part: tuple[jax.Array, ...]) -> tuple[Any, None]:
        images, masks, share = part
        image = jnp.einsum("bn,n...->b...", share, images.astype(jnp.float32) / 255.0)
        mask = jnp.einsum("bn,nhwc->bhwc", share, jax.nn.one_hot(masks, num_classes))
        return (total[0] + image, total[1] + mask), None

    b = weights.shape[0]
    start = (jnp.zeros((b, *gallery.images.shape[1:])), jnp.zeros((b, size, size, num_classes)))
    (image, mask), _ = jax.lax.scan(add, start, (rows(gallery.images), rows(gallery.masks), shares))
    heaviest = jnp.argmax(weights, -1, keepdims=True).astype(jnp.int32)
    return Guides(
        image[:, None],
        masks=mask[:, None],
        weights=jnp.ones((b, 1)),
        indices=heaviest,
        similarity=jnp.take_along_axis(similarity, heaviest, 1),
    )
