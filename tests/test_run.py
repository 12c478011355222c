"""The command line: what is wrong is said in one line with exit status 2, never with a traceback."""

import pathlib
import shutil
import subprocess
import sys

import pytest

import jras_jax
from jras_jax.commands import cli

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEMO = str(ROOT / "configs" / "demo.py")


def said(capsys, *argv):
    """The exit status and the one line of the error."""
    status = cli.main([str(a) for a in argv])
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def shown(capsys, *argv):
    """What a call that ends in argparse prints."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(argv))
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_names_every_command(capsys):
    text = shown(capsys, "--help")
    assert all(f"  {name} " in text for name in cli.COMMANDS)


FLAGS = {
    "train": ("--config", "--workdir", "--no_report", "--coordinator"),
    "predict": ("--workdir", "--input", "--output", "--gallery", "--labels"),
    "gallery": ("--input", "--split", "--add", "--remove", "--output"),
    "evaluate": ("--workdir", "--output"),
    "score": ("reference_dir", "--labels"),
}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_with_its_flags_and_an_example(capsys, command):
    text = shown(capsys, command, "--help")
    assert f"jras {command} " in text.replace("usage: ", "", 1).split("\n", 1)[1]
    for flag in FLAGS.get(command, ()):
        assert flag in text


def test_the_version_is_the_packages(capsys):
    assert shown(capsys, "--version") == f"jras_jax {jras_jax.__version__}\n"


def test_unknown_commands_and_modes_are_named(capsys):
    assert said(capsys, "trian") == "error: 'trian' is not a command; did you mean train?"
    assert said(capsys, "--mode=x") == "error: 'x' is not a command; jras --help lists them"


def test_no_arguments_at_all_show_the_overview(capsys):
    assert "commands:" in shown(capsys)


def test_a_process_ends_with_status_2_and_no_traceback():
    ended = subprocess.run(
        [sys.executable, ROOT / "run.py", f"--config={DEMO}", "--config.retrieval.topk=3"],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.strip() == "error: --config.retrieval.topk: no such setting; did you mean retrieval.top_k?"


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.optim.lr_backbon=1", "did you mean optim.lr_backbone?"),
        ("--config.train.num_steps=many", "--config.train.num_steps=many: expected a whole number"),
        ("--config.retrieval.strategy=nearest", "config.retrieval.strategy='nearest': choose one of"),
        ("--config.train.num_steps", "settings are given as --config.section.key=value"),
        ("--confi=x", "'--confi=x' is not a known argument"),
    ],
)
def test_a_wrong_setting_is_named(capsys, tmp_path, argument, words):
    assert words in said(capsys, f"--config={DEMO}", f"--workdir={tmp_path / 'run'}", argument)
    assert not (tmp_path / "run").exists()


def test_a_missing_or_broken_config_is_named(capsys, tmp_path):
    assert "needs --config=FILE" in said(capsys, "train")
    assert "did you mean" in said(capsys, f"--config={ROOT / 'configs' / 'dem.py'}")
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config():\n    return 1 / 0\n")
    assert "ZeroDivisionError" in said(capsys, f"--config={broken}")


@pytest.mark.parametrize("mode", ["evaluate", "predict"])
def test_a_run_that_is_not_there_is_named(capsys, tmp_path, mode):
    scan = tmp_path / "x.nii.gz"
    scan.write_bytes(b"")
    more = [f"--input={scan}", f"--output={tmp_path / 'out'}"] if mode == "predict" else []
    assert "needs --workdir" in said(capsys, f"--mode={mode}", *more)
    assert "no such folder" in said(capsys, f"--mode={mode}", f"--workdir={tmp_path / 'nowhere'}", *more)
    (tmp_path / "empty").mkdir()
    assert "config.json is missing" in said(capsys, f"--mode={mode}", f"--workdir={tmp_path / 'empty'}", *more)
    assert "leave --config out" in said(capsys, f"--mode={mode}", f"--workdir={tmp_path}", f"--config={DEMO}", *more)


def test_predict_without_input_or_output_is_refused(capsys, tmp_path):
    assert "--input" in said(capsys, "--mode=predict", f"--workdir={tmp_path}")
    assert "--input" in said(capsys, "--mode=predict", f"--workdir={tmp_path}", "--input=x.nii")


def test_a_run_that_stopped_before_its_first_checkpoint_is_no_run_yet(capsys, tiny, tmp_path):
    from jras_jax import config as configs

    configs.save(tiny.config(), tmp_path / "config.json")
    assert "no finished checkpoint yet" in said(capsys, "--mode=evaluate", f"--workdir={tmp_path}")


def test_several_hosts_take_all_three_flags(capsys):
    for flags in (["--coordinator=localhost:1"], ["--num_processes=2"], ["--process_id=0", "--num_processes=2"]):
        assert "together, or none of them" in said(capsys, f"--config={DEMO}", *flags)


def test_data_that_is_not_there_is_named(capsys, tmp_path):
    acdc = f"--config={ROOT / 'configs' / 'acdc_unet.py'}"
    where = [f"--workdir={tmp_path / 'run'}", "--config.mesh.data=1", f"--config.dataset.data_dir={tmp_path}"]
    assert "config.dataset.manual_dir is empty" in said(capsys, acdc, *where)
    gone = tmp_path / "gone"
    assert str(gone) in said(capsys, acdc, *where, f"--config.dataset.manual_dir={gone}")


def test_an_option_left_out_on_resume_is_refused_and_changes_nothing(capsys, tiny, trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    before = (run / "config.json").read_bytes()
    start = [f"--config={DEMO}", f"--workdir={run}"]
    full = tiny.arguments()
    without = [a for a in full if ".options." not in a and "num_folds" not in a]
    with_another = [*full, "--config.fusion.options.mask=index", "--config.backbone.options.levels=2"]
    for arguments, differing in (
        (without, ("backbone.options.base_channels", "backbone.options.levels", "dataset.num_folds")),
        (with_another, ("fusion.options.mask", "backbone.options.levels: 3 -> 2")),
    ):
        line = said(capsys, "train", *start, *arguments)
        assert all(f"config.{key}" in line for key in differing), line
        assert (run / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    "setting", ["fusion.options.mask=index", "backbone.options.levels=2", "retriever.dim=8", "seed=3"]
)
def test_a_trained_run_opens_with_its_own_model_alone(capsys, trained_run, tmp_path, setting):
    scan = tmp_path / "a.nii.gz"
    scan.write_bytes(b"no scan")
    more = [f"--workdir={trained_run}", f"--input={scan}", f"--output={tmp_path / 'out'}"]
    line = said(capsys, "predict", *more, f"--config.{setting}")
    assert f"--config.{setting.partition('=')[0]} cannot be changed after training; you can change: " in line
    assert not (tmp_path / "out").exists()
