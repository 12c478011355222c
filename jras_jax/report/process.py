"""Sections about how the scores came about: training, retriever, uncertainty, provenance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jras_jax.evaluation import statistics, triage
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
    join,
    number,
    p_value,
    paragraph,
    plural,
    section,
    table,
)

# Title -> the columns of metrics.csv drawn together and their names.
CURVES: dict[str, dict[str, str]] = {
    "Training loss": {
        "loss": "total",
        "dice_loss": "Dice",
        "ce_loss": "cross-entropy",
        "overlap_loss": "ranking by overlap",
        "contrast_loss": "contrastive",
    },
    "Validation Dice": {"val/dice": "mean"},  # and each structure's
    "Dice of retrieved masks, validation": {
        "val/retrieval_dice_1": "best-weighted guide",
        "val/retrieval_dice_k": "mix of k guides",
    },
    "Entropy of guide weights, nats": {"val/weight_entropy": "validation", "weight_entropy": "training"},
    "Share of gallery used": {"val/gallery_used": "validation"},
    "Nearest neighbours that a refresh changed, share": {"neighbour_drift": "training"},
    "Gradient norm": {"grad_norm": "all parameters"},
    "Learning rate": {"lr_backbone": "backbone", "lr_retriever": "retriever"},
    "Slices per second": {"slices_per_s": "training"},
}
RETRIEVED = {
    "random": ("random gallery slice", False),
    "pixel": ("nearest by pixels", False),
    "dice_1": ("this run: first guide", True),
    "dice_k": ("this run: mix of k guides (soft)", True),
    "oracle": ("best slice there is (oracle)", False),
}
OTHER_MEASURES = {
    "weight_entropy": "Entropy of the guides' weights, nats (0: one guide takes all)",
    "gallery_used": "Share of the gallery fetched at least once",
}


def training(run: ReportedRun, baseline: ReportedRun | None) -> Section:
    """Curves of metrics.csv."""
    if not run.metrics:
        return section("training", "Training", absent("metrics.csv is missing: no training curves."))
    drawn, used = [], set()
    for title, columns in CURVES.items():
        lines = [charts.Line(name, run.metrics[c]) for c, name in columns.items() if c in run.metrics]
        used |= set(columns)
        if title == "Validation Dice":
            if baseline and "val/dice" in baseline.metrics:
                lines.append(charts.Line("mean, baseline", baseline.metrics["val/dice"]))
            own = {f"val/dice_{name}": (name, label) for name, label in run.description.structures.items()}
            lines += [charts.Line(n, run.metrics[c], label) for c, (n, label) in own.items() if c in run.metrics]
            used |= set(own)
        if lines:
            drawn.append(charts.curves(lines, title=title))
    others = sorted(set(run.metrics) - used)
    rest = [charts.curves([charts.Line(c, run.metrics[c])], title=c) for c in others]
    last = max(points[-1][0] for points in run.metrics.values())
    text = f"{last:,} steps logged. Curves with many points are drawn as means of neighbours."
    more = (
        element("details", element("summary", f"{plural(len(rest), 'more curve')}"), charts.figures(*rest))
        if rest
        else None
    )
    return section("training", "Training", charts.figures(*drawn), paragraph(text, class_="note"), more)


def retriever(run: ReportedRun) -> Section:
    """Retrieval measures against their controls."""
    title = "Retriever"
    measures = {
        k.removeprefix("val/").removeprefix("retrieval_"): v for k, v in run.summary.get("retrieval", {}).items()
    }
    measures = {k: float(v) for k, v in measures.items() if isinstance(v, int | float) and math.isfinite(v)}
    if run.config.get("retrieval", {}).get("enabled") is False:
        return section("retriever", title, absent("This run works without retrieval (retrieval.enabled is False)."))
    if not measures:
        return section("retriever", title, absent("summary.json has no retrieval measures."))
    rows = [(label, measures[k], own) for k, (label, own) in RETRIEVED.items() if k in measures]
    parts: list[Any] = []
    if rows:
        explain = (
            "How well the masks that are fetched match the truth of the query, before any network has seen them: "
            "mean foreground Dice over query slices, from other patients' slices only."
            if run.config.get("retrieval", {}).get("exclude", "patient") == "patient"
            else "How well the masks that are fetched match the truth of the query. "
            "The query's own patient may be fetched: these figures contain leakage."
        )
        parts += [
            paragraph(explain),
            responsive.levels(rows, title="Dice of the retrieved mask"),
            paragraph(reading(measures)),
        ]
    others = [(OTHER_MEASURES.get(k, k), number(v)) for k, v in measures.items() if k not in RETRIEVED]
    if drift := run.metrics.get("neighbour_drift"):
        others.append(("Share of nearest neighbours that the last refresh changed", number(drift[-1][1])))
    if others:
        parts.append(table(["Measure", "Value"], others, caption="Further measures"))
    return section("retriever", title, *parts)


def reading(measures: Mapping[str, float]) -> str:
    """What the retrieval figures say, in words."""
    own = measures.get("dice_1", measures.get("dice_k", math.nan))
    random, pixel, oracle = (measures.get(k, math.nan) for k in ("random", "pixel", "oracle"))
    parts = []
    if not math.isnan(own - random):
        verb = "better" if own > random else "no better"
        parts.append(f"The retriever is {verb} than a random slice ({number(own - random, 3, signed=True)})")
    if not math.isnan(own - pixel):
        verb = "above" if own > pixel else "below" if own < pixel else "equal to"
        parts.append(f"it is {verb} plain pixel similarity ({number(own - pixel, 3, signed=True)})")
    if oracle - random > 0:
        share = 100 * (own - random) / (oracle - random)
        parts.append(f"it covers {number(share, 0)}% of the way from random to the best that exists")
    return "; ".join(parts) + "." if parts else ""


def uncertainty(run: ReportedRun, found: Sequence[analysis.Case], shown: Mapping[str, str]) -> Section:
    """How well expected Dice and entropy tell which cases to check."""
    title = "Which cases to check"
    fields = {"expected_dice": [c.expected for c in found], "entropy": [c.entropy for c in found]}
    fields = {column: values for column, values in fields.items() if not all(math.isnan(v) for v in values)}
    if not fields:
        return section("uncertainty", title, absent("cases.csv has no expected Dice and no entropy."))
    plots, rows, ranked = [], [], {}
    dice = [c.dice for c in found]
    for column, values in fields.items():
        name, sign = SIGN_TITLES[column], triage.SIGNS[column]
        points = [charts.Point(v, y=c.dice, name=c.name, kind=c.phase) for v, c in zip(values, found, strict=True)]
        plots.append(charts.scatter(points, x_title=name, y_title="Dice", y_include=[1.0]))
        rho = statistics.spearman(values, dice)
        caught = analysis.catch(found, [-v if sign.rises else v for v in values])
        chance = caught.failures * caught.checked / rho.n if rho.n else math.nan
        ranked[f"{column}_vs_dice"] = {"helps": triage.helps(column, rho)}
        figures = (number(rho.rho, 2, signed=True), p_value(rho.p), f"{caught.caught} of {caught.failures}")
        rows.append((name, rho.n, *figures, number(chance, 1)))
    header = ["Sign", "Cases", "Spearman ρ with Dice", "p", "Worst quarter caught", "By chance"]
    note = (
        "ρ near 1 for expected Dice, near −1 for entropy: the sign ranks the failures first. Worst quarter caught: "
        "checking the quarter of cases that a sign calls worst finds this many of the quarter with the lowest Dice. p "
        "treats cases as independent, although two phases of one patient are not."
    )
    return section(
        "uncertainty",
        title,
        paragraph(element("strong", triage.reading(ranked)), " Both signs are known without a reference mask."),
        charts.figures(*plots),
        table(header, rows, caption="How well the signs rank failures", note=note),
        _check_first(found, next(iter(fields)), shown),
    )


SIGN_TITLES = {"expected_dice": "Expected Dice", "entropy": "Predictive entropy, nats"}


def _check_first(found: Sequence[analysis.Case], column: str, shown: Mapping[str, str]) -> Html:
    """The cases that a sign calls worst."""
    value = {"expected_dice": lambda c: c.expected, "entropy": lambda c: -c.entropy}[column]
    order = sorted((c for c in found if not math.isnan(value(c))), key=value)[:8]
    listed = []
    for c in order:
        name = element("a", c.name, href=f"#{shown[c.name]}") if c.name in shown else c.name
        listed.append((name, number(c.expected), number(c.entropy), number(c.dice)))
    first = "lowest expected Dice" if column == "expected_dice" else "highest predictive entropy"
    return table(["Case", "Expected Dice", "Entropy, nats", "Dice"], listed, caption=f"Check first: {first}")


OPTION_NAMES = {
    ("none", False): "neither",
    ("largest_component", False): "largest component of each structure",
    ("none", True): "test-time augmentation",
    ("largest_component", True): "both",
}


def options(run: ReportedRun) -> Section:
    """Whether post-processing and test-time augmentation help, as validation measured it."""
    title = "Post-processing and augmentation"
    found = run.choices
    if not found.get("options"):
        return section(
            "options",
            title,
            absent(
                "Whether they help was not measured on validation: "
                f"jras choose --workdir={run.path} does that; then evaluate again."
            ),
        )
    used = _option_name({"postprocess": run.summary.get("postprocess"), "tta": run.summary.get("tta")})
    chosen = _option_name(found.get("chosen", {}))
    rows = []
    for option in found["options"]:
        name = _option_name(option)
        row: list[Any] = [element("strong", name) if name == chosen else name]
        for key, digits in (("dice", 3), ("hd95", 2)):
            gain, low, high = (option.get(f"{key}_gain{end}") for end in ("", "_low", "_high"))
            shown = figure_number(number(gain, digits, signed=True), interval(low, high, digits, signed=True))
            row += [number(option.get(key), digits), NOTHING if name == "neither" else shown]
        rows.append(row)
    text = f"Chosen on the validation fold: {chosen}. The scores of this page were made with: {used}."
    if found.get("checkpoint_step") != run.summary.get("checkpoint_step"):
        text += f" The choice was made for another checkpoint (step {found.get('checkpoint_step')})."
    unit = {"voxel": "voxels"}.get(str(found.get("unit")), str(found.get("unit")))
    note = (
        f"{plural(int(found.get('patients', 0)), 'patient')} of the validation fold; gains over using neither, on the "
        f"same structures, 95% bootstrap interval over patients. Rule: {found.get('rule', '')}."
    )
    header = ["Option", "Dice", "Gain in Dice", f"HD95, {unit}", f"Change of HD95, {unit}"]
    return section("options", title, paragraph(text), table(header, rows, caption="Measured on validation", note=note))


def _option_name(option: Mapping[str, Any]) -> str:
    return OPTION_NAMES.get((option.get("postprocess", "none"), bool(option.get("tta"))), "an unknown option")


def provenance(run: ReportedRun, baseline: ReportedRun | None) -> Section:
    """What was run: code, versions, device, seed, protocol, settings, patients."""
    summary, facts = run.summary, run.facts
    known = {
        "Run": run.name,
        "Command": _command(str(facts["command"])) if facts.get("command") else None,
        "Started": facts.get("started"),
        "Duration": _duration(facts.get("duration_s")),
        "Git revision": element("code", facts["git_revision"]) if facts.get("git_revision") else None,
        "Device": facts.get("device"),
        "Seed": facts.get("seed", run.config.get("seed")),
        "Checkpoint": f"step {summary['checkpoint_step']:,}"
        if isinstance(summary.get("checkpoint_step"), int)
        else None,
        "Scored on": summary.get("split"),
        "Protocol": summary.get("protocol"),
        "Gallery": _inline(summary.get("gallery")),
        "Unit of distances": run.unit,
        "Fold": summary.get("fold"),
        "Post-processing": summary.get("postprocess"),
        "Test-time augmentation": None if "tta" not in summary else "on" if summary["tta"] else "off",
        "Evaluated with": element("code", summary["git_revision"]) if summary.get("git_revision") else None,
    }
    versions = facts.get("versions") or {}
    known["Versions"] = (
        ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, Mapping) else str(versions)
    )
    told = {
        "command",
        "started",
        "duration_s",
        "git_revision",
        "device",
        "seed",
        "versions",
        "warnings",
        "earlier_starts",
    }
    for key, value in facts.items():
        if key not in told:
            known[key.replace("_", " ").capitalize()] = _inline(value)
    if facts.get("earlier_starts"):
        known["Resumed"] = plural(len(facts["earlier_starts"]), "time")
    entries = [(element("dt", k), element("dd", v)) for k, v in known.items() if v not in (None, "", {})]
    parts: list[Any] = [element("dl", entries, class_="facts")]
    if not facts:
        parts.append(absent("run.json is missing: code, versions and device are not known."))
    parts += [_changes(run, baseline), _config(run), _splits(run)]
    return section("provenance", "What was run", *parts)


def _command(text: str) -> Html:
    """A command that wraps between its arguments, not after the hyphens in them."""
    return element("code", *[join(element("span", part, class_="argument"), " ") for part in text.split(" ")])


def _changes(run: ReportedRun, baseline: ReportedRun | None) -> Html | None:
    if baseline is None or not run.config or not baseline.config:
        return None
    ours, theirs = flatten(run.config), flatten(baseline.config)
    keys = [k for k in dict.fromkeys([*ours, *theirs]) if ours.get(k) != theirs.get(k)]
    if not keys:
        return paragraph("The baseline has the same settings.")
    rows = [(element("code", k), _value(ours, k), _value(theirs, k)) for k in keys]
    return table(
        ["Setting", "This run", "Baseline"], rows, caption="Settings that differ from the baseline's", text_columns=3
    )


def _config(run: ReportedRun) -> Html:
    if not run.config:
        return absent("config.json is missing: the settings are not known.")
    settings = flatten(run.config)
    rows = [(element("code", k), _value(settings, k)) for k in settings]
    body = table(["Setting", "Value"], rows, caption="config.json", text_columns=2)
    return element("details", element("summary", f"All {len(rows)} settings"), body)


def _value(settings: Mapping[str, Any], key: str) -> Html:
    return element("code", repr(settings[key])) if key in settings else join(NOTHING)


def _splits(run: ReportedRun) -> Html:
    # Not the list of all folds: train and validation say who is where.
    lists = {k: v for k, v in flatten(run.splits).items() if isinstance(v, list) and v and isinstance(v[0], str)}
    if not lists:
        return absent("splits.json is missing or empty: who trained and who was scored is not known.")
    rows = [(name, len(patients), ", ".join(map(str, patients))) for name, patients in lists.items()]
    sizes = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n, _ in rows)
    entries = [(element("dt", f"{name} ({n})"), element("dd", who)) for name, n, who in rows]
    return element("details", element("summary", f"Patients: {sizes}"), element("dl", entries, class_="facts"))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as 'a.b' -> value."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return out


def _inline(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ", ".join(f"{k.replace('_', ' ')} {_inline(v)}" for k, v in flatten(value).items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value


def _duration(seconds: Any) -> str | None:
    if not isinstance(seconds, int | float):
        return None
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds % 60)} s"
