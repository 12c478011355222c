"""A folder of one's own data from training to masks: two channels, three folds, their ensemble, and galleries."""

import json

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
from jax import export

import jras_jax
from jras_jax.commands.cli import main
from jras_jax.errors import UserError
from jras_jax.inference.ensemble import open_ensemble
from jras_jax.run_folder.layout import RunFolder
from tests.conftest import TINY
from tests.own_folders import nnunet, pictures

FOLDS = 3


def arguments(folder, workdir, data_dir, **changes):
    settings = {k: v for k, v in TINY.items() if not k.startswith(("name", "dataset.phantom"))}
    settings |= {"dataset.manual_dir": folder, "dataset.data_dir": data_dir, "dataset.spacing_mm": 1.5}
    settings |= {"train.num_steps": 2, "train.batch_size": 4, "retrieval.top_k": 1} | changes
    given = [f"--config.{key}={value}" for key, value in settings.items()]
    return ["train", "--config=configs/folder.py", f"--workdir={workdir}", *given]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return nnunet(tmp_path_factory.mktemp("data") / "Dataset007_Shapes", tests=1)


@pytest.fixture(scope="module")
def folds(shapes, tmp_path_factory):
    """The folder of three folds of two steps, trained by one command."""
    place = tmp_path_factory.mktemp("folds")
    assert main([*arguments(shapes, place / "runs", place / "cache"), "--folds=all"]) == 0
    return place / "runs"


@pytest.mark.slow
def test_every_fold_is_a_run_and_their_scores_are_pooled(folds):
    found = json.loads((folds / "folds.json").read_text())
    assert list(found["folds"]) == ["0", "1", "2"] and found["evaluation"] == "validation"
    assert set(found["by"]) == {"disc", "square"}
    seen = [set(RunFolder(folds).fold(n).read_splits()["validation"]) for n in range(FOLDS)]
    assert set.union(*seen) == {f"shape_{n:03d}" for n in range(6)} and sum(map(len, seen)) == 6
    dice = found["mean"]["dice"]
    assert dice["patients"] == 6 and dice["n"] == 12 and dice["low"] <= dice["mean"] <= dice["high"]
    assert dice["mean"] == pytest.approx(np.mean([f["dice"] for f in found["folds"].values()]))
    description = json.loads((folds / "fold_1" / "dataset.json").read_text())
    assert description["classes"] == ["background", "disc", "square"] and description["channels"] == ["T1", "T2"]
    report = (folds / "fold_1" / "report.html").read_text()
    assert "disc" in report and "square" in report


@pytest.mark.slow
def test_the_same_command_resumes_where_a_fold_is_missing(folds, shapes, capsys):
    again = [*arguments(shapes, folds, folds.parent / "cache"), "--folds=all"]
    before = (folds / "fold_0" / "evaluation" / "validation" / "cases.csv").stat().st_mtime_ns
    assert main(again) == 0
    assert "6 patients" not in capsys.readouterr().err
    assert (folds / "fold_0" / "evaluation" / "validation" / "cases.csv").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds 3 folds; name one of them"):
        jras_jax.open_run(folds)


@pytest.mark.slow
def test_the_ensemble_averages_probabilities_and_names_each_folds_guides(folds, shapes, tmp_path):
    predict = ["predict", f"--workdir={folds}", f"--input={shapes / 'imagesTs'}", f"--output={tmp_path}"]
    assert main([*predict, "--probabilities"]) == 0
    mask = nib.load(tmp_path / "shape_006.nii.gz")
    scan = nib.load(shapes / "imagesTs" / "shape_006_0000.nii.gz")
    assert np.allclose(mask.affine, scan.affine) and set(np.unique(np.asarray(mask.dataobj))) <= {0, 2, 5}
    evidence = json.loads((tmp_path / "shape_006.json").read_text())
    assert list(evidence["folds"]) == ["0", "1", "2"] and evidence["labels"] == {"disc": 2, "square": 5}
    names = {g["case"] for fold in evidence["folds"].values() for g in fold["frames"][0]["slices"][0]["guides"]}
    assert names <= {f"shape_{n:03d}" for n in range(6)}
    image = np.stack([nib.load(str(scan.get_filename()).replace("_0000", f"_{c:04d}")).get_fdata() for c in (0, 1)], -1)
    runs = [m.run for m in open_ensemble(RunFolder(folds)).members]
    each = [
        run.segment(image, (1.5, 1.5, 6.0), affine=scan.affine, gallery=run.open_gallery(), patient="shape_006")
        for run in runs
    ]
    wanted = np.mean([e.probabilities for e in each], 0).argmax(-1)
    assert (np.array([0, 2, 5])[wanted] == np.asarray(mask.dataobj)).mean() > 0.999
    share = nib.load(tmp_path / "shape_006_probability_square.nii.gz")  # 3-D, though the image has two channels
    assert np.allclose(share.get_fdata(), np.mean([e.probabilities for e in each], 0)[..., 2], atol=1e-4)


