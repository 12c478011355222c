"""Metrics: the challenge's own figures, MedPy as an oracle, declared rules for empty masks, tables that round-trip."""

import csv
import json
import math

import numpy as np
import pytest

from jras_jax.data import nifti
from jras_jax.errors import UserError
from jras_jax.evaluation import metrics

SPACING = (1.4, 1.25, 8.0)
ONE = {"LV": 1}


def blobs(seed, shape=(20, 18, 6)):
    """Labels 0 to 3 in smooth patches, touching the borders too."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, [-(-n // 4) for n in shape])
    return np.kron(coarse, np.ones((4, 4, 4), int))[tuple(slice(n) for n in shape)].astype(np.uint8)


def row(**changed):
    base = {"patient": "001", "phase": "ED", "group": "DCM", "vendor": "", "centre": "1", "structure": "LV"}
    base |= {"dice": 0.9, "jaccard": 0.8, "hd": 5.0, "hd95": 3.0, "assd": 1.0, "unit": "mm", "empty": ""}
    return base | {"volume_ml": 100.0, "reference_volume_ml": 110.0} | changed


def test_reproduces_the_mnms_challenges_own_evaluation(shared):
    folder = shared / "golden" / "mnms_metrics"
    with (folder / "expected.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    assert len(expected) == 8
    for case in expected:
        truth = nifti.read_labels(folder / f"{case['Name']}_gt.nii.gz")
        found = nifti.read_labels(folder / f"{case['Name']}_pred.nii.gz")
        scores = metrics.score_structures(
            truth.array, found.array, spacing=truth.spacing, structures={"LV": 1, "MYO": 2, "RV": 3}
        )
        for name, s in scores.items():
            ours = {"Dice": s.dice, "Jaccard": s.jaccard, "Hausdorff": s.hd, "ASSD": s.assd}
            for title, value in ours.items():
                assert value == pytest.approx(float(case[f"{title} {name}"]), abs=1e-6), (case["Name"], title, name)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(20, 18, 6), (25, 22)])
def test_equals_medpy(seed, shape):
    oracle = pytest.importorskip("medpy.metric.binary")
    volumes = [blobs(100 * seed + i, (*shape, 1)[:3]).reshape(shape) for i in (0, 1)]
    spacing = SPACING[: len(shape)]
    for label, s in metrics.score_structures(*volumes, spacing, {"a": 1, "b": 2, "c": 3}).items():
        a, b = (v == " abc".index(label) for v in volumes)
        assert a.any() and b.any()
        assert s.dice == pytest.approx(oracle.dc(b, a), abs=1e-12)
        assert s.jaccard == pytest.approx(oracle.jc(b, a), abs=1e-12)
        assert s.hd == pytest.approx(oracle.hd(b, a, voxelspacing=spacing), abs=1e-9)
        assert s.hd95 == pytest.approx(oracle.hd95(b, a, voxelspacing=spacing), abs=1e-9)
        # MedPy 0.5's assd pools both ways' distances; the challenge's figure is the mean of the two directed means.
        directed = [oracle.asd(x, y, voxelspacing=spacing) for x, y in ((a, b), (b, a))]
        assert s.assd == pytest.approx(np.mean(directed), abs=1e-9)


def test_hand_computed_distances_volumes_and_jaccard():
    a, b = np.zeros((12, 3, 3), np.uint8), np.zeros((12, 3, 3), np.uint8)
    a[1, 1, 1] = 1
    b[1, 1, 1] = b[5, 1, 1] = 1  # directed distances: a to b 0; b to a 0 and 4 voxels of 2 mm
    s = metrics.score_structures(a, b, spacing=(2.0, 1.0, 5.0), structures=ONE)["LV"]
    assert (s.dice, s.jaccard) == (pytest.approx(2 / 3), 0.5)
    assert s.hd == 8.0
    assert s.assd == pytest.approx((0 + (0 + 8) / 2) / 2)  # the mean of the means; pooled would be 8 / 3
    assert s.hd95 == pytest.approx(np.percentile([0, 0, 8], 95))
    assert (s.volume_ml, s.reference_volume_ml) == (pytest.approx(0.02), pytest.approx(0.01))
    assert (s.voxels, s.reference_voxels) == (2, 1)


def test_invariances():
    a, b = blobs(1), blobs(2)
    one = metrics.score_structures(a, b, SPACING)
    swapped = metrics.score_structures(b, a, SPACING)
    turned = metrics.score_structures(a.transpose(2, 0, 1), b.transpose(2, 0, 1), (8.0, 1.4, 1.25))
    padded = metrics.score_structures(np.pad(a, 5), np.pad(b, 5), SPACING)
    doubled = metrics.score_structures(a, b, [2 * x for x in SPACING])
    for name, s in one.items():
        for other in (swapped, turned, padded):
            values = [getattr(other[name], k) for k in ("dice", "jaccard", "hd", "hd95", "assd")]
            np.testing.assert_allclose(values, [s.dice, s.jaccard, s.hd, s.hd95, s.assd], rtol=1e-12)
        assert doubled[name].hd == pytest.approx(2 * s.hd) and doubled[name].assd == pytest.approx(2 * s.assd)
        assert doubled[name].volume_ml == pytest.approx(8 * s.volume_ml) and doubled[name].dice == s.dice


def test_a_perfect_mask_scores_one_and_zero():
    for s in metrics.score_structures(blobs(3), blobs(3), SPACING).values():
        assert (s.dice, s.jaccard, s.hd, s.hd95, s.assd, s.empty) == (1, 1, 0, 0, 0, "")


def test_rules_for_empty_masks():
    nothing, something = np.zeros((5, 5, 2), np.uint8), np.zeros((5, 5, 2), np.uint8)
    something[2, 2] = 1
    both = metrics.score_structures(nothing, nothing, spacing=SPACING, structures=ONE)["LV"]
    assert (both.dice, both.jaccard, both.hd, both.hd95, both.assd, both.empty) == (1, 1, 0, 0, 0, "both")
    for pair, name in (((nothing, something), "reference"), ((something, nothing), "prediction")):
        s = metrics.score_structures(*pair, SPACING, ONE)["LV"]
        assert (s.dice, s.jaccard, s.empty) == (0, 0, name)
        assert all(math.isnan(x) for x in (s.hd, s.hd95, s.assd))


def test_unknown_spacing_gives_voxels_and_no_ml():
    a, b = blobs(1), blobs(2)
    unknown, ones = (metrics.score_structures(a, b, s)["LV"] for s in (None, (1, 1, 1)))
    assert unknown.hd == ones.hd and math.isnan(unknown.volume_ml) and math.isnan(unknown.reference_volume_ml)
    assert unknown.voxels == int((b == 3).sum())


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, 1, math.nan), (-1, 1, 1)])
def test_wrong_spacing_and_shapes_raise(spacing):
    with pytest.raises(ValueError, match="spacing"):
        metrics.score_structures(blobs(1), blobs(2), spacing)
    with pytest.raises(ValueError, match="shape"):
        metrics.score_structures(blobs(1), blobs(2)[1:], SPACING)


@pytest.mark.parametrize(
    ("labelled", "thirds"),
    [(1, "m"), (2, "ba"), (3, "bma"), (4, "bmma"), (6, "bbmmaa"), (10, "bbbmmmmaaa")],
)
@pytest.mark.parametrize("apex_first", [False, True])
def test_slice_positions_are_thirds_of_the_labelled_range_from_the_base(labelled, thirds, apex_first):
    reference = np.zeros((20, 20, labelled + 3), np.uint8)
    for i in range(labelled):
        reference[: 18 - i, 4:8, 2 + i] = 3  # the ventricle narrows towards the apex
    expected = ["", "", *({"b": "base", "m": "mid", "a": "apex"}[t] for t in thirds), ""]
    if apex_first and labelled > 1:
        reference, expected = reference[..., ::-1], expected[::-1]
    elif apex_first:
        return
    assert metrics.slice_positions(reference).tolist() == expected


def test_a_gap_inside_the_labelled_range_has_a_position():
    reference = np.zeros((8, 8, 4), np.uint8)
    reference[:6, :6, 0], reference[:3, :3, 2] = 3, 3
    assert metrics.slice_positions(reference).tolist() == ["base", "mid", "apex", ""]
    assert metrics.slice_positions(reference * 0).tolist() == [""] * 4


def test_position_scores_find_the_third_that_fails():
    reference = np.zeros((20, 20, 9), np.uint8)
    for z in range(9):
        reference[: 18 - z, 4:8, z] = 3
    prediction = reference.copy()
    prediction[:, :, 6:] = 0
    rows = metrics.position_scores(reference, prediction, {"LV": 3, "RV": 1})
    found = {(r["position"], r["structure"]): (r["dice"], r["empty"]) for r in rows}
    assert found["base", "LV"] == found["mid", "LV"] == (1.0, "")
    assert found["apex", "LV"] == (0.0, "prediction")
    assert found["apex", "RV"] == (1.0, "both")
    whole = metrics.score_structures(reference, prediction, spacing=None, structures={"LV": 3})["LV"]
    counts = [sum(r[k] for r in rows if r["structure"] == "LV") for k in ("voxels", "reference_voxels")]
    assert counts == [whole.voxels, whole.reference_voxels]


def test_paper_2d_is_per_slice_in_pixels_of_the_square_grid():
    reference = np.zeros((128, 64, 4), np.uint8)
    reference[40:80, 20:40, 1] = 1
    reference[40:80, 20:40, 2] = 1
    prediction = reference.copy()
    prediction[..., 2] = np.roll(prediction[..., 2], 5, 0)  # 5 native pixels along X: 10 of 256
    prediction[:, :, 3] = 1  # a slice without reference: dropped
    rows = metrics.paper_2d_scores(reference, prediction, ONE)
    assert [r["slice_index"] for r in rows] == [1, 2]
    assert (rows[0]["dice_2d"], rows[0]["hd_2d_px"]) == (1.0, 0.0)
    assert (rows[1]["dice_2d"], rows[1]["hd_2d_px"]) == (pytest.approx(35 / 40), 10.0)
    total = metrics.aggregate_paper_2d([rows, rows])
    assert total["n_slices"] == 4 and total["hd_2d_px"] == 5.0
    assert total["dice_2d"] == pytest.approx((1 + 0.875) / 2)
    assert total["dice_2d_sd"] == pytest.approx(np.std([1, 0.875, 1, 0.875], ddof=1))


def test_paper_2d_counts_what_has_no_distance():
    reference = np.zeros((16, 16, 2), np.uint8)
    reference[2:8, 2:8] = 3
    prediction = reference.copy()
    prediction[:, :, 1] = 0
    rows = metrics.paper_2d_scores(reference, prediction, {"LV": 3, "RV": 1}, size=16)
    total = metrics.aggregate_paper_2d([rows])
    assert (total["n_slices"], total["n_no_distance"], total["n_empty_both"]) == (2, 1, 2)
    assert total["hd_2d_px"] == 0.0 and total["dice_2d"] == pytest.approx((1 + 0.5) / 2)
    assert metrics.aggregate_paper_2d([])["dice_2d"] is None


def test_aggregate_means_and_counts():
    rows = [
        row(dice=0.9, hd=4.0),
        row(phase="ES", dice=0.7, hd=8.0),
        row(patient="002", structure="RV", dice=0.0, hd=math.nan, hd95=math.nan, assd=math.nan, empty="prediction"),
        row(patient="002", phase="", dice=1.0, hd=0.0, empty="both"),
    ]
    total = metrics.aggregate(rows)
    mean = total["mean"]
    assert mean["dice"] == pytest.approx(2.6 / 4) and mean["hd"] == pytest.approx(12 / 3)
    assert (mean["n"], mean["n_patients"], mean["n_empty"], mean["n_no_distance"]) == (4, 2, 2, 1)
    assert (mean["n_empty_both"], mean["n_empty_prediction"], mean["n_empty_reference"]) == (1, 1, 0)
    assert list(total["by"]) == ["LV/ED", "LV/ES", "RV/ED", "LV"]
    assert total["by"]["RV/ED"]["hd"] is None and total["by"]["RV/ED"]["dice"] == 0.0
    json.dumps(total, allow_nan=False)


def test_aggregate_never_averages_mm_with_voxels():
    mean = metrics.aggregate([row(), row(patient="002", unit="voxel")])["mean"]
    assert mean["unit"] == "mixed" and mean["hd"] is mean["assd"] is None and mean["dice"] == pytest.approx(0.9)


def test_cases_csv_round_trips(tmp_path):
    rows = [
        row(dice=1 / 3, hd=math.nan, entropy=0.1 + 0.2, voxels=7),
        row(patient="1e5", group='a,"b"\nc', vendor="é", dice=np.float32(0.1), entropy=np.float64(2 / 3), voxels=0),
    ]
    metrics.write_cases_csv(tmp_path / "new" / "cases.csv", rows)
    back = metrics.read_cases_csv(tmp_path / "new" / "cases.csv")
    assert [list(r) for r in back] == [[*metrics.CASE_COLUMNS, "entropy", "voxels"]] * 2
    for before, after in zip(rows, back, strict=True):
        for key, value in before.items():
            same = after[key] == value or (math.isnan(value) and math.isnan(after[key]))
            assert same and isinstance(after[key], str) == isinstance(value, str), key


def test_cases_csv_faults_name_file_and_column(tmp_path):
    path = tmp_path / "cases.csv"
    with pytest.raises(UserError, match="is missing: a table of scores"):
        metrics.read_cases_csv(path)
    path.write_text("patient,phase,dice\n")
    with pytest.raises(UserError, match="no column structure"):
        metrics.read_cases_csv(path)
    path.write_text("patient,phase,structure,dice\n")
    with pytest.raises(UserError, match="no rows"):
        metrics.read_cases_csv(path)
    with pytest.raises(ValueError, match="assd"):
        metrics.write_cases_csv(path, [{k: v for k, v in row().items() if k != "assd"}])
