"""The paper's protocol: slices are split at random, a query is in its own gallery, and every output warns."""

import json

import numpy as np
import pytest

from jras_jax import config as configs
from jras_jax import report
from jras_jax.data import STRUCTURES
from jras_jax.data.paper import as_slices
from jras_jax.errors import UserError
from jras_jax.evaluation import metrics
from jras_jax.run_folder.layout import RunFolder
from jras_jax.run_folder.provenance import PAPER_WARNING
from tests.commands import call, evaluate
from tests.volumes import blob


def patient_of(name):
    return name.rpartition("_")[0]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A tiny run under the paper's protocol, evaluated as its own default has it."""
    folder = tiny.train(tmp_path_factory.mktemp("paper") / "run", protocol="paper", train__num_steps=2)
    evaluate(folder, "--config.eval.split=validation", "--config.eval.evidence_cases=2")
    return RunFolder(folder)


def test_a_labelled_slice_is_a_volume_of_its_own(tiny):
    whole = tiny.data().volumes["train"]
    slices = as_slices(whole)
    assert len(slices) == sum(int(v.mask.any((0, 1)).sum()) for v in whole)
    assert len({s.case for s in slices}) == len({s.patient for s in slices}) == len(slices)
    first = whole[0]
    z = int(np.flatnonzero(first.mask.any((0, 1)))[1])
    own = next(s for s in slices if s.patient == f"{first.patient}_{first.phase}{z + 1:02d}")
    np.testing.assert_array_equal(own.image[..., 0], first.image[..., z])
    np.testing.assert_array_equal(own.mask[..., 0], first.mask[..., z])
    np.testing.assert_allclose(own.affine @ [3, 5, 0, 1], first.affine @ [3, 5, z, 1])


def test_slices_of_one_person_train_and_validate_and_the_query_guides_itself(run):
    splits = run.read_splits()
    train, validation = set(splits["train"]), set(splits["validation"])
    assert not train & validation
    assert {patient_of(name) for name in validation} <= {patient_of(name) for name in train}
    summary = json.loads(run.evaluation("validation").summary.read_text())
    assert summary["gallery"]["split"] == "validation" and summary["gallery"]["exclude"] == "none"
    assert summary["gallery"]["slices"] == len(validation) == summary["patients"]
    assert summary["retrieval"]["retrieval_dice_1"] == pytest.approx(1.0, abs=0.02)
    assert configs.load_saved(run.config).retrieval.exclude == "none"


def test_an_honest_gallery_shows_how_much_the_leak_was(run):
    own = evaluate(run.path, "--config.eval.split=test")
    honest = evaluate(run.path, "--config.eval.split=test", "--config.eval.gallery=train")
    assert own["evaluation"] == "test" and honest["evaluation"] == "test+gallery=train"
    assert own["gallery"]["split"] == "test" and honest["gallery"]["split"] == "train"
    assert (
        honest["retrieval"]["retrieval_dice_1"] < own["retrieval"]["retrieval_dice_1"] == pytest.approx(1.0, abs=0.02)
    )


def test_every_output_warns(run, tiny, tmp_path, capsys, caplog):
    assert PAPER_WARNING in json.loads(run.facts.read_text())["warnings"]
    summary = json.loads(run.evaluation("validation").summary.read_text())
    assert PAPER_WARNING in summary["warnings"] and "leaks" in summary["protocol"]
    assert summary["clinical"] == {}  # no volume of a heart is known here
    assert "say nothing about new patients" in report.write_report(run.path, split="validation").read_text()
    scan = next((tiny.data_dir / "scans").rglob("patient*_frame01.nii.gz"))
    assert call("predict", f"--workdir={run}", f"--input={scan}", f"--output={tmp_path / 'masks'}") == 0
    assert "say nothing about new patients" in capsys.readouterr().err
    written = next((tmp_path / "masks").glob("*.json"))
    assert PAPER_WARNING in json.loads(written.read_text())["warnings"]
    assert call("evaluate", f"--workdir={run}", "--config.eval.certificate=False") == 0
    said = " ".join(capsys.readouterr().out.split())  # the terminal's width must not matter
    assert "2-D Dice with background" in said, said
    assert "this leaks" in said and "say nothing about new patients" in said, said
    with pytest.raises(UserError, match=r"--output writes whole volumes"):
        evaluate_to = ("evaluate", f"--workdir={run}", f"--output={tmp_path / 'submission'}")
        call(*evaluate_to)


def test_few_patients_of_slices_are_refused_and_an_earlier_run_is_split_by_patient(tmp_path):
    config = configs.override(configs.defaults(), ["--config.protocol=paper", "--config.dataset.max_train_patients=8"])
    with pytest.raises(
        UserError, match=r"config\.protocol='paper': must be 'patient' with dataset\.max_train_patients"
    ):
        configs.parse(config)
    tree = configs.defaults().to_dict()
    del tree["protocol"]
    (tmp_path / "config.json").write_text(json.dumps(tree))
    opened = configs.parse(configs.load_saved(tmp_path / "config.json"))
    assert opened.protocol == "patient" and opened.retrieval.exclude == "patient"


def test_background_counts_as_a_class_in_the_papers_figure():
    truth = blob()
    found = np.where(truth == STRUCTURES["RV"], 0, truth)
    rows = metrics.paper_2d_scores(truth, found, size=64)
    scored = metrics.aggregate_paper_2d([rows])
    whole = {r["slice_index"]: r["background_2d"] for r in rows}
    want = (3 * scored["dice_2d"] + np.mean(list(whole.values()))) / 4
    assert scored["dice_2d_background"] == pytest.approx(want)
    assert scored["dice_2d"] < scored["dice_2d_background"] < 1
