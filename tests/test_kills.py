"""Twenty SIGKILLs, most of them in the middle of a save: the run resumes each time, and ends with the same bits."""

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time

import pytest

from jras_jax import files
from jras_jax.commands import cli
from jras_jax.run_folder import manifests
from jras_jax.run_folder.checkpoints import Checkpoints
from jras_jax.run_folder.layout import RunFolder
from tests.test_loop import arrays_of, same_bits
from tests.test_skips import arguments, rows

KILLS, STEPS = 20, 70
OFTEN = {"train__num_steps": STEPS, "train__eval_every": 10, "train__checkpoint_every": 1}
ONCE = OFTEN | {"train__checkpoint_every": STEPS}


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(words, seed):
    """In a process of its own: trains, and dies by SIGKILL at a moment drawn by `seed`; None lives."""
    if seed is not None:
        arrange(random.Random(seed))
    sys.exit(cli.main(["train", *words]))


def arrange(rng):
    """Death after the k-th call of something that a save does, or a few milliseconds after its start."""
    kind = rng.choice(["time", "time", "json", "sign", "move", "prune"])
    calls, number, delay = itertools.count(), rng.randrange(3), rng.uniform(0, 0.06)
    holder, name = {
        "time": (Checkpoints, "save"),
        "json": (files, "write_json"),
        "sign": (manifests, "sign"),
        "move": (Checkpoints, "_commit"),
        "prune": (shutil, "rmtree"),
    }[kind]
    plain = getattr(holder, name)

    def deadly(*given, **named):
        if next(calls) != number:
            return plain(*given, **named)
        if kind == "time":
            threading.Thread(target=lambda: (time.sleep(delay), kill())).start()
            return plain(*given, **named)
        if rng.random() < 0.5:
            plain(*given, **named)
        kill()

    setattr(holder, name, deadly)


@pytest.mark.slow
def test_twenty_kills_change_no_bit(tiny, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_kills"])  # imports JAX once; no program has run there yet

    def attempt(workdir, seed, changes):
        process = context.Process(target=train_until_killed, args=(arguments(tiny, workdir, **changes), seed))
        process.start()
        process.join(timeout=300)
        assert process.exitcode is not None
        return process.exitcode

    assert attempt(tmp_path / "whole", None, ONCE) == 0
    kills, seeds, workdir = 0, itertools.count(), tmp_path / "killed"
    while kills < KILLS:
        status = attempt(workdir, next(seeds), OFTEN)
        assert status in (0, -signal.SIGKILL), status
        assert status != 0 or kills == KILLS, f"the run ended after {kills} kills"
        kills += status != 0
    assert attempt(workdir, None, OFTEN) == 0
    same_bits(arrays_of(workdir, STEPS), arrays_of(tmp_path / "whole", STEPS))
    ours, other = (
        [{k: v for k, v in row.items() if k not in ("slices_per_s", "val/seconds")} for row in rows(d)]
        for d in (workdir, tmp_path / "whole")
    )
    assert ours == other
    assert not (workdir / "checkpoints.damaged").exists()  # no folder with a step's name was ever incomplete
    kept, others = Checkpoints(RunFolder(workdir)), Checkpoints(RunFolder(tmp_path / "whole"))
    assert (kept.best(), kept.latest()) == (others.best(), others.latest())
