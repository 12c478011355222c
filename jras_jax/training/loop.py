"""A whole training run: model, steps, validations, checkpoints; starts fresh or resumes where it stopped."""

from __future__ import annotations

import dataclasses
import pathlib
import signal
import threading
from typing import Any

import jax
import numpy as np
from absl import logging

from jras_jax import config as configs
from jras_jax import files, joint, mesh
from jras_jax.config import Config
from jras_jax.data.batches import Batches
from jras_jax.data.load import RunData
from jras_jax.data.slice_table import slice_table
from jras_jax.errors import UserError
from jras_jax.evaluation import evaluator
from jras_jax.hosts import any_host, first_host_first
from jras_jax.inference.segmenter import Segmenter
from jras_jax.run_folder import checkpoints, provenance
from jras_jax.run_folder.checkpoints import Checkpoints
from jras_jax.run_folder.layout import RunFolder
from jras_jax.run_folder.metric_log import MetricLog
from jras_jax.training import initial
from jras_jax.training.live_gallery import LiveGallery
from jras_jax.training.progress import Progress
from jras_jax.training.state import TrainState, create_state
from jras_jax.training.step import Step, compile_step, make_step


@dataclasses.dataclass
class TrainingRun:
    """What a run holds while it trains; `state` and `gallery` change, the rest does not."""

    config: Config
    folder: RunFolder
    mesh: jax.sharding.Mesh
    data: RunData
    state: TrainState
    shardings: Any
    step: Step
    segmenter: Segmenter
    gallery: LiveGallery | None
    batches: Batches
    checkpoints: Checkpoints
    started_at: int = 0

    def arrays(self) -> dict[str, Any]:
        """What a checkpoint holds: the state, and the embeddings, which are older than it between two refreshes."""
        arrays: dict[str, Any] = {"state": self.state}
        if self.gallery is not None:
            arrays["embeddings"] = self.gallery.arrays.embeddings
        return arrays


def train(config: Config, workdir: str | pathlib.Path, data: RunData) -> pathlib.Path:
    """Trains a run, or resumes it; the folder then holds checkpoints, logs, splits and provenance.

    Args:
      config: the run; an existing workdir must have been started with the same one, except for the settings that may
        change when training resumes (`config.changeable("resume")`).
      workdir: the run's folder, made if absent.
      data: the data set, with the run's own splits if the folder has them.

    Returns:
      The workdir.

    Raises:
      UserError: anything wrong with config, data or checkpoint, or the workdir belongs to another run.
    """
    run = start(config, RunFolder(workdir), data)
    if run.started_at >= config.train.num_steps:
        logging.info("%s has its %d steps already", workdir, run.started_at)
        run.checkpoints.close()
        return run.folder.path
    log = MetricLog(run.folder, run.started_at) if jax.process_index() == 0 else None
    title = run.folder.path.name if config.retrieval.enabled else f"{run.folder.path.name} (no retrieval)"
    if log:
        counts = provenance.parameter_counts(run.state.params)
        print(f"{title}: parameters " + ", ".join(f"{part} {n:,}" for part, n in counts.items()), flush=True)
    bar = Progress(title, total=config.train.num_steps, start=run.started_at, slices_per_step=config.train.batch_size)
    try:
        _steps(run, log, bar)
    finally:
        bar.close()
        run.checkpoints.close()
        if log:
            log.close()
    return run.folder.path


def check_folder(config: Config, folder: RunFolder) -> None:
    """Raises UserError if the folder holds a run whose settings, other than those that may change, are not these."""
    if folder.config.is_file():
        configs.check_resumed(configs.load_saved(folder.config), config, folder.path)


