"""Sections with scores of the whole: the headline and the clinical indices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jras_jax.evaluation import certificate, clinical, statistics
from jras_jax.evaluation.compare import FAMILY, LEAST_PATIENTS_FOR_TEST, Comparison
from jras_jax.report import analysis, charts, responsive
from jras_jax.report.files import ReportedRun
from jras_jax.report.markup import (
    NOTHING,
    Html,
    Section,
    absent,
    element,
    figure_number,
    interval,
    number,
    p_value,
    paragraph,
    plural,
    section,
    table,
)

TITLES = {"dice": "Dice", "hd": "Hausdorff distance", "hd95": "HD95", "assd": "ASSD", "jaccard": "Jaccard"}
TILES = {"dice": "Mean foreground Dice", "hd95": "Mean HD95", "assd": "Mean ASSD"}
BETTER = {"dice": "higher is better", "hd95": "lower is better", "assd": "lower is better"}


def plural_unit(unit: str) -> str:
    """'mm' or 'voxels'."""
    return {"voxel": "voxels", "mixed": "mm and voxels mixed, not averaged"}.get(unit, unit)


def unit_of(measure: str, unit: str) -> str:
    """' mm' for distances, '' for overlaps."""
    return "" if measure in ("dice", "jaccard") else f" {plural_unit(unit)}"


def _title(measure: str, run: ReportedRun) -> str:
    """A measure's name in a table of all structures; the Hausdorff distance says in how many dimensions it is."""
    return TITLES[measure] + (f", {run.description.dimensions}-D" if measure == "hd" else "")


def digits_of(measure: str) -> int:
    """Digits that a score deserves."""
    return 3 if measure in ("dice", "jaccard") else 2


def headline(run: ReportedRun, baseline: ReportedRun | None) -> Section:
    """Mean Dice, HD95 and ASSD with intervals, beside the baseline."""
    if not run.cases:
        return section(
            "headline",
            "Headline",
            _from_summary(run),
            absent("cases.csv is missing: no intervals, tests, breakdowns or plots can be given."),
        )
    own = {m: analysis.summarise(run.cases, m) for m in analysis.MEASURES}
    tiles = [_tile(m, own[m], run.unit) for m in TILES]
    parts: list[Any] = [element("div", *tiles, class_="tiles"), _seeds(run), _certificate(run), _counted(run)]
    if baseline is None:
        parts.append(absent("No evaluated baseline was given: the run is compared with none."))
    elif not baseline.cases:
        parts.append(absent(f"The baseline {baseline.path.name} has no cases.csv: it cannot be compared."))
    elif baseline.unit != run.unit:
        parts.append(
            absent(f"The baseline's distances are in {baseline.unit}, this run's in {run.unit}: not compared.")
        )
    else:
        parts += _against(run, baseline, own)
    return section("headline", "Headline", *parts, _paper(run, baseline))


def _certificate(run: ReportedRun) -> Html | None:
    """The verdict on retrieval with its numbers; None for a run without retrieval."""
    found = run.summary.get("retrieval_certificate")
    if not found:
        retrieves = (run.config.get("retrieval") or {}).get("enabled")
        return (
            absent("This evaluation has no certificate of retrieval: jras evaluate makes one.") if retrieves else None
        )
    return paragraph(element("strong", certificate.sentence(found)), f" Test: {found.get('test', 'not named')}.")


def _from_summary(run: ReportedRun) -> Html:
    mean = run.summary.get("mean", {})
    rows = [
        (TITLES[m], number(mean.get(m), digits_of(m)) + unit_of(m, run.unit)) for m in analysis.MEASURES if m in mean
    ]
    return table(["Measure", "Mean"], rows, caption="Means over all structures of all cases")


def _tile(measure: str, summary: statistics.Summary, unit: str) -> Html:
    digits = digits_of(measure)
    value = element("span", number(summary.mean, digits), element("small", unit_of(measure, unit)), class_="value")
    spread = interval(summary.low, summary.high, digits)
    return element(
        "div",
        element("h3", TILES[measure]),
        element("p", value),
        element("p", f"95% interval {spread}" if spread else "no interval", class_="spread"),
        element("p", BETTER[measure], class_="hint"),
        class_="tile",
    )