@pytest.mark.slow
def test_a_run_of_several_channels_is_exported(folds, tmp_path):
    assert main(["export", str(folds / "fold_0"), str(tmp_path / "out")]) == 0
    run = jras_jax.open_run(folds / "fold_0")
    gallery = run.open_gallery()
    images = gallery.table.images[:3]
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    assert facts["images"]["shape"] == ["b", *images.shape[1:]] and facts["images"]["channels"] == ["T1", "T2"]
    program = export.deserialize(bytearray((tmp_path / "out" / "model.stablehlo").read_bytes()))
    found = program.call(images, np.full(3, int(gallery.table.patient[0]), np.int32))
    expected = run.segmenter(gallery.arrays).slices(images, int(gallery.table.patient[0]))
    np.testing.assert_allclose(found["probabilities"], expected.probabilities, atol=1e-5)
    np.testing.assert_array_equal(found["guides"], expected.indices)


@pytest.mark.slow
def test_galleries_of_ones_own_cases(folds, shapes, tmp_path, capsys):
    one = folds / "fold_0"
    made = ["gallery", f"--workdir={one}", f"--input={shapes}", f"--output={tmp_path / 'gallery'}"]
    assert main(made) == 0
    assert "18 slices of 6 patients" in capsys.readouterr().out
    scan = shapes / "imagesTr" / "shape_001_0000.nii.gz"
    out = tmp_path / "mask.nii.gz"
    assert main(["predict", f"--workdir={one}", f"--input={scan}", f"--output={out}", f"--gallery={shapes}"]) == 0
    guides = json.loads((tmp_path / "mask.json").read_text())
    assert guides["gallery_patient"] == "shape_001"
    assert all(g["case"] != "shape_001" for s in guides["frames"][0]["slices"] for g in s["guides"])
    scan = shapes / "imagesTs" / "shape_006_0001.nii.gz"
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / scan.name).write_bytes(scan.read_bytes())
    refused = ["predict", f"--workdir={one}", f"--input={tmp_path / 'alone'}", f"--output={tmp_path / 'none'}"]
    assert main(refused) == 2
    assert "lacks the channel shape_006_0000" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_train_and_their_masks_are_pictures(tmp_path):
    folder = pictures(tmp_path / "lesions", colour=True)
    given = arguments(folder, tmp_path / "run", tmp_path / "cache", **{"retrieval.enabled": False})
    assert main(given) == 0
    summary = json.loads((tmp_path / "run" / "evaluation" / "validation" / "summary.json").read_text())
    assert summary["structures"] == ["disc", "square"] and summary["unit"] == "voxel" and summary["phases"] == []
    single = folder / "lesion 3.png"
    target = tmp_path / "masks"
    predict = ["predict", f"--workdir={tmp_path / 'run'}", f"--input={single}", f"--output={target}"]
    for _ in range(2):  # over its own files too
        assert main([*predict, "--probabilities", "--uncertainty"]) == 0
    mask = PIL.Image.open(target / "lesion 3.png")
    names = ("background", "disc", "square")
    shares = [np.asarray(PIL.Image.open(target / f"lesion 3_probability_{name}.png")) for name in names]
    assert {x.dtype for x in shares} == {np.dtype(np.uint16)} and np.abs(np.sum(shares, 0, float) - 65535).max() <= 2
    assert np.array_equal(np.array([0, 2, 5])[np.argmax(shares, 0)], np.asarray(mask))
    assert PIL.Image.open(target / "lesion 3_uncertainty.png").size == mask.size
    assert mask.size == PIL.Image.open(single).size and set(np.unique(np.asarray(mask))) <= {0, 2, 5}
    named = tmp_path / "named.png"
    assert main(["predict", f"--workdir={tmp_path / 'run'}", f"--input={single}", f"--output={named}"]) == 0
    assert named.is_file() and np.array_equal(np.asarray(PIL.Image.open(named)), np.asarray(mask))
    assert main(["evaluate", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]) == 0
    assert len(list((tmp_path / "out").glob("lesion *.png"))) == 2
