"""Compares two runs on the same cases: paired differences, intervals over patients, Wilcoxon's test, Holm's correction.

Cases are matched by patient, phase and structure. The difference is B - A; its interval is a bootstrap over patients.
Wilcoxon's signed-rank test compares one mean difference per patient, since the phases and structures of a patient are
not independent.

One family of tests: Holm's correction runs over the structures and their mean of one metric. The command line and the
report show the same p-values, whichever metrics they list.

References: Wilcoxon, Biometrics Bulletin 1945; Holm, Scandinavian Journal of Statistics 1979.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jras_jax.errors import UserError
from jras_jax.evaluation import metrics as scores
from jras_jax.evaluation import statistics
from jras_jax.run_folder.layout import RunFolder

METRICS = ("dice", "jaccard", *scores.DISTANCES)
DEFAULT_METRICS = ("dice", *scores.DISTANCES)
FAMILY = "Holm-corrected over the structures and their mean"
LEAST_PATIENTS_FOR_TEST = 6  # with fewer, the smallest two-sided p of a signed-rank test is above 0.05
_NAMED = 5  # cases named in a message, before "and so many more"

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two runs by one metric on one structure, or on all ('mean').

    Attributes:
      metric, structure: what is compared.
      n: pairs counted; n_missing: pairs left out because a run has no value there (a distance to an empty mask).
      n_patients: distinct patients among the n pairs.
      mean_a, mean_b: over the n pairs.
      difference: mean_b - mean_a; low, high: its 95% bootstrap interval over patients.
      p: Wilcoxon's signed-rank test over patients, NaN with fewer than `LEAST_PATIENTS_FOR_TEST`.
      p_holm: p corrected over the structures and the mean of this metric.
      per_patient: patient -> mean difference.
    """

    metric: str
    structure: str
    n: int
    n_missing: int
    n_patients: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    per_patient: Mapping[str, float] = dataclasses.field(default_factory=dict, repr=False)


def cases_file(run: pathlib.Path, evaluation: str | None = None) -> pathlib.Path:
    """The table of scores of a run folder; a CSV file is its own.

    Args:
      run: the folder or file.
      evaluation: which of the run's evaluations; may be None if there is only one.

    Raises:
      UserError: neither is there, or the run has several evaluations and none is named.
    """
    if run.is_file():
        return run
    if not run.exists():
        raise UserError(f"{run}: there is no such run folder or CSV file")
    there = RunFolder(run).evaluations()
    if evaluation is None and len(there) > 1:
        raise UserError(f"{run} has several evaluations: choose one of {', '.join(there)} with --split=NAME")
    return RunFolder(run).find_evaluation(evaluation).cases


def match_rows(
    rows_a: Sequence[Row], rows_b: Sequence[Row], *, allow_partial: bool = False
) -> tuple[list[tuple[Row, Row]], int]:
    """Pairs of rows with the same patient, phase and structure, in A's order, and how many rows have no partner.

    With `allow_partial` there may be no pair at all.

    Raises:
      UserError: a case occurs twice in one run; the runs have different cases and `allow_partial` is off; or their
        distances are in different units.
    """
    a, b = _by_case(rows_a, "A"), _by_case(rows_b, "B")
    only_a, only_b = [k for k in a if k not in b], [k for k in b if k not in a]
    if (only_a or only_b) and not allow_partial:
        parts = [f"only run {name} has {_names(keys)}" for name, keys in (("A", only_a), ("B", only_b)) if keys]
        raise UserError(
            f"the runs were not scored on the same cases: {'; '.join(parts)}. Evaluate both on one split, or compare "
            f"the {len(a.keys() & b.keys())} rows they share with --allow_partial"
        )
    pairs = [(a[k], b[k]) for k in a if k in b]
    for x, y in pairs:
        if x.get("unit", "") != y.get("unit", ""):
            raise UserError(
                f"{_names([_key(x)])}: distances are in {x.get('unit') or 'no named unit'} in run A, "
                f"in {y.get('unit') or 'no named unit'} in run B"
            )
    return pairs, len(only_a) + len(only_b)


def _key(row: Row) -> tuple[str, ...]:
    return row["patient"], row.get("scan", ""), row["phase"], row["structure"], row.get("position", "")


def _by_case(rows: Sequence[Row], name: str) -> dict[tuple[str, ...], Row]:
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if _key(row) in found:
            raise UserError(f"run {name} has {_names([_key(row)])} twice")
        found[_key(row)] = row
    return found


def _names(keys: Sequence[tuple[str, ...]]) -> str:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return ", ".join(" ".join(part for part in key if part) for key in keys[:_NAMED]) + more


def compare(pairs: Sequence[tuple[Row, Row]], metrics: Sequence[str] = DEFAULT_METRICS) -> list[Comparison]:
    """Compares matched rows by each metric: each structure in the order met, then 'mean' over all.

    Raises:
      UserError: a run's table has no such column.
    """
    structures = list(dict.fromkeys(a["structure"] for a, _ in pairs))
    out: list[Comparison] = []
    for metric in metrics:
        for side, index in (("A", 0), ("B", 1)):
            if any(metric not in pair[index] for pair in pairs):
                raise UserError(f"the scores of run {side} have no column {metric}")
        found = [
            _compare_one([p for p in pairs if s in ("mean", p[0]["structure"])], metric, s)
            for s in [*structures, "mean"]
        ]
        corrected = statistics.holm([c.p for c in found])
        out += [dataclasses.replace(c, p_holm=float(p)) for c, p in zip(found, corrected, strict=True)]
    return out


def _compare_one(pairs: Sequence[tuple[Row, Row]], metric: str, structure: str) -> Comparison:
    values = [(a["patient"], _number(a[metric]), _number(b[metric])) for a, b in pairs]
    known = [v for v in values if not (math.isnan(v[1]) or math.isnan(v[2]))]
    patients = [v[0] for v in known]
    differences = [v[2] - v[1] for v in known]
    per_patient = statistics.patient_means(patients, differences)
    low, high = statistics.bootstrap_mean(differences, patients)
    n = len(known)
    mean_a, mean_b = (sum(v[i] for v in known) / n if n else math.nan for i in (1, 2))
    enough = len(per_patient) >= LEAST_PATIENTS_FOR_TEST
    return Comparison(
        metric=metric,
        structure=structure,
        n=n,
        n_missing=len(values) - n,
        n_patients=len(per_patient),
        mean_a=mean_a,
        mean_b=mean_b,
        difference=mean_b - mean_a,
        low=low,
        high=high,
        p=statistics.paired_wilcoxon(list(per_patient.values()), [0.0] * len(per_patient)) if enough else math.nan,
        p_holm=math.nan,
        per_patient=per_patient,
    )


def _number(value: Any) -> float:
    """A cell as a number; NaN if it holds text."""
    return float(value) if isinstance(value, int | float) else math.nan
