"""A trained model at work: slices in, class probabilities and the retrieved cases out, in batches of one shape."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jras_jax import mesh
from jras_jax.data import Volume
from jras_jax.data.dice import dice
from jras_jax.data.frame import far
from jras_jax.data.grid import (
    Grid,
    VolumeSlices,
    framed_slices,
    grid_map,
    located_frame,
    native_frame,
    volume_slices,
    whole_slices,
)
from jras_jax.errors import UserError
from jras_jax.inference.predictions import SlicePredictions, joined
from jras_jax.retrieval import measures
from jras_jax.retrieval.gallery import Gallery, Guides, QueryKeys
from jras_jax.retrieval.selection import Selection

if TYPE_CHECKING:
    from jras_jax import joint


class Started(NamedTuple):
    """A batch on the devices: how many of its slices count, and the program's outputs, perhaps not computed yet."""

    number: int
    outputs: tuple[jax.Array, ...]


def fetched(started: Started) -> SlicePredictions:
    """Waits for a batch and brings it to the host, without the slices that filled it up."""
    return SlicePredictions(*(np.asarray(x)[: started.number] for x in started.outputs))


class Segmenter:
    """A compiled model that segments slices and volumes with the variables and the gallery it is given.

    The program is compiled at the first call and kept: `using` exchanges variables and gallery without compiling again,
    so that one segmenter serves every validation of a run.

    Args:
      model: gives the model of `joint.build_model`; called when the program is traced.
      selection: how guides are chosen; None for the baseline.
      grid: the model grid.
      batch_size: slices per call; the last call is padded, so that one shape is compiled.
      device_mesh: where it runs.
      tta: average over small rotations.
      seed: for strategies that draw.
      rounds: passes at most over a volume in the frame of the heart; each after the first takes its frame from the mask
        of the one before, if that is far from its own.

    Attributes:
      program: the forward pass, `program(variables, gallery, images, patient, row, key, truth)`.
      model, selection: as given.
      locate: the locator's, `locate(variables, images)`.
      angles: of the rotations that are averaged, in degrees; () without test-time augmentation.
      rounds: as given.
      draws: whether guides are drawn, so that slices of several volumes must not share a batch.
      reads_truth: whether guides are chosen by the true masks.
    """

    ROTATIONS = (-10.0, 10.0)  # degrees, beside the slice as it is

    def __init__(
        self,
        model: Callable[[], joint.JointModel],
        selection: Selection | None,
        grid: Grid,
        *,
        batch_size: int,
        device_mesh: Mesh,
        tta: bool = False,
        seed: int = 0,
        rounds: int = 1,
    ):
        self.rounds = rounds
        self.grid, self.mesh, self.model, self.selection = grid, device_mesh, model, selection
        self.variables: joint.Variables | None = None
        self.gallery: Gallery | None = None
        data = device_mesh.shape["data"]
        self.batch_size = -(-batch_size // data) * data
        self._seed = seed
        # A strategy that draws to explore in training takes the best here; 'random' is the control, which draws.
        self.draws = selection is not None and selection.strategy == "random"
        self.reads_truth = selection is not None and selection.strategy == "oracle"
        self.angles = self.ROTATIONS if tta else ()
        bound = functools.partial(forward, model=model, selection=selection, mesh=device_mesh, angles=self.angles)
        self.program: Any = jax.jit(bound, out_shardings=mesh.replicated(device_mesh))
        self._launching = threading.Lock()
        locate = functools.partial(_locate, model=model)
        self.locate: Any = jax.jit(locate, out_shardings=mesh.replicated(device_mesh))

    def using(self, variables: joint.Variables, gallery: Gallery | None) -> Segmenter:
        """This segmenter with variables (on the mesh) and a gallery embedded by them; None for the baseline."""
        ready = copy.copy(self)
        ready.variables, ready.gallery = variables, gallery
        return ready

    def guided_by(self, gallery: Gallery) -> Segmenter:
        """This segmenter with another gallery."""
        other = copy.copy(self)
        other.gallery = gallery
        return other

    def slices(
        self,
        images: np.ndarray,
        patient: int | np.ndarray = -1,
        rows: np.ndarray | None = None,
        truth: np.ndarray | None = None,
    ) -> SlicePredictions:
        """Segments slices (n, S, S) uint8.

        Args:
          images: the slices on the model grid.
          patient: the gallery's number of their patient, so that the leak rule can act; -1 if not in the gallery. (n,)
            if they are of several patients.
          rows: (n,) the gallery rows that are these very slices; -1 or None if not in the gallery.
          truth: (n, S, S) true labels, which only the strategy 'oracle' reads.

        Raises:
          UserError: the strategy is 'oracle' and there is no truth.
        """
        n, size = len(images), self.batch_size
        patient = np.broadcast_to(np.asarray(patient, np.int32), n)
        rows = np.full(n, -1, np.int32) if rows is None else rows
        started = (
            self.started(
                images[at], patient[at], rows=rows[at], truth=None if truth is None else truth[at], start=start
            )
            for start in range(0, n, size)
            for at in [slice(start, start + size)]
        )
        return joined(map(fetched, started))

    def placed(self, volume: Volume, slice_axis: int = 2) -> VolumeSlices:
        """A volume on the model grid; in the frame of the heart as the locator finds it, whatever its mask says."""
        if self.grid.frame is None:
            return volume_slices(volume, self.grid, slice_axis)
        whole = whole_slices(volume, self.grid, slice_axis)
        size, parts = self.batch_size, []
        for start in range(0, len(whole.images), size):
            chunk = whole.images[start : start + size]
            out = self.launched(self.locate, self.variables, mesh.put_whole(self.mesh, filled(chunk, size)))
            parts.append(np.asarray(out)[: len(chunk)])
        frame = located_frame(volume, self.grid, whole=whole.mapping, probabilities=np.concatenate(parts))
        return framed_slices(volume, self.grid, whole=whole, frame=frame)

    def started(
        self,
        images: np.ndarray,
        patient: np.ndarray,
        rows: np.ndarray,
        truth: np.ndarray | None = None,
        start: int = 0,
    ) -> Started:
        """Starts the program on at most `batch_size` slices and does not wait for it; see `slices`, and `fetched`.

        `start` is the number of the first slice in its volume, on which the random draws depend.
        """
        if self.reads_truth and truth is None:
            raise UserError("config.retrieval.strategy='oracle' needs true masks: it is for labelled data only")
        size = self.batch_size
        put = functools.partial(mesh.put_whole, self.mesh)
        key = jax.random.fold_in(jax.random.key(self._seed), start) if self.draws else None
        true = put(filled(truth, size)) if self.reads_truth and truth is not None else None
        chunk, whose = put(filled(images, size)), put(filled(patient.astype(np.int32), size, -1))
        own = put(filled(rows.astype(np.int32), size, -1))
        outputs = self.launched(self.program, self.variables, self.gallery, chunk, whose, own, key, true)
        return Started(len(images), outputs)

    def launched(self, program: Any, *arguments: Any) -> Any:
        """Calls a program, and no other thread another one meanwhile.

        Over several devices two programs launched at once may wait for each other's collectives forever.
        """
        with self._launching:
            return program(*arguments)

    def settled(
        self, volume: Volume, slices: VolumeSlices, patient: int, rows: np.ndarray | None
    ) -> tuple[VolumeSlices, SlicePredictions]:
        """Segments the slices of a volume, again in a better frame if there is one; see `refined` and `slices`."""
        predicted = self.slices(slices.images, patient, rows=rows, truth=slices.masks)
        for _ in range(self.rounds - 1):
            better = self.refined(volume, slices, predicted)
            if better is None:
                break
            slices, predicted = better, self.slices(better.images, patient, rows=rows, truth=better.masks)
        return slices, predicted

    def refined(self, volume: Volume, slices: VolumeSlices, predicted: SlicePredictions) -> VolumeSlices | None:
        """The volume in the frame that its predicted mask makes; None if that is near the one it was segmented in."""
        if slices.located is None or self.rounds < 2:
            return None
        labels, before = slices.mapping.to_native(predicted.probabilities), slices.located.frame
        frame = native_frame(volume, self.grid, slices.mapping, labels=labels)
        if frame is None or (before is not None and not far(before, frame)):
            return None
        axis = slices.mapping.slice_axis
        whole = VolumeSlices(slices.located.wholes, None, grid_map(volume, self.grid.whole, axis))
        return framed_slices(volume, self.grid, whole=whole, frame=frame)


def filled(x: np.ndarray, size: int, value: int = 0) -> np.ndarray:
    """(m, ...) -> (size, ...), filled at the end."""
    return np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1), constant_values=value)