def _seeds(run: ReportedRun) -> Html:
    """That the page shows one training run, whose seed the intervals say nothing about."""
    seed = run.config.get("seed", run.facts.get("seed"))
    which = f"One seed ({seed})" if seed is not None else "One seed"
    text = "a single training run. The intervals cover the choice of patients, not the chance of training."
    return paragraph(element("strong", which), f": {text}")


def _counted(run: ReportedRun) -> Html:
    """Over what the means go, and what is in no mean."""
    patients = len({r["patient"] for r in run.cases})
    found = {kind: sum(r.get("empty") == kind for r in run.cases) for kind in ("both", "reference", "prediction")}
    text = (
        f"Means over {plural(len(run.cases), 'structure')} ({', '.join(run.description.structures)} of every case) of "
        f"{plural(patients, 'patient')}, in {'three' if run.description.dimensions == 3 else 'two'} dimensions. "
        f"Intervals: bootstrap over patients, {statistics.RESAMPLES:,} draws."
    )
    one = found["reference"] + found["prediction"]
    if one:
        text += (
            f" Where only one of the two masks is empty ({plural(found['prediction'], 'structure')} not found, "
            f"{plural(found['reference'], 'structure')} found where there is none), Dice is 0 and there is no "
            f"distance: "
            f"{'it is' if one == 1 else 'these are'} not in the mean distances."
        )
    if found["both"]:
        text += f" {plural(found['both'], 'structure')} empty in both masks: Dice 1, distance 0."
    if run.unit == "voxel":
        text += " The scans' headers give no voxel spacing, so distances are in voxels."
    text += _OPTIMISM.get(str(run.summary.get("split")), "")
    return paragraph(text, class_="note")


_OPTIMISM = {
    "validation": " The checkpoint was chosen by its Dice on this same fold, so these scores are somewhat optimistic.",
    "train": " These patients were trained on: the scores say nothing about new ones.",
}


def _against(run: ReportedRun, baseline: ReportedRun, own: Mapping[str, statistics.Summary]) -> list[Html]:
    compared = analysis.compare(run.cases, baseline.cases)
    rows = []
    for measure, paired in compared.items():
        digits, unit = digits_of(measure), unit_of(measure, run.unit)
        other, c = analysis.summarise(baseline.cases, measure), paired.comparison
        rows.append(
            (
                f"{_title(measure, run)}{',' if unit else ''}{unit}",
                with_interval(own[measure].mean, low=own[measure].low, high=own[measure].high, digits=digits),
                with_interval(other.mean, low=other.low, high=other.high, digits=digits),
                with_interval(c.difference, low=c.low, high=c.high, digits=digits, signed=True),
                p_value(c.p_holm),
            )
        )
    dice, unmatched = compared["dice"].comparison, compared["dice"].n_unmatched
    note = (
        "Intervals are 95%, bootstrap over patients. The difference is run minus baseline on the same structures. "
        f"p: Wilcoxon signed-rank test of the patients' means, {FAMILY} of each measure"
    )
    if math.isnan(dice.p_holm):
        note += f"; not given for fewer than {LEAST_PATIENTS_FOR_TEST} patients"
    if unmatched:
        note += f". {plural(unmatched, 'row')} of either run without a partner left out of the difference"
    header = ["Measure", "This run", "Baseline", "Difference", "p (Holm)"]
    per_patient = list(dice.per_patient.items())
    better = sum(v > 0 for _, v in per_patient)
    return [
        paragraph(element("strong", verdict(dice))),
        table(header, rows, caption=f"{run.name} against the baseline, {baseline.name}", note=note + "."),
        element("h3", "Patient by patient"),
        responsive.differences(per_patient, title="Dice, run − baseline"),
        paragraph(
            f"{better} of {plural(len(per_patient), 'patient')} score higher than with the baseline (circles), "
            f"{sum(v < 0 for _, v in per_patient)} lower (squares).",
            class_="note",
        ),
    ]


