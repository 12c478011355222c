"""Evaluation of a run: what it writes, that its scores are those of its masks, and that it says what must be said."""

import csv
import dataclasses
import html
import json
import logging
import math
import shutil

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from jras_jax import report
from jras_jax.commands import evaluate as evaluate_command
from jras_jax.data import PHASES, STRUCTURES
from jras_jax.errors import UserError
from jras_jax.evaluation import evaluate as evaluation
from jras_jax.evaluation import evaluator
from jras_jax.inference.trained_run import open_run
from jras_jax.retrieval import gallery_files
from jras_jax.run_folder.layout import RunFolder
from tests.commands import call, evaluate, predict

MEASURES = ("dice", "hd", "hd95", "assd")


@pytest.fixture(scope="module")
def evaluated(trained_run, tiny, tmp_path_factory):
    """A copy of the tiny run, scored on its three test patients."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained_run, folder)
    evaluate(folder, "--config.eval.split=test", "--config.eval.evidence_cases=3")
    return folder


def summary_of(folder):
    return json.loads(RunFolder(folder).find_evaluation().summary.read_text())


def cases_of(folder):
    with RunFolder(folder).find_evaluation().cases.open() as f:
        return list(csv.DictReader(f))


def scans_of(tiny, part):
    """The phantom's folders of patients: 'training' or 'testing'."""
    return next((tiny.data_dir / "scans").glob("*")) / part


def test_summary_has_the_means_their_breakdown_and_where_they_come_from(evaluated):
    summary = summary_of(evaluated)
    assert {*MEASURES, "n"} <= set(summary["mean"])
    assert set(summary["by"]) == {f"{s}/{p}" for s in STRUCTURES for p in PHASES}
    assert all({*MEASURES, "n"} <= set(means) for means in summary["by"].values())
    assert summary["mean"]["n"] == 3 * len(PHASES) * len(STRUCTURES)
    assert summary["split"] == "test" and summary["patients"] == 3 and summary["unit"] == "mm"
    assert "3-D" in summary["protocol"] and "never from the query's own patient" in summary["protocol"]
    assert summary["gallery"]["patients"] == 4 and summary["gallery"]["exclude"] == "patient"
    assert summary["gallery"]["fingerprint"] == gallery_files.fingerprint_of(evaluated / "gallery")
    assert summary["checkpoint_step"] in (2, 4)
    assert summary["warnings"] == []


def test_summary_means_are_the_means_of_the_cases(evaluated):
    summary, rows = summary_of(evaluated), cases_of(evaluated)
    for name, means in [("", summary["mean"]), *summary["by"].items()]:
        own = [r for r in rows if name in ("", f"{r['structure']}/{r['phase']}")]
        for measure in MEASURES:
            known = [float(r[measure]) for r in own if not math.isnan(float(r[measure]))]
            assert means[measure] == (pytest.approx(np.mean(known), abs=1e-12) if known else None)


def test_cases_hold_one_row_per_patient_phase_and_structure(evaluated):
    splits = json.loads((evaluated / "splits.json").read_text())
    keys = [(r["patient"], r["phase"], r["structure"]) for r in cases_of(evaluated)]
    assert sorted(keys) == sorted((p, phase, s) for p in splits["test"] for phase in PHASES for s in STRUCTURES)


def test_worst_median_and_best_case_are_kept_with_their_guides(evaluated):
    dice = {}
    for row in cases_of(evaluated):
        dice.setdefault(f"{row['patient']}_{row['phase']}", []).append(float(row["dice"]))
    ranked = sorted(dice, key=lambda case: (np.mean(dice[case]), case))
    kept = [ranked[0], ranked[round(2.5)], ranked[-1]]  # of six
    files = RunFolder(evaluated).find_evaluation().evidence.glob("*.npz")
    assert {f.stem for f in files} == set(kept) and summary_of(evaluated)["evidence"] == kept
    with np.load(RunFolder(evaluated).find_evaluation().evidence / f"{kept[0]}.npz") as found:
        slices, guides = found["weights"].shape
        assert found["guide_images"].shape == (slices, guides, *found["image"].shape[1:])
        assert found["guide_masks"].any() and not any(kept[0].split("_")[0] in n for n in found["guide_names"].ravel())


