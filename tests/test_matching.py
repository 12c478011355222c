"""Which files are scored against each other, with which labels, and whether LV and RV look exchanged."""

import numpy as np
import pytest

from jras_jax.commands import cli
from jras_jax.data import names
from jras_jax.evaluation import matching, metrics
from tests.masks import LABELS, heart, save

OTHER_ORDER = np.array([0, 3, 2, 1], np.uint8)


def run(capsys, *arguments):
    code = cli.main(["score", *(str(a) for a in arguments)])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


def put(root, *files):
    for file in files:
        save(root / f"{file}.nii.gz", heart())
    return root


def matched(tmp_path):
    """Case -> (reference, prediction), as paths below their folders."""
    found = matching.match(tmp_path / "ref", tmp_path / "pred")
    return {
        p.case: (
            p.reference.relative_to(tmp_path / "ref").as_posix(),
            p.prediction.relative_to(tmp_path / "pred").as_posix(),
        )
        for p in found.pairs
    }, found.alone


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("patient901_4d", ("patient901", "", None)),
        ("patient901_4D", ("patient901", "", None)),
        ("patient901_frame01_0000", ("patient901", "", 1)),
        ("patient901_frame12_gt", ("patient901", "", 12)),
        ("patient901_ES", ("patient901", "ES", None)),
        ("A0S9V9_sa_gt", ("A0S9V9", "", None)),
        ("A0S9V9_sa_ED", ("A0S9V9", "ED", None)),
        ("001_SA_es", ("001", "ES", None)),
        ("case_0001", ("case_0001", "", None)),
        ("_4d", ("_4d", "", None)),
        ("ED", ("ED", "", None)),
    ],
)
def test_names_are_read_as_the_challenges_write_them(name, parts):
    assert names.parse(name)[:3] == parts


def test_nested_folders_with_equal_file_names_are_scored_by_path(tmp_path, capsys):
    for site, seed in (("a", 0), ("b", 1)):
        save(tmp_path / "ref" / site / "p1_ED_gt.nii.gz", heart(seed))
        save(tmp_path / "pred" / site / "p1_ED.nii.gz", heart(seed))
    code, _, err = run(capsys, tmp_path / "ref", tmp_path / "pred", LABELS, f"--output={tmp_path / 's.csv'}")
    rows = metrics.read_cases_csv(tmp_path / "s.csv")
    assert (code, err) == (0, "") and {r["dice"] for r in rows} == {1.0}
    assert {(r["case"], r["patient"], r["phase"]) for r in rows} == {
        ("a/p1_ED", "a/p1", "ED"),
        ("b/p1_ED", "b/p1", "ED"),
    }


def test_the_same_names_in_other_folders_are_matched(tmp_path):
    put(tmp_path / "ref", "training/p1/p1_frame01_gt", "training/p2/p2_frame01_gt")
    put(tmp_path / "pred", "p1/p1_frame01", "p2_frame01_pred".replace("_pred", ""))
    pairs, alone = matched(tmp_path)
    assert pairs == {
        "p1_frame01": ("training/p1/p1_frame01_gt.nii.gz", "p1/p1_frame01.nii.gz"),
        "p2_frame01": ("training/p2/p2_frame01_gt.nii.gz", "p2_frame01.nii.gz"),
    }
    assert not alone


def test_a_submission_is_matched_with_the_official_masks(tmp_path):
    """ACDC's submissions name the phase, its masks the frame; the ES of patient090 comes before the ED."""
    put(tmp_path / "ref", "patient090/patient090_frame11_gt", "patient090/patient090_frame04_gt", "X1/X1_sa_gt")
    (tmp_path / "ref/patient090/Info.cfg").write_text("ED: 11\nES: 4\n")
    put(tmp_path / "pred", "patient090_ED", "patient090_ES", "X1_pred")
    for file in ("patient090_ED", "patient090_ES"):
        (tmp_path / "pred" / f"{file}.nii.gz").rename(tmp_path / "pred" / f"{file}_pred.nii.gz")
    pairs, alone = matched(tmp_path)
    assert not alone and {v[0].split("/")[1]: v[1] for v in pairs.values()} == {
        "patient090_frame11_gt.nii.gz": "patient090_ED_pred.nii.gz",
        "patient090_frame04_gt.nii.gz": "patient090_ES_pred.nii.gz",
        "X1_sa_gt.nii.gz": "X1_pred.nii.gz",
    }


