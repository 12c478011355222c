"""The certificate of retrieval: each control is what its name says, under the leak rule, and the verdict follows."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax.data.dice import structure_counts
from jras_jax.evaluation import certificate, control_scores, evaluator
from jras_jax.evaluation.evaluate import evaluate, finite
from jras_jax.inference.predictions import on_scan
from jras_jax.inference.trained_run import open_run
from jras_jax.report import write_report
from jras_jax.run_folder.layout import RunFolder
from tests.fake_run import write_fake_run

KEYS = ("real", *certificate.CONTROLS)


def opened(folder, *options):
    """The run with parameters moved at random, so that its guides matter, which those of four steps hardly do."""
    run = open_run(folder, [f"--config.{option}" for option in ("eval.split=test", "eval.evidence_cases=0", *options)])
    leaves, tree = jax.tree.flatten(run.variables)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    moved = [x + 0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return dataclasses.replace(run, variables=jax.tree.unflatten(tree, moved))


def mean_dice(segmenter, volumes, table):
    """Of real predictions."""
    found = [
        np.mean([c.dice for c in structure_counts(volume.mask, prediction.labels).values()])
        for volume, prediction in evaluator.predictions(segmenter, volumes, table)
    ]
    return float(np.mean(found))


@pytest.fixture(scope="module")
def folder(trained_run, tmp_path_factory):
    place = tmp_path_factory.mktemp("certified") / "run"
    shutil.copytree(trained_run, place)
    return place


@pytest.fixture(scope="module")
def scored(folder, tiny):
    """(run, data, summary)."""
    run = opened(folder)
    data = tiny.data(run)
    return run, data, evaluate(run, data)


def test_the_summary_has_the_certificate_of_the_scores_beside_it(scored, folder, tiny):
    run, data, summary = scored
    found = summary["retrieval_certificate"]
    assert found["real"] == pytest.approx(summary["mean"]["dice"], abs=1e-12)
    assert json.loads(run.folder.evaluation("test").summary.read_text())["retrieval_certificate"] == found
    for name in ("blank", "random"):
        d = found[f"real_minus_{name}"]
        assert d["difference"] == pytest.approx(found["real"] - found[name], abs=1e-12)
        assert d["low"] <= d["difference"] <= d["high"] and d["p"] is None
    assert found["verdict"] == "no measurable effect" and not found["trained_with_blank"]
    assert "rests on random" in found["note"] and "no test for fewer than 6 patients" in found["note"]
    assert found["patients"] == 3 and found["volumes"] == 6 and "Wilcoxon" in found["test"]
    assert len({found[name] for name in KEYS}) == 5  # every control does something to this network
    without = evaluate(opened(folder, "eval.certificate=False"), data)
    assert "retrieval_certificate" not in without and without["mean"] == summary["mean"]


def test_each_control_is_a_real_evaluation_with_its_guides(scored, folder):
    """Blank and permuted: real retrieval from a gallery changed so; oracle: the strategy of that name."""
    run, data, summary = scored
    volumes, gallery = data.part("test"), run.train_gallery(data)
    found, arrays = summary["retrieval_certificate"], gallery.arrays
    segmenter = run.segmenter(arrays)
    no_class = jnp.full_like(arrays.masks, 255)  # in no class: its one-hot masks are all zero
    empty = arrays.replace(images=jnp.zeros_like(arrays.images), masks=no_class)
    moved = arrays.replace(masks=jnp.array([0, 2, 3, 1], jnp.uint8)[arrays.masks])
    for name, changed in (("blank", empty), ("permuted", moved)):
        want = mean_dice(segmenter.using(run.variables, changed), volumes, gallery.table)
        assert found[name] == pytest.approx(want, abs=1e-4), name
    oracle = opened(folder, "retrieval.strategy=oracle")
    want = mean_dice(oracle.segmenter(arrays), volumes, gallery.table)
    assert found["oracle"] == pytest.approx(want, abs=1e-4)


def guides_of(run, data, volume):
    gallery = run.train_gallery(data)
    segmenter = run.segmenter(gallery.arrays)
    patient, rows = evaluator.gallery_numbers(volume, gallery.table)
    prediction = on_scan(*segmenter.settled(volume, segmenter.placed(volume), patient, rows), patient)
    return gallery.table, patient, prediction, control_scores.ControlScores(run, segmenter, gallery.table)


def test_random_and_oracle_guides_hold_to_the_leak_rule(scored, folder):
    _, data, _ = scored
    volume = data.part("train")[0]
    table, patient, prediction, honest = guides_of(opened(folder), data, volume)
    given = honest._given(volume, prediction)
    for name in ("random", "oracle"):
        assert (table.patient[given[name].rows] != patient).all() and len(np.unique(given[name].rows)) > 2
        np.testing.assert_allclose(given[name].weights.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(given["permuted"].rows, prediction.slices.indices)
    leaking = guides_of(opened(folder, "retrieval.exclude=none"), data, volume)[-1]
    oracle = leaking._given(volume, prediction)["oracle"]
    labelled = prediction.masks.any((1, 2))
    own = table.masks[np.take_along_axis(oracle.rows, oracle.weights.argmax(1)[:, None], 1)[:, 0]]
    np.testing.assert_array_equal(own[labelled], prediction.masks[labelled])


@pytest.mark.slow
def test_mixed_guides_have_controls_too(scored, folder):
    _, data, _ = scored
    run = opened(folder, "retrieval.strategy=softmax")
    found = evaluate(run, data)["retrieval_certificate"]
    gallery = run.train_gallery(data)
    moved = gallery.arrays.replace(masks=jnp.array([0, 2, 3, 1], jnp.uint8)[gallery.arrays.masks])
    want = mean_dice(run.segmenter(gallery.arrays).using(run.variables, moved), data.part("test"), gallery.table)
    assert found["permuted"] == pytest.approx(want, abs=1e-4)
    assert len({found[name] for name in KEYS}) == 5


@pytest.mark.parametrize("strategy", ["random", "oracle"])
def test_a_run_whose_guides_are_a_control_is_that_control(scored, folder, strategy):
    _, data, _ = scored
    found = evaluate(opened(folder, f"retrieval.strategy={strategy}"), data)["retrieval_certificate"]
    assert found[strategy] == found["real"] and found["verdict"] == "no measurable effect"
    assert {"random": "random ones", "oracle": "true masks"}[strategy] in found["note"]


@pytest.mark.slow
def test_several_devices_give_the_same_certificate(scored, folder):
    _, data, summary = scored
    found = evaluate(opened(folder, "mesh.data=3"), data)["retrieval_certificate"]
    for name in KEYS:
        assert found[name] == pytest.approx(summary["retrieval_certificate"][name], abs=1e-4), name


def test_the_report_quotes_the_verdict_and_a_run_without_it_is_told_how_to_get_one(tmp_path):
    run = RunFolder(write_fake_run(tmp_path / "run", patients=2, shown=0))
    assert "has no certificate of retrieval" in write_report(run.path).read_text()
    dice = {name: [0.8, 0.7, 0.75, 0.72] for name in KEYS}
    found = certificate.certify(dice, ["a", "a", "b", "b"], trained_with_blank=True, strategy="top_k")
    file = run.evaluation("validation").summary
    file.write_text(json.dumps(json.loads(file.read_text()) | {"retrieval_certificate": finite(found)}))
    page = write_report(run.path).read_text()
    assert "Retrieval has no measurable effect: Dice 0.742" in page and "one seed" in page
    plain = write_fake_run(tmp_path / "plain", patients=2, shown=0, guides=0)
    assert "certificate of retrieval" not in write_report(plain).read_text()


def against(difference, p):
    return {"difference": difference, "low": difference - 0.01, "high": difference + 0.01, "p": p}


@pytest.mark.parametrize(
    ("blank", "random", "with_blank", "want"),
    [
        (against(0.02, 0.01), against(0.01, 0.04), True, "helps"),
        (against(0.02, 0.01), against(0.01, 0.06), True, "no measurable effect"),
        (against(0.001, 0.8), against(0.01, 0.01), True, "no measurable effect"),
        (against(-0.02, 0.01), against(0.01, 0.01), True, "harms"),
        (against(0.02, 0.01), against(-0.01, 0.01), True, "harms"),
        (against(-0.5, 0.001), against(0.01, 0.01), False, "helps"),
        (against(0.5, 0.001), against(0.01, 0.05), False, "no measurable effect"),
        (against(0.5, math.nan), against(0.5, math.nan), True, "no measurable effect"),
    ],
)
def test_the_verdict_claims_no_more_than_its_tests(blank, random, with_blank, want):
    assert certificate.verdict(blank, random, trained_with_blank=with_blank) == want


def test_a_difference_is_tested_over_patients_and_not_over_volumes():
    rng = np.random.default_rng(0)
    patients = [f"p{i // 2}" for i in range(20)]
    control = rng.random(20).tolist()
    real = [c + 0.05 for c in control]
    found = certificate.difference(real, control, patients)
    assert found["difference"] == pytest.approx(0.05) and found["p"] == pytest.approx(2 / 2**10)
    assert found["low"] == pytest.approx(0.05) and found["high"] == pytest.approx(0.05)
    few = certificate.difference(real[:10], control[:10], patients[:10])
    assert math.isnan(few["p"]) and few["low"] == pytest.approx(0.05)


def test_the_line_for_a_person_has_the_verdict_and_its_numbers(scored):
    line = certificate.sentence(scored[2]["retrieval_certificate"])
    assert line.startswith("Retrieval has no measurable effect: Dice 0.") and "no test" in line and "one seed" in line
    assert "trained without blank guides" in line and "\n" not in line
    helped = {"real": 0.8, "random": 0.78, "blank": 0.77, "permuted": 0.5, "oracle": 0.9, "verdict": "helps"}
    helped |= {"real_minus_random": against(0.02, 0.0001), "real_minus_blank": against(0.03, 0.012)}
    line = certificate.sentence(helped)
    assert (
        line.startswith("Retrieval helps: Dice 0.800")
        and "+0.020, 95% interval +0.010 to +0.030, p below 0.001" in line
    )
    assert "Note" not in line
