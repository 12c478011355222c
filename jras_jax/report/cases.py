"""The section of cases: which are shown with their evidence, and all of them in figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jras_jax.data import STRUCTURES
from jras_jax.report import analysis, evidence
from jras_jax.report.files import ReportedRun
from jras_jax.report.markup import NOTHING, Html, Section, absent, element, number, paragraph, plural, section, table
from jras_jax.report.results import plural_unit

MOST_CASES = 12  # panels on a page
IMAGE_BUDGET = 6_000_000  # bytes of all grey images, base64; charts, contours and tables stay under 2 MB more


def choose(available: Sequence[str], found: Sequence[analysis.Case]) -> list[str]:
    """Names of the evidence to show, the lowest Dice first: half of `MOST_CASES` from either end if there are more."""
    order = {c.name: i for i, c in enumerate(found)}
    ranked = sorted(available, key=lambda name: (order.get(name, len(order)), name))
    half = MOST_CASES // 2
    return ranked if len(ranked) <= MOST_CASES else ranked[:half] + ranked[-half:]


def section_of(run: ReportedRun, found: Sequence[analysis.Case], shown: Mapping[str, str]) -> Section:
    """Panels of the cases `shown` (name -> id of the panel), then a table of all."""
    parts: list[Html] = []
    if shown:
        loaded = [evidence.load(name, run.evidence[name]) for name in shown]
        most = evidence.side_within(loaded, IMAGE_BUDGET)
        parts += [
            paragraph(
                f"{plural(len(shown), 'case')} of {max(len(found), len(shown))}, from the lowest Dice to the highest. ",
                "The slider, or the arrow keys on it, moves through the slices; each slice has its own guides. ",
                "Slices, contours and Dice per slice are those of the model grid; the headings' scores are those of ",
                "the whole volume on the scan's own grid.",
            ),
            evidence.key(),
        ]
        ranks = {c.name: i for i, c in enumerate(found)}
        for item in loaded:
            case = found[ranks[item.name]] if item.name in ranks else None
            parts.append(evidence.panel(item, *_heading(item, case=case, ranks=ranks, unit=run.unit), most))
    else:
        parts.append(
            absent(
                "The evaluation kept no case, so there are no slices to show; "
                f"jras evaluate --workdir={run.path} --config.eval.split={run.evaluation.partition('+')[0]} "
                "--config.eval.evidence_cases=8 keeps some."
            )
        )
    if found:
        listing = _all_cases(found, run.unit, shown)
        parts.append(element("details", element("summary", f"All {plural(len(found), 'case')} in figures"), listing))
    return section("cases", "Cases and evidence", *parts)


def _heading(
    item: evidence.Evidence, case: analysis.Case | None, ranks: Mapping[str, int], unit: str
) -> tuple[str, str]:
    """A panel's heading and the line of figures under it."""
    if case is None:
        return f"{item.name}: Dice {number(item.dice)}", "This case is not in cases.csv."
    rank, total = ranks[item.name], len(ranks)
    low = f"{rank + 1} of {total} from the lowest"
    place = low if rank < total / 2 else f"{total - rank} of {total} from the highest"
    facts = [", ".join(f"{s} {number(v)}" for s, v in case.by_structure.items())]
    facts += [f"HD95 {number(case.hd95, 2)} {plural_unit(unit)}", f"expected Dice {number(case.expected)}"]
    facts += [f"{plural(case.empty, 'structure')} with an empty mask"] if case.empty else []
    facts += [f"guide agreement {number(case.agreement)}"] if item.guides else []
    facts += [f"group {case.group}"] if case.group else []
    facts += [f"vendor {case.vendor}"] if case.vendor else []
    return f"{item.name}: Dice {number(case.dice)}, {place}", " · ".join(facts)


def _all_cases(found: Sequence[analysis.Case], unit: str, shown: Mapping[str, str]) -> Html:
    header = ["Case", "Group", "Vendor", "Dice", *STRUCTURES, f"HD95, {plural_unit(unit)}"]
    rows = []
    for c in found:
        name = element("a", c.name, href=f"#{shown[c.name]}") if c.name in shown else c.name
        figures = [number(c.dice), *(number(c.by_structure.get(s)) for s in STRUCTURES), number(c.hd95, 2)]
        rows.append([name, c.group or NOTHING, c.vendor or NOTHING, *figures, number(c.expected), number(c.entropy)])
    header += ["Expected Dice", "Entropy, nats"]
    return table(header, rows, caption="All cases, the lowest Dice first", text_columns=3)
