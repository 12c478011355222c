"""Rows of docs/RELIABILITY.md on lost work and damaged state: the tests that a row names do its fault for real."""

import re
import subprocess
import sys
from collections.abc import Callable

from tests.reliability import ROOT, Lab, row


def hold(*tests: str) -> str:
    """Runs tests and returns what they printed; fails if one of them does, or if none of them ran."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-s", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(f"tests/{test}" for test in tests)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-2000:]
    return done.stdout


def tested(name: str, kind: str, tried: str, outcome: str, *tests: str, each: int = 1) -> None:
    """Registers the row `name`: `tests` are run once, and do the fault `each` times.

    A test may print figures in a line 'outcome: ...', which the table then has behind `outcome`.
    """

    def function(lab: Lab) -> str:
        figures = re.findall(r"^outcome: (.*)$", hold(*tests), re.MULTILINE)
        return "; ".join([outcome, *figures])

    function.__name__ = name
    register: Callable[[Callable[[Lab], str]], object] = row(kind, tried, each=each)
    register(function)


def these(file: str, *names: str) -> list[str]:
    """Single tests of a file."""
    return [f"{file}.py::test_{name}" for name in names]


tested(
    "stopped",
    "stopped",
    "SIGTERM while it compiles, trains, validates, saves and evaluates, twice in a row too; Ctrl-C",
    "a checkpoint and exit status 0 (130 after Ctrl-C); resumes to the bit",
    "test_stopping.py",
)
tested(
    "killed",
    "killed",
    "SIGKILL at a random moment of training, most often in the middle of a save",
    "resumed from the newest whole checkpoint each time; parameters and metrics end with the same bits",
    "test_kills.py",
    each=20,
)
tested(
    "lost_host",
    "a lost host",
    "SIGKILL of the first of two hosts, in a job under launch/slurm.sh",
    "the other host ends with a message within two minutes; the job is queued again, resumes and is done",
    "test_restart.py",
)
tested(
    "flips",
    "damaged checkpoint",
    "a flipped bit, a cut and an emptied file, for every file of the newest and of an older step",
    "never restored; the step before is used, which is said, and the damaged one is kept aside",
    *these(
        "test_checkpoint",
        "one_flipped_bit_in_any_file_is_refused",
        "a_damaged_newest_step_gives_way_to_the_one_before",
    ),
)
tested(
    "unsigned",
    "damaged checkpoint",
    "a step without checksums, as a crash during a save leaves it",
    "neither used nor signed",
    *these("test_checkpoint", "a_step_without_checksums_is_never_signed_nor_used"),
)
tested(
    "full",
    "full disk",
    "a save that fails while it starts, commits and signs; a small file system that fills up",
    "everything before is intact, and the next save is tried",
    *these(
        "test_checkpoint",
        "a_save_that_fails_keeps_all_before_and_the_next_one_is_tried",
        "a_disk_that_fills_up_loses_nothing",
    ),
    each=4,
)
tested(
    "refusals",
    "operating system",
    "no space, no permission, files in the way, damaged JSON and CSV, for every small file of a run",
    "one line with the path and the remedy",
    *("test_os_errors.py", "test_files.py"),
)
tested(
    "locks",
    "two starts",
    "a second train or pretrain on one folder; owners that died, here and on another host",
    "the second is refused at once; a dead owner is recognised, and that is said",
    "test_lock.py",
)
tested(
    "divergence",
    "divergence",
    "NaN in one batch, in every batch and in the parameters",
    "skipped and counted; the run ends with the batches named, its checkpoints intact, and can be resumed",
    "test_skips.py",
    each=3,
)
tested(
    "folders",
    "two commands, one folder",
    "train in a folder of pretrain, pretrain in a folder of train; pretrain stopped and resumed",
    "refused; resumed to the bit",
    *these(
        "test_pretrain",
        "training_and_pretraining_never_share_a_folder",
        "a_stopped_pretraining_resumes_to_the_bit",
    ),
)
tested(
    "evaluations",
    "several evaluations",
    "validation and test evaluated in turn, with other options too",
    "each keeps its scores and its report",
    "test_evaluations.py",
)
tested(
    "advice",
    "advice",
    "the commands and options that messages advise",
    "they exist, and those tried do what the message says",
    "test_advice.py",
)
tested(
    "long_run",
    "long runs",
    "2,000 steps with 20 validations and saves",
    "neither memory nor the number of live arrays and threads grows",
    "test_long_run.py",
)
tested(
    "many_volumes",
    "many volumes",
    "one evaluation of 84 volumes",
    "memory does not grow with the volumes that are scored",
    "test_evaluation_memory.py",
)
