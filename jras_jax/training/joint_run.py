"""Training of the J-RAS model: what the loop's steps, validations and checkpoints are for it."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from absl import logging

from jras_jax import config as configs
from jras_jax import files, joint, mesh
from jras_jax.config import Config
from jras_jax.data.batches import Batches
from jras_jax.data.load import RunData
from jras_jax.data.slice_table import SliceTable, slice_table
from jras_jax.evaluation import evaluator
from jras_jax.inference.segmenter import Segmenter
from jras_jax.run_folder import lock, provenance
from jras_jax.run_folder.checkpoints import Checkpoints
from jras_jax.run_folder.layout import RunFolder
from jras_jax.training import initial, loop
from jras_jax.training.live_gallery import LiveGallery
from jras_jax.training.loop import Task, Watched
from jras_jax.training.samples import Samples
from jras_jax.training.skips import Skips
from jras_jax.training.state import TrainState, create_state, learning_rates
from jras_jax.training.step import compile_step, make_step
from jras_jax.training.stopping import StopSignal


@dataclasses.dataclass(kw_only=True)
class TrainingRun(Task):
    """What a run holds while it trains; `state` and `gallery` change, the rest does not.

    Attributes:
      step: of `compile_step`.
      validation_gallery: what guides validations: `gallery`; with config.protocol='paper' the validation slices.
      changes: settings that differ from those of the resumed run, {key: (before, now)}.
      wholes: every training slice on the locator's grid; None if there is no locator.
    """

    data: RunData
    state: TrainState
    step: Any
    segmenter: Segmenter
    gallery: LiveGallery | None
    validation_gallery: LiveGallery | None
    changes: dict[str, tuple[str, str]]
    wholes: SliceTable | None

    def arrays(self) -> dict[str, Any]:
        """The state, and the embeddings, which are older than it between two refreshes."""
        arrays: dict[str, Any] = {"state": self.state}
        if self.gallery is not None:
            arrays["embeddings"] = self.gallery.arrays.embeddings
        return arrays

    def take(self, arrays: dict[str, Any]) -> None:
        """See `Task`."""
        self.state = arrays["state"]
        if self.gallery is not None:
            self.gallery.restore(arrays["embeddings"])

    def claim(self) -> None:
        """See `Task`."""
        configs.save(self.config, self.folder.config)
        files.write_json(self.folder.dataset, self.data.description.to_json())
        if not self.folder.splits.is_file():
            files.write_json(self.folder.splits, self.data.splits)
        changes = {"changes": self.changes, "changed_at_step": self.started_at} if self.changes else {}
        more = {"made_by": "train", "data_fingerprint": self.data.fingerprint} | changes
        provenance.write(self.folder.facts, self.config, params=self.state.params, mesh=self.mesh, more=more)
        counts = provenance.parameter_counts(self.state.params)
        print(f"{self.title}: parameters " + ", ".join(f"{part} {n:,}" for part, n in counts.items()), flush=True)

    def prepare(self, done: int) -> dict[str, float]:
        """See `Task`."""
        return self.gallery.refresh(done, self.state.variables) if self.gallery is not None else {}

    def advance(self, done: int) -> tuple[dict[str, jax.Array], np.ndarray]:
        """See `Task`."""
        r = self.config.retrieval
        rows = next(self.batches)
        batch = mesh.put_rows(self.mesh, rows | self.located_rows(done))
        arrays, cache = (self.gallery.arrays, self.gallery.cache) if self.gallery else (None, None)
        contrast = self.gallery is not None and r.contrast_weight > 0 and done % r.contrast_every == 0
        self.state, metrics = self.step(self.state, batch, arrays, cache, contrast)
        return dict(metrics), rows["row"]

    def located_rows(self, done: int) -> dict[str, np.ndarray]:
        """This host's slices for the locator in the step after `done` steps, drawn by the seed and the step alone."""
        if self.wholes is None:
            return {}
        devices, hosts = self.mesh.shape["data"], jax.process_count()
        size = -(-self.config.locator.batch_size // devices) * devices
        drawn = np.random.default_rng((self.config.seed, done)).integers(0, len(self.wholes), size)
        own = drawn[size // hosts * jax.process_index() :][: size // hosts]
        return {"whole": self.wholes.images[own], "whole_mask": self.wholes.masks[own]}

    @property
    def validates(self) -> bool:
        """See `Task`."""
        return True

    def validate(self, watched: Watched) -> dict[str, float]:
        """Mean Dice over the validation fold in native geometry, with a gallery embedded by the evaluated variables."""
        variables = self.state.eval_variables
        live = self.validation_gallery
        volumes = self.data.part("validation")
        if self.config.train.validate_patients:
            kept = list(dict.fromkeys(v.patient for v in volumes))[: self.config.train.validate_patients]
            volumes = [v for v in volumes if v.patient in kept]
        segmenter = self.segmenter.using(variables, live.embedded_by(variables) if live else None)
        table = live.table if live else None
        samples = Samples(table)
        values = evaluator.validate(segmenter, volumes, table, progress=watched, seen=samples.add)
        self.images = samples.images
        return values

    def rates(self, at: int) -> dict[str, float]:
        """See `Task`."""
        return learning_rates(self.config.optim, self.length, at)


def train(config: Config, workdir: str | pathlib.Path, data: RunData, *, with_changes: bool = False) -> pathlib.Path:
    """Trains a run, or resumes it; the folder then holds checkpoints, logs, splits and provenance.

    Args:
      config: the run; an existing workdir must have been started with the same one, except for the settings that may
        change when training resumes (`config.changeable("resume")`).
      workdir: the run's folder, made if absent.
      data: the data set, with the run's own splits if the folder has them.
      with_changes: whether the settings that a resumed run can follow (`config.DECLARABLE`) may differ.

    Returns:
      The workdir.

    Raises:
      UserError: anything wrong with config, data or checkpoint, the workdir belongs to another run, another process
        trains in it, or the run diverged.
      Stopped: a signal stopped the run, which is saved.
    """
    folder = RunFolder(workdir)
    with lock.hold(folder, "train") as held, StopSignal() as stop:
        stop.leave = held.release  # until the first step is done, nothing is lost
        run = start(config, folder, data, with_changes=with_changes)
        loop.run(run, held, stop)
    return folder.path


def check_folder(config: Config, folder: RunFolder, *, with_changes: bool = False) -> dict[str, tuple[str, str]]:
    """The changes of settings that `with_changes` allows, {key: (before, now)}.

    Raises:
      UserError: the folder is not of a training, or its run has settings, other than those that may change, that are
        not these.
    """
    provenance.check_made_by(folder, "train")
    if not folder.config.is_file():
        return {}
    return configs.check_resumed(configs.load_saved(folder.config), config, folder.path, declared=with_changes)


def start(config: Config, folder: RunFolder, data: RunData, *, with_changes: bool = False) -> TrainingRun:
    """Everything before the first step: model, state (restored if there is a checkpoint) and gallery.

    Nothing is written to the folder: the loop claims it after the first step.
    """
    changes = check_folder(config, folder, with_changes=with_changes)
    for line in provenance.leaks(config):
        logging.warning("%s", line)
    provenance.require_same_data(folder.facts, data)
    device_mesh = mesh.make_mesh(config.mesh.data, config.mesh.model)
    mesh.check_batch(device_mesh, config.train.batch_size, "train.batch_size")
    table = slice_table(data.part("train"), data.grid, drop_empty=config.dataset.drop_empty)
    wholes = None
    if data.grid.frame is not None:
        wholes = slice_table(data.part("train"), data.grid.whole, drop_empty=False)
    batches = Batches(table, config.train.batch_size, config.seed, host=jax.process_index(), hosts=jax.process_count())
    model = joint.build_model(config, data.description)
    fresh, tx, shardings = create_state(
        model, config, device_mesh=device_mesh, initial=initial.variables(model, config)
    )
    gallery = _gallery(config, model, table=table, device_mesh=device_mesh) if config.retrieval.enabled else None
    own = _validation_gallery(config, data, gallery=gallery, model=model, device_mesh=device_mesh)
    segmenter = Segmenter(
        lambda: model,
        joint.Selection.of(config.retrieval) if gallery else None,
        data.grid,
        batch_size=config.eval.batch_size,
        device_mesh=device_mesh,
        tta=config.eval.tta,
        seed=config.seed,
        rounds=config.eval.frame_rounds,
    )
    name = folder.path.name
    run = TrainingRun(
        config=config,
        folder=folder,
        mesh=device_mesh,
        batches=batches,
        checkpoints=Checkpoints(folder),
        skips=Skips(config.train.max_skipped, folder, table=table, advice=_advice(config)),
        title=name if config.retrieval.enabled else f"{name} (no retrieval)",
        length=config.train.num_steps,
        batch_size=config.train.batch_size,
        data=data,
        state=fresh,
        step=compile_step(make_step(model, tx, config=config, device_mesh=device_mesh), shardings, device_mesh),
        segmenter=segmenter,
        gallery=gallery,
        validation_gallery=own,
        changes=changes,
        wholes=wholes,
    )
    run.resume()
    if gallery is not None and config.retriever.trained_blocks >= 0:
        gallery.fill_cache(run.state.variables)
    return run


def _gallery(config: Config, model: joint.JointModel, table: SliceTable, device_mesh: Any) -> LiveGallery:
    return LiveGallery(
        model,
        table,
        device_mesh,
        retrieval=config.retrieval,
        dim=config.retriever.dim,
        batch_size=max(32, config.eval.batch_size),
        steps_per_epoch=max(1, len(table) // config.train.batch_size),
    )


def _validation_gallery(
    config: Config, data: RunData, *, gallery: LiveGallery | None, model: joint.JointModel, device_mesh: Any
) -> LiveGallery | None:
    """What guides validations: `gallery`; with config.protocol='paper' the validation slices themselves."""
    if gallery is None or config.protocol == "patient":
        return gallery
    table = slice_table(data.part("validation"), data.grid, drop_empty=config.dataset.drop_empty)
    return _gallery(config, model, table=table, device_mesh=device_mesh)


def _advice(config: Config) -> str:
    o = config.optim
    return (
        "lower the learning rates and continue from the last checkpoint: the same command with "
        f"--config.optim.lr_backbone={o.lr_backbone / 3:.2g} --config.optim.lr_retriever={o.lr_retriever / 3:.2g} "
        "--resume_with_changes"
    )
