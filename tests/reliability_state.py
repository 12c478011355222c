"""Rows of docs/RELIABILITY.md on lost work and damaged state: the tests named in them do each fault for real."""

import subprocess
import sys

from tests.reliability import ROOT, row


def hold(*tests):
    """Runs tests; fails if one of them does, or if none of them ran."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(f"tests/{test}" for test in tests)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-2000:]


@row("stopped", "SIGTERM while it compiles, trains, validates and saves, twice in a row too; Ctrl-C")
def signals(lab):
    hold("test_stopping.py")
    return "a checkpoint and exit status 0 (130 after Ctrl-C); resumes to the bit"


@row(
    "damaged checkpoint", "a flipped bit, a cut and an emptied file, for every file of the newest and of an older step"
)
def flips(lab):
    names = ("one_flipped_bit_in_any_file_is_refused", "a_damaged_newest_step_gives_way_to_the_one_before")
    hold(*(f"test_checkpoint.py::test_{name}" for name in names))
    return "never restored; the step before is used, which is said, and the damaged one is kept aside"


@row("damaged checkpoint", "a step without checksums, as a crash during a save leaves it")
def unsigned(lab):
    hold("test_checkpoint.py::test_a_step_without_checksums_is_never_signed_nor_used")
    return "neither used nor signed"


@row("full disk", "a save that fails while it starts, commits and signs; a small file system that fills up")
def full(lab):
    names = ("a_save_that_fails_keeps_all_before_and_the_next_one_is_tried", "a_disk_that_fills_up_loses_nothing")
    hold(*(f"test_checkpoint.py::test_{name}" for name in names))
    return "everything before is intact, and the next save is tried"


@row(
    "operating system", "no space, no permission, files in the way, damaged JSON and CSV, for every small file of a run"
)
def refusals(lab):
    hold("test_os_errors.py", "test_files.py")
    return "one line with the path and the remedy"


@row("two starts", "a second train or pretrain on one folder; owners that died, here and on another host")
def locks(lab):
    hold("test_lock.py")
    return "the second is refused at once; a dead owner is recognised, and that is said"


@row("divergence", "NaN in one batch, in every batch and in the parameters")
def divergence(lab):
    hold("test_skips.py")
    return "skipped and counted; the run ends with the batches named, its checkpoints intact, and can be resumed"


@row(
    "two commands, one folder",
    "train in a folder of pretrain, pretrain in a folder of train; pretrain stopped and resumed",
)
def folders(lab):
    names = ("training_and_pretraining_never_share_a_folder", "a_stopped_pretraining_resumes_to_the_bit")
    hold(*(f"test_pretrain.py::test_{name}" for name in names))
    return "refused; resumed to the bit"


@row("several evaluations", "validation and test evaluated in turn, with other options too")
def evaluations(lab):
    hold("test_evaluations.py")
    return "each keeps its scores and its report"


@row("advice", "the commands and options that messages advise")
def advice(lab):
    hold("test_advice.py")
    return "they exist, and those tried do what the message says"


@row("long runs", "2,000 steps with 20 validations and saves")
def long_run(lab):
    hold("test_long_run.py")
    return "neither memory nor the number of live arrays and threads grows"
