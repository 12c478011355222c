"""A job of two hosts under launch/slurm.sh loses its first host: the other says so, the job starts again and ends."""

import contextlib
import csv
import os
import pathlib
import signal
import subprocess
import time

import pytest

from tests.test_distributed import free_port
from tests.test_launch import program

ROOT = pathlib.Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow
STEPS = 400

SRUN = """
import os, subprocess, sys
python, script, *arguments = sys.argv[2:]
hosts = []
for i in range(2):
    more = [f"--coordinator=localhost:{os.environ['PORT']}", "--num_processes=2", f"--process_id={i}"]
    output = open(f"output{i}", "a")
    command = [sys.executable, script, *arguments, *more]
    hosts.append(subprocess.Popen(command, cwd=os.environ["ROOT"], stdout=output, stderr=subprocess.STDOUT))
open("hosts.tmp", "w").write(" ".join(str(host.pid) for host in hosts))
os.rename("hosts.tmp", "hosts")
sys.exit(max(host.wait() % 256 for host in hosts))
"""


@pytest.fixture
def job(tiny, tmp_path):
    """Starts the job; a call is one entry into Slurm's queue."""
    program(tmp_path / "bin" / "srun", SRUN)
    program(tmp_path / "bin" / "scontrol", "open('requeued', 'w')")
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    environment |= {"SLURM_SUBMIT_DIR": str(ROOT), "ROOT": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_NUM_CPU_DEVICES": "1"}
    changes = {"train__num_steps": STEPS, "train__eval_every": STEPS, "train__checkpoint_every": 20}
    changes |= {"retrieval__enabled": False, "train__log_every": 10}  # compiled sooner
    arguments = [*tiny.arguments(mesh__data=-1, **changes), "--no_report"]

    started = []

    def start():
        (tmp_path / "hosts").unlink(missing_ok=True)
        command = ["bash", ROOT / "launch" / "slurm.sh", "configs/demo.py", tmp_path / "run", *arguments]
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment | {"PORT": str(free_port())}))
        return started[-1]

    yield start
    if any(process.poll() is None for process in started):  # the test failed: no host stays behind
        for host in (tmp_path / "hosts").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(host), signal.SIGKILL)


def until(condition, process, output):
    deadline = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, output.read_text()[-3000:]
        time.sleep(0.1)


def test_a_lost_first_host_ends_the_job_which_starts_again_and_is_done(job, tmp_path):
    first, output = job(), tmp_path / "output1"
    until((tmp_path / "run" / "checkpoints" / "20").is_dir, first, output)
    os.kill(int((tmp_path / "hosts").read_text().split()[0]), signal.SIGKILL)
    killed = time.monotonic()
    first.wait(timeout=120)
    assert time.monotonic() - killed < 120
    said = output.read_text().splitlines()[-1]
    assert said.startswith("error: ") and "with the same command" in said, said
    assert (tmp_path / "requeued").exists()
    (tmp_path / "requeued").unlink()
    again = job()
    assert again.wait(timeout=500) == 0, output.read_text()[-3000:]
    assert not (tmp_path / "requeued").exists()
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(10, STEPS + 1, 10))
    told = (tmp_path / "run" / "run.log").read_text()
    assert told.count("trains from step") == 2 and "trains from step 0" in told
