"""The report's charts as inline SVG, drawn by Python: no script, styled by the page, legible without colour."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from jras_jax.report.axes import MARKERS, Frame, legend, limits, marker, svg, text
from jras_jax.report.markup import Html, element, join, number, plural

SMALL, WIDE = 304.0, 960.0  # widths: three side by side, and the whole column


@dataclasses.dataclass(frozen=True)
class Values:
    """Values of one series in one group, and what each belongs to; NaN is left out and counted."""

    values: Sequence[float]
    names: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a scatter plot; `kind` picks its shape."""

    x: float
    y: float
    name: str
    kind: str = ""


def box_plot(
    groups: Sequence[str],
    series: Sequence[tuple[str, Sequence[Values]]],
    *,
    title: str,
    include: Sequence[float] = (),
    digits: int = 3,
) -> Html:
    """Boxes (quartiles, median), whiskers to the last value within 1.5 interquartile ranges, and every value as a dot.

    Args:
      groups: labels along the x axis.
      series: (name, one Values per group); the first is filled, the second hollow and dashed.
      title: of the y axis, with unit.
      include: values that the axis must show.
      digits: of the medians in the text alternative.
    """
    everything = [v for _, columns in series for c in columns for v in c.values]
    width, height = WIDE, 280.0
    frame = Frame(width, height=height, x_limits=(0, len(groups)), y_limits=limits(everything, include=include))
    parts = [*frame.y_axis(title)]
    slot = frame.x(1) - frame.x(0)
    wide = min(38.0, slot * 0.62 / len(series))
    spoken = []
    for g, label in enumerate(groups):
        middle = frame.x(g + 0.5)
        parts.append(text(middle, height - frame.bottom + 18, label, anchor="middle", class_="tick"))
        for s, (name, columns) in enumerate(series):
            known = [(v, n) for v, n in _named(columns[g]) if math.isfinite(v)]
            offset = (s - (len(series) - 1) / 2) * (wide + 8)
            if known:
                parts.append(
                    _box(frame, x=middle + offset, wide=wide, known=known, kind=f"series{s}", name=name or label)
                )
                spoken.append(f"{label} {name}: median {number(float(np.median([v for v, _ in known])), digits)}")
    chart = svg(width, height, f"Box plot of {title}. " + "; ".join(spoken) + ".", *parts)
    if len(series) == 1:
        return element("figure", chart)
    entries = [(_sample_box(f"series{s}"), name) for s, (name, _) in enumerate(series)]
    return element("figure", legend(entries), chart)


def _named(column: Values) -> list[tuple[float, str]]:
    names = column.names or [""] * len(column.values)
    return list(zip(column.values, names, strict=True))


def _box(frame: Frame, x: float, wide: float, known: list[tuple[float, str]], kind: str, name: str) -> Html:
    values = np.array([v for v, _ in known])
    q1, median, q3 = np.percentile(values, (25, 50, 75))
    reach = 1.5 * (q3 - q1)
    low, high = values[values >= q1 - reach].min(), values[values <= q3 + reach].max()
    y = frame.y
    parts = [
        element("line", x1=x, x2=x, y1=y(low), y2=y(q1), class_="whisker"),
        element("line", x1=x, x2=x, y1=y(q3), y2=y(high), class_="whisker"),
        element("rect", x=x - wide / 2, width=wide, y=y(q3), height=max(1.0, y(q1) - y(q3)), rx=2.0, class_="box"),
        element("line", x1=x - wide / 2, x2=x + wide / 2, y1=y(median), y2=y(median), class_="median"),
    ]
    for i, (value, case) in enumerate(known):
        # Spread by the golden ratio: even, and the same on every run.
        spread = ((i * 0.618034) % 1 - 0.5) * wide * 0.7
        parts.append(marker("circle", x=x + spread, y=y(value), size=2.0, hint=f"{case} {number(value)}", class_="dot"))
    return element("g", *parts, class_=f"{kind} boxes")


def _sample_box(kind: str) -> Html:
    box = element("rect", x=5.0, y=2.0, width=18.0, height=10.0, rx=2.0, class_="box")
    middle = element("line", x1=5.0, x2=23.0, y1=7.0, y2=7.0, class_="median")
    return element("g", box, middle, class_=f"{kind} boxes")


