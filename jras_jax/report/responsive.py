"""Charts in two layouts, one for wide windows and one for narrow ones; the page's style shows the one that fits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from jras_jax.report.axes import Frame, legend, limits, marker, short, svg, text
from jras_jax.report.markup import Html, element, number, plural

WIDE, NARROW = 960.0, 340.0
_ROWS_A_COLUMN = 25  # patients under one another before a wide chart takes another column
_MOST_COLUMNS = 3


@dataclasses.dataclass(frozen=True)
class Values:
    """Values of one series in one group, and what each belongs to; NaN is left out and counted."""

    values: Sequence[float]
    names: Sequence[str] = ()

    def known(self) -> list[tuple[float, str]]:
        """Finite values with their names."""
        names = self.names or [""] * len(self.values)
        return [(v, n) for v, n in zip(self.values, names, strict=True) if math.isfinite(v)]


Series = Sequence[tuple[str, Sequence[Values]]]
Place = Callable[[float, float], tuple[float, float]]  # (value, position across) -> (x, y)


def box_plot(
    groups: Sequence[str], series: Series, *, title: str, include: Sequence[float] = (), digits: int = 3
) -> Html:
    """Boxes (quartiles, median), whiskers to the last value within 1.5 interquartile ranges, and every value as a dot.

    The boxes stand side by side in a wide window, and lie under one another in a narrow one.

    Args:
      groups: labels of the boxes.
      series: (name, one Values per group); the first is filled, the second hollow and dashed.
      title: of the axis of values, with unit.
      include: values that the axis must show.
      digits: of the medians in the text alternative.
    """
    bounds = limits([v for _, columns in series for c in columns for v in c.values], include=include)
    spoken = [
        f"{label} {name}: median {number(float(np.median([v for v, _ in known])), digits)}"
        for g, label in enumerate(groups)
        for name, columns in series
        if (known := columns[g].known())
    ]
    label = f"Box plot of {title}. " + "; ".join(spoken) + "."
    both = [draw(groups, series, bounds, title, label) for draw in (_upright_boxes, _lying_boxes)]
    if len(series) == 1:
        return element("figure", *both)
    entries = [(_sample_box(f"series{s}"), name) for s, (name, _) in enumerate(series)]
    return element("figure", legend(entries), *both)


def _upright_boxes(groups: Sequence[str], series: Series, bounds: tuple[float, float], title: str, label: str) -> Html:
    frame = Frame(WIDE, height=280.0, x_limits=(0, len(groups)), y_limits=bounds)
    parts: list[Html | None] = [*frame.y_axis(title)]
    wide = min(38.0, (frame.x(1) - frame.x(0)) * 0.62 / len(series))
    for g, group in enumerate(groups):
        middle = frame.x(g + 0.5)
        parts.append(text(middle, frame.height - frame.bottom + 18, group, anchor="middle", class_="tick"))
        for s, (_, columns) in enumerate(series):
            across = middle + (s - (len(series) - 1) / 2) * (wide + 8)
            parts.append(
                _box(lambda v, a: (a, frame.y(v)), across, wide=wide, known=columns[g].known(), kind=f"series{s}")
            )
    return svg(frame.width, frame.height, label, *parts, class_="chart wide")


def _lying_boxes(groups: Sequence[str], series: Series, bounds: tuple[float, float], title: str, label: str) -> Html:
    thick, name_height = 18.0, 20.0
    row = name_height + thick * len(series) + 6
    height = row * len(groups) + 48
    frame = Frame(NARROW, height=height, x_limits=bounds, y_limits=(0, 1), left=10, right=14, top=4, bottom=40)
    parts: list[Html | None] = [*frame.x_axis(title, 4, grid=True)]
    for g, group in enumerate(groups):
        top = frame.top + row * g
        parts.append(text(0, top + 14, group, class_="label"))
        for s, (_, columns) in enumerate(series):
            across = top + name_height + thick * (s + 0.5)
            parts.append(
                _box(lambda v, a: (frame.x(v), a), across, wide=thick - 5, known=columns[g].known(), kind=f"series{s}")
            )
    return svg(frame.width, frame.height, label, *parts, class_="chart narrow")


def _box(place: Place, across: float, wide: float, known: list[tuple[float, str]], kind: str) -> Html | None:
    """One box with its dots; None without values."""
    if not known:
        return None
    values = np.array([v for v, _ in known])
    q1, median, q3 = (float(v) for v in np.percentile(values, (25, 50, 75)))
    reach = 1.5 * (q3 - q1)
    low, high = float(values[values >= q1 - reach].min()), float(values[values <= q3 + reach].max())
    half = wide / 2
    parts = [
        _line(place, (low, across), end=(q1, across), kind="whisker"),
        _line(place, (q3, across), end=(high, across), kind="whisker"),
        _rectangle(place, (q1, across - half), (q3, across + half)),
        _line(place, (median, across - half), end=(median, across + half), kind="median"),
    ]
    for i, (value, case) in enumerate(known):
        # Spread by the golden ratio: even, and the same on every run.
        x, y = place(value, across + ((i * 0.618034) % 1 - 0.5) * wide * 0.7)
        parts.append(marker("circle", x=x, y=y, size=2.0, hint=f"{case} {number(value)}", class_="dot"))
    return element("g", *parts, class_=f"{kind} boxes")


def _line(place: Place, start: tuple[float, float], end: tuple[float, float], kind: str) -> Html:
    (x1, y1), (x2, y2) = place(*start), place(*end)
    return element("line", x1=x1, x2=x2, y1=y1, y2=y2, class_=kind)


def _rectangle(place: Place, start: tuple[float, float], end: tuple[float, float]) -> Html:
    (x1, y1), (x2, y2) = place(*start), place(*end)
    size = {"width": max(1.0, abs(x2 - x1)), "height": max(1.0, abs(y2 - y1))}
    return element("rect", x=min(x1, x2), y=min(y1, y2), rx=2.0, class_="box", **size)


def _sample_box(kind: str) -> Html:
    box = element("rect", x=5.0, y=2.0, width=18.0, height=10.0, rx=2.0, class_="box")
    middle = element("line", x1=5.0, x2=23.0, y1=7.0, y2=7.0, class_="median")
    return element("g", box, middle, class_=f"{kind} boxes")


def levels(rows: Sequence[tuple[str, float, bool]], *, title: str, include: Sequence[float] = (0.0, 1.0)) -> Html:
    """Named values on one axis, the value in figures beside each; True marks what this run itself does."""
    bounds = limits([v for _, v, _ in rows], include=include)
    label = f"{title}: " + "; ".join(f"{name} {number(value)}" for name, value, _ in rows) + "."
    wide = Frame(720.0, 30.0 * len(rows) + 44, x_limits=bounds, y_limits=(0, 1), left=250, right=60, bottom=40, top=4)
    narrow = Frame(NARROW, 40.0 * len(rows) + 44, x_limits=bounds, y_limits=(0, 1), left=10, right=56, bottom=40, top=4)
    drawn = [
        svg(wide.width, wide.height, label, *_levels(wide, rows, title=title, row_height=30.0), class_="chart wide")
    ]
    drawn.append(
        svg(
            narrow.width,
            narrow.height,
            label,
            *_levels(narrow, rows, title=title, row_height=40.0),
            class_="chart narrow",
        )
    )
    return element("figure", *drawn)


def _levels(frame: Frame, rows: Sequence[tuple[str, float, bool]], title: str, row_height: float) -> list[Html]:
    """Names stand left of the rows if there is room, else over them."""
    over = frame.left < 100
    parts = [*frame.x_axis(title, 4 if over else 5)]
    for i, (name, value, own) in enumerate(rows):
        top = frame.top + row_height * i
        y = top + (26 if over else row_height / 2)
        kind = "own" if own else "control"
        end = frame.width - frame.right
        if over:
            parts.append(text(0, top + 14, name, class_=f"label {kind}"))
        else:
            parts.append(text(frame.left - 12, y + 4, name, anchor="end", class_=f"label {kind}"))
        parts += [
            element("line", x1=frame.left, x2=end, y1=y, y2=y, class_="grid"),
            element("line", x1=frame.left, x2=frame.x(value), y1=y, y2=y, class_=f"stem {kind}"),
            marker("circle" if own else "diamond", x=frame.x(value), y=y, size=5.5, class_=f"level {kind}"),
            text(end + 12, y + 4, number(value), class_=f"value {kind}"),
        ]
    return parts


def differences(rows: Sequence[tuple[str, float]], *, title: str) -> Html:
    """One named row a patient, sorted: right of zero the run is better, left of it the baseline."""
    ordered = sorted((r for r in rows if math.isfinite(r[1])), key=lambda r: (-r[1], r[0]))
    better = sum(v > 0 for _, v in ordered)
    label = f"{title}: {better} of {plural(len(ordered), 'patient')} above zero."
    bounds = limits([v for _, v in ordered], include=[0.0], about=4)
    columns = min(_MOST_COLUMNS, max(1, math.ceil(len(ordered) / _ROWS_A_COLUMN)))
    return element(
        "figure",
        _difference_columns(
            ordered,
            bounds,
            title=title,
            label=label,
            width=WIDE if columns > 1 else 640.0,
            columns=columns,
            kind="chart wide",
        ),
        _difference_columns(ordered, bounds, title=title, label=label, width=NARROW, columns=1, kind="chart narrow"),
    )


def _difference_columns(
    rows: Sequence[tuple[str, float]],
    bounds: tuple[float, float],
    title: str,
    label: str,
    width: float,
    columns: int,
    kind: str,
) -> Html:
    step, each = 17.0, math.ceil(len(rows) / columns) if rows else 0
    height, share = step * each + 48, width / columns
    names = max((len(short(name)) for name, _ in rows), default=0) * 6.6 + 8
    parts: list[Html] = []
    for c in range(columns):
        frame = Frame(share, height, x_limits=bounds, y_limits=(0, 1), left=names, right=14, top=4, bottom=40)
        own = _difference_rows(frame, rows[c * each : (c + 1) * each], step)
        zero = element("line", x1=frame.x(0), x2=frame.x(0), y1=frame.top, y2=height - 40, class_="zero")
        axis = frame.x_axis(title, max(2, int((share - names) // 70)), grid=True)
        parts.append(element("g", *axis, zero, *own, transform=f"translate({share * c:g} 0)"))
    return svg(width, height, label, *parts, class_=kind)


def _difference_rows(frame: Frame, rows: Sequence[tuple[str, float]], step: float) -> list[Html]:
    parts = []
    for i, (name, value) in enumerate(rows):
        y = frame.top + step * (i + 0.5)
        kind = "better" if value > 0 else "worse" if value < 0 else "control"
        hint = f"{name} {number(value, 3, signed=True)}"
        parts += [
            text(frame.left - 8, y + 4, short(name), anchor="end", class_="tick"),
            element("line", x1=frame.x(0), x2=frame.x(value), y1=y, y2=y, class_=f"stem {kind}"),
            marker(
                "square" if value < 0 else "circle", frame.x(value), y=y, size=4.0, hint=hint, class_=f"level {kind}"
            ),
        ]
    return parts
