"""The figures behind the report, computed from the rows of cases.csv."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from jras_jax.evaluation import clinical, statistics
from jras_jax.evaluation.compare import Comparison, match_rows
from jras_jax.evaluation.compare import compare as compare_pairs
from jras_jax.evaluation.metrics import DISTANCES
from jras_jax.report.files import case_name

Rows = Sequence[Mapping[str, Any]]
MEASURES = ("dice", *DISTANCES)
Estimate = TypeVar("Estimate", statistics.Summary, Comparison)


@dataclasses.dataclass(frozen=True)
class Paired:
    """A measure of two runs on the rows that both have.

    Attributes:
      comparison: run minus baseline over all structures; see `jras_jax.evaluation.compare`.
      n_unmatched: rows of either run without a partner.
    """

    comparison: Comparison
    n_unmatched: int


@dataclasses.dataclass(frozen=True)
class Case:
    """One patient and phase: means over its structures."""

    name: str
    patient: str
    phase: str
    group: str
    vendor: str
    dice: float
    hd95: float
    by_structure: Mapping[str, float]
    empty: int
    entropy: float
    agreement: float
    expected: float = math.nan  # the expected Dice; NaN in tables of earlier versions


def number_of(row: Mapping[str, Any], column: str) -> float:
    """A number of a row; NaN where the table has no such column or no number there."""
    value = row.get(column, math.nan)
    return float(value) if isinstance(value, int | float) else math.nan


def summarise(rows: Rows, measure: str) -> statistics.Summary:
    """Distribution of a measure over rows, its interval over patients (NaN for one patient, who shows no spread)."""
    return _without_one(statistics.summarise([number_of(r, measure) for r in rows], [r["patient"] for r in rows]))


def _without_one(summary: Estimate) -> Estimate:
    """Without an interval if there is one patient, who shows no spread."""
    return summary if summary.n_patients > 1 else dataclasses.replace(summary, low=math.nan, high=math.nan)


def compare(rows: Rows, baseline: Rows, measures: Sequence[str] = MEASURES) -> dict[str, Paired]:
    """Measure -> run minus baseline, on the structures of the cases that both scored; NaN if they share none."""
    pairs, unmatched = match_rows(baseline, rows, allow_partial=True)
    means = [c for c in compare_pairs(pairs, measures) if c.structure == "mean"]
    return {c.metric: Paired(_without_one(c), unmatched) for c in means}


def group_rows(rows: Rows, *columns: str, order: Sequence[str] = ()) -> dict[tuple[str, ...], list[Mapping[str, Any]]]:
    """Rows by the values of columns: those that `order` names in its order, the rest sorted after them."""
    ranks = {name: i for i, name in enumerate(order)}
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row.get(c, "")) for c in columns), []).append(row)
    return dict(sorted(groups.items(), key=lambda item: [(ranks.get(v, len(ranks)), v) for v in item[0]]))


def cases(rows: Rows) -> list[Case]:
    """Cases, the lowest Dice first."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(case_name(row), []).append(row)
    found = [_case(name, own) for name, own in groups.items()]
    return sorted(found, key=lambda c: (c.dice, c.name))


def _case(name: str, rows: Rows) -> Case:
    first = rows[0]
    return Case(
        name=name,
        patient=first["patient"],
        phase=first["phase"],
        group=str(first.get("group", "")),
        vendor=str(first.get("vendor", "")),
        dice=_mean([number_of(r, "dice") for r in rows]),
        hd95=_mean([number_of(r, "hd95") for r in rows]),
        by_structure={r["structure"]: number_of(r, "dice") for r in rows},
        empty=sum(bool(r.get("empty")) for r in rows),
        expected=_mean([number_of(r, "expected_dice") for r in rows]),
        entropy=_mean([number_of(r, "entropy") for r in rows]),
        agreement=_mean([number_of(r, "guide_agreement") for r in rows]),
    )


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return float(np.mean(known)) if known else math.nan


@dataclasses.dataclass(frozen=True)
class Index:
    """A clinical index over patients."""

    title: str
    unit: str
    digits: int
    patients: Sequence[str]
    predicted: Sequence[float]
    reference: Sequence[float]
    agreement: clinical.Agreement


def clinical_indices(rows: Rows) -> list[Index]:
    """The indices that at least one patient has, in a clinician's order. Volumes of mixed units: those in ml alone."""
    patients = clinical.patient_indices(rows)
    in_ml = any(p.unit == "ml" for p in patients)
    unit = "ml" if in_ml else "voxels"
    found = []
    for field, (title, own_unit, digits) in INDICES.items():
        index_unit = own_unit or unit
        kept = [p for p in patients if own_unit == "%" or p.unit == unit]
        predicted = [getattr(p.predicted, field) for p in kept]
        reference = [getattr(p.reference, field) for p in kept]
        agreement = clinical.agreement(predicted, reference, index_unit)
        if agreement.n:
            digits = 0 if index_unit == "voxels" else digits
            names = [p.patient for p in kept]
            found.append(
                Index(
                    title,
                    unit=index_unit,
                    digits=digits,
                    patients=names,
                    predicted=predicted,
                    reference=reference,
                    agreement=agreement,
                )
            )
    return found


# Field of `clinical.Indices` -> title, unit ("": that of the volumes), digits.
INDICES = {
    "lv_edv": ("LV end-diastolic volume", "", 1),
    "lv_esv": ("LV end-systolic volume", "", 1),
    "lv_sv": ("LV stroke volume", "", 1),
    "lv_ef": ("LV ejection fraction", "%", 1),
    "rv_edv": ("RV end-diastolic volume", "", 1),
    "rv_esv": ("RV end-systolic volume", "", 1),
    "rv_sv": ("RV stroke volume", "", 1),
    "rv_ef": ("RV ejection fraction", "%", 1),
    "mass": ("Myocardial mass at ED", "g", 1),
}


@dataclasses.dataclass(frozen=True)
class Catch:
    """The `checked` most uncertain cases include `caught` of the `failures` cases of lowest Dice."""

    checked: int
    caught: int
    failures: int


def catch(found: Sequence[Case], uncertainty: Sequence[float], share: float = 0.25) -> Catch:
    """How many of the worst `share` of cases are in the most uncertain `share`; by chance, that share of them."""
    known = [i for i, u in enumerate(uncertainty) if not math.isnan(u) and not math.isnan(found[i].dice)]
    count = max(1, round(share * len(known))) if known else 0
    worst = set(sorted(known, key=lambda i: found[i].dice)[:count])
    suspect = sorted(known, key=lambda i: -uncertainty[i])[:count]
    return Catch(count, len(worst & set(suspect)), count)
