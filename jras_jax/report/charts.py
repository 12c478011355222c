"""The report's charts as inline SVG, drawn by Python: no script, styled by the page, legible without colour."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from jras_jax.report.axes import MARKERS, Frame, legend, limits, marker, short, svg, text
from jras_jax.report.markup import Html, element, join, number, plural

SMALL = 304.0  # width: three side by side, and as it is in a narrow window


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve; one of a structure has its `label` and takes its colour."""

    name: str
    points: Sequence[tuple[float, float]]
    label: int | None = None


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a scatter plot; `kind` picks its shape."""

    x: float
    y: float
    name: str
    kind: str = ""


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
    parts += [_named(frame, p) for p in shown if p.y < low or p.y > high]  # none if the limits are unknown
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
    kept = [dataclasses.replace(line, points=thin(line.points, most)) for line in lines if line.points]
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
        kind = _curve_class(i, line)
        if len(line.points) == 1:
            parts.append(marker(MARKERS[i % 4], frame.x(line.points[0][0]), frame.y(line.points[0][1]), class_=kind))
        parts.append(element("polyline", points=path, class_=kind))
        spoken.append(f"{line.name} ends at {number(line.points[-1][1], 6)}")
    figure = svg(width, height, f"{title} over training. " + "; ".join(spoken) + ".", *parts)
    key = None
    if len(kept) > 1:
        samples = [
            element("line", x1=0.0, x2=28.0, y1=7.0, y2=7.0, class_=_curve_class(i, line))
            for i, line in enumerate(kept)
        ]
        key = legend([(sample, line.name) for sample, line in zip(samples, kept, strict=True)])
    return element("figure", element("figcaption", title), figure, key, class_="small")


def _curve_class(number_of_line: int, line: Line) -> str:
    return f"curve series{number_of_line}" + ("" if line.label is None else f" structure s{line.label}")


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of a bin of neighbours; the last point stays as it is."""
    if len(points) <= most:
        return list(points)
    bins = np.array_split(np.asarray(points[:-1], float), most - 1)
    return [(float(b[:, 0].mean()), float(b[:, 1].mean())) for b in bins] + [points[-1]]


def _named(frame: Frame, point: Point) -> Html:
    """The name beside a point, on the side where there is room."""
    right = frame.x(point.x) < (frame.left + frame.width - frame.right) / 2
    place = {"anchor": None if right else "end", "class_": "tick"}
    return text(frame.x(point.x) + (7 if right else -7), frame.y(point.y) + 4, short(point.name), **place)


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
    parts += [_named(frame, p) for p in sorted(shown, key=lambda p: p.y)[:2]]  # those to look at first
    label = f"Scatter plot of {y_title} against {x_title}, {plural(len(shown), 'point')}."
    key = None
    if len(kinds) > 1:
        samples = [
            marker(MARKERS[i % 4], x=14, y=7, size=4.0, class_=f"point series{i % 4}") for i in range(len(kinds))
        ]
        key = legend(list(zip(samples, kinds, strict=True)))
    return element("figure", svg(width, height, label, *parts), key, class_="small")


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