def test_confusion_counts_every_voxel_once(evaluated):
    confusion = np.array(summary_of(evaluated)["confusion"])
    for name, label in STRUCTURES.items():
        own = [r for r in cases_of(evaluated) if r["structure"] == name]
        assert confusion[label].sum() == sum(int(r["reference_voxels"]) for r in own)
        assert confusion[:, label].sum() == sum(int(r["voxels"]) for r in own)


def surface_points(mask, zooms):
    inner = ndimage.binary_erosion(mask)  # the default structure is the 6-neighbourhood
    return np.argwhere(mask & ~inner) * zooms


def test_scores_are_those_of_the_masks_that_predict_writes(evaluated, tiny, tmp_path):
    """Recomputed with nothing of the project but its masks: overlap by counting, distances by a search tree."""
    scans = scans_of(tiny, "testing")
    predict(evaluated, scans, tmp_path)
    rows = {(r["patient"], r["phase"], r["structure"]): r for r in cases_of(evaluated)}
    compared = 0
    for info in sorted(scans.rglob("Info.cfg")):
        frames = dict(line.split(": ") for line in info.read_text().splitlines() if line[:3] in ("ED:", "ES:"))
        for phase, frame in frames.items():
            name = f"{info.parent.name}_frame{int(frame):02d}"
            truth = nib.load(info.parent / f"{name}_gt.nii.gz")
            zooms = np.array(truth.header.get_zooms()[:3], float)
            found = nib.load(tmp_path / info.parent.name / f"{name}.nii.gz")
            for structure, label in STRUCTURES.items():
                a, b = (np.asarray(image.dataobj) == label for image in (truth, found))
                row = rows[info.parent.name, phase, structure]
                expected = 2 * (a & b).sum() / (a.sum() + b.sum())
                assert float(row["dice"]) == pytest.approx(expected, abs=1e-12)
                assert float(row["volume_ml"]) == pytest.approx(b.sum() * zooms.prod() / 1000, rel=1e-5)
                if not b.any():
                    assert row["empty"] == "prediction" and math.isnan(float(row["hd"]))
                    continue
                p, q = surface_points(a, zooms), surface_points(b, zooms)
                there, back = cKDTree(q).query(p)[0], cKDTree(p).query(q)[0]
                assert float(row["hd"]) == pytest.approx(max(there.max(), back.max()), rel=1e-4)
                assert float(row["hd95"]) == pytest.approx(np.percentile([*there, *back], 95), rel=1e-4)
                assert float(row["assd"]) == pytest.approx((there.mean() + back.mean()) / 2, rel=1e-4)
                compared += 1
    assert len(rows) == 18 and compared >= 6


def test_the_split_decides_who_is_scored(evaluated, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(evaluated, folder)
    summary = evaluate(folder, "--config.eval.split=validation")
    splits = json.loads((folder / "splits.json").read_text())
    assert summary["split"] == "validation"
    assert {r["patient"] for r in cases_of(folder)} == set(splits["validation"])


def test_a_split_that_does_not_exist_names_those_that_do(evaluated):
    with pytest.raises(UserError, match=r"eval\.split='tset'.*'validation', 'test', 'train'"):
        evaluate(evaluated, "--config.eval.split=tset")


def test_what_belongs_to_training_cannot_be_overridden(evaluated):
    for key in ("retrieval.top_k", "fusion.options.sharpness", "backbone.options.levels"):
        with pytest.raises(UserError, match=rf"config\.{key} cannot be changed after training; you can change: .*eval"):
            evaluate(evaluated, f"--config.{key}=5")


def test_a_folder_without_a_run_says_how_to_train_one(tmp_path):
    with pytest.raises(UserError, match="train first"):
        evaluate(tmp_path / "nothing")


@pytest.mark.slow
def test_the_best_checkpoint_is_scored_not_the_latest(tiny, tmp_path, monkeypatch):
    given = iter([0.9, 0.1])
    monkeypatch.setattr(evaluator, "validate", lambda *a, **k: {"val/dice": next(given)})
    folder = tiny.train(tmp_path / "run", retrieval__enabled=False)
    assert {p.name for p in (folder / "checkpoints").iterdir() if p.name.isdigit()} == {"2", "4"}
    summary = evaluate(folder)
    assert summary["checkpoint_step"] == 2


@pytest.mark.slow
def test_the_baseline_inside_a_run_is_scored_with_it_and_shown_in_the_report(evaluated, tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(evaluated, folder)
    tiny.train(folder / "baseline", retrieval__enabled=False)
    evaluate_command.evaluate_and_report(RunFolder(folder), ("--config.eval.split=test",))
    own, baseline = summary_of(folder), summary_of(folder / "baseline")
    assert own["gallery"]["enabled"] and baseline["gallery"] == {"enabled": False}
    assert baseline["retrieval"] == {} and "guides" not in baseline["protocol"]
    keys = [[(r["patient"], r["phase"], r["structure"]) for r in cases_of(f)] for f in (folder, folder / "baseline")]
    assert keys[0] == keys[1]
    printed = capsys.readouterr().out
    for summary in (own, baseline):
        assert f"{summary['mean']['dice']:.4f}" in printed
    page = (folder / "report.html").read_text()
    assert "against the baseline" in page and "No evaluated baseline" not in page
    kept = [
        sorted(f.name for f in RunFolder(f).find_evaluation().evidence.iterdir()) for f in (folder, folder / "baseline")
    ]
    assert kept[0] == kept[1] and len(kept[0]) == 6 and 'class="baseline"' in page


@pytest.mark.slow
def test_paper_protocol_is_warned_about_in_log_summary_and_report(evaluated, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(evaluated, folder)
    absl_logger = logging.getLogger("absl")
    absl_logger.addHandler(caplog.handler)
    try:
        summary = evaluate(folder, "--config.retrieval.exclude=none")
    finally:
        absl_logger.removeHandler(caplog.handler)
    warned = "not comparable with honest ones"
    assert any(warned in w for w in summary["warnings"])
    assert any(warned in r.getMessage() for r in caplog.records)
    assert "leaks" in summary["protocol"] and "never from the query's own patient" not in summary["protocol"]
    assert warned in report.write_report(folder).read_text()


def test_every_section_of_a_real_runs_report_has_its_content(evaluated):
    page = html.unescape(report.write_report(evaluated).read_text())
    for needed in ("Dice by slice position", "Agreement with the reference", "Spearman", "best slice there is (oracle)",
                   "nearest by pixels", "random gallery slice", "Training loss", "Validation Dice", "Guide 1",
                   "The paper's own kind of figure", "Confusion between structures", "Learning rate",
                   "Git revision"):  # fmt: skip
        assert needed in page, needed
    for missing in ("cases.csv is missing", "metrics.csv is missing", "run.json is missing", "no retrieval measures",
                    "holds no case", "has no entropy", "splits.json is missing"):  # fmt: skip
        assert missing not in page


def test_scans_without_spacing_are_scored_in_voxels_and_that_is_said(evaluated, tiny, tmp_path):
    """ACDC as some repackings have it: no unit, zooms of 1."""
    folder = tmp_path / "run"
    shutil.copytree(evaluated, folder)
    run = open_run(folder, ("--config.eval.split=test",))
    data = tiny.data(run)
    strip = lambda v: dataclasses.replace(v, spacing=np.ones(3, np.float32), spacing_known=False)  # noqa: E731
    data = dataclasses.replace(data, volumes={k: [strip(v) for v in vs] for k, vs in data.volumes.items()})
    summary = evaluation.evaluate(run, data)
    assert summary["unit"] == "voxel" and any("distances are in voxels" in w for w in summary["warnings"])
    assert {r["unit"] for r in cases_of(folder)} == {"voxel"}
    assert all(r["volume_ml"] == "nan" and int(r["reference_voxels"]) > 0 for r in cases_of(folder))
    assert summary["clinical"]["unit"] == "voxels" and summary["clinical"]["agreement"]["mass"]["n"] == 0
    assert "give no voxel spacing" in report.write_report(folder).read_text()


def test_the_command_writes_the_masks_that_it_scored_as_a_submission(trained_run, tmp_path, capsys):
    folder, out = tmp_path / "run", tmp_path / "submission"
    shutil.copytree(trained_run, folder)
    assert call("evaluate", f"--workdir={folder}", "--config.eval.split=test", f"--output={out}") == 0
    said = capsys.readouterr().out
    assert f"masks in the challenge's layout: {out}" in said and f"report: {folder / 'report.html'}" in said
    assert f"{summary_of(folder)['mean']['dice']:.4f}" in said and (folder / "report.html").is_file()
    assert len(list(out.glob("patient*_E[DS].nii.gz"))) == 6
    for case in cases_of(folder):
        mask = np.asarray(nib.load(out / f"{case['patient']}_{case['phase']}.nii.gz").dataobj)
        assert (mask == STRUCTURES[case["structure"]]).sum() == float(case["voxels"])
