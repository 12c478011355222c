"""Trackers beside metrics.csv: a real MLflow server, Weights & Biases offline, and services that fail or hang."""

import csv
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest

from jras_jax.commands import train as train_command
from jras_jax.errors import UserError
from jras_jax.run_folder import trackers
from jras_jax.run_folder.layout import RunFolder
from tests.commands import call

BLOCK, FULL, LAST = 32_768, 1, 4  # of the log format
BOTH = "('tensorboard','mlflow')"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of an MLflow server on this machine."""
    pytest.importorskip("mlflow.server", reason="mlflow is not installed: pip install '.[mlflow]'")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder}/store.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    address = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *store], stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


@pytest.fixture
def mlflow_client(server, monkeypatch, tmp_path):
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    return MlflowClient(server)


@pytest.fixture
def told(caplog):
    """The warnings of a test."""
    caplog.set_level("WARNING", logger="absl")
    return lambda: [record.getMessage() for record in caplog.records]


def runs_of(client, name):
    found = client.get_experiment_by_name(name)
    return client.search_runs([found.experiment_id]) if found else []


@pytest.mark.slow
def test_mlflow_has_what_metrics_csv_has_and_a_resumed_run_continues_it(mlflow_client, tiny, tmp_path):
    tiny.train(tmp_path / "run", train__trackers=BOTH, train__num_steps=2)
    (first,) = runs_of(mlflow_client, tmp_path.name)
    assert first.info.status == "FINISHED" and first.info.run_name == "tiny"
    assert first.data.params["retrieval.top_k"] == "2" and first.data.params["train.num_steps"] == "2"
    more = ["--config.train.num_steps=4", f"--config.train.trackers={BOTH}"]
    config = [*tiny.arguments(), *more, "--no_report", "--resume_with_changes"]
    assert call("train", "--config=demo", f"--workdir={tmp_path / 'run'}", *config) == 0
    (run,) = runs_of(mlflow_client, tmp_path.name)
    assert run.info.run_id == first.info.run_id
    with (tmp_path / "run" / "metrics.csv").open() as f:
        rows = list(csv.DictReader(f))
    for name in ("loss", "val/dice"):
        kept = {m.step: m.value for m in mlflow_client.get_metric_history(run.info.run_id, name)}
        assert kept == pytest.approx({int(r["step"]): float(r[name]) for r in rows if r[name]}, rel=1e-4)
    artifacts = [a.path for a in mlflow_client.list_artifacts(run.info.run_id)]
    assert "settings.json" in artifacts and "images" in artifacts
    assert list((tmp_path / "run").glob("events*"))


@pytest.mark.slow
def test_a_stopped_run_is_not_shown_as_finished(mlflow_client, tmp_path):
    for complete, status in ((False, "KILLED"), (True, "FINISHED")):
        (one,) = trackers.start(["mlflow"], RunFolder(tmp_path), resume_step=0, name="n", settings={"a.b": 1})
        one.scalars(3, {"loss": 1.5, "rate": float("nan")})
        one.close(complete)
        (run,) = runs_of(mlflow_client, tmp_path.name)
        assert run.info.status == status and run.data.metrics == {"loss": 1.5}


def test_weights_and_biases_offline_keeps_every_value(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install '.[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.check(["wandb"])
    (one,) = trackers.start(["wandb"], RunFolder(tmp_path), resume_step=0, name="some run", settings={"optim.lr": 0.5})
    one.scalars(1, {"loss": 2.0})
    one.images(2, {"sample": np.zeros((8, 8, 3), np.uint8)})
    one.scalars(2, {"loss": 1.0, "val/dice": 0.25})
    one.close(True)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert json.loads((tmp_path / "tracked.json").read_text())["id"] in file.name
    records = list(records_of(file))
    history = [{k: json.loads(v) for k, v in r.items() if not k.startswith("_")} for r in records]
    assert {"step": 1, "loss": 2.0} in history and {"step": 2, "loss": 1.0, "val/dice": 0.25} in history
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/sample*.png"))


def records_of(file: pathlib.Path):
    """The rows of history in a file of Weights & Biases: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, at, data = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (room := BLOCK - at % BLOCK) < 7:
            at += room
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        data += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind not in (FULL, LAST):
            continue
        record, data = wandb_internal_pb2.Record.FromString(data), b""
        if record.WhichOneof("record_type") == "history":
            yield {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}


class Broken:
    """A service that takes a few values and then fails, or hangs."""

    def __init__(self, hang: threading.Event | None = None):
        self.taken, self.hang = [], hang

    def scalars(self, step, values):
        if step > 2:
            if self.hang:
                self.hang.wait(30)
            raise ConnectionError("refused\nand more")
        self.taken.append((step, dict(values)))

    def images(self, step, images):
        pass

    def close(self, complete):
        pass


def test_a_service_that_fails_is_said_once_and_the_run_goes_on(told):
    service = Broken()
    remote = trackers.Remote("Some service", lambda: service)
    for step in range(1, 9):
        remote.scalars(step, {"loss": float(step)})
    remote.close(True)
    assert service.taken == [(1, {"loss": 1.0}), (2, {"loss": 2.0})]
    assert told() == ["Some service stopped (ConnectionError: refused); the run continues without it"]


def test_a_service_that_cannot_be_reached_is_said_once(told):
    def make():
        raise OSError("no route to host")

    remote = trackers.Remote("Some service", make)
    remote.scalars(1, {"loss": 1.0})
    remote.close(True)
    assert told() == ["Some service stopped (OSError: no route to host); the run continues without it"]


def test_a_service_that_hangs_holds_nobody_up(told, monkeypatch):
    monkeypatch.setattr(trackers, "WAIT", 0.2)
    free = threading.Event()
    remote = trackers.Remote("Some service", lambda: Broken(free))
    begin = time.monotonic()
    for step in range(1, 9):
        remote.scalars(step, {"loss": float(step)})
    remote.close(True)
    assert time.monotonic() - begin < 5
    assert told() == ["Some service does not answer; the last values may be missing there"]
    free.set()


def test_trackers_that_cannot_start_are_refused_before_anything_is_built(tiny, tmp_path, monkeypatch):
    start = ["--config=demo", f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(UserError, match="some of tensorboard, mlflow, wandb"):
        call("train", *start, "--config.train.trackers=('neptune',)")
    found = trackers.importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "mlflow" else found(name))
    with pytest.raises(UserError, match=r"names 'mlflow', which is not installed: pip install '\.\[mlflow\]'"):
        call("train", *start, "--config.train.trackers=('mlflow',)")
    monkeypatch.setattr(trackers, "_wandb_ready", lambda: False)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"run wandb login, or set WANDB_MODE=offline"):
        call("train", *start, "--config.train.trackers=('wandb',)")
    assert not (tmp_path / "run").exists()


def test_no_tracker_leaves_metrics_csv_alone(tiny, tmp_path):
    config = tiny.config(train__trackers="()", train__num_steps=1, train__eval_every=1)
    train_command.train(config, RunFolder(tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.csv").is_file()
    assert not list((tmp_path / "run").glob("events*")) and not (tmp_path / "run" / "tracked.json").exists()
