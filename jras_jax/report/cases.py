"""The section of cases: which are shown with their evidence, and all of them in figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jras_jax.report import analysis, evidence, panels
from jras_jax.report.files import ReportedRun, ReportError
from jras_jax.report.markup import NOTHING, Html, Section, absent, element, number, paragraph, plural, section, table
from jras_jax.report.results import plural_unit

IMAGE_BUDGET = 6_000_000  # bytes of all grey images, base64; charts, contours and tables stay under 2 MB more
ALL = "all"


def choose(
    available: Sequence[str], found: Sequence[analysis.Case], wanted: str | Sequence[str] | None = None
) -> list[str]:
    """Names of the cases to show with their evidence, the lowest Dice first.

    Args:
      available: cases that evaluation kept evidence of.
      found: all cases, the lowest Dice first.
      wanted: `ALL`, or names; None is the worst, the median and the best case, or the available ones nearest to them.

    Raises:
      ReportError: evaluation kept no evidence of a case that is wanted.
    """
    order = {c.name: i for i, c in enumerate(found)}
    ranked = sorted(available, key=lambda name: (order.get(name, len(order)), name))
    if wanted == ALL or not ranked:
        return ranked
    if wanted is not None:
        if missing := sorted(set(wanted) - set(ranked)):
            raise ReportError(
                f"no evidence was kept of {', '.join(missing)} (kept: {', '.join(ranked)}); "
                "jras evaluate --workdir=RUN --evidence=all keeps that of every case"
            )
        return [name for name in ranked if name in wanted]
    middle = (len(order) - 1) / 2
    median = min(ranked, key=lambda name: (abs(order.get(name, len(order)) - middle), name))
    return [name for name in ranked if name in (ranked[0], median, ranked[-1])]


def section_of(
    run: ReportedRun, baseline: ReportedRun | None, found: Sequence[analysis.Case], shown: Mapping[str, str]
) -> Section:
    """Panels of the cases `shown` (name -> id of the panel), then a table of all."""
    parts: list[Html] = []
    if shown:
        other = baseline.evidence if baseline else {}
        loaded = [evidence.load(name, run.evidence[name], other.get(name)) for name in shown]
        most = evidence.side_within(loaded, IMAGE_BUDGET)
        parts += [
            paragraph(
                f"{plural(len(shown), 'case')} of {max(len(found), len(shown))}, from the lowest Dice to the highest. ",
                "The slider, or the arrow keys on it, moves through the slices; each slice has its own guides. ",
                "Slices, contours and Dice per slice are those of the model grid; the headings' scores are those of ",
                "the whole volume on the scan's own grid. ",
                _more(run, len(shown), len(found)),
            ),
            panels.key(run.description),
        ]
        ranks = {c.name: i for i, c in enumerate(found)}
        for item in loaded:
            case = found[ranks[item.name]] if item.name in ranks else None
            heading = _heading(item, case=case, ranks=ranks, unit=run.unit)
            parts.append(panels.panel(item, *heading, most, run.description))
    else:
        parts.append(
            absent(
                "The evaluation kept no case, so there are no slices to show; "
                f"jras evaluate --workdir={run.path} --config.eval.split={run.evaluation.partition('+')[0]} "
                "--evidence=all keeps every case."
            )
        )
    if found:
        listing = _all_cases(run, found, shown)
        parts.append(element("details", element("summary", f"All {plural(len(found), 'case')} in figures"), listing))
    return section("cases", "Cases and evidence", *parts)


def _more(run: ReportedRun, shown: int, total: int) -> str:
    """How to see the cases that are not shown."""
    if shown < len(run.evidence):
        return f"jras report {run.path} --evidence=all shows all {len(run.evidence)} that were kept."
    if shown < total:
        return f"jras evaluate --workdir={run.path} --evidence=all shows every case."
    return ""


def _heading(
    item: evidence.Evidence, case: analysis.Case | None, ranks: Mapping[str, int], unit: str
) -> tuple[str, str]:
    """A panel's heading and the line of figures under it."""
    if case is None:
        return f"{item.name}: Dice {number(item.dice)}", "This case is not in cases.csv."
    place = _place(ranks[item.name], len(ranks))
    facts = [", ".join(f"{s} {number(v)}" for s, v in case.by_structure.items())]
    facts += [f"HD95 {number(case.hd95, 2)} {plural_unit(unit)}", f"expected Dice {number(case.expected)}"]
    facts += [f"{plural(case.empty, 'structure')} with an empty mask"] if case.empty else []
    facts += [f"guide agreement {number(case.agreement)}"] if item.guides else []
    facts += [f"group {case.group}"] if case.group else []
    facts += [f"vendor {case.vendor}"] if case.vendor else []
    return f"{item.name}: Dice {number(case.dice)}, {place}", " · ".join(facts)


def _place(rank: int, total: int) -> str:
    """Where a case stands among all, in words."""
    if rank == 0:
        return f"the lowest of {plural(total, 'case')}"
    if rank == total - 1:
        return f"the highest of {plural(total, 'case')}"
    if rank in ((total - 1) // 2, total // 2):
        return f"the median of {plural(total, 'case')}"
    return (
        f"{rank + 1} of {total} from the lowest" if rank < total / 2 else f"{total - rank} of {total} from the highest"
    )


def _all_cases(run: ReportedRun, found: Sequence[analysis.Case], shown: Mapping[str, str]) -> Html:
    structures = list(run.description.structures)
    header = ["Case", "Group", "Vendor", "Dice", *structures, f"HD95, {plural_unit(run.unit)}"]
    rows = []
    for c in found:
        name = element("a", c.name, href=f"#{shown[c.name]}") if c.name in shown else c.name
        figures = [number(c.dice), *(number(c.by_structure.get(s)) for s in structures), number(c.hd95, 2)]
        rows.append([name, c.group or NOTHING, c.vendor or NOTHING, *figures, number(c.expected), number(c.entropy)])
    header += ["Expected Dice", "Entropy, nats"]
    return table(header, rows, caption="All cases, the lowest Dice first", text_columns=3)