def bland_altman(
    points: Sequence[Point], bias: float, low: float, high: float, *, title: str, unit: str, digits: int = 1
) -> Html:
    """Difference (prediction - reference) over their mean, with bias and 95% limits of agreement."""
    width, height = SMALL, 250.0
    shown = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    known = [v for v in (bias, low, high) if math.isfinite(v)]
    frame = Frame(
        width,
        height=height,
        x_limits=limits([p.x for p in shown], about=4),
        y_limits=limits([p.y for p in shown], include=[0.0, *known]),
        right=56,
    )
    parts = [*frame.y_axis(f"Prediction − reference, {unit}"), *frame.x_axis(f"Mean of the two, {unit}", 4)]
    x1, x2 = frame.left, width - frame.right
    for value, kind in ((0.0, "zero"), (bias, "bias"), (low, "limit"), (high, "limit")):
        if math.isfinite(value):
            parts.append(element("line", x1=x1, x2=x2, y1=frame.y(value), y2=frame.y(value), class_=kind))
    for value, row in zip(_apart([frame.y(v) for v in known], 13), known, strict=True):
        parts.append(text(x2 + 5, value + 4, number(row, digits, signed=True), class_="tick"))
    parts += [
        marker(
            "circle",
            x=frame.x(p.x),
            y=frame.y(p.y),
            size=3.4,
            hint=f"{p.name}: {number(p.y, digits, signed=True)} {unit}",
            class_="point",
        )
        for p in shown
    ]
    label = (
        f"Bland-Altman plot of {title}: bias {number(bias, digits, signed=True)} {unit}, 95% limits of agreement "
        f"{number(low, digits, signed=True)} to {number(high, digits, signed=True)} {unit}, "
        f"{plural(len(shown), 'patient')}."
    )
    return element("figure", element("figcaption", title), svg(width, height, label, *parts), class_="small")


def _apart(positions: list[float], least: float) -> list[float]:
    """Moves labels that would overlap apart, keeping their order."""
    order = np.argsort(positions, kind="stable")
    out = list(positions)
    for first, second in itertools.pairwise(order):
        out[second] = max(out[second], out[first] + least)
    return out


