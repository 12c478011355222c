"""Whether post-processing and augmentation help: measured on validation, never on the test set."""

import json
import shutil

import pytest

from jras_jax import report
from jras_jax.evaluation import choose
from jras_jax.inference.trained_run import open_run
from tests.commands import call, evaluate


@pytest.fixture(scope="module")
def chosen(trained_run, tiny, tmp_path_factory):
    """A copy of the tiny run, evaluated, with its options measured; and what was measured."""
    folder = tmp_path_factory.mktemp("chosen") / "run"
    shutil.copytree(trained_run, folder)
    evaluate(folder, "--config.eval.split=test", "--config.eval.evidence_cases=3")
    before = (folder / "evaluation" / "test" / "summary.json").read_bytes()
    run = open_run(folder)
    found = choose.choose(run, tiny.data(run))
    assert (folder / "evaluation" / "test" / "summary.json").read_bytes() == before
    return folder, found


def test_options_are_measured_on_validation_patients_alone(chosen):
    folder, found = chosen
    assert found["split"] == "validation" and found["patients"] == 2
    assert found == json.loads((folder / "evaluation" / "choices.json").read_text())
    plain, _, augmented, both = found["options"]
    for option, figures in (("none", plain), ("largest_component", both)):
        flags = ("--config.eval.split=validation", f"--config.eval.postprocess={option}")
        scored = evaluate(folder, *flags, f"--config.eval.tta={figures['tta']}")
        assert figures["dice"] == pytest.approx(scored["mean"]["dice"], abs=1e-12)
    gain = augmented["dice"] - plain["dice"]
    assert augmented["dice_gain"] == pytest.approx(gain, abs=1e-9)


def test_an_option_is_chosen_only_where_its_interval_excludes_no_gain():
    def option(postprocess, tta, dice, low):
        return {"postprocess": postprocess, "tta": tta, "dice": dice, "dice_gain_low": low}

    plain = option("none", False, dice=0.80, low=0.0)
    unsure, sure = option("largest_component", True, dice=0.85, low=-0.01), option("none", True, dice=0.82, low=0.01)
    assert choose.best([plain, unsure]) == {"postprocess": "none", "tta": False}
    assert choose.best([plain, unsure, sure]) == {"postprocess": "none", "tta": True}
    assert choose.best([plain, option("largest_component", False, dice=0.83, low=0.001), sure])["tta"] is False
    assert choose.best([plain, option("none", True, dice=0.9, low=None)]) == {"postprocess": "none", "tta": False}


def test_an_option_counts_as_measured_where_validation_chose_it_for_this_checkpoint(chosen, tmp_path):
    source, found = chosen
    folder = tmp_path / "run"
    shutil.copytree(source, folder)
    path = folder / "evaluation" / "choices.json"
    components = {"postprocess": "largest_component", "tta": False}
    plain = open_run(folder)
    used = open_run(folder, ("--config.eval.postprocess=largest_component",))
    cases = ({"chosen": components}, False), ({"chosen": choose.PLAIN}, True)
    for change, unmeasured in (*cases, ({"chosen": components, "checkpoint_step": 99}, True)):
        path.write_text(json.dumps(found | change))
        assert choose.unmeasured(used) is unmeasured
        assert not choose.unmeasured(plain)
    path.unlink()
    assert choose.unmeasured(used) and not choose.unmeasured(plain)


def test_scores_with_an_unmeasured_option_are_warned_about_on_test_and_named_in_the_report(chosen, tmp_path):
    source, found = chosen
    folder = tmp_path / "run"
    shutil.copytree(source, folder)
    (folder / "evaluation" / "choices.json").write_text(json.dumps(found | {"chosen": choose.PLAIN}))
    flags = ("--config.eval.split=test", "--config.eval.postprocess=largest_component")
    assert choose.UNMEASURED in evaluate(folder, *flags)["warnings"]
    page = report.write_report(folder).read_text()
    assert choose.UNMEASURED in page
    assert "Chosen on the validation fold: neither. The scores of this page were made with: largest component" in page


def test_the_command_prints_the_options_and_the_flags_of_the_chosen_one(chosen, monkeypatch, capsys):
    folder, found = chosen
    better = found | {"chosen": {"postprocess": "largest_component", "tta": True}}
    monkeypatch.setattr("jras_jax.commands.choose.choose", lambda run, data, **_: better)
    assert call("choose", f"--workdir={folder}") == 0
    said = capsys.readouterr().out
    for option in found["options"]:
        assert f"{option['dice']:.4f}" in said
    flags = "--config.eval.postprocess=largest_component --config.eval.tta=True"
    assert f"chosen: {flags}\n" in said and f"jras evaluate --workdir={folder} {flags}" in said
