"""The launch scripts: a run that was stopped or lost a host starts again, one that is done or mistaken does not."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)


STOPPABLE = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path("got_sigterm").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("started").touch()
time.sleep(60)
"""


def wait_for(path, seconds=30):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def test_the_pods_run_what_the_container_holds():
    job = (ROOT / "launch" / "kubernetes-jobset.yaml").read_text()
    container = (ROOT / "containers" / "Dockerfile").read_text()
    assert 'command: ["resumable.sh", "jras", "train"]' in job and "target cuda" in job
    assert "COPY --chmod=755 launch/resumable.sh /usr/local/bin/resumable.sh" in container
    assert 'ENTRYPOINT ["jras"]' in container and "AS cuda" in container
    config = re.search(r"--config=(\w+)", job)[1]
    assert (ROOT / "configs" / f"{config}.py").is_file()  # installed with the package, and known by its name


@pytest.mark.parametrize("status", [0, 1, 2, 3, 134])
def test_the_status_of_a_command_that_ends_by_itself_is_kept(status):
    command = [ROOT / "launch" / "resumable.sh", sys.executable, "-c", f"raise SystemExit({status})"]
    assert subprocess.run(command, check=False, timeout=60).returncode == status


def test_a_stopped_command_saves_itself_and_asks_to_be_started_again(tmp_path):
    program(tmp_path / "run", STOPPABLE)
    process = subprocess.Popen([ROOT / "launch" / "resumable.sh", tmp_path / "run"], cwd=tmp_path)
    wait_for(tmp_path / "started")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    assert (tmp_path / "got_sigterm").exists()


@pytest.fixture
def slurm(tmp_path):
    """launch/slurm.sh with an srun that runs `task`, and an scontrol that notes what it is told."""
    binaries = tmp_path / "bin"
    program(binaries / "scontrol", "import sys; open('requeued', 'a').write(' '.join(sys.argv[1:]) + '\\n')")
    program(binaries / "srun", "import os, sys; os.execv('./task', ['./task', *sys.argv[2:]])")
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    environment |= {"SLURM_SUBMIT_DIR": str(ROOT)}

    def start(task, **more):
        program(tmp_path / "task", task)
        command = ["bash", ROOT / "launch" / "slurm.sh", "configs/demo.py", "runs/demo", "--no_report"]
        return subprocess.Popen(command, cwd=tmp_path, env=environment | more, stderr=subprocess.DEVNULL)

    return start


@pytest.mark.parametrize(("status", "again"), [(0, False), (2, False), (1, True), (3, True), (134, True), (137, True)])
def test_slurm_starts_a_job_again_unless_it_is_done_or_mistaken(slurm, tmp_path, status, again):
    job = slurm(f"import sys; open('arguments', 'w').write(' '.join(sys.argv[1:])); sys.exit({status})")
    job.wait(timeout=60)
    expected = ".venv/bin/python run.py --config=configs/demo.py --workdir=runs/demo --no_report"
    assert (tmp_path / "arguments").read_text() == expected
    assert (tmp_path / "requeued").exists() == again
    if again:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    else:
        assert job.returncode == status


def test_slurm_passes_the_notice_of_the_time_limit_on_and_goes_on_later(slurm, tmp_path):
    job = slurm(STOPPABLE)
    wait_for(tmp_path / "started")
    job.send_signal(signal.SIGTERM)
    job.wait(timeout=30)
    assert (tmp_path / "got_sigterm").exists() and (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_slurm_gives_up_after_many_restarts(slurm, tmp_path):
    job = slurm("raise SystemExit(3)", SLURM_RESTART_COUNT="20")
    assert job.wait(timeout=60) == 3 and not (tmp_path / "requeued").exists()