def _locate(variables: joint.Variables, images: jax.Array, *, model: Callable[[], joint.JointModel]) -> jax.Array:
    """Whole slices (B, L, L) uint8 -> the locator's probabilities (B, L, L, C)."""
    apply: Any = model().apply
    return jax.nn.softmax(apply(variables, images.astype(jnp.float32) / 255.0, method="locate"))


def forward(
    variables: joint.Variables,
    gallery: Gallery | None,
    images: jax.Array,
    patient: jax.Array,
    row: jax.Array,
    key: jax.Array | None,
    truth: jax.Array | None,
    *,
    model: Callable[[], joint.JointModel],
    selection: Selection | None,
    mesh: Mesh | None,
    angles: tuple[float, ...],
) -> tuple[jax.Array, ...]:
    """One call of `Segmenter.program`: probabilities, indices, weights, similarity and agreement of `SlicePredictions`.

    Args:
      variables, gallery: see `Segmenter.using`.
      images: (b, S, S) uint8. patient, row: (b,) int32, see `QueryKeys`.
      key: for the strategy 'random'. truth: (b, S, S) uint8, for 'oracle'.
      model, selection: see `Segmenter`.
      mesh: over whose data axis the gallery is split; None for one device.
      angles: of the rotations, degrees, beside the slices as they are.
    """
    from jras_jax import joint  # and with it Flax, which a kept program does without

    built = model()
    apply: Any = built.apply
    plain = images.astype(jnp.float32) / 255.0
    guides, b = None, images.shape[0]
    indices, weights = jnp.zeros((b, 0), jnp.int32), jnp.zeros((b, 0))
    similarity, agreement = jnp.zeros((b, 0)), jnp.full((b,), jnp.nan)
    if gallery is not None and selection is not None:
        embeddings = apply(variables, plain, method="embed_images")
        queries = QueryKeys(patient=patient, row=row)
        scores = None if truth is None else measures.overlap(truth, gallery.masks, num_classes=built.num_classes)
        guides = joint.retrieve(
            embeddings,
            gallery,
            queries=queries,
            selection=selection,
            num_classes=built.num_classes,
            scores=scores,
            key=key,
            mesh=mesh,
        )
        indices, weights, similarity = guides.indices, guides.weights, guides.similarity
        agreement = guide_agreement(guides)
    return (
        averaged(built, variables, images=plain, guides=guides, angles=angles),
        indices,
        weights,
        similarity,
        agreement,
    )


