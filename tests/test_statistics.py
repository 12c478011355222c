"""Statistics: each against scipy or an example computed by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from jras_jax.evaluation import statistics


def test_summary_of_a_hand_computed_example():
    s = statistics.summarise([1.0, 2.0, math.nan, 6.0], ["a", "a", "b", "c"])
    assert (s.n, s.n_missing, s.n_patients) == (3, 1, 2)
    assert (s.mean, s.median) == (3.0, 2.0)
    assert s.sd == pytest.approx(math.sqrt((4 + 1 + 9) / 2))


def test_bootstrap_equals_scipys_percentile_bootstrap():
    x = np.random.default_rng(0).gamma(2.0, size=60)
    ours = statistics.bootstrap_mean(x, resamples=20_000)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.02) and ours.high == pytest.approx(theirs.high, abs=0.02)


def test_bootstrap_of_two_patients_by_hand():
    # Draws of two from {a: 0, b: 1}: means 0, 1/2, 1 with chances 1/4, 1/2, 1/4.
    assert statistics.bootstrap_mean([0, 1], level=0.9) == (0.0, 1.0)
    assert statistics.bootstrap_mean([0, 1], level=0.4) == (0.5, 0.5)


def test_bootstrap_resamples_patients_not_values():
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(20), 12)
    x = np.repeat(rng.normal(size=20), 12) + 0.01 * rng.normal(size=240)  # a patient's values are nearly the same
    by_patient, by_value = statistics.bootstrap_mean(x, patients), statistics.bootstrap_mean(x)
    assert by_patient.high - by_patient.low > 2.5 * (by_value.high - by_value.low)
    means = statistics.bootstrap_mean(x.reshape(20, 12).mean(1))  # equal counts: the bootstrap of the patients' means
    assert by_patient == pytest.approx(means, abs=1e-9)


def test_bootstrap_weighs_patients_by_their_values():
    # Whole patients are drawn, yet the statistic is the mean of all values: an interval about 3/4, not 1/2.
    low, high = statistics.bootstrap_mean([1, 1, 1, 0], ["a", "a", "a", "b"], level=0.4)
    assert low == high == 0.75


def test_bootstrap_is_seeded_and_covers():
    x = np.random.default_rng(3).normal(size=(200, 30))
    assert statistics.bootstrap_mean(x[0], seed=1) == statistics.bootstrap_mean(x[0], seed=1)
    assert statistics.bootstrap_mean(x[0], seed=1) != statistics.bootstrap_mean(x[0], seed=2)
    intervals = [statistics.bootstrap_mean(row, resamples=400) for row in x]
    covered = np.mean([low <= 0 <= high for low, high in intervals])
    assert 0.87 < covered < 0.99


def test_nothing_to_summarise_is_nan_not_an_error():
    s = statistics.summarise([math.nan], ["a"])
    assert (s.n, s.n_missing) == (0, 1) and math.isnan(s.mean) and math.isnan(s.low)
    one = statistics.summarise([2.0])
    assert (one.mean, one.low, one.high) == (2.0, 2.0, 2.0) and math.isnan(one.sd)
    with pytest.raises(ValueError, match="patients"):
        statistics.bootstrap_mean([1, 2], ["a"])


def test_breakdown_by_any_key():
    rows = [
        {"patient": "1", "vendor": "A", "dice": 0.5, "hd": 4.0},
        {"patient": "1", "vendor": "A", "dice": 0.7, "hd": math.nan},
        {"patient": "2", "vendor": "", "dice": 0.9, "hd": 2.0},
    ]
    found = statistics.breakdown(rows, "vendor")
    assert list(found) == ["A", "unknown"] and found["A"].mean == pytest.approx(0.6) and found["A"].n_patients == 1
    assert statistics.breakdown(rows, "vendor", "hd")["A"].n_missing == 1
    assert list(statistics.breakdown(rows, "centre")) == ["unknown"]


def test_patient_means():
    found = statistics.patient_means(["b", "a", "b", "c"], [1.0, 5.0, 3.0, math.nan])
    assert found == {"b": 2.0, "a": 5.0} and list(found) == ["b", "a"]


def test_wilcoxon_equals_scipy_and_a_hand_computed_example():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=25), rng.normal(0.4, size=25)
    assert statistics.paired_wilcoxon(a, b) == pytest.approx(stats.wilcoxon(a, b).pvalue)
    # Five positive differences: one of 2 ** 5 sign patterns is as extreme on each side.
    assert statistics.paired_wilcoxon([1, 2, 3, 4, 5], [0] * 5) == pytest.approx(2 / 32)


def test_wilcoxon_without_differences_or_pairs():
    assert statistics.paired_wilcoxon([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert math.isnan(statistics.paired_wilcoxon([], []))


def test_holm_by_hand():
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(statistics.holm([0.5, 0.9]), [1.0, 1.0])
    np.testing.assert_allclose(statistics.holm([0.02, math.nan, 0.01]), [0.02, math.nan, 0.02])
    assert len(statistics.holm([])) == 0 and np.isnan(statistics.holm([math.nan])).all()


def test_holm_lies_between_the_raw_and_bonferronis():
    p = np.random.default_rng(2).uniform(size=12) ** 3
    adjusted = statistics.holm(p)
    assert (adjusted >= p).all() and (adjusted <= np.minimum(1, 12 * p) + 1e-15).all()
    assert adjusted[p.argmin()] == pytest.approx(min(1.0, 12 * p.min()))
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()


def test_spearman_equals_scipy_and_a_hand_computed_example():
    assert statistics.spearman([1, 2, 3, 4], [10, 20, 40, 30]).rho == pytest.approx(1 - 6 * 2 / (4 * 15))
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    y = x + rng.normal(size=30)
    found = statistics.spearman([*x, math.nan], [*y, 1.0])
    expected = stats.spearmanr(x, y)
    assert found == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue), 30)


def test_spearman_ranks_only_and_says_when_it_cannot():
    dice = [0.9, 0.5, 0.7, 0.2]
    assert statistics.spearman([math.exp(-9 * d) for d in dice], dice).rho == pytest.approx(-1.0)
    assert math.isnan(statistics.spearman([1, 1, 1], [1, 2, 3]).rho)
    assert math.isnan(statistics.spearman([1, 2], [1, 2]).rho)
