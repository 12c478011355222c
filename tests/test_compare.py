"""Two runs compared: the same cases on both sides, the named statistics, and what is refused."""

import csv
import math

import numpy as np
import pytest

from jras_jax.commands import cli
from jras_jax.errors import UserError
from jras_jax.evaluation import compare, metrics, statistics
from tests.masks import LABELS, heart, save


def table(offset=0.0, patients=6, **changed):
    """cases.csv rows, Dice from a fixed pattern plus an offset."""
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(patients):
        for phase in ("ED", "ES"):
            for structure in ("RV", "LV"):
                dice = float(rng.uniform(0.5, 0.9)) + offset * (1 + 0.1 * patient)
                row = dict.fromkeys(metrics.CASE_COLUMNS, "") | dict.fromkeys(("jaccard", *metrics.DISTANCES), 1.0)
                row |= {"patient": f"{patient:03d}", "phase": phase, "structure": structure, "dice": dice, "unit": "mm"}
                rows.append(row | {"volume_ml": 1.0, "reference_volume_ml": 1.0} | changed)
    return rows


def run_folder(path, rows):
    metrics.write_cases_csv(path / "evaluation" / "validation" / "cases.csv", rows)
    return path


def run_compare(capsys, *arguments):
    code = cli.main(["compare", *(str(a) for a in arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_compare_finds_a_constant_gain(tmp_path, capsys):
    a, b = run_folder(tmp_path / "a", table()), run_folder(tmp_path / "b", table(0.05))
    code, out, _ = run_compare(capsys, a, b, "--metrics=dice", f"--output={tmp_path / 'c.csv'}")
    assert code == 0 and "B - A" in out
    with (tmp_path / "c.csv").open(newline="") as file:
        found = {r["structure"]: r for r in csv.DictReader(file)}
    assert list(found) == ["RV", "LV", "mean"]
    for row in found.values():
        gain = float(row["difference"])
        assert gain == pytest.approx(0.05 * 1.25) and float(row["mean_b"]) - float(row["mean_a"]) == pytest.approx(gain)
        assert 0.05 < float(row["low"]) < gain < float(row["high"]) < 0.075
        assert float(row["p"]) == pytest.approx(2 / 2**6)  # six patients, all better
        assert float(row["p_holm"]) == pytest.approx(3 * 2 / 2**6)  # three tests
        assert row["n_patients"] == "6"


def test_compare_equals_the_statistics_it_names():
    noise = np.random.default_rng(5).normal(0, 0.05, 24)
    a, b = table(), [r | {"dice": r["dice"] + float(d)} for r, d in zip(table(), noise, strict=True)]
    pairs, unmatched = compare.match_rows(a, b[::-1])
    mean = compare.compare(pairs, ["dice"])[-1]
    per_patient = noise.reshape(6, 4).mean(1)
    assert unmatched == 0 and mean.difference == pytest.approx(noise.mean())
    assert mean.p == pytest.approx(statistics.paired_wilcoxon(per_patient, np.zeros(6)))
    assert (mean.low, mean.high) == pytest.approx(statistics.bootstrap_mean(per_patient))


def test_compare_counts_what_has_no_distance(tmp_path):
    b = table()
    b[0] |= {"hd": math.nan, "empty": "prediction"}
    found = compare.compare(compare.match_rows(table(hd=2.0), b)[0], ["hd"])
    assert [(c.structure, c.n, c.n_missing) for c in found] == [("RV", 11, 1), ("LV", 12, 0), ("mean", 23, 1)]
    assert found[0].mean_a == 2.0  # the same pairs on both sides


def test_compare_refuses_different_cases_unless_told(tmp_path, capsys):
    a, b = run_folder(tmp_path / "a", table()), run_folder(tmp_path / "b", table(patients=5))
    code, _, err = run_compare(capsys, a, b)
    assert code == 2 and "005 ED RV" in err and "--allow_partial" in err and "Traceback" not in err
    code, out, _ = run_compare(capsys, a, b, "--allow_partial")
    assert code == 0 and "4 rows that only one run has" in out


def test_compare_refuses_duplicates_units_and_missing_columns():
    with pytest.raises(UserError, match="twice"):
        compare.match_rows(2 * table(), table())
    with pytest.raises(UserError, match="voxel"):
        compare.match_rows(table(), table(unit="voxel"))
    pairs, _ = compare.match_rows(table(), [{k: v for k, v in r.items() if k != "assd"} for r in table()])
    with pytest.raises(UserError, match="run B have no column assd"):
        compare.compare(pairs)


def test_compare_never_averages_mm_with_voxels(tmp_path, capsys):
    rows = table()
    rows[0]["unit"] = "voxel"
    a = run_folder(tmp_path / "a", rows)
    code, out, err = run_compare(capsys, a, a)
    assert code == 0 and "distances are left out" in err and " hd " not in out


def test_compare_names_what_is_missing(tmp_path, capsys):
    a = run_folder(tmp_path / "a", table())
    (tmp_path / "b").mkdir()
    for other, rule in ((tmp_path / "b", "jras evaluate --workdir="), (tmp_path / "c", "no such run folder")):
        code, _, err = run_compare(capsys, a, other)
        assert code == 2 and rule in err
    code, _, err = run_compare(capsys, a, a, "--metrics=dcie")
    assert code == 2 and "dcie" in err


def test_compare_takes_the_scores_of_folders(tmp_path, capsys):
    save(tmp_path / "reference" / "p1_ED_gt.nii.gz", heart())
    for name, prediction in (("a", heart(1)), ("b", heart())):
        save(tmp_path / name / "p1_ED_pred.nii.gz", prediction)
        folders = [str(tmp_path / folder) for folder in ("reference", name)]
        assert cli.main(["score", *folders, LABELS, f"--output={tmp_path / name}.csv"]) == 0
    capsys.readouterr()
    code, out, _ = run_compare(capsys, tmp_path / "a.csv", tmp_path / "b.csv")
    assert code == 0 and "1.0000" in out


def test_a_correction_does_not_depend_on_the_other_metrics_listed():
    noise = np.random.default_rng(6).normal(0.02, 0.02, 24)
    other = [r | {"dice": r["dice"] + float(d), "hd": 1.0 - float(d)} for r, d in zip(table(), noise, strict=True)]
    pairs, _ = compare.match_rows(table(), other)
    alone = {c.structure: c.p_holm for c in compare.compare(pairs, ["dice"])}
    beside = {c.structure: c.p_holm for c in compare.compare(pairs, ["hd", "dice"]) if c.metric == "dice"}
    assert alone == beside and all(0 < p <= 1 for p in alone.values())


def test_fewer_than_six_patients_are_not_tested(tmp_path, capsys):
    five, six = (
        compare.compare(compare.match_rows(table(patients=n), table(0.05, patients=n))[0], ["dice"]) for n in (5, 6)
    )
    assert all(math.isnan(c.p) and math.isnan(c.p_holm) for c in five)
    assert all(c.p == pytest.approx(2 / 2**6) for c in six)
    assert all(c.low > 0 for c in five)  # the interval is given all the same
    a, b = run_folder(tmp_path / "a", table(patients=5)), run_folder(tmp_path / "b", table(0.05, patients=5))
    code, out, _ = run_compare(capsys, a, b, "--metrics=dice")
    lines = [line for line in out.splitlines() if "dice" in line]
    assert code == 0 and len(lines) == 3 and all(line.split("│")[-3].strip() == "-" for line in lines)