def test_what_is_not_sure_is_not_matched_but_named(tmp_path):
    put(tmp_path / "ref", "p1_frame01_gt", "a/q_gt", "b/q_gt", "r_sa_gt")
    put(tmp_path / "pred", "p1_ED", "c/q", "d/q", "r_la", "s")
    pairs, alone = matched(tmp_path)
    assert pairs == {}
    assert len(alone) == 9  # without an Info.cfg nothing says that frame 1 is ED; a long axis is no short axis
    assert sum("several files are named q" in line for line in alone) == 4
    assert any("holds no mask of case p1_frame01" in line for line in alone)


def test_missing_predictions_make_the_exit_status_1(tmp_path, capsys):
    put(tmp_path / "ref", "p1_ED_gt", "p2_ED_gt", "p3_ED_gt", "p4_ED_gt")
    put(tmp_path / "pred", "p1_ED")
    code, out, err = run(capsys, tmp_path / "ref", tmp_path / "pred", LABELS)
    assert code == 1 and "mean" in out
    assert all(f"p{n}_ED_gt.nii.gz" in err for n in (2, 3, 4))
    assert err.endswith("error: 3 files have no partner in the other folder; they are named above")


def test_each_folder_may_have_its_own_label_map(tmp_path, capsys):
    """The figures are those of predictions in the reference's own order."""
    put(tmp_path / "ref", "p1_gt")
    save(tmp_path / "same" / "p1.nii.gz", heart(1))
    save(tmp_path / "other" / "p1.nii.gz", OTHER_ORDER[heart(1)])
    own = ("--reference_labels=LV:1,MYO:2,RV:3", "--prediction_labels=RV:1,LV:3,MYO:2")
    found = []
    for folder, labels in (("same", [LABELS]), ("other", own), ("other", [LABELS, own[1]])):
        code, out, err = run(capsys, tmp_path / "ref", tmp_path / folder, *labels, f"--output={tmp_path / 's.csv'}")
        assert (code, err) == (0, "") and "exchanged" not in out
        found.append((tmp_path / "s.csv").read_bytes())
    assert found[0] == found[1] == found[2]


def test_mistakes_in_the_two_label_maps_are_named(tmp_path, capsys):
    put(tmp_path / "ref", "p1_gt")
    for given, words in (
        ((), "score needs --labels="),
        (("--reference_labels=LV:1",), "--prediction_labels"),
        (("--labels=LV:1", "--prediction_labels=LV:1,RV:2"), "give the same structures for both folders"),
        (("--labels=LV:1", "--prediction_labels=LV"), "--prediction_labels=LV: 'LV' is not NAME:LABEL"),
    ):
        code, _, err = run(capsys, tmp_path / "ref", tmp_path / "ref", *given)
        assert code == 2 and err.startswith("error: ") and words in err


@pytest.mark.parametrize("side", ["ref", "pred", "both", "one file"])
def test_exchanged_cavities_are_warned_about_beside_the_scores(tmp_path, capsys, side):
    for case in ("a", "b", "c"):
        for folder in ("ref", "pred"):
            wrong = side in (folder, "both") or (side == "one file" and (case, folder) == ("b", "pred"))
            save(tmp_path / folder / f"{case}.nii.gz", OTHER_ORDER[heart()] if wrong else heart())
    code, out, err = run(capsys, tmp_path / "ref", tmp_path / "pred", LABELS)
    assert code == 0
    folders = {"ref": ["ref"], "pred": ["pred"], "both": ["ref", "pred"], "one file": ["pred"]}[side]
    for text in (" ".join(out.split()), err):
        assert text.count("LV and RV seem exchanged") == len(folders)
        assert all(f"warning: {tmp_path / folder}: " in text for folder in folders)
        assert "give --labels=LV:3,MYO:2,RV:1" in text
    if side == "one file":
        assert "in 1 of its masks, such as b.nii.gz" in err
