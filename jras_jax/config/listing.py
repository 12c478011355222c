"""All settings in words, for a listing on the command line and for the documentation."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from jras_jax.config.schema import SETTINGS
from jras_jax.config.setting import CHANGES


class Description(NamedTuple):
    """A setting in words.

    Attributes:
      key: 'section.name'.
      type: such as 'a whole number'.
      default: its value.
      rule: the values that it takes, '' if the type says it all.
      doc: meaning, unit and source.
      change: when it may change after training has started.
    """

    key: str
    type: str
    default: Any
    rule: str
    doc: str
    change: str


def describe() -> Iterator[Description]:
    """Every setting, in the schema's order."""
    for s in SETTINGS.values():
        yield Description(s.key, type=s.type, default=s.default, rule=s.rule, doc=s.doc, change=CHANGES[s.change])


def listing(word: str = "") -> str:
    """The settings whose key or meaning contains `word` (any case), as text of 100 columns; '' for all."""
    lines = []
    for d in describe():
        if word.lower() not in f"{d.key} {d.doc}".lower():
            continue
        facts = d.rule if d.type == "choice" else ", ".join(filter(None, (d.type, d.rule)))
        changes = "" if d.change == CHANGES["fixed"] else f" May change {d.change}."
        lines.append(f"--config.{d.key}={d.default!r}")
        lines.append(
            textwrap.fill(f"{d.doc} ({facts}).{changes}", 100, initial_indent="    ", subsequent_indent="    ")
        )
    return "\n".join(lines)
