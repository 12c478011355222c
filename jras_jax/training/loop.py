"""The loop of training and pre-training: steps, validations, checkpoints, and a clean end whatever happens.

A `Task` says what a step is. The loop does the rest for both kinds: it claims the folder once a first step has worked,
saves, validates, stops on request, skips what is not finite, and resumes from the last checkpoint to the bit.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging

from jras_jax import config as configs
from jras_jax.config import Config
from jras_jax.data import Volume
from jras_jax.data.batches import Batches
from jras_jax.errors import UserError
from jras_jax.run_folder import checkpoints, trackers
from jras_jax.run_folder.checkpoints import Checkpoints
from jras_jax.run_folder.layout import RunFolder
from jras_jax.run_folder.lock import Lock
from jras_jax.run_folder.metric_log import MetricLog
from jras_jax.training.progress import Progress
from jras_jax.training.skips import Skips, all_finite
from jras_jax.training.stopping import Abandoned, StopSignal

Watched = Callable[[Iterable[Volume]], Iterator[Volume]]


@dataclasses.dataclass(kw_only=True)
class Task(abc.ABC):
    """What the loop trains.

    Attributes:
      title: for the progress bar.
      length: steps of the whole run.
      batch_size: slices per step, over all devices.
      started_at: steps that the restored checkpoint has.
      carried: what `prepare` returned last; it is logged until it changes, also after a resume.
      images: samples (H, W, 3) uint8 of the last validation, for TensorBoard.
    """

    config: Config
    folder: RunFolder
    mesh: jax.sharding.Mesh
    batches: Batches
    checkpoints: Checkpoints
    skips: Skips
    title: str
    length: int
    batch_size: int
    started_at: int = 0
    carried: dict[str, float] = dataclasses.field(default_factory=dict)
    images: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @abc.abstractmethod
    def arrays(self) -> dict[str, Any]:
        """What a checkpoint holds."""

    @abc.abstractmethod
    def take(self, arrays: dict[str, Any]) -> None:
        """Takes the arrays of a checkpoint."""

    @abc.abstractmethod
    def claim(self) -> None:
        """Makes the folder this run's: its settings and where its numbers come from. On the first host."""

    @abc.abstractmethod
    def advance(self, done: int) -> tuple[dict[str, jax.Array], np.ndarray]:
        """Does the step after `done` steps: its metrics, 'finite' among them, and this host's rows of its batch."""

    def prepare(self, done: int) -> dict[str, float]:
        """What comes before the step after `done` steps; returns metrics that hold until they are replaced."""
        return {}

    def validate(self, watched: Watched) -> dict[str, float]:
        """Scores the run, 'val/dice' among the values; {} if it has no score. `watched` goes over the volumes."""
        return {}

    def rates(self, at: int) -> dict[str, float]:
        """The learning rates of step `at`, for the log."""
        return {}

    @property
    def validates(self) -> bool:
        """Whether `validate` does anything."""
        return False

    def due(self, at: int) -> bool:
        """Whether step `at` is followed by a validation."""
        return self.validates and (at % self.config.train.eval_every == 0 or at == self.length)

    def resume(self) -> None:
        """Takes the newest intact checkpoint, if there is one."""
        found = self.checkpoints.resume(checkpoints.abstract(self.arrays()), lambda arrays: bool(_sound(arrays)))
        if found is None:
            return
        self.started_at, arrays = found
        meta = self.checkpoints.meta(self.started_at)
        self.take(arrays)
        self.batches.restore(meta["data"])
        self.carried = dict(meta.get("carried", {}))
        self.skips.restore(meta.get("skipped", {}))
        logging.info("resuming %s after step %d", self.folder, self.started_at)

    def save(self, at: int) -> None:
        """Starts to save step `at`.

        Raises:
          UserError: the run diverged; nothing is saved.
        """
        self.skips.settle()
        if not bool(_sound(self.arrays())):
            raise UserError(
                f"at step {at} some parameters are not finite: nothing is saved, and the checkpoints are intact. Check "
                "the files of config.backbone.init_from and config.retriever.init_from, if you gave them"
            )
        meta = {
            "data": self.batches.state(),
            "config": dataclasses.asdict(self.config),
            "step": at,
            "carried": self.carried,
            "skipped": self.skips.state(),
        }
        self.checkpoints.save(at, self.arrays(), meta)


_sound = jax.jit(all_finite)


