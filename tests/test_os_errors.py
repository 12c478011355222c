"""A full disk, a file in the way, a damaged file: one line that names it and what to do, and nothing else is lost."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from jras_jax import files
from jras_jax.commands import cli
from jras_jax.run_folder.layout import RunFolder
from tests.commands import evaluate
from tests.fake_run import write_fake_run
from tests.masks import LABELS, heart, save


def one_line(capsys, *arguments):
    """The exit status, and the line of an error."""
    status = cli.main([str(a) for a in arguments])
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == (status != 0) and all(line.startswith("error: ") for line in said), said
    return status, "".join(said)


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "cut by one": lambda data: data.rstrip(b"\r\n")[:-1],
    "empty": lambda data: b"",
    "binary": lambda data: bytes(range(256)),
    "a list": lambda data: b"[1, 2]",
    "deep": lambda data: b"[" * 100_000,
    "zeros": lambda data: bytes(len(data)),
}
NAMES = ["config.json", "splits.json", "run.json", "metrics.csv", "evaluation/choices.json"]
NAMES += [f"evaluation/validation/{name}" for name in ("summary.json", "cases.csv", "positions.csv")]


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    folder = write_fake_run(tmp_path_factory.mktemp("fake") / "run", patients=2, shown=1)
    files.write_json(RunFolder(folder).choices, {"options": [], "chosen": {}, "patients": 2})
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_the_report_names_a_damaged_file_and_what_to_do(fake, tmp_path, capsys, name, damage):
    run = tmp_path / "run"
    shutil.copytree(fake, run)
    path = run / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    if name == "metrics.csv" and damage != "binary":
        assert one_line(capsys, "report", run) == (0, "")  # it grows line by line: half a line is none
        return
    status, line = one_line(capsys, "report", run)
    assert status == 2 and str(path) in line, line
    assert re.search("restore it|jras evaluate --workdir=|jras choose|write it again", line), line
    assert not (run / "report.html").exists()


WRONG = {
    "config.json": {"dataset": 5, "retrieval": []},
    "splits.json": {"train": "patient001", "validation": None},
    "run.json": {"warnings": 3, "versions": 7, "earlier_starts": {}},
    "evaluation/choices.json": {"options": {"a": 1}, "chosen": 3},
    "evaluation/validation/summary.json": {"mean": [], "retrieval": None, "warnings": "x", "split": 3, "paper_2d": 1},
}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, content in WRONG.items() for key in content])
def test_an_entry_of_another_kind_is_named(fake, tmp_path, capsys, name, key):
    run = tmp_path / "run"
    shutil.copytree(fake, run)
    content = json.loads((run / name).read_text()) | {key: WRONG[name][key]}
    (run / name).write_text(json.dumps(content))
    status, line = one_line(capsys, "report", run)
    assert status == 2 and str(run / name) in line and repr(key) in line, line


def test_scores_that_were_cut_at_the_end_of_a_line_are_noticed(fake, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(fake, run)
    path = run / "evaluation" / "validation" / "cases.csv"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    status, line = one_line(capsys, "report", run)
    assert status == 2 and f"{path} has 9 rows, but" in line and "counts 12" in line


def test_a_flipped_bit_in_a_cases_slices_never_ends_in_a_traceback(fake, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(fake, run)
    path = next((run / "evaluation" / "validation" / "evidence").glob("*.npz"))
    data = path.read_bytes()
    statuses = set()
    for at in range(0, len(data), max(1, len(data) // 60)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        status, line = one_line(capsys, "report", run)
        assert status == 0 or str(path) in line
        statuses.add(status)
    assert statuses >= {2}


@pytest.fixture(scope="module")
def with_gallery(trained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("with_gallery") / "run"
    shutil.copytree(trained_run, folder)
    assert cli.main(["gallery", f"--workdir={folder}", "--split=train", f"--output={folder / 'gallery'}"]) == 0
    return folder


@pytest.mark.parametrize("damage", ["cut", "empty", "{}"])
@pytest.mark.parametrize("name", ["splits.json", "config.json"])
def test_training_and_prediction_name_a_damaged_file_and_leave_the_checkpoints(
    with_gallery, tiny, tmp_path, capsys, name, damage
):
    run = tmp_path / "run"
    shutil.copytree(with_gallery, run)
    path = run / name
    data = path.read_bytes()
    path.write_bytes(b"{}" if damage == "{}" else DAMAGES[damage](data))
    before = snapshot(run)
    scan = next((tiny.data_dir / "scans").rglob("testing/*/*_frame01.nii.gz"))
    calls = [["train", "--config=demo", *tiny.arguments(), "--no_report"]]
    calls.append(["predict", f"--input={scan}", f"--output={tmp_path / 'masks'}"])
    for call in calls:
        status, line = one_line(capsys, *call, f"--workdir={run}")
        assert status == 2 and str(path) in line and "restore it from a copy" in line, line
    assert snapshot(run) == before and not list((tmp_path / "masks").glob("*"))


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("a small disk cannot be mounted here (it needs root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False, timeout=30)


def test_a_report_on_a_full_disk_leaves_the_one_before(fake, disk, capsys):
    old = disk / "report.html"
    old.write_text("the report before")
    status, line = one_line(capsys, "report", fake, f"--output={old}")
    assert status == 2 and line.startswith(f"error: {old} cannot be written (No space left on device): free some space")
    assert snapshot(disk) == {old.relative_to(disk): b"the report before"}


def test_scores_on_a_full_disk_are_not_written_half(disk, tmp_path, capsys):
    for number in range(40):
        for folder in ("a", "b"):
            save(tmp_path / folder / f"p{number}.nii.gz", heart())
    (disk / "filler").write_bytes(bytes(60_000))
    call = ["score", tmp_path / "a", tmp_path / "b", LABELS, f"--output={disk / 'scores.csv'}"]
    assert cli.main([str(a) for a in call]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "scores.csv cannot be written (No space left on device)" in line
    assert sorted(p.name for p in disk.iterdir()) == ["filler"]


def test_an_evaluation_that_cannot_be_written_leaves_the_one_before(trained_run, tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(trained_run, run.path)
    evaluate(run.path, "--config.eval.split=test")
    before = snapshot(run.path / "evaluation")
    plain, written = files.write_text, []

    def fail(path, text):
        written.append(path.name)
        if path.name == "positions.csv":
            raise files.FileError(f"{path} cannot be written (No space left on device): free some space")
        plain(path, text)

    monkeypatch.setattr(files, "write_text", fail)
    with pytest.raises(files.FileError, match=r"evaluation/test/positions\.csv cannot be written"):
        evaluate(run.path, "--config.eval.split=test", "--config.eval.evidence_cases=1")
    assert snapshot(run.path / "evaluation") == before and "cases.csv" in written


@pytest.mark.parametrize(
    "call",
    [
        ["train", "--config=demo", "--workdir=FILE"],
        ["pretrain", "--config=demo", "--workdir=FILE"],
        ["report", "RUN", "--output=FOLDER"],
        ["report", "RUN", "--output=FILE/report.html"],
        ["compare", "RUN", "RUN", "--output=FOLDER"],
        ["compare", "RUN", "RUN", "--output=/dev/full"],
        ["score", "MASKS", "MASKS", LABELS, "--output=FOLDER"],
        ["evaluate", "--workdir=FILE"],
    ],
    ids=" ".join,
)
def test_a_file_or_folder_in_the_way_is_named(fake, tmp_path, capsys, call):
    save(tmp_path / "masks" / "p1.nii.gz", heart())
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("content")
    places = {"FILE": tmp_path / "file", "FOLDER": tmp_path / "folder", "MASKS": tmp_path / "masks", "RUN": fake}
    for name, path in places.items():
        call = [argument.replace(name, str(path)) for argument in call]
    status, line = one_line(capsys, *call)
    assert status == 2 and (str(tmp_path) in line or "/dev/full" in line)
    assert (tmp_path / "file").read_text() == "content" and not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/x"), "/runs/x: No space left on device: free some"),
        (PermissionError(errno.EACCES, "Permission denied", "a", None, "b"), "a and b: Permission denied: you have no"),
        (OSError("something odd"), "the operating system refuses: something odd: check the path"),
        (TimeoutError(), "the operating system refuses: TimeoutError: check the path and the disk"),
    ],
)
def test_any_other_error_of_the_system_takes_one_line(monkeypatch, capsys, error, words):
    def fail(word):
        raise error

    monkeypatch.setattr("jras_jax.commands.settings.configs.listing", fail)
    status, line = one_line(capsys, "settings")
    assert status == 2 and line.startswith(f"error: {words}")


def test_output_that_nobody_reads_ends_quietly():
    program = "import sys; from jras_jax.commands.cli import main; sys.exit(main(['settings']))"
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")