def _paper(run: ReportedRun, baseline: ReportedRun | None) -> Html | None:
    """The J-RAS paper's own kind of figure, where evaluation computed it, kept apart from ours."""
    both = {"This run": run.summary.get("paper_2d")}
    both |= {"Baseline": baseline.summary.get("paper_2d")} if baseline else {}
    rows = [
        (
            name,
            p.get("n_slices"),
            _mean_sd(p, "dice_2d", 3),
            number(p.get("dice_2d_background"), 3),
            _mean_sd(p, "hd_2d_px", 2),
            p.get("n_no_distance"),
        )
        for name, p in both.items()
        if p
    ]
    if not rows:
        return None
    note = (
        "Slice by slice at 256 × 256, mean ± SD over slices, as the J-RAS paper reports; not comparable with the "
        "scores per volume above: a slice weighs the same whatever it holds, and a pixel is no millimetre."
    )
    header = ["2-D", "Slices", "Dice", "Dice with background", "HD, pixels", "Structures without distance"]
    return table(header, rows, caption="The paper's own kind of figure", note=note)


def _mean_sd(values: Mapping[str, Any], key: str, digits: int) -> str:
    mean, sd = values.get(key), values.get(f"{key}_sd")
    return number(mean, digits) + (f" ± {number(sd, digits)}" if sd is not None else "")


def verdict(c: Comparison) -> str:
    """The comparison in one sentence that claims no more than its interval and test."""
    size = f"{number(abs(c.difference))} Dice {'above' if c.difference >= 0 else 'below'} the baseline"
    if math.isnan(c.difference):
        return "Run and baseline share no case: they cannot be compared."
    if math.isnan(c.low):
        return f"The run is {size}, in one patient alone: that shows nothing about others."
    spread = interval(c.low, c.high, signed=True)
    if c.low <= 0 <= c.high:
        tail = "includes 0, so these data do not show which is better."
    elif math.isnan(c.p_holm):
        tail = f"excludes 0, but with {plural(c.n_patients, 'patient')} no test is made: weak evidence."
    elif c.p_holm < 0.05:
        tail = f"excludes 0, and Holm-corrected p is {p_value(c.p_holm)}."
    else:
        tail = f"excludes 0, but Holm-corrected p is {p_value(c.p_holm)}: weak evidence."
    return f"The run is {size}; the 95% interval of the difference ({spread}) {tail}"


def with_interval(mean: float, low: float, high: float, digits: int, *, signed: bool = False) -> Html:
    """A number with its interval."""
    return figure_number(number(mean, digits, signed=signed), interval(low, high, digits, signed=signed))


def clinical_section(run: ReportedRun) -> Section:
    """Clinical indices: agreement table and Bland-Altman plots."""
    title = "Clinical indices"
    phases = {r["phase"] for r in run.cases}
    if not run.cases or not phases & set(run.description.phases):
        return section("clinical", title, absent("Needs cases.csv with the phases ED and ES."))
    found = analysis.clinical_indices(run.cases)
    if not found:
        return section("clinical", title, absent("No patient has the volumes that the indices need."))
    rows = []
    for index in found:
        a, d = index.agreement, index.digits
        rows.append(
            (
                f"{index.title}, {index.unit}",
                a.n,
                number(_mean(index.reference), d),
                number(_mean(index.predicted), d),
                number(a.bias, d, signed=True),
                interval(a.low, a.high, d, signed=True) or NOTHING,
                number(a.mean_absolute, d),
                number(a.pearson, 3),
            )
        )
    header = [
        "Index",
        "Patients",
        "Reference",
        "Prediction",
        "Bias",
        "95% limits of agreement",
        "Mean |difference|",
        "Pearson r",
    ]
    plots = [_bland_altman(index) for index in found]
    in_ml = any(i.unit == "g" for i in found)
    note = (
        "Bias: prediction minus reference. Limits of agreement: bias ± 1.96 SD (Bland and Altman, 1986). Indices as "
        f"ACDC defines them. {f'Mass with {clinical.DENSITY} g/ml.' if in_ml else clinical.VOXEL_NOTE}"
    )
    agreement = table(header, rows, caption="Agreement with the reference", note=note)
    return section("clinical", title, agreement, charts.figures(*plots))


def _bland_altman(index: analysis.Index) -> Html:
    pairs = zip(index.predicted, index.reference, index.patients, strict=True)
    points = [charts.Point((p + r) / 2, p - r, name) for p, r, name in pairs]
    a = index.agreement
    return charts.bland_altman(
        points, bias=a.bias, low=a.low, high=a.high, title=index.title, unit=index.unit, digits=index.digits
    )


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan
