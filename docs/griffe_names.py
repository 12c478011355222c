"""Lets the API pages read `a, b: text` in a docstring as one line for a and one for b."""

from __future__ import annotations

import re
from typing import Any

import griffe

# One entry: its indentation, two or more names, and its text with the lines that go on deeper.
_ENTRY = re.compile(r"^( +)(\*{0,2}\w+(?:, \*{0,2}\w+)+): (.*(?:\n\1 +\S.*)*)$", re.M)


class OneNameALine(griffe.Extension):
    """Splits such entries before a docstring is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of each object that is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = _ENTRY.sub(_split, obj.docstring.value)


def _split(entry: re.Match[str]) -> str:
    indent, names, text = entry.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))
