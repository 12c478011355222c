"""The figures behind the report, and the words that it draws from them."""

import math

import pytest

from jras_jax.evaluation.compare import Comparison
from jras_jax.report import ReportError, analysis, cases, process, results


def test_comparison_by_hand():
    def row(patient, dice, phase="ED"):
        return {
            "patient": patient,
            "phase": phase,
            "structure": "LV",
            "dice": dice,
            "hd": 3.0,
            "hd95": math.nan,
            "assd": 1.0,
        }

    ours = [row("a", 0.9), row("b", 0.7), row("b", 0.9, "ES"), row("c", 0.5)]
    theirs = [row("a", 0.8), row("b", 0.8), row("b", 0.6, "ES"), row("d", 0.5)]
    dice = analysis.compare(ours, theirs)["dice"]
    assert dice.comparison.difference == pytest.approx((0.1 - 0.1 + 0.3) / 3)
    assert dict(dice.comparison.per_patient) == pytest.approx({"a": 0.1, "b": 0.1})
    assert dice.n_unmatched == 2 and math.isnan(dice.comparison.p) and math.isnan(dice.comparison.p_holm)


@pytest.mark.parametrize(
    ("low", "high", "p", "words"),
    [
        (0.01, 0.03, 0.01, "excludes 0, and Holm"),
        (0.01, 0.03, 0.2, "weak evidence"),
        (0.01, 0.03, math.nan, "no test is made"),
        (-0.01, 0.03, 0.01, "do not show which is better"),
    ],
)
def test_verdict_claims_no_more_than_interval_and_test(low, high, p, words):
    found = Comparison(
        "dice",
        "mean",
        n=12,
        n_missing=0,
        n_patients=4,
        mean_a=0.8,
        mean_b=0.82,
        difference=0.02,
        low=low,
        high=high,
        p=0.001,
        p_holm=p,
    )
    assert words in results.verdict(found)


def test_retriever_is_not_praised_for_chance():
    assert "no better than a random slice" in process.reading({"dice_1": 0.17, "random": 0.18})
    assert "below plain pixel" in process.reading({"dice_1": 0.3, "pixel": 0.37})
    assert "50%" in process.reading({"dice_1": 0.4, "random": 0.2, "oracle": 0.6})


def test_catch_counts_failures_among_the_most_uncertain():
    def case(dice):
        return analysis.Case(
            "",
            "",
            phase="",
            group="",
            vendor="",
            dice=dice,
            hd95=0.0,
            by_structure={},
            empty=0,
            entropy=0.0,
            agreement=0.0,
        )

    found = [case(d) for d in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)]
    assert analysis.catch(found, [9, 1, 8, 0, 0, 0, 0, math.nan]) == analysis.Catch(2, 1, 2)
    assert analysis.catch(found, [9, 8, 1, 0, 0, 0, 0, 0]).caught == 2


def test_worst_median_and_best_are_shown_unless_others_are_asked_for():
    found = [
        analysis.Case(
            f"c{i:02d}",
            "",
            phase="",
            group="",
            vendor="",
            dice=i / 30,
            hd95=0.0,
            by_structure={},
            empty=0,
            entropy=0.0,
            agreement=0.0,
        )
        for i in range(31)
    ]
    names = [c.name for c in found]
    assert cases.choose(names[::-1], found) == ["c00", "c15", "c30"]
    assert cases.choose(["c02", "c14", "c20"], found) == ["c02", "c14", "c20"]  # the nearest that there are
    assert cases.choose(["c07"], found) == ["c07"] and cases.choose([], found) == []
    assert cases.choose(names[::-1], found, "all") == names
    assert cases.choose(names, found, ["c09", "c03"]) == ["c03", "c09"]
    with pytest.raises(ReportError, match=r"no evidence was kept of c04 .*--evidence=all"):
        cases.choose(["c03"], found, ["c03", "c04"])
