"""The report on options measured on validation, and where a figure must not be given."""

import json

import pytest

from jras_jax.report import analysis, axes, files, results, write_report
from tests.fake_run import write_fake_run


def option(postprocess, tta, dice, gain, low, high):
    distances = {"hd95": 9.0, "hd95_gain": -1.0, "hd95_gain_low": -2.0, "hd95_gain_high": -0.5}
    gains = {"dice": dice, "dice_gain": gain, "dice_gain_low": low, "dice_gain_high": high}
    return {"postprocess": postprocess, "tta": tta} | gains | distances


CHOICES = {
    "split": "validation",
    "patients": 4,
    "unit": "mm",
    "rule": "the rule",
    "options": [
        option("none", False, dice=0.81, gain=0.0, low=0.0, high=0.0),
        option("largest_component", False, dice=0.822, gain=0.012, low=0.004, high=0.021),
        option("none", True, dice=0.8, gain=-0.01, low=-0.03, high=0.01),
        option("largest_component", True, dice=0.815, gain=0.005, low=None, high=None),
    ],
    "chosen": {"postprocess": "largest_component", "tta": False},
}


def page(tmp_path, **changes):
    write_fake_run(tmp_path / "run")
    step = files.read(tmp_path / "run").summary["checkpoint_step"]
    found = CHOICES | {"checkpoint_step": step} | changes
    (tmp_path / "run" / "evaluation" / "choices.json").write_text(json.dumps(found))
    return write_report(tmp_path / "run").read_text()


def test_what_validation_says_of_the_options_stands_in_the_report(tmp_path):
    text = page(tmp_path)
    assert "Chosen on the validation fold: largest component of each structure. The scores of this page" in text
    assert "+0.012" in text and "(+0.004 to +0.021)" in text and "−0.010" in text
    assert "<strong>largest component of each structure</strong>" in text
    assert "another checkpoint" not in text


def test_a_choice_for_another_checkpoint_is_said_to_be_one(tmp_path):
    assert "The choice was made for another checkpoint (step 7)" in page(tmp_path, checkpoint_step=7)


def test_without_a_measurement_the_report_says_how_to_make_one(tmp_path):
    write_fake_run(tmp_path / "run")
    assert "jras choose --workdir=" in write_report(tmp_path / "run").read_text()


def row(patient, dice):
    return {
        "patient": patient,
        "phase": "ED",
        "structure": "LV",
        "dice": dice,
        "hd": 3.0,
        "hd95": 2.0,
        "assd": 1.0,
        "empty": "",
    }


def test_one_patient_has_no_interval():
    alone = analysis.summarise([row("a", 0.8), row("a", 0.9)], "dice")
    assert alone.mean == pytest.approx(0.85) and alone.low != alone.low and alone.high != alone.high
    two = analysis.summarise([row("a", 0.8), row("b", 0.9)], "dice")
    assert two.low == pytest.approx(0.8) and two.high == pytest.approx(0.9)
    compared = analysis.compare([row("a", 0.8)], [row("a", 0.7)])["dice"]
    assert "one patient alone" in results.verdict(compared.comparison)


@pytest.mark.parametrize(("low", "high"), [(0.6882, 0.6892), (41.6, 42.1), (0.0, 1e-4), (0.0, 3e-3), (-2e-4, 2e-4)])
def test_no_two_ticks_of_an_axis_read_alike(low, high):
    places = axes.ticks(low, high)
    labels = [axes.tick_label(p, places[1] - places[0]) for p in places]
    assert len(places) > 2 and len(set(labels)) == len(labels), labels
