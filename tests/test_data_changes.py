"""A run notices that its data changed, takes new test patients, and finds its mistakes before any work starts."""

import json
import os
import pathlib
import shutil

import nibabel as nib
import numpy as np
import pytest

import tfds_builders
from jras_jax.commands import cli
from jras_jax.commands.dataset import load_data
from jras_jax.commands.train import train
from jras_jax.data import nifti, phantom
from jras_jax.data.fingerprint import changed
from jras_jax.errors import UserError
from jras_jax.inference import scans
from jras_jax.inference.trained_run import open_run
from jras_jax.run_folder import provenance
from jras_jax.run_folder.layout import RunFolder
from tests.official_folders import change, frame_of, left_in, mask_of


@pytest.fixture(scope="module")
def acdc_run(tiny, tmp_path_factory):
    """(folder of scans, workdir, config) of a tiny run on ACDC's layout, trained before its test patients came."""
    root = tmp_path_factory.mktemp("acdc_run")
    phantom.write_acdc(root / "database", train_patients=6, test_patients=2, seed=3)
    (root / "database" / "testing").rename(root / "later")
    config = tiny.config(
        **{"dataset__name": "acdc", "dataset__manual_dir": str(root), "dataset__data_dir": str(root / "data")}
    )
    train(config, RunFolder(root / "run"))
    return root, root / "run", config


@pytest.fixture
def copy(acdc_run, tmp_path, monkeypatch):
    """The same, to be changed."""
    root, _, config = acdc_run
    for name in ("database", "run", "data"):
        shutil.copytree(root / name, tmp_path / name)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    saved["dataset"] |= {"manual_dir": str(tmp_path), "data_dir": str(tmp_path / "data")}
    (tmp_path / "run" / "config.json").write_text(json.dumps(saved))
    return tmp_path, root / "later", config


def arguments(tiny, folder, **changes):
    own = {"dataset__name": "acdc", "dataset__manual_dir": str(folder), "dataset__data_dir": str(folder / "data")}
    config = pathlib.Path(__file__).parents[1] / "configs" / "demo.py"
    return ["train", f"--config={config}", "--no_report", *tiny.arguments(**own, **changes)]


@pytest.mark.slow
def test_run_json_has_the_fingerprint_of_the_data_and_training_on_other_data_is_refused(copy, tiny, capsys):
    folder, _, _ = copy
    facts = json.loads((folder / "run" / "run.json").read_text())
    assert set(facts["data_fingerprint"]) == {"train", "validation"}
    patient = json.loads((folder / "run" / "splits.json").read_text())["train"][0]
    change(mask_of(frame_of(folder / "database/training" / patient, "ED")), lambda a: np.roll(a, 1, 0))
    checkpoints = {p: p.read_bytes() for p in left_in(folder / "run")}
    resumed = arguments(tiny, folder)
    assert cli.main([*resumed, f"--workdir={folder / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert "the train data changed" in error and "run.json" in error and len(error.strip().splitlines()) == 1
    assert {p: p.read_bytes() for p in left_in(folder / "run")} == checkpoints
    opened = open_run(folder / "run")
    (line,) = provenance.data_changes(opened.folder.facts, load_data(opened.config.dataset, opened.splits))
    assert "the train data changed" in line


@pytest.mark.slow
def test_scans_packed_in_another_way_are_the_same_data(copy):
    folder, _, _ = copy
    opened = open_run(folder / "run")
    for path in (folder / "database").rglob("*.nii.gz"):
        image = nib.load(path)
        array = np.asarray(image.dataobj)
        path.unlink()
        nib.save(nib.Nifti1Image(array, image.affine, image.header), path.with_suffix(""))
    data = load_data(opened.config.dataset, opened.splits)
    assert provenance.data_changes(opened.folder.facts, data) == []


@pytest.mark.slow
def test_new_test_patients_are_tested_and_lost_ones_are_refused(copy, tmp_path):
    folder, later, _ = copy
    shutil.copytree(later, folder / "database" / "testing")
    output = tmp_path / "masks"
    assert cli.main(["evaluate", f"--workdir={folder / 'run'}", f"--output={output}"]) == 0
    summary = json.loads(next((folder / "run" / "evaluation").rglob("summary.json")).read_text())
    assert summary["patients"] == 2
    assert any("2 test patients were added after the run was started" in w for w in summary["warnings"])
    # The scans are below database/, and the masks get their geometry.
    assert len(list(output.glob("*.nii.gz"))) == 4
    opened = open_run(folder / "run")
    gone = opened.splits["train"][0]
    shutil.rmtree(folder / "database" / "training" / gone)
    with pytest.raises(UserError, match=f"no longer there: {gone}"):
        load_data(opened.config.dataset, opened.splits)


def test_changes_are_compared_part_by_part():
    assert changed({"train": "a", "validation": "b"}, {"train": "a", "validation": "c", "test": "d"}) == ["validation"]
    assert changed({}, {"train": "a"}) == []


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("backbone.options.bas_channels=8", "bas_channels"),
        ("backbone.options.levels='many'", "backbone.options"),
        ("fusion.options.mask='onehott'", "mask"),
        ("backbone.init_from=/nowhere/weights", "no such file"),
        ("retriever.init_from=/nowhere/weights", "no such file"),
    ],
)
@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_a_typing_error_is_found_before_the_data_set_is_built(
    tiny, tmp_path, capsys, monkeypatch, setting, words, command
):
    monkeypatch.setattr(tfds_builders, "build", lambda *_, **__: pytest.fail("built the data set"))
    options = arguments(tiny, tmp_path)[1:]
    options = [o for o in options if command == "train" or o != "--no_report"]
    extra = ["--config.fusion.name=concat"] if "fusion" in setting else []
    assert cli.main([command, *options, *extra, f"--config.{setting}", f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


def test_home_and_relative_folders_are_understood(tmp_path, monkeypatch, capsys):
    phantom.write_acdc(tmp_path / "scans", train_patients=2, test_patients=1, seed=5)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["build", "acdc", "--manual_dir=~/scans", "--data_dir=~/data"]) == 0
    monkeypatch.chdir(tmp_path)
    assert cli.main(["build", "acdc", "--manual_dir=scans", "--data_dir=data"]) == 0
    assert "already" in capsys.readouterr().out.splitlines()[-1]
    assert not os.path.exists("~")


@pytest.mark.slow
def test_a_scan_without_spacing_is_warned_about_if_the_run_knows_spacing(acdc_run, tmp_path):
    image = nib.Nifti1Image(np.random.default_rng(0).integers(0, 99, (20, 20, 3)).astype(np.int16), np.eye(4))
    image.set_sform(np.eye(4), 0)
    nib.save(image, tmp_path / "a.nii.gz")
    run = open_run(acdc_run[1])
    scan = nifti.read_scan(tmp_path / "a.nii.gz")
    assert any("trained on scans with known spacing" in remark for remark in scans.unusual(run, scan))
    run.splits["spacing"] = "unknown"
    assert scans.unusual(run, scan) == []
