"""Every command, option and setting that a message advises exists; the important ones are followed on a small run."""

import argparse
import ast
import importlib
import pathlib
import re
import shlex
import shutil

import pytest

from jras_jax.commands import cli
from jras_jax.config.schema import SETTINGS
from jras_jax.run_folder.layout import RunFolder

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = [*(ROOT / "jras_jax").rglob("*.py"), *(ROOT / "tfds_builders").rglob("*.py"), ROOT / "run.py"]
GIT = {"--short", "--porcelain"}
HOSTS = {"--coordinator", "--num_processes", "--process_id", "--help", "--version", "--mode"}


def options(command):
    """The options and positional arguments of a command."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    importlib.import_module(f"jras_jax.commands.{command}").add_arguments(parser)
    return {name for action in parser._actions for name in (action.option_strings or [action.dest])}


def texts():
    """(file:line, text) of every string of the program; what an f-string puts in is written X."""
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                yield where, "".join(p.value if isinstance(p, ast.Constant) else "X" for p in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                yield where, node.value


TEXTS = list(texts())
OPTIONS = {command: options(command) for command in cli.COMMANDS}


def advised():
    """(where, command, its options) of every `jras COMMAND --option=...` in a text."""
    for where, text in TEXTS:
        for name, rest in re.findall(r"\bjras ([a-z_]+)((?:\s+(?!jras)[^\s,;:()`]+)*)", text):
            yield where, name, re.findall(r"(--[a-z_]+(?:\.[a-z_]+)*)(?==|\s|$)", rest)


def test_every_advised_command_and_its_options_exist():
    found = list(advised())
    assert len(found) > 20
    for where, command, given in found:
        assert command in cli.COMMANDS, f"{where}: jras {command}"
        for option in given:
            known = option in OPTIONS[command] | HOSTS or option.removeprefix("--config.") in SETTINGS
            assert known, f"{where}: jras {command} {option}"


def test_every_option_in_a_text_belongs_to_some_command():
    every = set().union(*OPTIONS.values()) | HOSTS
    for where, text in TEXTS:
        for option in re.findall(r"(?<![\w-])(?<!\{ )--[a-z_]+(?![\w.-])", text):  # not a property of a style rule
            assert option in every | GIT, f"{where}: {option}"


def test_every_setting_in_a_text_exists():
    sections = {key.partition(".")[0] for key in SETTINGS}
    for where, text in TEXTS:
        for key in re.findall(rf"(?<![\w.])(?:--)?config\.((?:{'|'.join(sections)})\.[a-z_]+)", text):
            free = key.rpartition(".")[0].endswith(".options")
            assert key in SETTINGS or free, f"{where}: config.{key}"


def test_no_text_advises_an_older_spelling():
    for where, text in TEXTS:
        if not where.startswith("jras_jax/commands/cli.py"):
            older = re.search(r"--mode\b|python -m jras_jax\.", text)
            assert not older or where.endswith("__main__.py:1"), where


@pytest.fixture
def run(trained_run, tmp_path):
    """A trained run that was not evaluated."""
    folder = tmp_path / "run"
    shutil.copytree(trained_run, folder)
    for name in ("gallery", "evaluation"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return RunFolder(folder)


def refused(capsys, *arguments):
    """The one line of a call that ends with status 2."""
    assert cli.main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def follow(line, command):
    """Runs the `jras COMMAND ...` that a line advises."""
    advice = re.search(rf"jras {command}((?: [^\s,;]+=[^\s,;]+| [\w/.-]+)*)", line)
    assert advice, line
    assert cli.main([command, *shlex.split(advice[1])]) == 0, advice[0]


def test_a_missing_gallery_is_made_as_advised(run, tiny, tmp_path, capsys):
    scan = sorted((tiny.data_dir / "scans").rglob("testing/*/*_frame*[0-9].nii.gz"))[0]
    predict = ["predict", f"--workdir={run}", f"--input={scan}", f"--output={tmp_path / 'masks'}"]
    line = refused(capsys, *predict)
    assert f"{run.gallery} is missing" in line
    follow(line, "gallery")
    assert cli.main(predict) == 0


@pytest.mark.parametrize("damage", ["gallery.safetensors", "gallery.json", "cut gallery.json"])
def test_a_damaged_gallery_is_made_again_as_advised(run, tiny, tmp_path, capsys, damage):
    assert cli.main(["gallery", f"--workdir={run}", "--split=train", f"--output={run.gallery}"]) == 0
    file = run.gallery / damage.split()[-1]
    data = file.read_bytes()
    if damage.startswith("cut"):
        file.write_bytes(data[: len(data) // 2])
    elif file.suffix == ".json":
        file.write_bytes(b"{}")
    else:
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    scan = sorted((tiny.data_dir / "scans").rglob("testing/*/*_frame*[0-9].nii.gz"))[0]
    predict = ["predict", f"--workdir={run}", f"--input={scan}", f"--output={tmp_path / 'masks'}"]
    capsys.readouterr()
    line = refused(capsys, *predict)
    assert str(file) in line
    follow(line, "gallery")
    assert file.read_bytes() == data and cli.main(predict) == 0


def test_what_needs_scores_says_how_to_make_them(run, capsys):
    follow(refused(capsys, "report", run), "evaluate")
    assert cli.main(["report", str(run)]) == 0
    capsys.readouterr()
    line = refused(capsys, "report", run, "--split=validation")
    assert "has no evaluation 'validation', it has test" in line
    follow(line, "evaluate")
    capsys.readouterr()
    assert "test, validation with --split=NAME" in refused(capsys, "compare", run, run)
    assert cli.main(["compare", str(run), str(run), "--split=test"]) == 0


def test_the_measured_options_can_be_used_as_printed(run, capsys):
    assert cli.main(["choose", f"--workdir={run}"]) == 0
    follow(capsys.readouterr().out, "evaluate")


def test_a_report_without_slices_says_how_to_keep_some(run, capsys):
    none = [f"--workdir={run}", "--config.eval.split=test", "--config.eval.evidence_cases=0"]
    assert cli.main(["evaluate", *none]) == 0
    page = run.report.read_text()
    line = re.search(r"The evaluation kept no case[^<]*", page)[0]
    follow(line.replace(" keeps every case.", ""), "evaluate")
    assert "The evaluation kept no case" not in run.report.read_text()


def test_weights_that_are_missing_name_the_command(capsys, tiny, tmp_path):
    arguments = [*tiny.arguments(backbone__init_from=str(tmp_path / "none")), f"--workdir={tmp_path / 'run'}"]
    line = refused(capsys, "train", "--config=demo", *arguments)
    assert "jras convert SOURCE --model=NAME --output=" in line and not (tmp_path / "run").exists()
