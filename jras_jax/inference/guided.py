"""A segmenter's model with guides that are given, not retrieved: what the controls of an evaluation need.

Axes: B slices of a call, n slices, N gallery rows, K guides, S model grid, C classes.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jras_jax import joint, mesh
from jras_jax.inference.segmenter import Segmenter, averaged, filled
from jras_jax.joint import controls
from jras_jax.retrieval.gallery import Gallery, QueryKeys
from jras_jax.retrieval.search import fetch, mix, search, similarities


class Given(NamedTuple):
    """Guides of n slices.

    Attributes:
      rows: (n, K) int32 gallery rows; (n, 0) for the strategy 'softmax', which mixes all rows.
      weights: (n, K) float32, or (n, N) for 'softmax'.
      blank: (n,) bool, whether the guides are blank. permuted: (n,) bool, whether their classes are permuted.
    """

    rows: np.ndarray
    weights: np.ndarray
    blank: np.ndarray
    permuted: np.ndarray


class GuidedSegmenter:
    """The model, variables and gallery of a segmenter, compiled once for guides that are given.

    Args:
      segmenter: with retrieval, its variables and gallery set.
    """

    def __init__(self, segmenter: Segmenter):
        assert segmenter.gallery is not None and segmenter.selection is not None
        self._segmenter, self._mesh = segmenter, segmenter.mesh
        options: dict[str, Any] = {"model": segmenter.model(), "mesh": segmenter.mesh}
        whole = mesh.replicated(segmenter.mesh)
        forward = functools.partial(_forward, angles=segmenter.angles, **options)
        self._program = jax.jit(forward, out_shardings=whole)
        self._shares = jax.jit(
            functools.partial(_shares, selection=segmenter.selection, **options), out_shardings=whole
        )

    def probabilities(self, images: np.ndarray, given: Given) -> np.ndarray:
        """Class probabilities (n, S, S, C) float32 of slices (n, S, S) uint8 with their guides."""
        return self._called(self._program, images, *given)

    def shares(self, images: np.ndarray, patient: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The weights (n, N) float32 that the strategy 'softmax' gives all gallery rows.

        `patient` and `rows` (n,) int32 are the slices' own in the gallery, -1 if not there.
        """
        return self._called(self._shares, images, patient, rows)

    def _called(self, program: Any, *arrays: np.ndarray) -> np.ndarray:
        """The program's output for arrays (n, ...), in calls of one shape."""
        size, parts = self._segmenter.batch_size, []
        for start in range(0, len(arrays[0]), size):
            chunk = [x[start : start + size] for x in arrays]
            put = [mesh.put_whole(self._mesh, filled(x, size)) for x in chunk]
            out = self._segmenter.launched(program, self._segmenter.variables, self._segmenter.gallery, *put)
            parts.append(np.asarray(out)[: len(chunk[0])])
        return np.concatenate(parts)


def _forward(
    variables: joint.Variables,
    gallery: Gallery,
    images: jax.Array,
    rows: jax.Array,
    weights: jax.Array,
    blank: jax.Array,
    permuted: jax.Array,
    *,
    model: joint.JointModel,
    mesh: Mesh,
    angles: tuple[float, ...],
) -> jax.Array:
    plain = images.astype(jnp.float32) / 255.0
    similarity = jnp.zeros_like(weights)
    if model.fusion is not None and model.fusion.reads_similarity:
        apply: Any = model.apply
        embeddings = apply(variables, plain, method="embed_images")
        similarity = similarities(gallery, embeddings, rows if rows.shape[1] else None, mesh=mesh)
    if rows.shape[1]:
        guides = fetch(gallery, rows, weights=weights, similarity=similarity, num_classes=model.num_classes, mesh=mesh)
    else:
        guides = mix(gallery, weights=weights, similarity=similarity, num_classes=model.num_classes)
    guides = controls.permuted(controls.blanked(guides, blank), permuted)
    return averaged(model, variables, images=plain, guides=guides, angles=angles)


def _shares(
    variables: joint.Variables,
    gallery: Gallery,
    images: jax.Array,
    patient: jax.Array,
    row: jax.Array,
    *,
    model: joint.JointModel,
    selection: joint.Selection,
    mesh: Mesh,
) -> jax.Array:
    apply: Any = model.apply
    embeddings = apply(variables, images.astype(jnp.float32) / 255.0, method="embed_images")
    _, weights, _ = search(
        gallery,
        embeddings,
        QueryKeys(patient=patient, row=row),
        strategy=selection.strategy,
        k=selection.top_k,
        temperature=selection.temperature,
        exclude=selection.exclude,
        mesh=mesh,
    )
    return weights
