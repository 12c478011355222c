"""A trained run, opened from its folder: settings, best checkpoint, gallery; everything that segments starts here.

run = open_run("runs/acdc")
gallery = run.open_gallery()
result = run.segment(image, spacing=(1.4, 1.4, 8.0), gallery=gallery)
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging

from jras_jax import config as configs
from jras_jax import hosts, mesh
from jras_jax.config import Config
from jras_jax.data import DatasetDescription, Volume, axes, finder, own, pairs
from jras_jax.data.description import CARDIAC
from jras_jax.data.grid import Grid
from jras_jax.data.load import RunData, grid_of
from jras_jax.data.slice_table import SliceTable, slice_table
from jras_jax.errors import UserError
from jras_jax.inference import programs
from jras_jax.inference.postprocess import postprocessed
from jras_jax.inference.predictions import SlicePredictions, VolumePrediction, on_scan
from jras_jax.inference.prepared import Prepared
from jras_jax.inference.segmenter import Segmenter
from jras_jax.retrieval import gallery_files
from jras_jax.retrieval.gallery import Gallery, HostRows, as_one_patient, gallery_from_table, with_embeddings
from jras_jax.retrieval.known import KnownPatients
from jras_jax.retrieval.selection import Selection
from jras_jax.run_folder import best_weights, published
from jras_jax.run_folder.checkpoints import check_same_arrays
from jras_jax.run_folder.layout import RunFolder

if TYPE_CHECKING:
    from jras_jax import joint


@dataclasses.dataclass(frozen=True)
class RunGallery:
    """A gallery ready for a run: its arrays on the devices, its slices on the host, and a line that says what it is."""

    arrays: Gallery
    table: SliceTable
    description: str

    @functools.cached_property
    def known(self) -> KnownPatients:
        """Recognises scans of the gallery's own patients."""
        return KnownPatients(self.table)

    def guides(self, prediction: VolumePrediction) -> list[list[dict[str, Any]]]:
        """For each slice of a prediction its guides: 'case', 'slice' (index from 0), 'weight' and 'similarity'."""
        s = prediction.slices
        return [
            [
                self.table.describe(int(row)) | {"weight": round(float(w), 6), "similarity": round(float(c), 6)}
                for row, w, c in zip(rows, weights, similarity, strict=True)
            ]
            for rows, weights, similarity in zip(s.indices, s.weights, s.similarity, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run that is ready to segment or to be evaluated.

    Attributes:
      config: the run's own settings, with the overrides of this call.
      folder: its files.
      variables: as of the best checkpoint (its running mean of the parameters if it kept one).
      step: the checkpoint's step.
      description: of the data set that it was trained on.
      device_mesh: the mesh that holds the variables.
    """

    config: Config
    folder: RunFolder
    variables: joint.Variables
    step: int
    device_mesh: jax.sharding.Mesh
    description: DatasetDescription = CARDIAC

    @functools.cached_property
    def model(self) -> joint.JointModel:
        """The model that the settings describe; made when it is first needed."""
        from jras_jax import joint

        return joint.build_model(self.config, self.description)

    @property
    def _facts(self) -> dict[str, Any]:
        """What the model depends on."""
        return {"config": dataclasses.asdict(self.config), "description": dataclasses.asdict(self.description)}

    def check_model(self) -> None:
        """Compares the variables with the model's, unless an earlier start has compared the same ones.

        Raises:
          CheckpointError: names or shapes are not the model's.
        """
        name = programs.name_of(self._facts, self.variables)
        if programs.is_known(name):
            return
        from jras_jax import joint

        wanted = jax.eval_shape(lambda: joint.init_variables(self.model, self.config))
        check_same_arrays(self.variables, wanted, best_weights.place(self.folder, self.step))
        programs.remember(name)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The retriever's fingerprint; galleries made by another retriever are refused."""
        params = mesh.to_host(self.variables["params"].get("retriever", {}))  # one of pixels has none
        settings = dataclasses.asdict(self.config.retriever) | {"neighbours": self.config.dataset.neighbours}
        return gallery_files.fingerprint(params, settings)

    @functools.cached_property
    def splits(self) -> dict[str, Any]:
        """The run's splits.json."""
        return self.folder.read_splits()

    @functools.cached_property
    def grid(self) -> Grid:
        """The model grid; it ignores the scans' spacing if no training scan had one."""
        return grid_of(self.config.dataset, self.description)._replace(
            ignore_spacing=self.splits.get("spacing") == "unknown"
        )

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embeddings (N, dim) float32 of slices (N, S, S) uint8 by this run's retriever."""
        from jras_jax.inference.embedder import Embedder

        batch = max(32, self.config.eval.batch_size)
        return Embedder(self.model, self.device_mesh, batch_size=batch, images=images).embeddings(self.variables)

    def segmenter(self, gallery: Gallery | None, *, tta: bool | None = None) -> Segmenter:
        """A segmenter with this gallery; None for a run without retrieval. `tta` overrides config.eval.tta."""
        config = self.config
        selection = None if gallery is None else Selection.of(config.retrieval)
        segmenter = Segmenter(
            lambda: self.model,
            selection,
            self.grid,
            batch_size=config.eval.batch_size,
            device_mesh=self.device_mesh,
            tta=config.eval.tta if tta is None else tta,
            seed=config.seed,
            rounds=config.eval.frame_rounds,
        )
        in_host_memory = gallery is not None and isinstance(gallery.images, HostRows)
        if self.device_mesh.size == 1 and not (segmenter.draws or in_host_memory):
            facts = {"tta": segmenter.angles, "retrieves": selection is not None} | self._facts
            segmenter.program = programs.Kept(segmenter.program, facts)
            segmenter.locate = programs.Kept(segmenter.locate, facts | {"part": "locator"})
        return segmenter.using(self.variables, gallery)

    def table_of(self, volumes: list[Volume]) -> SliceTable:
        """The slices of labelled volumes on the run's grid; raises UserError if none has a labelled structure."""
        table = slice_table(volumes, self.grid, drop_empty=self.config.dataset.drop_empty)
        if not len(table):
            raise UserError("no slice has a labelled structure left on the model grid: the gallery would be empty")
        return table

    def make_gallery(
        self,
        table: SliceTable,
        folder: pathlib.Path | None = None,
        *,
        embeddings: np.ndarray | None = None,
        description: str = "",
        contents: str = "",
    ) -> RunGallery:
        """Embeds the slices of a table and puts them on the run's devices.

        Args:
          table: N slices on this run's grid.
          folder: keeps the gallery there; None keeps it in memory only.
          embeddings: (N, dim) of the slices by this very retriever; None computes them.
          description: a line that says what the gallery is.
          contents: what the slices were made of, kept with the gallery; see `gallery_files.kept`.

        Raises:
          UserError: the table has fewer slices than guides are retrieved, or its grid has another size.
        """
        retrieval, size = self.config.retrieval, self.config.dataset.image_size
        if len(table) < retrieval.top_k:
            raise UserError(
                f"the gallery has {len(table)} slices, but {retrieval.top_k} guides are retrieved: add cases"
            )
        if table.images.shape[1] != size:
            raise UserError(f"the gallery's slices have {table.images.shape[1]} pixels a side, this run's {size}")
        embeddings = self.embed(table.images) if embeddings is None else embeddings
        fingerprint = self.fingerprint  # on every host: it gathers shards that several hosts hold
        if folder is not None and jax.process_index() == 0:
            gallery_files.save(folder, table, embeddings=embeddings, fingerprint=fingerprint, contents=contents)
        empty = gallery_from_table(
            table,
            self.config.retriever.dim,
            self.device_mesh,
            memory=retrieval.gallery_memory,
            embeddings=retrieval.embeddings,
        )
        return RunGallery(with_embeddings(empty, embeddings, self.device_mesh), table, description or table.contents)

    def train_gallery(self, data: RunData) -> RunGallery | None:
        """The gallery of the run's training patients, kept in its folder; None for a run without retrieval.

        What is kept there is used again as far as data, settings and checkpoint are those that made it.
        """
        config, folder = self.config, self.folder.gallery
        if not config.retrieval.enabled:
            return None
        how = {"drop_empty": config.dataset.drop_empty, "dtype": config.train.dtype, "source": programs.source()}
        contents = data.contents("train", **how)
        kept = gallery_files.kept(folder, contents, self.fingerprint)
        table, embeddings = kept or (
            slice_table(data.part("train"), data.grid, drop_empty=config.dataset.drop_empty),
            None,
        )
        if hosts.any_host(embeddings is None):  # then all embed, as they do it together
            return self.make_gallery(table, folder, contents=contents)
        return self.make_gallery(table, embeddings=embeddings)

    def open_gallery(self, source: str | pathlib.Path | None = None, labels: str | None = None) -> RunGallery:
        """The gallery that guides new scans.

        Args:
          source: a stored gallery of this run's retriever; or a folder of labelled scans (NAME.nii.gz with
            NAME_gt.nii.gz), of which a gallery is made in memory; None: the gallery in the run's folder, which is
            embedded again (and kept) if it belongs to an older checkpoint.
          labels: 'LV:1,MYO:2,RV:3', the values in those scans' masks; None: the convention of the run's data set.

        Raises:
          UserError: the run was trained without retrieval, there is no gallery, it is damaged or was made by another
            retriever, or see `pairs.read_pairs`.
        """
        if not self.config.retrieval.enabled:
            raise UserError(f"the run {self.folder} was trained without retrieval and takes no gallery")
        if source is None:
            return self._own_gallery()
        if gallery_files.is_stored(source):
            table, embeddings = gallery_files.read(source, self.fingerprint)
            return self.make_gallery(table, embeddings=embeddings, description=f"{source}, {table.contents}")
        if not pathlib.Path(source).is_dir():
            raise UserError(f"--gallery={source}: no such folder")
        phases = self.description.phases
        if phases and not any(pairs.is_mask(path) for path in finder.find(pathlib.Path(source)).files):
            raise UserError(
                f"--gallery={source}: holds neither a gallery ({gallery_files.FACTS}; make one with jras gallery) nor "
                "labelled scans (NAME.nii.gz with NAME_gt.nii.gz)"
            )
        table = self.table_of(own.read_labelled(source, self.label_values(labels), self.description))
        line = f"made in memory from the scans of {source}, {table.contents} (jras gallery keeps one)"
        return self.make_gallery(table, description=line)

    def label_values(self, labels: str | None) -> dict[str, int]:
        """'LV:1,MYO:2,RV:3' -> {'LV': 1, ...}; None: the values of the run's data set."""
        return pairs.parse_labels(labels, self.description.structures) if labels else self.description.structure_values

    def _own_gallery(self) -> RunGallery:
        stored = self.folder.gallery
        how = f"jras gallery --workdir={self.folder} --split=train --output={stored}"
        if not stored.is_dir() and published.is_published(self.folder):
            raise UserError(f"{self.folder} was published without its gallery: name another one with --gallery=FOLDER")
        if not stored.is_dir():
            raise UserError(f"{stored} is missing: make it with {how}, or name another with --gallery=FOLDER")
        table, embeddings = gallery_files.read(stored, how=how)
        description = f"the run's own, {table.contents}"
        if gallery_files.fingerprint_of(stored) == self.fingerprint:
            return self.make_gallery(table, embeddings=embeddings, description=description)
        logging.info("embedding the gallery with the checkpoint of step %d", self.step)
        return self.make_gallery(table, stored, description=description)

    def segment(
        self,
        image: np.ndarray,
        spacing: Sequence[float] | None = None,
        *,
        affine: np.ndarray | None = None,
        gallery: RunGallery | None = None,
        patient: str = "",
    ) -> VolumePrediction:
        """Segments one short-axis stack.

        Args:
          image: (X, Y, Z) intensities, of a data set of several channels (X, Y, Z, C), Z through the slices; if
            another axis has clearly the largest spacing, the slices are taken to run along that one.
          spacing: (3,) voxel sizes in mm; None if unknown.
          affine: (4, 4) voxel to world, RAS+ mm; None takes the usual radiological view, rows Y and columns X.
          gallery: of `open_gallery`; None for a run without retrieval.
          patient: a name; slices of this patient in the gallery do not guide. A patient is also recognised by its
            pixels.

        Returns:
          Labels and probabilities on the native grid, and the guides of every slice.

        Raises:
          UserError: the image is not 3-D or not finite, or the run needs a gallery.
        """
        image = np.asarray(image, np.float32)
        channels = () if len(self.description.channels) == 1 else (len(self.description.channels),)
        if image.ndim != 3 + len(channels) or image.shape[3:] != channels or not np.isfinite(image).all():
            wanted = ", ".join(map(str, ("X", "Y", "Z", *channels)))
            raise UserError(f"the image must be a finite array ({wanted}), not {image.shape}")
        known = spacing is not None
        sizes = np.asarray(spacing if known else (1.0, 1.0, 1.0), np.float32)
        if affine is None:  # columns to the patient's left, rows to the back: what the view shows as it is stored
            affine = np.diag([-sizes[0], -sizes[1], sizes[2], 1.0]).astype(np.float64)
        volume = Volume(
            image,
            None,
            affine=affine,
            spacing=sizes,
            spacing_known=known,
            patient=patient or "scan",
            description=self.description,
        )
        return self.segment_volumes([volume], gallery)[0]

    def segment_volumes(
        self, volumes: list[Volume], gallery: RunGallery | None = None, segmenter: Segmenter | None = None
    ) -> list[VolumePrediction]:
        """Segments the frames of one scan, under the leak rule: its own patient's gallery slices do not guide.

        `segmenter` is one of `segmenter()` with this gallery, so that several scans share a compiled program.

        Raises:
          UserError: the run needs a gallery, or the leak rule leaves too few slices of other patients.
        """
        segmenter = segmenter or self.segmenter(gallery.arrays if gallery else None)
        ready = self.prepare(volumes, gallery, segmenter)
        segmenter = ready.segmenter(segmenter)
        return self.finish(*ready.segmented(segmenter))

    def prepare(self, volumes: list[Volume], gallery: RunGallery | None, segmenter: Segmenter) -> Prepared:
        """Brings the frames of one scan to the model grid and looks for their patient in the gallery.

        In the frame of the heart, the segmenter's locator runs; several threads may call this at once.

        Raises:
          UserError: see `segment_volumes`.
        """
        if gallery is None and self.config.retrieval.enabled:
            raise UserError(f"the run {self.folder} retrieves guides: give it a gallery, such as run.open_gallery()")
        slices = [segmenter.placed(v, axes.slice_axis_to_read(v.spacing, v.spacing_known)) for v in volumes]
        if gallery is None:
            return Prepared(volumes, slices, match=None, rows=[np.full(len(s.images), -1, np.int32) for s in slices])
        match = gallery.known.find(volumes[0].patient, [s.wholes for s in slices])
        merged = None
        if self.config.retrieval.exclude == "patient":
            gallery.known.check(match, self.config.retrieval.top_k)
            if len(match.patients) > 1:
                merged = as_one_patient(gallery.arrays, [*match.patients])
        return Prepared(volumes, slices, match, rows=match.rows, gallery=merged)

    def finish(self, ready: Prepared, predicted: list[SlicePredictions]) -> list[VolumePrediction]:
        """The predictions of a scan's frames on its native grid, post-processed as config.eval.postprocess says."""
        rule = self.config.eval.postprocess
        return [postprocessed(on_scan(s, p, ready.patient), rule) for s, p in zip(ready.slices, predicted, strict=True)]


def open_run(workdir: str | pathlib.Path, overrides: Sequence[str] = ()) -> TrainedRun:
    """Opens a run folder.

    Args:
      workdir: of a training run, or of a published one, which may be 'hf:org/name' on the Hugging Face hub.
      overrides: `--config.a.b=value`; only what does not change the trained model (`config.changeable("open")`).

    Raises:
      UserError: there is no run, no finished checkpoint, a damaged one, or an override would change the model.
    """
    folder = published.located(workdir)
    if not folder.path.is_dir():
        raise UserError(
            f"--workdir={workdir}: no such folder; train first: jras train --config=FILE --workdir={workdir}"
        )
    folder.check_single()
    configs.check_opened(overrides)
    settings = configs.override(configs.load_saved(folder.config), overrides)
    settings.retrieval.overlap_weight = 0.0  # a loss of training alone, which can forbid gallery_memory='host'
    config = configs.parse(settings)
    device_mesh = mesh.make_mesh(config.mesh.data, config.mesh.model)
    step, variables = best_weights.read(config, folder, device_mesh)
    description = folder.read_description(config.dataset.name)
    run = TrainedRun(config, folder, variables=variables, step=step, device_mesh=device_mesh, description=description)
    run.check_model()
    return run
