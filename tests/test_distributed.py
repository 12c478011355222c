"""Several hosts on one: two processes train what one process with two devices does; a lost host ends the job."""

import csv
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from jras_jax.hosts import HOST_LOST

ROOT = pathlib.Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(tiny, workdir, folder, process=None, processes=2, port=0, devices=1, evaluates=False, **changes):
    """A training process; its output goes to a file in `folder`."""
    command = [sys.executable, "run.py", "--config=configs/demo.py", f"--workdir={workdir}"]
    command += [] if evaluates else ["--no_report"]
    command += tiny.arguments(mesh__data=-1, **changes)
    if process is not None:
        command += [f"--coordinator=localhost:{port}", f"--num_processes={processes}", f"--process_id={process}"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    output = (folder / f"output{process}").open("w")
    return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment)


def rows(workdir):
    with (workdir / "metrics.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def certificate(workdir):
    """Of the evaluation that follows training."""
    (summary,) = (workdir / "evaluation").glob("*/summary.json")
    return json.loads(summary.read_text())["retrieval_certificate"]


def wait(process, folder, name, seconds=400):
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail((folder / f"output{name}").read_text()[-3000:])


def test_two_processes_train_what_two_devices_do_and_a_lost_host_ends_the_job(tiny, tmp_path):
    length = {"train__num_steps": 4, "train__eval_every": 4, "train__checkpoint_every": 2}
    length["fusion__name"] = "concat"  # whose guides matter from the first step, so that controls differ
    port = free_port()
    two, one = tmp_path / "two", tmp_path / "one"
    hosts = [start(tiny, two, folder=tmp_path, process=i, port=port, evaluates=True, **length) for i in range(2)]
    for i, host in enumerate(hosts):
        assert wait(host, tmp_path, i) == 0, (tmp_path / f"output{i}").read_text()[-3000:]
    alone = start(tiny, one, tmp_path, devices=2, evaluates=True, **length)
    assert wait(alone, tmp_path, None) == 0, (tmp_path / "outputNone").read_text()[-3000:]
    ours, other = rows(two), rows(one)
    assert len(ours) == len(other) == 4
    for a, b in zip(ours, other, strict=True):
        for name in ("loss", "dice", "overlap_loss", "ce_loss"):
            assert float(a[name]) == pytest.approx(float(b[name]), abs=1e-5), name
    assert float(ours[-1]["val/dice"]) == pytest.approx(float(other[-1]["val/dice"]), abs=1e-5)
    shown, wanted = certificate(two), certificate(one)
    assert shown["verdict"] == wanted["verdict"] and shown["random"] != shown["blank"]
    for name in ("real", "random", "blank", "permuted", "oracle"):
        assert shown[name] == pytest.approx(wanted[name], abs=1e-4), name
    _a_gallery_in_the_hosts_memory(tiny, tmp_path, other, length)
    _a_lost_host(tiny, tmp_path)


def _a_gallery_in_the_hosts_memory(tiny, tmp_path, other, length):
    """Two processes with the gallery in their memory train what two devices with the gallery on them do."""
    memory = {"retrieval__gallery_memory": "host", "retrieval__overlap_rows": 16384}  # draws all rows
    port = free_port()
    hosts = [start(tiny, tmp_path / "kept", tmp_path, process=i, port=port, **memory, **length) for i in range(2)]
    for i, host in enumerate(hosts):
        assert wait(host, tmp_path, i) == 0, (tmp_path / f"output{i}").read_text()[-3000:]
    ours = rows(tmp_path / "kept")
    assert len(ours) == len(other)
    for a, b in zip(ours, other, strict=True):
        for name in ("loss", "dice", "overlap_loss", "ce_loss"):
            assert float(a[name]) == pytest.approx(float(b[name]), abs=1e-5), name


def _a_lost_host(tiny, tmp_path):
    """Host 1 of two is killed: host 0 ends with a message; one process then goes on from the last checkpoint."""
    workdir, port = tmp_path / "lost", free_port()
    settings = {"train__num_steps": 5000, "train__eval_every": 5000, "train__checkpoint_every": 2}
    first, second = (start(tiny, workdir, folder=tmp_path, process=i, port=port, **settings) for i in range(2))
    deadline = time.monotonic() + 300
    while not (workdir / "checkpoints" / "4").is_dir():
        assert time.monotonic() < deadline and first.poll() is None, (tmp_path / "output0").read_text()[-3000:]
        time.sleep(0.2)
    second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    status = wait(first, tmp_path, 0, seconds=120)
    assert time.monotonic() - killed < 120
    # Either a collective fails at once, or it hangs until the watch ends it.
    said = (tmp_path / "output0").read_text().splitlines()[-1]
    assert status in (1, HOST_LOST), said
    words = {1: "this host, or another host of the job, stopped", HOST_LOST: "host 1 has not been heard of"}[status]
    assert said.startswith(f"error: {words}") and "with the same command" in said
    second.wait()
    before = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    logged = int(rows(workdir)[-1]["step"])  # the lost job may have gone further than its last checkpoint
    again = start(tiny, workdir, tmp_path, **settings)
    deadline = time.monotonic() + 300
    while int(rows(workdir)[-1]["step"]) < max(before, logged) + 2:
        assert time.monotonic() < deadline and again.poll() is None, (tmp_path / "outputNone").read_text()[-3000:]
        time.sleep(0.2)
    again.terminate()  # as a cluster does: it saves and ends
    assert wait(again, tmp_path, None) == 0
    assert "stopped by a signal" in (tmp_path / "outputNone").read_text()
