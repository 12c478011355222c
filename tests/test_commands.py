"""Every command: its help, its exit status, and that a mistake takes one line."""

import os
import subprocess
import sys

import pytest

import jras_jax
from jras_jax import config as configs
from jras_jax.commands import cli
from jras_jax.errors import UserError


def said(capsys, *arguments):
    """The one line of an error that ends with status 2."""
    assert cli.main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def shown(capsys, *arguments):
    """The output of a call that ends with status 0."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    assert end.value.code == 0
    return capsys.readouterr().out


OPTIONS = {
    "train": ("--config", "--workdir", "--no_report"),
    "pretrain": ("--config", "--workdir"),
    "evaluate": ("--workdir", "--output", "--gallery"),
    "predict": ("--workdir", "--input", "--output", "--gallery", "--labels"),
    "choose": ("--workdir",),
    "gallery": ("--input", "--split", "--gallery", "--add", "--remove", "--output", "--labels"),
    "score": ("reference_dir", "prediction_dir", "--labels", "--output"),
    "export": ("WORKDIR", "OUTPUT", "--gallery", "--onnx"),
    "publish": ("WORKDIR", "OUTPUT", "--license", "--with_gallery"),
    "compare": ("run_a", "run_b", "--metrics", "--output", "--allow_partial"),
    "report": ("RUN_DIR", "--baseline", "--output"),
    "check": ("path", "--dataset", "--picture"),
    "build": ("--manual_dir", "--data_dir"),
    "convert": ("source", "--model", "--output", "--variant"),
    "settings": ("word",),
}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_help_that_names_its_options(capsys, command):
    text = shown(capsys, command, "--help")
    assert text.startswith(f"usage: jras {command} ")
    for option in OPTIONS[command]:
        assert option in text, option
    assert ("--coordinator" in text) == (command in cli.NEED_A_JOB)
    assert shown(capsys, f"--mode={command}", "--help") == text


def test_the_overview_lists_the_commands(capsys):
    text = shown(capsys, "--help")
    assert all(f"  {name} " in text and summary in text for name, summary in cli.COMMANDS.items())
    assert shown(capsys) == text
    assert shown(capsys, "--version") == f"jras_jax {jras_jax.__version__}\n"


def test_the_overview_does_not_load_jax():
    """A help or a mistake in the command line answers at once."""
    program = (
        "import sys\nfrom jras_jax.commands import cli\n"
        "assert cli.main(['segment']) == 2\n"
        "assert not {'jax', 'numpy', 'orbax'} & set(sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (0, "error: 'segment' is not a command; jras --help lists them\n")


@pytest.mark.parametrize("module", ["jras_jax", "jras_jax.commands.cli"])
def test_the_module_is_the_command(module):
    call = "from jras_jax.commands.cli import main; main()" if module.endswith("cli") else None
    start = ["-c", call] if call else ["-m", module]
    ended = subprocess.run(
        [sys.executable, *start, "settings", "top_k"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "") and "retrieval.top_k" in ended.stdout


def test_an_unknown_mode_is_refused(capsys):
    for arguments in (["--mode=segment"], ["--mode", "segment"]):
        assert said(capsys, *arguments) == "error: 'segment' is not a command; jras --help lists them"


def test_the_older_name_of_a_mode_still_works(capsys):
    assert shown(capsys, "--mode=pretrain_retriever", "--help") == shown(capsys, "pretrain", "--help")


@pytest.mark.parametrize("command", [c for c in cli.COMMANDS if c not in cli.NEED_A_JOB])
def test_commands_without_a_config_take_no_settings(capsys, command, tmp_path):
    given = {
        "score": [tmp_path, tmp_path, "--labels=LV:1"],
        "compare": [tmp_path, tmp_path],
        "report": [tmp_path],
        "check": [tmp_path],
        "build": ["acdc", f"--manual_dir={tmp_path}"],
        "convert": [tmp_path, "--model=vit", f"--output={tmp_path}"],
        "settings": [],
    }[command]
    line = said(capsys, command, *given, "--config.eval.tta=True")
    assert line == f"error: jras {command} takes no settings: leave --config.eval.tta=True out"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_mistyped_option_is_named(capsys, command, tmp_path):
    given = {"score": [tmp_path, tmp_path, "--labels=LV:1"], "compare": [tmp_path, tmp_path], "report": [tmp_path]}
    given |= {"check": ["x"], "build": ["acdc", "--manual_dir=x"], "convert": ["x", "--model=vit", "--output=y"]}
    line = said(capsys, command, *given.get(command, []), "--outptu=x")
    assert "'--outptu=x' is not a known argument" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "needs --config=FILE"),
        (["pretrain"], "needs --config=FILE"),
        (["evaluate"], "evaluate needs --workdir=FOLDER"),
        (["choose"], "choose needs --workdir=FOLDER"),
        (["predict", "--input=x", "--output=y"], "predict needs --workdir=FOLDER"),
        (["gallery", "--input=x", "--output=y"], "gallery needs --workdir=FOLDER"),
        (["gallery", "--workdir=x"], "starts from one of --input, --split, --gallery"),
        (["predict", "--workdir=x"], "predict needs --input=FILE_OR_FOLDER and --output=FOLDER"),
        (["export", "x"], "export needs a trained run and a folder to write: jras export WORKDIR OUTPUT"),
        (["publish", "x", "y", "z"], "publish needs a trained run and a folder to write: jras publish WORKDIR OUTPUT"),
        (["export", "--workdir=absent", "--output=y"], "absent: no such folder"),
        (["score", "absent", "absent", "--labels=LV:1"], "absent: there is no such folder"),
        (["score", "absent", "absent", "--labels=LV"], "--labels=LV"),
        (["compare", "absent", "absent"], "absent: there is no such run folder"),
        (["report", "absent"], "absent"),
        (["build", "acdc", "--manual_dir=absent"], "absent"),
        (["convert", "absent", "--model=segformer", "--output=out"], "absent"),
        (["settings", "no such word"], "no setting contains 'no such word'"),
    ],
)
def test_what_is_missing_is_named(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in said(capsys, *arguments)
    assert not (tmp_path / "out").exists()


def test_settings_lists_those_that_contain_a_word(capsys):
    assert cli.main(["settings"]) == 0
    every = capsys.readouterr().out
    assert cli.main(["settings", "temperature"]) == 0
    some = capsys.readouterr().out
    assert every.strip() == configs.listing("").strip()
    assert "retrieval.temperature" in some and len(some) < len(every) / 4


def test_an_error_of_the_program_is_not_taken_for_a_mistake_of_the_user(monkeypatch):
    monkeypatch.setattr("jras_jax.commands.settings.configs.listing", lambda word: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["settings"])


@pytest.mark.parametrize(("terminal", "level"), [(True, "3"), (False, None)])
def test_alarms_of_the_compiler_do_not_break_into_the_line_of_a_terminal(monkeypatch, terminal, level):
    """The level is read when JAX is imported, so it is set before the command's module is."""
    seen = []

    def imported(name):
        seen.append(os.environ.get("TF_CPP_MIN_LOG_LEVEL"))
        raise UserError("far enough")

    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "")
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    monkeypatch.setattr(cli.importlib, "import_module", imported)
    monkeypatch.setattr(cli.sys.stderr, "isatty", lambda: terminal, raising=False)
    assert cli.main(["train", "--config=demo"]) == 2
    assert seen == [level]
