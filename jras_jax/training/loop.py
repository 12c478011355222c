"""A whole training run: data, model, steps, validations, checkpoints; starts afresh or goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import signal
import threading
from typing import Any

import jax
import numpy as np
from absl import logging

from jras_jax import config as configs
from jras_jax import dataset, joint, mesh
from jras_jax.config import Config
from jras_jax.data import pipeline
from jras_jax.data.preprocess import SliceTable, slice_table
from jras_jax.errors import UserError
from jras_jax.evaluation import evaluator
from jras_jax.retrieval import gallery as galleries
from jras_jax.retrieval import measures
from jras_jax.retrieval.gallery import Gallery
from jras_jax.training import checkpoint, initial, logs, provenance, state, step


@dataclasses.dataclass
class Run:
    """What a run holds while it trains."""

    config: Config
    workdir: pathlib.Path
    mesh: jax.sharding.Mesh
    data: dataset.Data
    table: SliceTable
    model: joint.JointModel
    state: state.TrainState
    shardings: Any
    setup: step.Step
    refresher: step.Refresher | None
    gallery: Gallery | None
    cache: jax.Array | None
    batches: pipeline.Batches
    checkpoints: checkpoint.Checkpoints
    started_at: int = 0

    @property
    def steps_per_refresh(self) -> int:
        """Steps between two refreshes of the whole gallery; for a rolling one, in which every row has its turn."""
        epoch = max(1, len(self.table) // self.config.train.batch_size)
        r = self.config.retrieval
        return r.refresh_every * (epoch if r.refresh == "epochs" else 1)


def train(config: Config, workdir: str | pathlib.Path, build: dataset.Build) -> pathlib.Path:
    """Trains (or goes on training) a run; the folder then holds checkpoints, logs, splits and the gallery.

    Args:
      config: the run; an existing workdir must have been started with the same one, except for the settings that the
        schema allows to change on a resume (`config.changeable("resume")`).
      workdir: the run's folder, made if absent.
      build: prepares the data set, see `dataset.Build`.

    Returns:
      The workdir.

    Raises:
      UserError: anything wrong with config, data, checkpoint, or the workdir belongs to another run.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    run = start(config, workdir, build)
    if run.started_at >= config.train.num_steps:
        logging.info("%s has its %d steps already", workdir, run.started_at)
        run.checkpoints.close()
        return workdir
    log = logs.MetricLog(workdir, run.started_at) if jax.process_index() == 0 else None
    title = workdir.name if config.retrieval.enabled else f"{workdir.name} (no retrieval)"
    if log:
        counts = provenance.parameter_counts(run.state.params)
        print(f"{title}: parameters " + ", ".join(f"{part} {n:,}" for part, n in counts.items()), flush=True)
    bar = logs.Progress(title, config.train.num_steps, run.started_at, config.train.batch_size)
    try:
        _steps(run, log, bar)
    finally:
        bar.close()
        run.checkpoints.close()
        if log:
            log.close()
    return workdir


def start(config: Config, workdir: pathlib.Path, build: dataset.Build) -> Run:
    """Everything before the first step: data, splits, model, state (restored where there is a checkpoint), gallery."""
    with mesh.first_host_first():
        _claim(config, workdir)
    device_mesh = mesh.make_mesh(config.mesh.data, config.mesh.model)
    mesh.check_batch(device_mesh, config.train.batch_size, "train.batch_size")
    splits_file = workdir / "splits.json"
    known = json.loads(splits_file.read_text()) if splits_file.is_file() else None
    data = dataset.prepare(config, build, known)
    if known is None and jax.process_index() == 0:
        splits_file.write_text(json.dumps(data.splits, indent=1) + "\n")
    table = slice_table(data.part("train"), data.grid, drop_empty=config.dataset.drop_empty)
    model = state.build_model(config)
    variables = initial.variables(model, config)
    fresh, tx, shardings = state.create_state(model, config, device_mesh, variables)
    setup = step.Step(model, tx, config, device_mesh)
    batches = pipeline.Batches(
        table, config.train.batch_size, config.seed, host=jax.process_index(), hosts=jax.process_count()
    )
    refresher, gallery, cache = None, None, None
    if config.retrieval.enabled:
        if config.retrieval.exclude != "patient":
            logging.warning(provenance.LEAK_WARNING, config.retrieval.exclude)
        refresher = step.Refresher(model, device_mesh, max(32, config.eval.batch_size), table.images)
        galleries.check_candidates(table, config.retrieval.exclude, config.retrieval.top_k)
        gallery = galleries.from_table(table, config.retriever.dim, device_mesh, memory=config.retrieval.gallery_memory)
    run = Run(
        config, workdir, device_mesh, data, table, model, fresh, shardings, setup, refresher, gallery, cache, batches,
        checkpoint.Checkpoints(workdir),
    )  # fmt: skip
    _resume(run)
    if refresher is not None and config.retriever.trained_blocks >= 0:
        run.cache = refresher.states(run.state.variables)
    if jax.process_index() == 0:
        provenance.write(workdir / "run.json", config, run.state.params, device_mesh)
    return run


