"""Scales, ticks and the frame of a chart. Lengths are CSS pixels; y grows downwards, as in SVG."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from jras_jax.report.markup import Html, element, fixed

MARKERS = ("circle", "square", "triangle", "diamond")  # shapes before colours: a reader may see only the first


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps `low`..`high` to the pixels `start`..`end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def limits(values: Iterable[float], *, include: Sequence[float] = (), about: int = 5) -> tuple[float, float]:
    """The values' range, widened to round numbers; (0, 1) without values."""
    known = [v for v in [*values, *include] if math.isfinite(v)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    if high == low:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def tick_label(value: float, step: float) -> str:
    """As many digits as the step between ticks needs; thousands as 20k where the step is in ten thousands."""
    if step >= 10_000 and value:
        return f"{fixed(value / 1000, 0)}k"
    # In powers of ten only near zero: far from it, all ticks would read alike.
    if abs(step) < 1e-3 and abs(value) <= 20 * abs(step):
        if not value:
            return "0"
        return f"{value:.0e}".replace("e-0", "e−").replace("e-", "e−")
    return fixed(value, max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 2)


@dataclasses.dataclass(frozen=True)
class Frame:
    """Size, margins and axis ranges of a chart."""

    width: float
    height: float
    x_limits: tuple[float, float]
    y_limits: tuple[float, float]
    left: float = 48
    right: float = 14
    top: float = 24
    bottom: float = 40

    @property
    def x(self) -> Scale:
        return Scale(*self.x_limits, self.left, self.width - self.right)

    @property
    def y(self) -> Scale:
        return Scale(*self.y_limits, self.height - self.bottom, self.top)

    def y_axis(self, title: str, about: int = 5) -> list[Html]:
        """Horizontal grid lines with their labels, and the axis' title above them."""
        at = ticks(*self.y_limits, about)
        step = at[1] - at[0] if len(at) > 1 else 1.0
        parts: list[Html] = []
        for value in at:
            y = self.y(value)
            parts.append(element("line", x1=self.left, x2=self.width - self.right, y1=y, y2=y, class_="grid"))
            parts.append(text(self.left - 7, y + 4, tick_label(value, step), anchor="end", class_="tick"))
        # Upright, over the axis: turned text is hard to read and runs into the tick labels.
        return [*parts, text(0, 10, title, class_="axis")] if title else parts

    def x_axis(self, title: str, about: int = 5, *, grid: bool = False) -> list[Html]:
        """Tick labels and a title under the chart; `grid` draws a line over each tick."""
        at = ticks(*self.x_limits, about)
        step = at[1] - at[0] if len(at) > 1 else 1.0
        base = self.height - self.bottom
        parts: list[Html] = [element("line", x1=self.left, x2=self.width - self.right, y1=base, y2=base, class_="base")]
        for value in at:
            if grid:
                parts.append(element("line", x1=self.x(value), x2=self.x(value), y1=self.top, y2=base, class_="grid"))
            parts.append(element("line", x1=self.x(value), x2=self.x(value), y1=base, y2=base + 4, class_="base"))
            parts.append(text(self.x(value), base + 17, tick_label(value, step), anchor="middle", class_="tick"))
        middle = (self.left + self.width - self.right) / 2
        return [*parts, text(middle, self.height - 6, title, anchor="middle", class_="axis")]


def text(x: float, y: float, content: Any, *, anchor: str | None = None, **attributes: Any) -> Html:
    """SVG text."""
    return element("text", content, x=float(x), y=float(y), text_anchor=anchor, **attributes)


def short(name: str, most: int = 16) -> str:
    """A name that fits beside an axis or a point; its whole is in the hint."""
    return name if len(name) <= most else name[: most - 1] + "…"


def svg(width: float, height: float, label: str, *parts: Any, class_: str = "chart") -> Html:
    """A chart; `label` says in words what it shows, for those who do not see it."""
    size = {"width": float(width), "height": float(height), "viewBox": f"0 0 {width:g} {height:g}"}
    return element("svg", *parts, role="img", aria_label=label, class_=class_, **size)


def marker(shape: str, x: float, y: float, size: float = 3.6, hint: str = "", **attributes: Any) -> Html:
    """A point; `hint` appears under the pointer."""
    title = element("title", hint) if hint else None
    if shape == "circle":
        return element("circle", title, cx=float(x), cy=float(y), r=float(size), **attributes)
    corners = _CORNERS[shape]
    points = " ".join(f"{x + dx * size:.1f},{y + dy * size:.1f}" for dx, dy in corners)
    return element("polygon", title, points=points, **attributes)


_CORNERS: dict[str, Sequence[tuple[float, float]]] = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
    "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
}


def legend(entries: Sequence[tuple[Html, str]]) -> Html:
    """A row of samples with their meaning; a sample is drawn in a box of 28 x 14 pixels."""
    items = []
    for drawing, meaning in entries:
        sample = element("svg", drawing, width="28", height="14", viewBox="0 0 28 14", aria_hidden="true")
        items.append(element("li", sample, element("span", meaning)))
    return element("ul", items, class_="legend")
