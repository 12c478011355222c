"""HTML and SVG as escaped text, and numbers as a reader wants them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jinja2
import markupsafe

NOTHING = "–"  # a table's cell without a number


# Characters of names that a reader would not see, or that would turn the text after them round (U+202E); half pairs of
# UTF-16, which come from file names in no known encoding, cannot be written at all.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


# Text that is HTML already; any other string is escaped where it enters the page.
Html = markupsafe.Markup


def element(name: str, /, *children: Any, **attributes: Any) -> Html:
    """One element: `element("td", "a < b", class_="n")` is `<td class="n">a &lt; b</td>`.

    Args:
      name: of the element.
      *children: Html as it is, other values escaped, None and "" left out, lists and the like flattened.
      **attributes: a trailing underscore is dropped, other underscores become hyphens; None and False leave the
        attribute out, True gives it without a value; floats are written short.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    inside = "".join(_flatten(children))
    if name in _VOID or (not inside and name in _SHAPES):
        return Html(f"<{name}{written}/>" if name in _SHAPES else f"<{name}{written}>")
    return Html(f"<{name}{written}>{inside}</{name}>")


_VOID = {"br", "hr", "input", "link", "meta"}
_SHAPES = {"circle", "image", "line", "path", "polygon", "polyline", "rect", "use"}


def visible(value: Any) -> Any:
    """A value with the characters spelled out that a reader would not see; Html and numbers stay as they are."""
    if isinstance(value, Html) or not isinstance(value, str):
        return value
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", value)


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    key = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {key}"
    if isinstance(value, float):
        value = f"{value:.2f}".rstrip("0").rstrip(".")
    return f' {key}="{markupsafe.escape(visible(str(value)))}"'


def _flatten(children: Iterable[Any]) -> Iterable[str]:
    for child in children:
        if isinstance(child, Html):
            yield child
        elif isinstance(child, Iterable) and not isinstance(child, str):
            yield from _flatten(child)
        elif child is not None:
            yield markupsafe.escape(visible(str(child)))


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("jras_jax.report", "assets"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=lambda value: "" if value is None else visible(value),
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> Html:
    """A template of `assets/` filled with values; whatever is not Html is escaped."""
    return Html(_TEMPLATES.get_template(template).render(values))


def join(*parts: Any) -> Html:
    """Parts one after another, escaped as in `element`."""
    return Html("".join(_flatten(parts)))


SIGNIFICANT = 3  # digits at most of any score: more would claim what no test set of patients can show


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """A score: at most `digits` decimals and three significant digits, a true minus sign, commas at thousands.

    A dash if there is no number.
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    rounded = float(f"{value:.{SIGNIFICANT - 1}e}")
    if rounded:
        digits = max(0, min(digits, SIGNIFICANT - 1 - math.floor(math.log10(abs(rounded)))))
    return fixed(rounded, digits, signed=signed)


def fixed(value: float, digits: int, *, signed: bool = False) -> str:
    """A finite number with so many decimals, a true minus sign and commas at thousands."""
    text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")  # no "-0.000"
    return text.replace("-", "−")


def interval(low: float | None, high: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """'0.85 to 0.91'; nothing where an end is missing."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{number(low, digits, signed=signed)} to {number(high, digits, signed=signed)}"


def p_value(p: float | None) -> str:
    """'0.032' or '< 0.001'."""
    if p is None or not math.isfinite(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else number(p, 3)


def plural(count: int, noun: str, many: str = "") -> str:
    """'1 case', '3 cases'."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def table(
    header: Sequence[Any],
    rows: Iterable[Sequence[Any]],
    *,
    caption: Any = None,
    text_columns: int = 1,
    note: Any = None,
) -> Html:
    """A table whose first column heads its rows; columns after the first `text_columns` are numbers, right-aligned."""

    # The box scrolls by itself on a narrow screen; its name tells a screen reader what it holds.
    label = str(caption) if isinstance(caption, str) and not isinstance(caption, Html) else "Table"
    filled = {"header": header, "rows": list(rows), "caption": caption, "text_columns": text_columns, "note": note}
    return render("table.html", label=label, **filled)


def figure_number(value: str, spread: str) -> Html:
    """A number with its interval in smaller type."""
    return join(value, " ", element("span", f"({spread})", class_="ci")) if spread else join(value)


def paragraph(*children: Any, class_: str | None = None) -> Html:
    """A <p>."""
    return element("p", *children, class_=class_)


def absent(sentence: str) -> Html:
    """Takes the place of a part of the report that has nothing to show."""
    return element("p", sentence, class_="absent")


class Section(NamedTuple):
    """A part of the page: its anchor, its title in the contents, and its <section>."""

    anchor: str
    title: str
    body: Html


def section(anchor: str, title: str, *children: Any) -> Section:
    """A section with its heading."""
    heading = element("h2", title, id=f"{anchor}-title")
    body = element("section", heading, *children, id=anchor, aria_labelledby=f"{anchor}-title")
    return Section(anchor, title, body)
