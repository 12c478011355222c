"""Statistics over patients: intervals, paired tests, breakdowns, rank correlation.

A patient's phases and structures are not independent of each other. So intervals resample whole patients, and paired
tests compare one mean a patient.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """Bounds of a confidence interval; NaN if there is nothing to resample."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """Distribution of a score.

    Attributes:
      n: values counted; n_missing: NaN values, left out.
      n_patients: distinct patients among the n values.
      mean, sd (n - 1), median: of the values; NaN if there are too few.
      low, high: bootstrap interval of the mean, resampling patients.
    """

    n: int
    n_missing: int
    n_patients: int
    mean: float
    sd: float
    median: float
    low: float
    high: float


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    patients: Sequence[Any] | np.ndarray | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean, resampling patients with all their values (Efron & Tibshirani, 1993).

    Args:
      values: (n,) real; NaN is left out.
      patients: (n,) whose value each is; None: each value its own patient.
      resamples: draws of as many patients as there are, with replacement.
      level: of confidence, in (0, 1).
      seed: the same seed gives the same interval.

    Returns:
      The interval; both bounds NaN without a value.
    """
    x = np.asarray(values, np.float64)
    whose = np.arange(len(x)) if patients is None else np.asarray(patients)
    if len(whose) != len(x):
        raise ValueError(f"{len(x)} values but {len(whose)} patients")
    known = ~np.isnan(x)
    if not known.any():
        return Interval(math.nan, math.nan)
    _, number = np.unique(whose[known], return_inverse=True)
    counts = np.bincount(number).astype(np.float64)
    sums = np.bincount(number, weights=x[known])
    drawn = np.random.default_rng(seed).integers(0, len(counts), (resamples, len(counts)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    tail = (1.0 - level) / 2
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(float(low), float(high))


def summarise(
    values: Sequence[float] | np.ndarray,
    patients: Sequence[Any] | np.ndarray | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Summary:
    """Mean, SD, median and interval of (n,) values; NaN values are left out and counted. See `bootstrap_mean`."""
    x = np.asarray(values, np.float64)
    known = ~np.isnan(x)
    whose = np.arange(len(x)) if patients is None else np.asarray(patients)
    interval = bootstrap_mean(x, whose, resamples=resamples, level=level, seed=seed)
    kept = x[known]
    return Summary(
        n=len(kept),
        n_missing=int((~known).sum()),
        n_patients=len(np.unique(whose[known])),
        mean=float(kept.mean()) if len(kept) else math.nan,
        sd=float(kept.std(ddof=1)) if len(kept) > 1 else math.nan,
        median=float(np.median(kept)) if len(kept) else math.nan,
        low=interval.low,
        high=interval.high,
    )


def breakdown(
    rows: Sequence[Mapping[str, Any]],
    key: str,
    metric: str = "dice",
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Summary]:
    """Summarises a metric for each value of a key.

    Args:
      rows: as in cases.csv, or of `metrics.position_scores` with a patient added.
      key: 'structure', 'phase', 'position', 'group', 'vendor', 'centre', or any other column.
      metric: the column to summarise.
      resamples, level, seed: see `bootstrap_mean`.

    Returns:
      value -> Summary, in the order met; rows without a value come under 'unknown'.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str(row.get(key, "")) or "unknown", []).append(row)
    return {
        value: summarise(
            [float(r[metric]) for r in group],
            [r["patient"] for r in group],
            resamples=resamples,
            level=level,
            seed=seed,
        )
        for value, group in groups.items()
    }


def patient_means(patients: Sequence[Any], values: Sequence[float] | np.ndarray) -> dict[Any, float]:
    """patient -> mean of the patient's values that are not NaN, in the order met; patients without one are left out."""
    found: dict[Any, list[float]] = {}
    for patient, value in zip(patients, values, strict=True):
        if not math.isnan(value):
            found.setdefault(patient, []).append(float(value))
    return {patient: float(np.mean(own)) for patient, own in found.items()}


def paired_wilcoxon(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of paired values (scipy's; zero differences are dropped).

    1 if no difference is left; NaN without a pair. Values must not be NaN.
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if not len(difference):
        return math.nan
    if not difference.any():
        return 1.0
    return float(stats.wilcoxon(difference, zero_method="wilcox", alternative="two-sided").pvalue)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics, 1979) of (m,) p-values.

    The i-th smallest (i from 0) is multiplied by m - i, made monotone and capped at 1. NaN stays NaN, not counted in m.

    Example: holm([0.01, 0.04, 0.03]) = [0.03, 0.06, 0.06].
    """
    p = np.asarray(p_values, np.float64)
    out = np.full_like(p, math.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    out[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors)) if len(order) else []
    return out


class RankCorrelation(NamedTuple):
    """Spearman's rho, its two-sided p, and the pairs counted."""

    rho: float
    p: float
    n: int


def spearman(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> RankCorrelation:
    """How well one score ranks another, such as uncertainty against Dice (rho near -1: it finds the failures).

    Pairs with a NaN are left out; rho and p are NaN with fewer than 3 pairs or if one side is constant.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    known = ~(np.isnan(a) | np.isnan(b))
    a, b = a[known], b[known]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return RankCorrelation(math.nan, math.nan, len(a))
    result = stats.spearmanr(a, b)
    return RankCorrelation(float(result.statistic), float(result.pvalue), len(a))