def averaged(
    model: joint.JointModel,
    variables: joint.Variables,
    images: jax.Array,
    guides: Guides | None,
    angles: tuple[float, ...],
) -> jax.Array:
    """Class probabilities (B, S, S, C) of slices (B, S, S) in [0, 1]: the mean over the slice and its rotations."""
    apply: Any = model.apply

    def probabilities(x: jax.Array) -> jax.Array:
        logits = apply(variables, x, guides, method="segment")
        return jax.nn.softmax(logits.astype(jnp.float32))

    total = probabilities(images)
    for angle in angles:
        turned = rotate(images if images.ndim == 4 else images[..., None], angle)
        total += rotate(probabilities(turned.reshape(images.shape)), -angle, fill_background=True)
    return total / (1 + len(angles))


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
    """Mean foreground Dice over all pairs of a query's guide masks, (B,); 1 if there is one guide."""
    fg = guides.masks[..., 1:].sum(-1).reshape(*guides.masks.shape[:2], -1)  # (B, K, S * S)
    k = fg.shape[1]
    if k == 1:
        return jnp.ones(fg.shape[0])
    flat = guides.masks[..., 1:].reshape(*guides.masks.shape[:2], -1)
    overlap = jnp.einsum("bkp,blp->bkl", flat, flat)
    size = fg.sum(-1)
    total = size[:, :, None] + size[:, None, :]
    scores = dice(overlap, total)
    return (scores.sum((1, 2)) - jnp.trace(scores, axis1=1, axis2=2)) / (k * (k - 1))
