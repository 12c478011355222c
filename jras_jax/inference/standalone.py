"""A trained model as a program that runs without this project: StableHLO, written by `jax.export`.

Axes: b slices, n gallery rows, K guides per slice, S model grid, C classes, D embedding.

The program takes images (b, S, S) uint8 for any b, or (b, S, S, channels) if the data set has several, and runs on CPU,
CUDA and TPU. It contains the weights. A run with retrieval also takes patient (b,) int32, the gallery's number of each
slice's patient (-1: not in the gallery), so that the leak rule acts inside the program too.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jras_jax import files, kernels, mesh
from jras_jax.errors import UserError
from jras_jax.inference.segmenter import Segmenter, forward
from jras_jax.inference.trained_run import RunGallery, TrainedRun
from jras_jax.retrieval.gallery import Gallery
from jras_jax.retrieval.quantised import as_float
from jras_jax.retrieval.selection import Selection

PROGRAM, FACTS, GALLERY = "model.stablehlo", "model.json", "gallery.safetensors"
PLATFORMS = ("cpu", "cuda", "tpu")
LIMIT = 2**31 - 2**24  # bytes of constants: the file is a FlatBuffer, which cannot reach 2 GiB
CROPS = "crops in the frame of the heart, as jras_jax finds and cuts them: the program does neither"
NEIGHBOURS = "the last axis: the slice before in the stack, the slice itself, the one after (the same at an end)"
ROWS = ("embeddings", "images", "masks", "patient", "valid")

Arrays = dict[str, Any]


class Program(NamedTuple):
    """The function to export.

    Attributes:
      call: images (b, S, S) uint8, and with retrieval patient (b,) int32 -> {'probabilities': (b, S, S, C) float32, and
        with retrieval 'guides' (b, K) int32 rows of the gallery, 'weights' and 'similarity' (b, K) float32}. If
        `takes_gallery`, a third argument is the gallery, a dictionary of `ROWS`.
      gallery: the arrays of the gallery on the host; {} for a run without retrieval.
      takes_gallery: whether the gallery is an argument; otherwise it is inside.
      image: the shape of one slice.
      weights: bytes of the model's parameters.
    """

    call: Callable[..., Arrays]
    gallery: Arrays
    takes_gallery: bool
    image: tuple[int, ...]
    weights: int

    @property
    def constants(self) -> int:
        """Bytes that the program contains."""
        return self.weights + (0 if self.takes_gallery else sum(a.nbytes for a in self.gallery.values()))

    def arguments(self, batch: Any, rows: Any = None) -> tuple[Any, ...]:
        """Shapes of the arguments of `call` for a batch and a gallery of these (perhaps symbolic) sizes."""
        images = jax.ShapeDtypeStruct((batch, *self.image), np.uint8)
        if not self.gallery:
            return (images,)
        patient = jax.ShapeDtypeStruct((batch,), np.int32)
        if not self.takes_gallery:
            return images, patient
        return (
            images,
            patient,
            {k: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype) for k, a in self.gallery.items()},
        )


def program(run: TrainedRun, gallery: RunGallery | None, *, takes_gallery: bool = False) -> Program:
    """The forward pass of a run, with its options of evaluation (`config.eval.tta`) and its leak rule.

    Args:
      run: any run.
      gallery: what guides it; None for a run without retrieval.
      takes_gallery: leave the gallery out of the program, as an argument.

    Raises:
      UserError: the run chooses guides by chance or by the truth, or leaves out single slices, which no program can; or
        it reads the whole gallery, which is to be an argument.
    """
    config = run.config
    if gallery is not None and config.retrieval.strategy in ("random", "oracle"):
        raise UserError(
            f"config.retrieval.strategy={config.retrieval.strategy!r} is a control and cannot be exported; give "
            "--config.retrieval.strategy=top_k"
        )
    if gallery is not None and takes_gallery and config.retrieval.strategy == "softmax":
        raise UserError(
            "config.retrieval.strategy='softmax' reads the whole gallery, which must then be inside the program: leave "
            "--gallery_as_argument out"
        )
    if gallery is not None and config.retrieval.exclude == "slice":
        raise UserError(
            "config.retrieval.exclude='slice' cannot be exported, because the program does not know which slice it "
            "sees; give --config.retrieval.exclude=patient"
        )
    variables = mesh.to_host(run.variables)
    rows = _rows(gallery) if gallery is not None else {}
    selection = Selection.of(config.retrieval) if gallery is not None else None
    angles = Segmenter.ROTATIONS if config.eval.tta else ()

    def call(images: jax.Array, patient: jax.Array | None = None, arrays: Arrays | None = None) -> Arrays:
        given = (arrays if takes_gallery else rows) if rows else None
        own = None if given is None else Gallery(**{name: jnp.asarray(given[name]) for name in ROWS})
        patient = jnp.zeros(images.shape[:1], jnp.int32) if patient is None else patient
        probabilities, indices, weights, similarity, _ = forward(
            *(variables, own, images, patient, jnp.full_like(patient, -1), None, None),
            model=lambda: run.model,
            selection=selection,
            mesh=None,
            angles=angles,
        )
        guides = {"guides": indices, "weights": weights, "similarity": similarity}
        return {"probabilities": probabilities} | (guides if own is not None else {})

    size = sum(np.asarray(a).nbytes for a in jax.tree.leaves(variables))
    side, channels = config.dataset.image_size, run.model.channels
    image = (side, side) if channels == 1 else (side, side, channels)
    return Program(call, rows, takes_gallery=takes_gallery and bool(rows), image=image, weights=size)


def exported(it: Program, top_k: int) -> export.Exported:
    """The program for any batch size, for all of `PLATFORMS`; with the gallery as an argument also for any n >= top_k.

    Raises:
      UserError: the program would be too large for one file.
    """
    if it.constants > LIMIT:
        less = "" if it.takes_gallery or it.weights > LIMIT else "; leave the gallery out, with --gallery_as_argument"
        raise UserError(f"the program would have {it.constants / 1e9:.1f} GB, but a file holds at most 2.1 GB{less}")
    if it.takes_gallery:
        sizes = export.symbolic_shape("b, n", constraints=[f"n >= {top_k}"])
    else:
        sizes = export.symbolic_shape("b")
    with kernels.using("reference"):  # the form that every platform runs
        return export.export(jax.jit(it.call), platforms=PLATFORMS)(*it.arguments(*sizes))


def save(folder: pathlib.Path, run: TrainedRun, gallery: RunGallery | None, it: Program) -> None:
    """Writes the program, its description, and (if it is an argument) the gallery into a folder.

    Raises:
      UserError: the folder cannot be written, or see `exported`.
    """
    (folder / PROGRAM).write_bytes(exported(it, run.config.retrieval.top_k).serialize())
    if it.takes_gallery:
        files.save_tensors(folder / GALLERY, it.gallery)
    files.write_json(folder / FACTS, facts(run, gallery, it))


def facts(run: TrainedRun, gallery: RunGallery | None, it: Program) -> dict[str, Any]:
    """What somebody who has only the program needs to know, as JSON."""
    data = run.config.dataset
    out: dict[str, Any] = {
        "format": f"jax.export: deserialize(bytearray(open('{PROGRAM}', 'rb').read())).call(images, ...)",
        "needs": ["jax", "flatbuffers"],
        "run": run.folder.path.name,
        "checkpoint_step": run.step,
        "platforms": list(PLATFORMS),
        "classes": list(run.description.classes),
        "images": {
            "shape": ["b", *it.image],
            "channels": list(run.description.channels),
            "dtype": "uint8",
            "pixel_mm": None if run.grid.ignore_spacing or not data.spacing_mm else data.spacing_mm,
            "intensities": "percentiles {} and {} of the volume map to 0 and 255".format(*data.percentiles),
            "neighbours": NEIGHBOURS if data.neighbours else None,
            "orientation": "rows towards the patient's back, columns towards the patient's left",
        },
        "outputs": ["probabilities"],
    }
    if data.frame == "heart":
        out["images"] |= {"pixel_mm": None, "orientation": CROPS}
    if gallery is None:
        return out
    table = gallery.table
    return out | {
        "patient": {
            "shape": ["b"],
            "dtype": "int32",
            "meaning": "number of the slice's patient in 'patients' below, counted from 0; -1 if not among them",
        },
        "outputs": ["probabilities", "guides", "weights", "similarity"],
        "retrieval": {"exclude": run.config.retrieval.exclude, "top_k": run.config.retrieval.top_k},
        "gallery": f"an argument, the arrays of {GALLERY}" if it.takes_gallery else "inside the program",
        "patients": list(table.patients),
        "rows": [table.describe(row) for row in range(len(table))],
    }


def _rows(gallery: RunGallery) -> Arrays:
    """The arrays of a gallery without the padding for the devices."""
    table = gallery.table
    return {
        "embeddings": as_float(mesh.to_host(gallery.arrays.embeddings))[: len(table)],
        "images": table.images,
        "masks": table.masks,
        "patient": table.patient.astype(np.int32),
        "valid": np.ones(len(table), bool),
    }
