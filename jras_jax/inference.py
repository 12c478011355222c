"""A trained model at work: slices in, class probabilities and the retrieved cases out, in batches of one shape."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jras_jax import joint, mesh
from jras_jax.data import NUM_CLASSES, Volume
from jras_jax.data.preprocess import Grid, GridMap, volume_slices
from jras_jax.errors import UserError
from jras_jax.retrieval import measures
from jras_jax.retrieval.gallery import Gallery, Guides, QueryKeys


class SlicePredictions(NamedTuple):
    """Per slice, on the model grid.

    Attributes:
      probabilities: (n, S, S, C) float32.
      indices: (n, K) int32 gallery rows; K = 0 without retrieval.
      weights, similarity: (n, K) float32.
      agreement: (n,) float32, mean Dice among the guide masks; NaN without retrieval.
    """

    probabilities: np.ndarray
    indices: np.ndarray
    weights: np.ndarray
    similarity: np.ndarray
    agreement: np.ndarray


@dataclasses.dataclass(frozen=True)
class VolumePrediction:
    """One volume, segmented.

    Attributes:
      labels: (X, Y, Z) uint8 on the native grid, project labels.
      images: (Z, S, S) uint8, the slices as the model saw them.
      slices: what the model said of each slice.
      mapping: between the two grids.
      entropy: mean predictive entropy over the predicted foreground and its rim, nats.
    """

    labels: np.ndarray
    images: np.ndarray
    slices: SlicePredictions
    mapping: GridMap
    entropy: float


class Segmenter:
    """Model, parameters and gallery, ready to segment.

    Args:
      model: of `training.state.build_model`.
      variables: its variables, on the mesh.
      gallery: with embeddings made by these variables; None for the baseline.
      selection: how guides are chosen; None for the baseline.
      grid: the model grid.
      batch_size: slices a call; the last call is padded, so that one shape is compiled.
      device_mesh: where it runs.
      tta: average over small rotations.
      seed: for strategies that draw.
    """

    ROTATIONS = (-10.0, 10.0)  # degrees, beside the slice as it is

    def __init__(
        self,
        model: joint.JointModel,
        variables: joint.Variables,
        gallery: Gallery | None,
        selection: joint.Selection | None,
        grid: Grid,
        *,
        batch_size: int,
        device_mesh: Mesh,
        tta: bool = False,
        seed: int = 0,
    ):
        self.variables, self.gallery, self.grid, self.mesh = variables, gallery, grid, device_mesh
        data = device_mesh.shape["data"]
        self.batch_size = -(-batch_size // data) * data
        self._key = jax.random.key(seed)
        # A strategy that draws to explore in training takes the best here; 'random' is the control, which draws.
        self._draws = selection is not None and selection.strategy == "random"
        self._oracle = selection is not None and selection.strategy == "oracle"
        angles = self.ROTATIONS if tta else ()
        forward = functools.partial(_forward, model=model, selection=selection, mesh=device_mesh, angles=angles)
        self._forward = jax.jit(forward, out_shardings=mesh.replicated(device_mesh))

    def slices(
        self,
        images: np.ndarray,
        patient: int = -1,
        rows: np.ndarray | None = None,
        truth: np.ndarray | None = None,
    ) -> SlicePredictions:
        """Segments slices (n, S, S) uint8.

        `patient` and `rows` are the gallery's numbers for these slices, so that its leak rule can act; -1: not in it.
        `truth` (n, S, S), true labels, is looked at by the strategy 'oracle' alone.
        """
        n, size = len(images), self.batch_size
        rows = np.full(n, -1, np.int32) if rows is None else rows.astype(np.int32)
        parts = []
        for start in range(0, n, size):
            chunk, own = images[start : start + size], rows[start : start + size]
            short = size - len(chunk)
            chunk = np.pad(chunk, [(0, short), (0, 0), (0, 0)])
            own = np.pad(own, (0, short), constant_values=-1)
            whose = np.full(size, patient, np.int32)
            put = functools.partial(mesh.put_whole, self.mesh)
            key = jax.random.fold_in(self._key, start) if self._draws else None
            true = None
            if self._oracle:
                if truth is None:
                    raise UserError("config.retrieval.strategy='oracle' needs true masks: it is for labelled data only")
                true = put(np.pad(truth[start : start + size], [(0, short), (0, 0), (0, 0)]))
            out = self._forward(self.variables, self.gallery, put(chunk), put(whose), put(own), key, true)
            parts.append([np.asarray(x)[: size - short] for x in out])
        return SlicePredictions(*(np.concatenate(p) for p in zip(*parts, strict=True)))

    def volume(self, volume: Volume, patient: int = -1, rows: np.ndarray | None = None) -> VolumePrediction:
        """Segments a volume on its native grid; `rows` (Z,) as in `slices`."""
        images, masks, mapping = volume_slices(volume, self.grid)
        found = self.slices(images, patient, rows, masks if volume.mask is not None else None)
        labels = mapping.to_native(found.probabilities)
        return VolumePrediction(labels, images, found, mapping, predictive_entropy(found.probabilities))


def _forward(
    variables: joint.Variables,
    gallery: Gallery | None,
    images: jax.Array,
    patient: jax.Array,
    row: jax.Array,
    key: jax.Array | None,
    truth: jax.Array | None,
    *,
    model: joint.JointModel,
    selection: joint.Selection | None,
    mesh: Mesh,
    angles: tuple[float, ...],
) -> tuple[jax.Array, ...]:
    apply: Any = model.apply
    plain = images.astype(jnp.float32) / 255.0
    guides, b = None, images.shape[0]
    indices, weights = jnp.zeros((b, 0), jnp.int32), jnp.zeros((b, 0))
    similarity, agreement = jnp.zeros((b, 0)), jnp.full((b,), jnp.nan)
    if gallery is not None and selection is not None:
        embeddings = apply(variables, plain, method="embed_images")
        queries = QueryKeys(patient=patient, row=row)
        scores = None if truth is None else measures.overlap(truth, gallery.masks)
        guides = joint.retrieve(embeddings, gallery, queries, selection, NUM_CLASSES, scores=scores, key=key, mesh=mesh)
        indices, weights, similarity = guides.indices, guides.weights, guides.similarity
        agreement = guide_agreement(guides)

    def probabilities(x: jax.Array) -> jax.Array:
        logits = apply(variables, x, guides, method="segment")
        return jax.nn.softmax(logits.astype(jnp.float32))

    total = probabilities(plain)
    for angle in angles:
        total += rotate(probabilities(rotate(plain[..., None], angle)[..., 0]), -angle, fill_background=True)
    return total / (1 + len(angles)), indices, weights, similarity, agreement


def rotate(images: jax.Array, degrees: float, *, fill_background: bool = False) -> jax.Array:
    """Rotates (B, S, S, C) about the centre, bilinear; outside is 0, or class 0 with certainty."""
    size = images.shape[1]
    angle, centre = jnp.deg2rad(degrees), (size - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(size) - centre, jnp.arange(size) - centre, indexing="ij")
    at = [jnp.cos(angle) * y - jnp.sin(angle) * x + centre, jnp.sin(angle) * y + jnp.cos(angle) * x + centre]
    warp = functools.partial(jax.scipy.ndimage.map_coordinates, coordinates=at, order=1, mode="constant")
    if fill_background:
        images = images.at[..., 0].add(-1.0)
    out = jax.vmap(jax.vmap(lambda i: warp(i), in_axes=-1, out_axes=-1))(images)
    return out.at[..., 0].add(1.0) if fill_background else out


def guide_agreement(guides: Guides) -> jax.Array:
    """Mean foreground Dice over all pairs of a query's guide masks, (B,); 1 where there is one guide."""
    fg = guides.masks[..., 1:].sum(-1).reshape(*guides.masks.shape[:2], -1)  # (B, K, S * S)
    k = fg.shape[1]
    if k == 1:
        return jnp.ones(fg.shape[0])
    flat = guides.masks[..., 1:].reshape(*guides.masks.shape[:2], -1)
    overlap = jnp.einsum("bkp,blp->bkl", flat, flat)
    size = fg.sum(-1)
    total = size[:, :, None] + size[:, None, :]
    dice = jnp.where(total > 0, 2 * overlap / jnp.maximum(total, 1), 1.0)
    return (dice.sum((1, 2)) - jnp.trace(dice, axis1=1, axis2=2)) / (k * (k - 1))


def predictive_entropy(probabilities: np.ndarray) -> float:
    """Mean entropy (nats) of (n, S, S, C) probabilities over pixels that may be foreground (background below 0.99)."""
    p = np.clip(probabilities, 1e-7, 1.0)
    near = p[..., 0] < 0.99
    if not near.any():
        return 0.0
    return float(-(p[near] * np.log(p[near])).sum(-1).mean())