def _claim(config: Config, workdir: pathlib.Path) -> None:
    """Writes config.json, or compares with the one there: what decides the trained weights must be the same."""
    file = workdir / "config.json"
    if file.is_file():
        configs.check_resumed(configs.load_saved(file), config, workdir)
    if jax.process_index() == 0:
        configs.save(config, file)


def _resume(run: Run) -> None:
    latest = run.checkpoints.latest()
    if latest is None:
        return
    target = checkpoint.abstract(_arrays(run))
    arrays = run.checkpoints.restore(latest, target)
    run.state = arrays["state"]
    if run.gallery is not None:
        run.gallery = run.gallery.replace(embeddings=arrays["embeddings"])
    run.batches.restore(run.checkpoints.meta(latest)["data"])
    run.started_at = latest
    logging.info("going on from step %d of %s", latest, run.workdir)


def _arrays(run: Run) -> dict[str, Any]:
    arrays: dict[str, Any] = {"state": run.state}
    if run.gallery is not None:
        arrays["embeddings"] = run.gallery.embeddings
    return arrays


def _save(run: Run, at: int, dice: float) -> None:
    meta = {"data": run.batches.state(), "config": dataclasses.asdict(run.config), "dice": dice, "step": at}
    run.checkpoints.save(at, _arrays(run), meta, dice)


def _steps(run: Run, log: logs.MetricLog | None, bar: logs.Progress) -> None:
    """The loop itself. Metrics stay on the device until they are logged, so that no step waits for the host."""
    config, t = run.config, run.config.train
    compiled = step.compile_step(run.setup, run.shardings, run.mesh)
    stop = _StopSignal()
    shown: dict[str, float] = {}
    dice, scored_at = 0.0, -1
    bar.restart_clock(run.started_at)
    for done in range(run.started_at, t.num_steps):
        if run.gallery is not None:
            shown |= _refresh(run, run.gallery, done)
        batch = mesh.put_rows(run.mesh, next(run.batches))
        r = config.retrieval
        contrast = run.gallery is not None and r.contrast_weight > 0 and done % r.contrast_every == 0
        run.state, metrics = compiled(run.state, batch, run.gallery, run.cache, contrast)
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
        stopping = (
            stop.requested if jax.process_count() == 1 else at % t.log_every == 0 and mesh.any_host(stop.requested)
        )
        if at % t.checkpoint_every == 0 or at == t.num_steps or scored_at == at or stopping:
            _save(run, at, dice if scored_at == at else 0.0)
        if stopping:
            run.checkpoints.close()
            raise SystemExit(f"stopped by a signal at step {at}; the same command goes on from there")
    stop.restore()


def _check_finite(shown: dict[str, float], at: int) -> None:
    if not np.isfinite(shown.get("loss", 0.0)):
        raise UserError(
            f"the loss became {shown['loss']} at step {at}: lower config.optim.lr_backbone or lr_retriever; the last "
            "checkpoint is intact"
        )


def _refresh(run: Run, gallery: Gallery, done: int) -> dict[str, float]:
    """Refreshes the gallery where step number `done` asks for it; how far the neighbours moved, or nothing."""
    assert run.refresher is not None
    rolling = run.config.retrieval.refresh == "rolling" and done > 0
    if rolling:
        share = -(-run.refresher.chunks // run.steps_per_refresh)
        for i in range(share):
            chunk = (done * share + i) % run.refresher.chunks
            rows, new = run.refresher.part(run.state.variables, chunk, run.cache)
            gallery = galleries.with_rows(gallery, rows, new)
        run.gallery = gallery
    elif done % run.steps_per_refresh == 0:
        before = mesh.to_host(gallery.embeddings)[: len(run.table)]
        run.gallery = _refreshed(run, gallery, run.state.variables)
        if done:
            after = mesh.to_host(run.gallery.embeddings)[: len(run.table)]
            return {"neighbour_drift": measures.neighbour_drift(before, after, run.table.patient)}
    return {}


def _refreshed(run: Run, gallery: Gallery, variables: Any) -> Gallery:
    """The gallery with all embeddings made by `variables`."""
    assert run.refresher is not None
    return galleries.with_embeddings(gallery, run.refresher.embeddings(variables, run.cache), run.mesh)


def _validate(run: Run) -> dict[str, float]:
    """Mean Dice over the validation fold in native geometry, with a gallery fresh for the evaluated variables."""
    config, variables = run.config, run.state.eval_variables
    gallery = None if run.gallery is None else _refreshed(run, run.gallery, variables)
    volumes = run.data.part("validation")
    if config.train.validate_patients:
        kept = list(dict.fromkeys(v.patient for v in volumes))[: config.train.validate_patients]
        volumes = [v for v in volumes if v.patient in kept]
    segmenter = evaluator.make_segmenter(config, run.model, variables, gallery, run.mesh)
    return evaluator.validate(segmenter, volumes, run.table if gallery is not None else None)


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
