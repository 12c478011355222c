"""Where a training run is followed, beside metrics.csv: TensorBoard, MLflow, Weights & Biases.

MLflow and Weights & Biases are set up by their own environment variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME,
WANDB_PROJECT, WANDB_MODE, ...). They are fed by a thread, so that training never waits for a server; if one fails, that
is said once and the run continues without it. A resumed run continues the same tracked run.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jras_jax import files
from jras_jax.errors import UserError
from jras_jax.run_folder.event_log import EventLog
from jras_jax.run_folder.layout import RunFolder

NAMES = ("tensorboard", "mlflow", "wandb")
PROJECT = "jras_jax"  # experiment or project, if the tracker's own variable names none
WAIT = 60.0  # seconds that the end of a run waits for a tracker

Settings = Mapping[str, Any]


class Tracker(Protocol):
    """Takes what a run reports."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name; NaN is left out."""

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Images (H, W, 3) uint8 by name."""

    def close(self, complete: bool) -> None:
        """The run ends; `complete` if it did all of its steps."""


def check(names: Sequence[str]) -> None:
    """Raises UserError if the package of a tracker is not installed, or Weights & Biases would ask for a key."""
    for name in names:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise UserError(f"config.train.trackers names {name!r}, which is not installed: pip install '.[{name}]'")
    if "wandb" in names and not _wandb_ready():
        raise UserError(
            "config.train.trackers names 'wandb', which has no key: run wandb login, or set WANDB_MODE=offline"
        )


def start(names: Sequence[str], folder: RunFolder, resume_step: int, name: str, settings: Settings) -> list[Tracker]:
    """The trackers of a run.

    Args:
      names: some of `NAMES`.
      folder: the run's; keeps the identity under which other services know the run.
      resume_step: steps that are done already.
      name: of the run.
      settings: 'section.key' -> value.
    """
    found: list[Tracker] = [EventLog(folder, resume_step)] if "tensorboard" in names else []
    if "mlflow" in names or "wandb" in names:
        identity = _identity(folder)
        if "mlflow" in names:
            found.append(Remote("MLflow", lambda: MLflow(identity, name, settings)))
        if "wandb" in names:
            found.append(Remote("Weights & Biases", lambda: WandB(folder, identity, name=name, settings=settings)))
    return found


class Remote:
    """A tracker that is made and fed by a thread.

    Args:
      title: for messages.
      make: makes the tracker; whatever it or the tracker raises ends the tracking, not the run.
    """

    def __init__(self, title: str, make: Callable[[], Tracker]):
        self._title, self._make = title, make
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name=title, daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        kept = {key: float(v) for key, v in values.items() if np.isfinite(v)}
        self._calls.put(lambda tracker: tracker.scalars(step, kept))

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """See `Tracker`."""
        kept = dict(images)
        self._calls.put(lambda tracker: tracker.images(step, kept))

    def close(self, complete: bool) -> None:
        """See `Tracker`; waits for what is left, for `WAIT` seconds at most."""
        self._calls.put(lambda tracker: tracker.close(complete))
        self._calls.put(None)
        self._thread.join(WAIT)
        if self._thread.is_alive():
            logging.getLogger("absl").warning("%s does not answer; the last values may be missing there", self._title)

    def _work(self) -> None:
        try:
            tracker = self._make()
            while (call := self._calls.get()) is not None:
                call(tracker)
        except Exception as e:  # the services' errors share no base class
            reason = (str(e).strip().splitlines() or [""])[0][:200]
            text = "%s stopped (%s: %s); the run continues without it"
            logging.getLogger("absl").warning(text, self._title, type(e).__name__, reason)


class MLflow:
    """A run in MLflow, in the experiment that MLFLOW_EXPERIMENT_NAME names, or `PROJECT`."""

    TAG = "jras_jax.run"

    def __init__(self, identity: str, name: str, settings: Settings):
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT)
        known = self._client.search_runs([experiment], f"tags.`{self.TAG}` = '{identity}'", max_results=1)
        if known:
            self._run = known[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._run = self._client.create_run(experiment, tags={self.TAG: identity}, run_name=name).info.run_id
        self._client.log_dict(self._run, dict(settings), "settings.json")
        if not known:  # a parameter cannot change; settings.json has those of the last start
            self._log_parameters(settings)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(key, value, now, step) for key, value in values.items()])

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """See `Tracker`."""
        for name, image in images.items():
            key = re.sub(r"[^\w. -]", "_", name, flags=re.ASCII)  # what a key may hold
            self._client.log_image(self._run, image, key=key, step=step)

    def close(self, complete: bool) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._run, "FINISHED" if complete else "KILLED")

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def _log_parameters(self, settings: Settings) -> None:
        from mlflow.entities import Param

        given = [Param(key, str(value)[:500]) for key, value in settings.items()]
        for at in range(0, len(given), 100):  # as many as a call takes
            self._client.log_batch(self._run, params=given[at : at + 100])


class WandB:
    """A run in Weights & Biases, in the project that WANDB_PROJECT names, or `PROJECT`; the folder keeps its files."""

    def __init__(self, folder: RunFolder, identity: str, name: str, settings: Settings):
        import wandb

        self._wandb = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            dir=str(folder.path),
            id=identity,
            name=name,
            config=dict(settings),
            resume=None if _offline() else "allow",  # offline, the files of both starts are joined by their identity
            reinit="create_new",  # the baseline follows in the same process
            settings=wandb.Settings(silent=True, console="off"),
        )
        # The service refuses steps that it has seen; a resumed run repeats some.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({"step": step, **values})

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """See `Tracker`."""
        self._run.log({"step": step} | {name: self._wandb.Image(image) for name, image in images.items()})

    def close(self, complete: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=0 if complete else 1)


def _identity(folder: RunFolder) -> str:
    """The name under which other services know the run; made at its first start."""
    remedy = "delete it: the run then appears as a new one in its trackers"
    if folder.tracked.is_file():
        return str(files.read_json(folder.tracked, remedy=remedy, holds={"id": str})["id"])
    identity = uuid.uuid4().hex
    files.write_json(folder.tracked, {"id": identity})
    return identity


def _offline() -> bool:
    return os.environ.get("WANDB_MODE", "online") in ("offline", "dryrun", "disabled")


def _wandb_ready() -> bool:
    if _offline() or os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    return bool(wandb.login(prompt=False, verify=False))
