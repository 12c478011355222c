"""The lock of a run's folder: one process trains in it, a dead owner is recognised, the dead leave no trace."""

import json
import os
import subprocess
import sys
import time

import pytest

from jras_jax.commands import cli
from jras_jax.run_folder import lock
from jras_jax.run_folder.layout import RunFolder

HOLDER = """
import sys, time
from jras_jax.run_folder import lock
from jras_jax.run_folder.layout import RunFolder
with lock.hold(RunFolder(sys.argv[1]), "train"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run"), "100"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def written(folder, **changes):
    """A lock file of someone else."""
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.lock.write_text(json.dumps(lock.identity() | {"command": "train"} | changes))


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_a_second_start_is_refused_at_once(tiny, tmp_path, holder, capsys, command):
    before = (tmp_path / "run" / "lock.json").read_bytes()
    arguments = ["--config=configs/demo.py", f"--workdir={tmp_path / 'run'}", *tiny.arguments()]
    assert cli.main([command, *arguments]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: ")
    assert f"in use by jras train (process {holder.pid} on " in said[0] and "another --workdir" in said[0]
    assert (tmp_path / "run" / "lock.json").read_bytes() == before
    with pytest.raises(lock.LockError), lock.hold(RunFolder(tmp_path / "run"), command):
        pytest.fail("the lock was given twice")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["lock.json"]


def test_a_killed_owner_is_recognised_at_once_and_said(tmp_path, holder, caplog):
    holder.kill()
    holder.wait()
    lock.check_free(RunFolder(tmp_path / "run"))
    with lock.hold(RunFolder(tmp_path / "run"), "train"):
        assert json.loads((tmp_path / "run" / "lock.json").read_text())["pid"] == os.getpid()
    assert len([m for m in caplog.messages if f"process {holder.pid} on" in m and "has died" in m]) == 1
    assert not (tmp_path / "run" / "lock.json").exists()


def test_a_process_number_that_was_given_again_is_no_owner(tmp_path):
    folder = RunFolder(tmp_path / "run")
    written(folder, started="1")  # this process's number, but not its start
    with lock.hold(folder, "train"):
        assert json.loads(folder.lock.read_text()) == lock.identity() | {"command": "train"}


@pytest.mark.parametrize("text", [None, "", '{"pid":'])
def test_an_owner_elsewhere_is_dead_once_it_is_silent(tmp_path, text):
    """Also a file that its writer did not finish: it may be about to."""
    folder = RunFolder(tmp_path / "run")
    written(folder, host="node7", machine="node7", pid=5)
    if text is not None:
        folder.lock.write_text(text)
    with pytest.raises(lock.LockError, match=r"last seen \d+ seconds ago.*wait 60 seconds or remove .*lock.json"):
        lock.check_free(folder)
    with pytest.raises(lock.LockError), lock.hold(folder, "train"):
        pytest.fail("the lock was given twice")
    long_ago = time.time() - lock.SILENCE_S - 5
    os.utime(folder.lock, (long_ago, long_ago))
    with lock.hold(folder, "train"):
        assert json.loads(folder.lock.read_text())["pid"] == os.getpid()


def test_the_owner_keeps_its_file_fresh_and_notices_that_it_was_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    folder = RunFolder(tmp_path / "run")
    with lock.hold(folder, "train") as held:
        os.utime(folder.lock, (1, 1))
        deadline = time.monotonic() + 10
        while folder.lock.stat().st_mtime < 100:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        held.check()
        written(folder, pid=1)
        with pytest.raises(lock.LockError, match="taken over by another process"):
            held.check()
    assert json.loads(folder.lock.read_text())["pid"] == 1  # the other's file stays


def test_of_many_that_find_a_dead_owner_one_takes_its_place(tmp_path):
    folder = RunFolder(tmp_path / "run")
    written(folder, started="1")
    command = [sys.executable, "-c", HOLDER, str(folder), "20"]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        deadline = time.monotonic() + 120
        while sum(p.poll() is None for p in others) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        winner = next(p for p in others if p.poll() is None)
        assert json.loads(folder.lock.read_text())["pid"] == winner.pid
    finally:
        for p in others:
            p.kill()
    said = [p.communicate() for p in others]
    assert sum("held" in out for out, _ in said) == 1
    assert sum("LockError" in err for _, err in said) == 2


def test_an_end_with_an_error_releases_the_folder_and_removes_it_if_empty(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run")
    with pytest.raises(ZeroDivisionError), lock.hold(folder, "train"):
        _ = 1 / 0
    assert not folder.path.exists()
    folder.path.mkdir(parents=True)
    with lock.hold(folder, "train"):
        pass
    assert folder.path.is_dir() and not any(folder.path.iterdir())