def start(config: Config, folder: RunFolder, data: RunData) -> TrainingRun:
    """Everything before the first step: model, state (restored if there is a checkpoint) and gallery.

    The folder is claimed (config.json, splits.json, run.json) only after all checks have passed.
    """
    check_folder(config, folder)
    provenance.require_same_data(folder.facts, data)
    device_mesh = mesh.make_mesh(config.mesh.data, config.mesh.model)
    mesh.check_batch(device_mesh, config.train.batch_size, "train.batch_size")
    table = slice_table(data.part("train"), data.grid, drop_empty=config.dataset.drop_empty)
    batches = Batches(table, config.train.batch_size, config.seed, host=jax.process_index(), hosts=jax.process_count())
    model = joint.build_model(config)
    fresh, tx, shardings = create_state(model, config, device_mesh, initial.variables(model, config))
    gallery = None
    if config.retrieval.enabled:
        if config.retrieval.exclude != "patient":
            logging.warning(provenance.LEAK_WARNING, config.retrieval.exclude)
        gallery = LiveGallery(
            model,
            table,
            device_mesh,
            retrieval=config.retrieval,
            dim=config.retriever.dim,
            batch_size=max(32, config.eval.batch_size),
            steps_per_epoch=max(1, len(table) // config.train.batch_size),
        )
    segmenter = Segmenter(
        model,
        joint.Selection.of(config.retrieval) if gallery else None,
        data.grid,
        batch_size=config.eval.batch_size,
        device_mesh=device_mesh,
        tta=config.eval.tta,
        seed=config.seed,
    )
    with first_host_first():
        _claim(config, folder, data)
    run = TrainingRun(
        config=config,
        folder=folder,
        mesh=device_mesh,
        data=data,
        state=fresh,
        shardings=shardings,
        step=make_step(model, tx, config, device_mesh),
        segmenter=segmenter,
        gallery=gallery,
        batches=batches,
        checkpoints=Checkpoints(folder),
    )
    _resume(run)
    if gallery is not None and config.retriever.trained_blocks >= 0:
        gallery.fill_cache(run.state.variables)
    if jax.process_index() == 0:
        provenance.write(folder.facts, config, run.state.params, device_mesh, data.fingerprint)
    return run


def _claim(config: Config, folder: RunFolder, data: RunData) -> None:
    """Makes the folder this run's: its settings and its splits."""
    if jax.process_index() == 0:
        configs.save(config, folder.config)
        if not folder.splits.is_file():
            files.write_json(folder.splits, data.splits)


def _resume(run: TrainingRun) -> None:
    latest = run.checkpoints.latest()
    if latest is None:
        return
    arrays = run.checkpoints.restore(latest, checkpoints.abstract(run.arrays()))
    run.state = arrays["state"]
    if run.gallery is not None:
        run.gallery.restore(arrays["embeddings"])
    run.batches.restore(run.checkpoints.meta(latest)["data"])
    run.started_at = latest
    logging.info("resuming %s after step %d", run.folder, latest)


def _save(run: TrainingRun, at: int, dice: float) -> None:
    meta = {"data": run.batches.state(), "config": dataclasses.asdict(run.config), "dice": dice, "step": at}
    run.checkpoints.save(at, run.arrays(), meta, dice)


def _steps(run: TrainingRun, log: MetricLog | None, bar: Progress) -> None:
    """The loop itself. Metrics stay on the device until they are logged, so that no step waits for the host."""
    t, r = run.config.train, run.config.retrieval
    compiled = compile_step(run.step, run.shardings, run.mesh)
    stop = _StopSignal()
    shown: dict[str, float] = {}
    dice, scored_at = 0.0, -1
    bar.restart_clock(run.started_at)
    for done in range(run.started_at, t.num_steps):
        if run.gallery is not None:
            shown |= run.gallery.refresh(done, run.state.variables)
        batch = mesh.put_rows(run.mesh, next(run.batches))
        arrays, cache = (run.gallery.arrays, run.gallery.cache) if run.gallery else (None, None)
        contrast = run.gallery is not None and r.contrast_weight > 0 and done % r.contrast_every == 0
        run.state, metrics = compiled(run.state, batch, arrays, cache, contrast)
        at = done + 1
        if at == run.started_at + 1:
            jax.block_until_ready(metrics)
            bar.restart_clock(at)
        if at % t.log_every == 0 or at == t.num_steps:
            shown |= {k: float(v) for k, v in metrics.items()}
            _check_finite(shown, at)
            bar.update(at, shown)
            if log:
                kept = (*metrics, "neighbour_drift")
                log.write(at, {k: v for k, v in shown.items() if k in kept} | {"slices_per_s": bar.rate})
        if at % t.eval_every == 0 or at == t.num_steps:
            values = _validate(run)
            dice, scored_at = values["val/dice"], at
            shown |= values
            if log:
                log.write(at, values)
            bar.restart_clock(at)
        # Several hosts must stop at one step, though the notice reaches them at different ones; asking waits for all.
        stopping = stop.requested if jax.process_count() == 1 else at % t.log_every == 0 and any_host(stop.requested)
        if at % t.checkpoint_every == 0 or at == t.num_steps or scored_at == at or stopping:
            _save(run, at, dice if scored_at == at else 0.0)
        if stopping:
            run.checkpoints.close()
            raise SystemExit(f"stopped by a signal at step {at}; the same command resumes from there")
    stop.restore()


def _check_finite(shown: dict[str, float], at: int) -> None:
    if not np.isfinite(shown.get("loss", 0.0)):
        raise UserError(
            f"the loss became {shown['loss']} at step {at}: lower config.optim.lr_backbone or lr_retriever; the last "
            "checkpoint is intact"
        )


def _validate(run: TrainingRun) -> dict[str, float]:
    """Mean Dice over the validation fold in native geometry, with a gallery embedded by the evaluated variables."""
    variables = run.state.eval_variables
    gallery = run.gallery.embedded_by(variables) if run.gallery else None
    volumes = run.data.part("validation")
    if run.config.train.validate_patients:
        kept = list(dict.fromkeys(v.patient for v in volumes))[: run.config.train.validate_patients]
        volumes = [v for v in volumes if v.patient in kept]
    segmenter = run.segmenter.using(variables, gallery)
    return evaluator.validate(segmenter, volumes, run.gallery.table if run.gallery else None)


class _StopSignal:
    """Turns SIGTERM (a cluster's notice) and SIGINT into a request that the loop honours after its step."""

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested:  # a second Ctrl-C means now
            raise KeyboardInterrupt
        self.requested = True

    def restore(self) -> None:
        """Puts the old handlers back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
