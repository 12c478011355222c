"""Sections that break scores down: by structure and phase, pathology group, vendor, centre, slice position."""

from __future__ import annotations

from typing import Any

from jras_jax.evaluation import statistics
from jras_jax.report import analysis, responsive
from jras_jax.report.files import ReportedRun, case_name
from jras_jax.report.markup import NOTHING, Html, Section, absent, interval, number, paragraph, section, table
from jras_jax.report.results import digits_of, plural_unit, with_interval

TITLE = "Groups, vendors, positions"


def structures(run: ReportedRun, baseline: ReportedRun | None) -> Section:
    """Scores per structure and phase: box plots and a table."""
    if not run.cases:
        return section("structures", "Structures", absent("Needs cases.csv."))
    groups = analysis.group_rows(run.cases, "structure", "phase", order=run.order)
    other = analysis.group_rows(baseline.cases, "structure", "phase", order=run.order) if baseline else {}
    labels = [" ".join(filter(None, g)) for g in groups]
    parts: list[Any] = []
    for measure in ("dice", "hd95"):
        series = [("This run", [_values(rows, measure) for rows in groups.values()])]
        if other:
            series.append(("Baseline", [_values(other.get(g, []), measure) for g in groups]))
        title = "Dice" if measure == "dice" else f"HD95, {plural_unit(run.unit)}"
        include = [1.0] if measure == "dice" else [0.0]
        parts.append(responsive.box_plot(labels, series, title=title, include=include, digits=digits_of(measure)))
    parts.append(
        paragraph("Box: quartiles and median. Whiskers: last value within 1.5 box lengths. Dots: cases.", class_="note")
    )
    rows = [
        _score_row(label, own, other.get(g, []) if baseline else None)
        for (g, own), label in zip(groups.items(), labels, strict=True)
    ]
    header = _score_header(run.unit, baseline is not None, "Structure and phase")
    parts.append(
        table(
            header,
            rows,
            caption="Scores by structure and phase",
            note="Mean ± SD over cases; 95% interval of the mean over patients. HD: Hausdorff distance.",
        )
    )
    parts += _confusion(run)
    return section("structures", "Structures and phases", *parts)


def _confusion(run: ReportedRun) -> list[Html]:
    """Which structure is taken for which, where evaluation counted it."""
    counts = run.summary.get("confusion")
    names = ["background", *run.description.structures]
    if not counts:
        return []
    rows = []
    for name, row in zip(names[1:], counts[1:], strict=True):
        total = sum(row)
        rows.append([name, *(number(100 * n / total, 1) if total else NOTHING for n in row)])
    predicted = [sum(column) for column in zip(*counts, strict=True)]
    outside = [number(100 * n / total, 1) if total else NOTHING for n, total in zip(counts[0], predicted, strict=True)]
    rows.append(["background, of each predicted structure", NOTHING, *outside[1:]])
    note = (
        "Share of the true structure's voxels, in percent, that is predicted as the column says; all cases together, "
        "on the scans' own grids. The last row is the share of each predicted structure that is background in truth."
    )
    header = ["In truth", *(f"predicted {name}" for name in names)]
    return [table(header, rows, caption="Confusion between structures, % of voxels", note=note)]


def _values(rows: analysis.Rows, measure: str) -> responsive.Values:
    return responsive.Values([analysis.number_of(r, measure) for r in rows], [case_name(r) for r in rows])


def _score_header(unit: str, compared: bool, first: str) -> list[str]:
    unit = plural_unit(unit)
    header = [first, "Patients", "Dice", "95% interval", f"HD, {unit}", f"HD95, {unit}", f"ASSD, {unit}"]
    header.append("One mask empty")
    return header + (["Dice, run − baseline"] if compared else [])


def _score_row(label: str, rows: analysis.Rows, baseline: analysis.Rows | None) -> list[Any]:
    """Cells under `_score_header`; `baseline` None: no baseline at all."""
    dice = analysis.summarise(rows, "dice")
    cells: list[Any] = [
        label,
        dice.n_patients,
        _with_sd(dice, 3),
        interval(dice.low, dice.high) or NOTHING,
        *(_with_sd(analysis.summarise(rows, m), 2) for m in ("hd", "hd95", "assd")),
        sum(r.get("empty") in ("reference", "prediction") for r in rows) or NOTHING,
    ]
    return cells if baseline is None else [*cells, _difference(rows, baseline)]


def _difference(rows: analysis.Rows, baseline: analysis.Rows) -> Html:
    c = analysis.compare(rows, baseline, ["dice"])["dice"].comparison
    return with_interval(c.difference, low=c.low, high=c.high, digits=3, signed=True)


def _with_sd(summary: statistics.Summary, digits: int) -> str:
    return number(summary.mean, digits) + (f" ± {number(summary.sd, digits)}" if summary.n > 1 else "")


def _positions(run: ReportedRun, baseline: ReportedRun | None) -> list[Html]:
    """Dice in the basal, middle and apical third, where evaluation wrote it."""
    if not run.positions:
        return []
    other = analysis.group_rows(baseline.positions, "position", order=run.order) if baseline else {}
    rows = []
    for (position,), own in analysis.group_rows(run.positions, "position", order=run.order).items():
        cells: list[Any] = [_POSITIONS.get(position, position)]
        for name in run.description.structures:
            found = analysis.summarise([r for r in own if r["structure"] == name], "dice")
            cells.append(with_interval(found.mean, low=found.low, high=found.high, digits=3))
        rows.append(cells + ([_difference(own, other.get((position,), []))] if baseline else []))
    header = ["Slice position", *(f"Dice {name}" for name in run.description.structures)]
    header += ["All, run − baseline"] if baseline else []
    note = "Thirds of the heart from base to apex by the reference; means with 95% intervals over patients."
    return [table(header, rows, caption="Dice by slice position", note=note)]


_POSITIONS = {"base": "Base", "mid": "Middle", "apex": "Apex"}


def breakdowns(run: ReportedRun, baseline: ReportedRun | None) -> Section:
    """Scores by pathology group, vendor, centre and slice position."""
    if not run.cases:
        return section("breakdowns", TITLE, absent("Needs cases.csv."))
    parts: list[Any] = []
    single: list[str] = []
    for column, title in (("group", "Pathology group"), ("vendor", "Vendor"), ("centre", "Centre")):
        groups = analysis.group_rows(run.cases, column)
        if len(groups) < 2:
            only = next(iter(groups))[0]
            single.append(f"{title.lower()}: {'all ' + only if only else 'not known'}")
            continue
        other = analysis.group_rows(baseline.cases, column) if baseline else {}
        rows = [
            _score_row(g[0] or "not known", own, other.get(g, []) if baseline else None) for g, own in groups.items()
        ]
        header = _score_header(run.unit, baseline is not None, title)
        parts.append(table(header, rows, caption=f"Scores by {title.lower()}"))
    parts += _positions(run, baseline)
    if parts:
        parts.append(
            paragraph(
                "Small groups have wide intervals; differences between groups are not tested.",
                class_="note",
            )
        )
    if single:
        parts.append(absent("No breakdown where all cases are alike (" + "; ".join(single) + ")."))
    return section("breakdowns", TITLE, *parts)
