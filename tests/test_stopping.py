"""Signals: a run saves itself and ends with status 0 in every phase, and goes on to the same bits."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jras_jax.commands import cli, train
from jras_jax.data.batches import Batches
from jras_jax.errors import Stopped
from jras_jax.evaluation import evaluator
from jras_jax.inference.segmenter import Segmenter
from jras_jax.run_folder.checkpoints import Checkpoints
from jras_jax.run_folder.layout import RunFolder
from jras_jax.training import joint_run
from jras_jax.training.stopping import StopSignal
from tests.test_loop import arrays_of, checkpoint_steps, same_bits
from tests.test_skips import arguments, rows

ROOT = pathlib.Path(__file__).resolve().parents[1]
LENGTH = {"train__num_steps": 4, "train__eval_every": 2, "train__checkpoint_every": 4}


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The run that nobody stops."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(["train", *arguments(tiny, workdir, **LENGTH)]) == 0
    return workdir


def terminate(*_):
    os.kill(os.getpid(), signal.SIGTERM)


def before_the_first_step(patch):
    plain = joint_run.create_state
    patch.setattr(joint_run, "create_state", lambda *given, **named: (terminate(), plain(*given, **named))[1])
    return {1}


def in_a_step(patch):
    plain, drawn = Batches.__next__, []
    patch.setattr(Batches, "__next__", lambda self: (drawn.append(1), len(drawn) == 3 and terminate(), plain(self))[2])
    return {3}


def in_a_validation(patch):
    plain = Segmenter.placed
    patch.setattr(Segmenter, "placed", lambda self, *given: (terminate(), plain(self, *given))[1])
    return {2}


def in_the_last_validation(patch):
    plain, seen = Segmenter.placed, []

    def placed(self, *given):
        seen.append(1)
        if len(seen) == 3:  # two volumes at step 2, then the first at step 4
            terminate()
        return plain(self, *given)

    patch.setattr(Segmenter, "placed", placed)
    return {4}


def in_a_save_twice(patch):
    plain = Checkpoints._commit

    def commit(self, *given):
        terminate()
        time.sleep(0.2)
        terminate()
        plain(self, *given)

    patch.setattr(Checkpoints, "_commit", commit)
    return {2, 3}  # whether the validation beside it has ended by then is chance


@pytest.mark.parametrize(
    "phase", [before_the_first_step, in_a_step, in_a_validation, in_the_last_validation, in_a_save_twice]
)
def test_sigterm_saves_and_ends_with_status_0(tiny, tmp_path, monkeypatch, capsys, whole, phase):
    workdir, before = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        expected = phase(patch)
        assert cli.main(["train", *arguments(tiny, workdir, **LENGTH)]) == 0
    at = int(re.search(r"stopped by a signal at step (\d); the same command resumes", capsys.readouterr().out)[1])
    assert at in expected
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoint_steps(workdir)[-1] == at and not (workdir / "lock.json").exists()
    assert cli.main(["train", *arguments(tiny, workdir, **LENGTH)]) == 0
    same_bits(arrays_of(workdir, 4), arrays_of(whole, 4))
    for ours, other in zip(rows(workdir), rows(whole), strict=True):
        for name in ("step", "loss", "val/dice"):
            assert ours[name] == other[name]
    kept, others = Checkpoints(RunFolder(workdir)), Checkpoints(RunFolder(whole))
    assert kept.best() == others.best() and kept.dice(4) == others.dice(4)


def test_sigterm_in_the_evaluation_after_training_ends_with_status_0(tiny, trained_run, tmp_path, monkeypatch, capsys):
    """The same command does the rest."""
    run = RunFolder(shutil.copytree(trained_run, tmp_path / "run"))
    words = ["train", "--config=configs/demo.py", f"--workdir={run}", *tiny.arguments()]
    plain, scored = evaluator.case_rows, []

    def case_rows(*given):
        scored.append(1)
        if len(scored) == 1:  # of six
            terminate()
        return plain(*given)

    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "case_rows", case_rows)
        assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "stopped by a signal during the evaluation; what is trained is saved, and the same command does" in said
    assert len(scored) < 6 and not run.evaluations() and not run.report.exists()
    assert cli.main(words) == 0
    assert run.evaluations() and run.report.exists()


def test_a_signal_between_a_run_and_its_baseline_stops_both(tiny, tmp_path):
    with StopSignal() as stop:
        terminate()
        with pytest.raises(Stopped, match="the same command does the rest") as end:
            train.train(tiny.config(), RunFolder(tmp_path / "baseline"), stop=stop)
    assert end.value.status == 0 and not (tmp_path / "baseline").exists()


def test_ctrl_c_saves_once_and_a_second_one_ends_at_once(tiny, tmp_path, monkeypatch, capsys):
    plain, drawn = Batches.__next__, []

    def interrupt(times):
        def draw(self):
            drawn.append(1)
            if len(drawn) == 3:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            return plain(self)

        return draw

    changes = LENGTH | {"train__eval_every": 100, "train__checkpoint_every": 1}
    monkeypatch.setattr(Batches, "__next__", interrupt(1))
    assert cli.main(["train", *arguments(tiny, tmp_path / "one", **changes)]) == 130
    assert checkpoint_steps(tmp_path / "one")[-1] == 3
    drawn.clear()
    monkeypatch.setattr(Batches, "__next__", interrupt(2))
    assert cli.main(["train", *arguments(tiny, tmp_path / "two", **changes)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert checkpoint_steps(tmp_path / "two")[-1] == 2 and not (tmp_path / "two" / "lock.json").exists()


BUSY = """
import sys, time
from jras_jax.commands import cli, train
from jras_jax.inference.segmenter import Segmenter
from jras_jax.training import joint_run, stopping

stopping.GRACE_S = 1.0

def busy(*_):
    print("busy", flush=True)
    time.sleep(300)  # goes on after a signal, as a compiler does

if sys.argv[1] == "compiling":
    joint_run.compile_step = lambda *_: busy
else:
    Segmenter.placed = busy
sys.exit(cli.main(["train", *sys.argv[2:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["compiling", "validating"])
def test_sigterm_ends_a_process_that_is_busy_in_other_code(tiny, tmp_path, phase):
    workdir = tmp_path / "run"
    command = [sys.executable, "-c", BUSY, phase, *arguments(tiny, workdir, **LENGTH)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        while process.stdout.readline() != "busy\n":
            assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
    assert "the same command resumes" in process.stdout.read()
    if phase == "compiling":
        assert not workdir.exists()
    else:
        assert checkpoint_steps(workdir) == [2] and not (workdir / "lock.json").exists()


def test_evaluation_beside_training_is_allowed(trained_run):
    from jras_jax.run_folder import lock

    with lock.hold(RunFolder(trained_run), "train"):
        before = sorted(p.name for p in trained_run.iterdir() if p.name not in ("evaluation", "report.html", "gallery"))
        assert cli.main(["evaluate", f"--workdir={trained_run}"]) == 0
        after = sorted(p.name for p in trained_run.iterdir() if p.name not in ("evaluation", "report.html", "gallery"))
    assert after == before and "lock.json" in before
