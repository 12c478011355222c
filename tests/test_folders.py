"""Folders of masks: what is scored, what is named, what is refused."""

import csv
import math

import numpy as np
import pytest

from jras_jax.commands import cli
from jras_jax.data.pairs import parse_labels
from jras_jax.errors import UserError
from jras_jax.evaluation import metrics
from tests.masks import AFFINE, LABELS, heart, save


def run(capsys, *arguments):
    code = cli.main(["score", *(str(a) for a in arguments)])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


@pytest.fixture
def folders(tmp_path):
    for case in ("p1_ED", "p1_ES"):
        save(tmp_path / "ref" / f"{case}_gt.nii.gz", heart())
        save(tmp_path / "pred" / f"{case}_pred.nii.gz", heart(1))
    return tmp_path / "ref", tmp_path / "pred"


def test_golden_folder_holds_both_sides_and_every_figure_matches(shared, tmp_path, capsys):
    folder = shared / "golden" / "mnms_metrics"
    code, out, _ = run(capsys, folder, folder, LABELS, f"--output={tmp_path / 'scores.csv'}")
    assert code == 0 and "mean" in out
    with (tmp_path / "scores.csv").open(newline="") as file:
        ours = {(r["case"], r["structure"]): r for r in csv.DictReader(file)}
    with (folder / "expected.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    assert len(ours) == 3 * len(expected) == 24
    for case in expected:
        for name in ("LV", "MYO", "RV"):
            for theirs, column in (("Dice", "dice"), ("Jaccard", "jaccard"), ("Hausdorff", "hd"), ("ASSD", "assd")):
                value = float(ours[case["Name"], name][column])
                assert value == pytest.approx(float(case[f"{theirs} {name}"]), abs=1e-6)


def test_scores_by_name_and_reads_back(folders, tmp_path, capsys):
    output = tmp_path / "scores.csv"
    code, out, err = run(capsys, *folders, LABELS, f"--output={output}")
    assert (code, err) == (0, "") and "LV" in out
    rows = metrics.read_cases_csv(output)
    assert [(r["case"], r["patient"], r["phase"]) for r in rows[::3]] == [("p1_ED", "p1", "ED"), ("p1_ES", "p1", "ES")]
    expected = metrics.score_structures(heart(), heart(1), spacing=(1.5, 1.5, 8.0), structures={"LV": 1})["LV"]
    found = next(r for r in rows if r["structure"] == "LV")
    assert found["dice"] == expected.dice and found["hd"] == pytest.approx(expected.hd) == 1.5
    assert found["volume_ml"] == pytest.approx(1.8)  # 100 voxels of 18 mm3
    assert (found["voxels"], found["reference_voxels"], found["unit"]) == (100, 80, "mm")


def test_unmatched_files_are_named_and_the_rest_is_scored(folders, capsys):
    save(folders[0] / "p2_ED_gt.nii.gz", heart())
    save(folders[1] / "p3_ED_pred.nii.gz", heart())
    code, _, err = run(capsys, *folders, LABELS)
    assert code == 1 and "p2_ED_gt.nii.gz" in err and "p3_ED_pred.nii.gz" in err
    assert err.endswith("error: 2 files have no partner in the other folder; they are named above")


@pytest.mark.parametrize(
    ("labels", "affine", "rule"),
    [
        (heart()[1:], AFFINE, "shape"),
        (heart(), np.diag([1.5, 1.6, 8.0, 1.0]), "voxels are"),
        (heart(), np.diag([-1.5, 1.5, 8.0, 1.0]), "other directions"),
    ],
)
def test_a_geometry_mismatch_is_named_and_not_scored(folders, capsys, tmp_path, labels, affine, rule):
    save(folders[1] / "p1_ES_pred.nii.gz", labels, affine)
    code, _, err = run(capsys, *folders, LABELS, f"--output={tmp_path / 's.csv'}")
    assert code == 1 and "p1_ES_pred.nii.gz" in err and rule in err
    assert {r["case"] for r in metrics.read_cases_csv(tmp_path / "s.csv")} == {"p1_ED"}


def test_a_moved_affine_is_only_remarked_on(folders, capsys):
    moved = AFFINE.copy()
    moved[:3, 3] = 4.0
    save(folders[1] / "p1_ES_pred.nii.gz", heart(), moved)
    code, _, err = run(capsys, *folders, LABELS)
    assert code == 0 and "p1_ES_pred.nii.gz" in err and "4 mm off" in err


def test_damaged_files_are_named(folders, capsys):
    (folders[1] / "p1_ES_pred.nii.gz").write_bytes(b"not a scan")
    code, _, err = run(capsys, *folders, LABELS)
    assert code == 1 and "p1_ES_pred.nii.gz" in err


def test_unknown_spacing_is_in_voxels_without_ml(tmp_path, capsys):
    save(tmp_path / "ref" / "a.nii", heart(), affine=np.eye(4), unit="unknown")
    save(tmp_path / "pred" / "a.nii.gz", heart(1), affine=np.eye(4), unit="unknown")
    code, out, _ = run(capsys, tmp_path / "ref", tmp_path / "pred", LABELS, f"--output={tmp_path / 's.csv'}")
    assert code == 0 and "voxel" in out and "ml" not in out
    lv = metrics.read_cases_csv(tmp_path / "s.csv")[0]
    assert (lv["unit"], lv["hd"], lv["voxels"]) == ("voxel", 1.0, 100) and math.isnan(lv["volume_ml"])


def test_4d_masks_are_scored_at_the_frames_the_reference_labels(tmp_path, capsys):
    truth = np.stack([heart(), 0 * heart(), heart()], -1)
    found = np.stack([heart(), heart(), heart(1)], -1)
    save(tmp_path / "ref" / "X1" / "X1_sa_gt.nii.gz", truth)
    save(tmp_path / "ref" / "X1" / "X1_sa.nii.gz", truth)  # the scan beside its mask is no mask
    save(tmp_path / "pred" / "X1_sa.nii.gz", found)
    code, _, err = run(capsys, tmp_path / "ref", tmp_path / "pred", LABELS, f"--output={tmp_path / 's.csv'}")
    rows = metrics.read_cases_csv(tmp_path / "s.csv")
    assert (code, err) == (0, "")
    assert [(r["case"], r["patient"], r["phase"]) for r in rows[::3]] == [
        ("X1_sa_t00", "X1_sa", "t00"),
        ("X1_sa_t02", "X1_sa", "t02"),
    ]
    assert rows[0]["dice"] == 1.0 and rows[3]["dice"] < 1.0


def test_empty_predictions_are_counted_not_hidden(folders, tmp_path, capsys):
    save(folders[1] / "p1_ES_pred.nii.gz", 0 * heart())
    code, out, _ = run(capsys, *folders, "--labels=LV:1", f"--output={tmp_path / 's.csv'}")
    lv = next(line for line in out.splitlines() if " LV " in line).split("│")
    assert code == 0 and [cell.strip() for cell in lv[-3:-1]] == ["1", "1"]  # empty, no distance
    row = metrics.read_cases_csv(tmp_path / "s.csv")[1]
    assert (row["dice"], row["empty"]) == (0.0, "prediction") and math.isnan(row["hd"])


def test_foreign_labels_are_named(folders, capsys):
    _, _, err = run(capsys, *folders, "--labels=LV:1,RV:3")
    assert "labels [2] are not in --labels" in err


@pytest.mark.parametrize("text", ["", "LV", "LV:x", "LV:0", "LV:256", "LV:1,LV:2", "LV:1,RV:1", ":1"])
def test_faulty_labels_are_refused(text):
    with pytest.raises(UserError, match="--labels"):
        parse_labels(text)


def test_faulty_folders_are_refused(folders, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    save(tmp_path / "other" / "q.nii.gz", heart())
    for where, rule in (("nowhere", "no such folder"), ("none", "holds no .nii"), ("other", "no case in common")):
        code, _, err = run(capsys, folders[0], tmp_path / where, LABELS)
        assert code == 2 and rule in err and where in err
    save(folders[1] / "sub" / "p1_ED_pred.nii.gz", heart())
    code, _, err = run(capsys, *folders, LABELS)
    assert code == 1 and "holds no mask of case sub/p1_ED" in err
