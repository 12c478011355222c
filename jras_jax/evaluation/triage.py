"""Which cases to check: how well the signs that need no true mask rank the cases by their Dice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jras_jax.evaluation import statistics

LEVEL = 0.05  # of p, below which a sign helps


class Sign(NamedTuple):
    """A column of cases.csv that tells which cases to check.

    Attributes:
      title: for a person.
      rises: whether it rises with the Dice; else it falls.
    """

    title: str
    rises: bool


SIGNS = {"expected_dice": Sign("expected Dice", True), "entropy": Sign("entropy", False)}  # the first one leads
# Measured, but no reason to check a case: how well it ranks differs too much between data sets.
SIGNS |= {"guide_agreement": Sign("agreement of guides", True)}
_LEADING, _SECOND, _ = SIGNS


def helps(column: str, found: statistics.RankCorrelation) -> bool:
    """Whether a sign ranks the cases: significantly, and in the direction that it should."""
    return found.p < LEVEL and (found.rho > 0) == SIGNS[column].rises


def ranking(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Spearman's correlation of each sign with the Dice over cases.

    Args:
      rows: as in cases.csv; a case is a patient, scan and phase, and its Dice the mean over structures.

    Returns:
      {'expected_dice_vs_dice': {'spearman', 'p', 'n', 'helps'}, ...} for the signs that the rows have, and 'reading':
      a sentence that says whether the expected Dice ranks the cases.
    """
    cases: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        cases.setdefault((row["patient"], row.get("scan", ""), row["phase"]), []).append(row)
    dice = [float(np.mean([r["dice"] for r in own])) for own in cases.values()]
    out: dict[str, Any] = {}
    for column in SIGNS:
        values = [float(own[0].get(column, math.nan)) for own in cases.values()]
        found = statistics.spearman(values, dice)
        if found.n:
            facts = {"spearman": found.rho, "p": found.p, "n": found.n, "helps": helps(column, found)}
            out[f"{column}_vs_dice"] = facts
    return out | ({"reading": reading(out)} if out else {})


def reading(correlations: Mapping[str, Any]) -> str:
    """What the correlations of `ranking` say, in a sentence."""
    leading, second = (correlations.get(f"{column}_vs_dice", {}).get("helps") for column in (_LEADING, _SECOND))
    if leading:
        return "Check the cases of the lowest expected Dice first: it ranks these cases by their Dice."
    if second:
        return (
            "Check the cases of the highest entropy first: it ranks these cases by their Dice, expected Dice does not."
        )
    return "No sign ranks these cases by their Dice: none tells which cases to check."