def curves(
    lines: Sequence[Line], *, title: str, x_title: str = "Step", include: Sequence[float] = (), most: int = 240
) -> Html:
    """Curves over training steps, the second one dashed; more than `most` points are averaged in equal bins."""
    width, height = SMALL, 200.0
    kept = [Line(line.name, thin(line.points, most)) for line in lines if line.points]
    xs = [x for line in kept for x, _ in line.points]
    ys = [y for line in kept for _, y in line.points]
    x_high = max(xs, default=1.0)
    frame = Frame(
        width,
        height=height,
        x_limits=(min([0.0, *xs]), x_high or 1.0),
        y_limits=limits(ys, include=include),
        right=16,
        top=10,
    )
    parts = [*frame.y_axis("", 4), *frame.x_axis(x_title, 4)]
    spoken = []
    for i, line in enumerate(kept):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line.points)
        kind = f"curve series{i}"
        if len(line.points) == 1:
            parts.append(marker(MARKERS[i % 4], frame.x(line.points[0][0]), frame.y(line.points[0][1]), class_=kind))
        parts.append(element("polyline", points=path, class_=kind))
        spoken.append(f"{line.name} ends at {line.points[-1][1]:.4g}")
    figure = svg(width, height, f"{title} over training. " + "; ".join(spoken) + ".", *parts)
    key = None
    if len(kept) > 1:
        samples = [
            element("line", x1=0.0, x2=28.0, y1=7.0, y2=7.0, class_=f"curve series{i}") for i in range(len(kept))
        ]
        key = legend([(sample, line.name) for sample, line in zip(samples, kept, strict=True)])
    return element("figure", element("figcaption", title), figure, key, class_="small")


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of a bin of neighbours; the last point stays as it is."""
    if len(points) <= most:
        return list(points)
    bins = np.array_split(np.asarray(points[:-1], float), most - 1)
    return [(float(b[:, 0].mean()), float(b[:, 1].mean())) for b in bins] + [points[-1]]


def scatter(points: Sequence[Point], *, x_title: str, y_title: str, y_include: Sequence[float] = ()) -> Html:
    """A cloud of named points, one shape a kind."""
    width, height = SMALL, 250.0
    shown = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    kinds = sorted({p.kind for p in shown})
    frame = Frame(
        width,
        height=height,
        x_limits=limits([p.x for p in shown]),
        y_limits=limits([p.y for p in shown], include=y_include),
    )
    parts = [*frame.y_axis(y_title), *frame.x_axis(x_title)]
    for p in shown:
        i = kinds.index(p.kind) % 4
        hint = f"{p.name}: {number(p.x)}, {number(p.y)}"
        parts.append(marker(MARKERS[i], x=frame.x(p.x), y=frame.y(p.y), size=3.6, hint=hint, class_=f"point series{i}"))
    label = f"Scatter plot of {y_title} against {x_title}, {plural(len(shown), 'point')}."
    key = None
    if len(kinds) > 1:
        samples = [
            marker(MARKERS[i % 4], x=14, y=7, size=4.0, class_=f"point series{i % 4}") for i in range(len(kinds))
        ]
        key = legend(list(zip(samples, kinds, strict=True)))
    return element("figure", svg(width, height, label, *parts), key, class_="small")


def levels(rows: Sequence[tuple[str, float, bool]], *, title: str, include: Sequence[float] = (0.0, 1.0)) -> Html:
    """Named values on one axis, the value in figures beside each; True marks what this run itself does."""
    left, row_height = 250.0, 30.0
    width, height = 720.0, row_height * len(rows) + 44
    frame = Frame(
        width,
        height=height,
        x_limits=limits([v for _, v, _ in rows], include=include),
        y_limits=(0, 1),
        left=left,
        right=60,
        bottom=40,
        top=4,
    )
    parts = [*frame.x_axis(title)]
    for i, (name, value, own) in enumerate(rows):
        y = frame.top + row_height * (i + 0.5)
        kind = "own" if own else "control"
        parts += [
            text(left - 12, y + 4, name, anchor="end", class_=f"label {kind}"),
            element("line", x1=left, x2=width - frame.right, y1=y, y2=y, class_="grid"),
            element("line", x1=left, x2=frame.x(value), y1=y, y2=y, class_=f"stem {kind}"),
            marker("circle" if own else "diamond", x=frame.x(value), y=y, size=5.5, class_=f"level {kind}"),
            text(width - frame.right + 12, y + 4, number(value), class_=f"value {kind}"),
        ]
    label = f"{title}: " + "; ".join(f"{name} {number(value)}" for name, value, _ in rows) + "."
    return element("figure", svg(width, height, label, *parts))


def differences(rows: Sequence[tuple[str, float]], *, title: str) -> Html:
    """One stem a patient, sorted: above zero the run is better, below the baseline."""
    ordered = sorted((r for r in rows if math.isfinite(r[1])), key=lambda r: r[1])
    width, height = WIDE, 200.0
    frame = Frame(
        width,
        height=height,
        x_limits=(0, max(len(ordered), 1)),
        y_limits=limits([v for _, v in ordered], include=[0.0]),
        bottom=26,
    )
    parts = [*frame.y_axis(title)]
    parts.append(element("line", x1=frame.left, x2=width - frame.right, y1=frame.y(0), y2=frame.y(0), class_="zero"))
    for i, (name, value) in enumerate(ordered):
        x, kind = frame.x(i + 0.5), "better" if value > 0 else "worse" if value < 0 else "control"
        parts.append(element("line", x1=x, x2=x, y1=frame.y(0), y2=frame.y(value), class_=f"stem {kind}"))
        shape = "square" if value < 0 else "circle"
        parts.append(
            marker(
                shape,
                x=x,
                y=frame.y(value),
                size=4.0,
                hint=f"{name} {number(value, 3, signed=True)}",
                class_=f"level {kind}",
            )
        )
    parts.append(
        text((frame.left + width - frame.right) / 2, height - 6, "Patients, sorted", anchor="middle", class_="axis")
    )
    better = sum(v > 0 for _, v in ordered)
    label = f"{title}: {better} of {plural(len(ordered), 'patient')} above zero."
    return element("figure", svg(width, height, label, *parts))


def bars(values: Sequence[float], *, label: str) -> Html:
    """One small bar a slice, 0 to 1, for the strip over a slice slider; an open mark for a slice without a value."""
    step, height = 14.0, 34.0
    parts = []
    for i, value in enumerate(values):
        x = i * step + 2
        known = math.isfinite(value)
        tall = max(2.0, value * (height - 6)) if known else 2.0
        hint = f"slice {i + 1}: " + (f"Dice {number(value, 2)}" if known else "nothing labelled")
        kind = "bar" if known else "bar none"
        bar = element(
            "rect", element("title", hint), x=x, y=height - tall, width=step - 4, height=tall, class_=kind, data_slice=i
        )
        parts.append(bar)
    return svg(step * max(len(values), 1), height, label, *parts, class_="strip")


def figures(*parts: Html) -> Html:
    """Small figures side by side."""
    return element("div", join(*parts), class_="figures")