def run(task: Task, lock: Lock, stop: StopSignal) -> None:
    """Trains `task` to its end, from where it is.

    Raises:
      Stopped: the run was asked to stop and is saved.
      UserError: it diverged, the last save failed, or another process took the folder over.
    """
    if task.started_at >= task.length and not _unscored(task):
        logging.info("%s has its %d steps already", task.folder, task.started_at)
        return
    bar = Progress(task.title, total=task.length, start=task.started_at, slices_per_step=task.batch_size)
    live = _Live(task, lock, stop=stop, bar=bar)
    complete = False
    try:
        live.steps()
        complete = True
    finally:
        bar.close()
        task.checkpoints.close()
        if live.log:
            live.log.close(complete)


def _unscored(task: Task) -> bool:
    """Whether the run stopped between a checkpoint and its validation."""
    at = task.started_at
    return at > 0 and task.due(at) and task.checkpoints.dice(at) is None


class _Live:
    """A run in the loop. Metrics stay on the device until they are logged, so that no step waits for the host."""

    def __init__(self, task: Task, lock: Lock, stop: StopSignal, bar: Progress):
        self.task, self.lock, self.stop, self.bar = task, lock, stop, bar
        self.log: MetricLog | None = None
        self.shown: dict[str, float] = dict(task.carried)

    def steps(self) -> None:
        """The loop itself."""
        task, t = self.task, self.task.config.train
        if task.started_at:
            self._claim()
        self.bar.restart_clock(task.started_at)
        if _unscored(task) and not self._validate(task.started_at):
            raise self.stop.stopped(task.started_at)
        for done in range(task.started_at, task.length):
            task.carried |= task.prepare(done)
            metrics, rows = task.advance(done)
            at = done + 1
            self.bar.step(at)
            task.skips.add(at, metrics.pop("finite"), rows)
            if at == task.started_at + 1:
                jax.block_until_ready(metrics)
                self.stop.leave = None
                self._claim()
                self.bar.restart_clock(at)
            if at % t.log_every == 0 or at == task.length:
                self._log(at, metrics)
            # Several hosts must stop at one step, though the notice reaches them at different ones; asking waits for
            # all of them.
            asked = jax.process_count() == 1 or at % t.log_every == 0
            stopping = asked and self.stop.agreed()
            if task.due(at) or at % t.checkpoint_every == 0 or at == task.length or stopping:
                self.lock.check()
                task.save(at)
            if task.due(at) and not stopping:
                stopping = not self._validate(at)
            if stopping:
                task.checkpoints.settle()
                raise self.stop.stopped(at)
        task.checkpoints.settle()
        if self.stop.agreed():
            raise self.stop.stopped(task.length)

    def _claim(self) -> None:
        """Once everything that can go wrong at the start has gone well."""
        if self.log is None and jax.process_index() == 0:
            self.task.claim()
            self.log = MetricLog(self.task.folder, self.task.started_at, self._trackers)

    def _trackers(self) -> list[trackers.Tracker]:
        config, task = self.task.config, self.task
        settings = configs.flatten(dataclasses.asdict(config))
        return trackers.start(
            config.train.trackers, task.folder, resume_step=task.started_at, name=config.name, settings=settings
        )

    def _log(self, at: int, metrics: dict[str, jax.Array]) -> None:
        values = {k: float(v) for k, v in metrics.items()}
        self.task.skips.settle()
        if self.task.skips.total:
            values["skipped"] = self.task.skips.total
        self.shown |= self.task.carried | values
        self.bar.update(at, self.shown)
        if self.log:
            kept = (*values, *self.task.carried)
            rates = {"slices_per_s": self.bar.rate} | self.task.rates(at)
            self.log.write(at, {k: v for k, v in self.shown.items() if k in kept} | rates)

    def _validate(self, at: int) -> bool:
        """Scores step `at`, which is saved already; False if the run is to stop and the score has to wait."""
        self.stop.leave = self._leave
        self.bar.phase("validating")
        try:
            values = self.task.validate(self.stop.watched)
        except Abandoned:
            return False
        finally:
            self.stop.leave = None
        self.task.checkpoints.score(at, values["val/dice"])
        self.shown |= values
        if self.log:
            self.log.write(at, values)
            self.log.images(at, self.task.images)
        self.bar.validated(at, values)
        self.bar.restart_clock(at)
        return True

    def _leave(self) -> None:
        self.task.checkpoints.settle()
        self.lock.release()
