"""Clinical indices and agreement: hand-computed examples, scipy, and what may not be called ml."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from jras_jax.errors import UserError
from jras_jax.evaluation import clinical


def rows(patient="p1", unit="mm", scale=1.0, group="NOR", **volumes):
    """Rows of one patient; LV_ED=(predicted, reference) in ml."""
    made = []
    for key, (predicted, reference) in volumes.items():
        structure, phase = key.split("_")
        shared = {"patient": patient, "group": group, "structure": structure, "phase": phase, "unit": unit}
        made.append(shared | {"volume_ml": scale * predicted, "reference_volume_ml": scale * reference})
    return made


WHOLE = {
    "LV_ED": (150.0, 160.0),
    "LV_ES": (60.0, 64.0),
    "RV_ED": (200.0, 180.0),
    "RV_ES": (100.0, 72.0),
    "MYO_ED": (100.0, 120.0),
    "MYO_ES": (110.0, 125.0),
}


def test_indices_by_hand():
    (found,) = clinical.patient_indices(rows(**WHOLE))
    p, r = found.predicted, found.reference
    assert (found.patient, found.group, found.unit) == ("p1", "NOR", "ml")
    assert (p.lv_edv, p.lv_esv, p.lv_sv, p.lv_ef) == (150, 60, 90, pytest.approx(60.0))
    assert (r.rv_edv, r.rv_esv, r.rv_sv, r.rv_ef) == (180, 72, 108, pytest.approx(60.0))
    assert (p.mass, r.mass) == (pytest.approx(105.0), pytest.approx(126.0))  # the ED myocardium, 1.05 g/ml


def test_ejection_fraction_does_not_depend_on_the_unit_and_mass_needs_it():
    (ml,) = clinical.patient_indices(rows(**WHOLE))
    (voxels,) = clinical.patient_indices(rows(unit="voxel", scale=0.4, **WHOLE))
    assert voxels.unit == "voxels" and math.isnan(voxels.predicted.mass) and math.isnan(voxels.reference.mass)
    assert voxels.predicted.lv_ef == pytest.approx(ml.predicted.lv_ef)
    assert voxels.predicted.lv_edv == pytest.approx(60_000)  # a spacing of 1 calls 1,000 voxels 1 ml


def test_counts_of_voxels_are_preferred_where_the_rows_have_them():
    made = [r | {"volume_ml": math.nan, "voxels": 300, "reference_voxels": 400} for r in rows(unit="voxel", **WHOLE)]
    (found,) = clinical.patient_indices(made)
    assert (found.predicted.lv_edv, found.reference.rv_esv) == (300, 400)


def test_what_is_missing_is_nan():
    (found,) = clinical.patient_indices(rows(LV_ED=(0.0, 100.0), LV_ES=(0.0, 50.0)))
    assert math.isnan(found.predicted.lv_ef) and found.predicted.lv_sv == 0
    assert found.reference.lv_ef == 50.0
    assert math.isnan(found.reference.rv_edv) and math.isnan(found.reference.mass)


def test_faulty_tables_are_refused():
    with pytest.raises(UserError, match="p1"):
        clinical.patient_indices(rows(LV_ED=(1, 1)) + rows(unit="voxel", LV_ES=(1, 1)))
    with pytest.raises(UserError, match="two rows of LV at ED"):
        clinical.patient_indices(2 * rows(LV_ED=(1, 1)))


def test_agreement_by_hand():
    a = clinical.agreement([11.0, 19.0, 33.0, math.nan], [10.0, 20.0, 30.0, 1.0], "ml")
    assert (a.n, a.n_missing, a.unit) == (3, 1, "ml")
    assert a.bias == pytest.approx(1.0)  # differences 1, -1, 3
    assert a.sd == pytest.approx(2.0)
    assert (a.low, a.high) == (pytest.approx(1 - 3.92), pytest.approx(1 + 3.92))
    assert a.mean_absolute == pytest.approx(5 / 3)


def test_agreement_against_scipy():
    rng = np.random.default_rng(0)
    r = rng.normal(100, 20, 40)
    p = r + rng.normal(2, 5, 40)
    a = clinical.agreement(p, r)
    assert a.pearson == pytest.approx(stats.pearsonr(p, r).statistic)
    inside = np.mean((p - r >= a.low) & (p - r <= a.high))
    assert 0.9 <= inside <= 1.0


def test_agreement_of_nothing_one_or_constants_is_nan():
    assert clinical.agreement([], []).n == 0
    one = clinical.agreement([2.0], [1.0])
    assert one.bias == 1.0 and math.isnan(one.sd) and math.isnan(one.low) and math.isnan(one.pearson)
    assert math.isnan(clinical.agreement([1.0, 2.0], [3.0, 3.0]).pearson)


def test_summary_in_ml():
    made = rows("p1", **WHOLE) + rows("p2", **{k: (p + 10, r) for k, (p, r) in WHOLE.items()})
    found = clinical.clinical_summary(made)
    assert (found["unit"], found["note"]) == ("ml", "")
    assert found["agreement"]["lv_edv"]["bias"] == pytest.approx((-10 + 0) / 2)
    assert [found["agreement"][k]["unit"] for k in ("lv_edv", "rv_sv", "lv_ef", "mass")] == ["ml", "ml", "%", "g"]
    assert found["patients"][0]["predicted"]["mass"] == pytest.approx(105.0)
    json.dumps(found, allow_nan=False)


def test_summary_in_voxels_says_so_and_never_says_ml():
    found = clinical.clinical_summary(rows(unit="voxel", **WHOLE) + rows("p2", unit="voxel", **WHOLE))
    assert found["unit"] == "voxels" and "spacing" in found["note"]
    assert {a["unit"] for a in found["agreement"].values()} == {"voxels", "%", "g"}
    assert found["agreement"]["mass"]["n"] == 0 and found["agreement"]["mass"]["bias"] is None
    assert found["agreement"]["lv_ef"]["n"] == 2
    assert '"ml"' not in json.dumps(found, allow_nan=False)


def test_summary_of_mixed_units_compares_volumes_in_ml_alone():
    found = clinical.clinical_summary(rows("p1", **WHOLE) + rows("p2", unit="voxel", **WHOLE))
    assert found["unit"] == "mixed" and found["note"]
    assert (found["agreement"]["lv_edv"]["n"], found["agreement"]["lv_edv"]["n_missing"]) == (1, 1)
    assert found["agreement"]["lv_ef"]["n"] == 2
