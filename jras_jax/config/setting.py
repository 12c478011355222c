"""What a single setting is: its default, its meaning, the values that it takes, and when it may change."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from jras_jax.errors import UserError

# When a setting may change after training has started:
#   fixed   never: it decides the trained weights, or which checkpoint is the best
#   resume  when training resumes in the same folder
#   open    when a trained run is opened (to evaluate, predict, choose, or make a gallery)
#   free    in both cases
#   declared when training resumes and its user asks for it: it changes the trained weights
Change = Literal["fixed", "declared", "resume", "open", "free"]
CHANGES: Mapping[Change, str] = types.MappingProxyType(
    {
        "fixed": "never",
        "declared": "when training resumes with --resume_with_changes",
        "resume": "when training resumes",
        "open": "when a trained run is opened",
        "free": "when training resumes or a trained run is opened",
    }
)
_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a list",
    dict: "options",
}


class ConfigError(UserError):
    """A configuration key or value is wrong; the message names the key."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """An interval of numbers with finite ends; NaN and infinity are outside any.

    Attributes:
      low, high: the ends, in the unit of the setting.
      low_open, high_open: whether the end itself is excluded.
    """

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        if not self.low_open and not self.high_open:
            return f"{self.low} to {self.high}"
        low, high = ("above" if self.low_open else "at least"), ("below" if self.high_open else "at most")
        return f"{low} {self.low} and {high} {self.high}"


def setting(
    default: Any,
    doc: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    must: tuple[Callable[[Any], bool], str] | None = None,
    change: Change = "fixed",
    before: Any = None,
) -> Any:
    """A field of a section of the schema; its type is the field's annotation.

    Args:
      default: the value that `config.defaults()` has.
      doc: meaning, unit and source, for the listing of all settings.
      above, at_least: the lower end of a number's interval, excluded or included.
      below, at_most: the upper end, excluded or included.
      must: a rule that an interval cannot express, as (predicate, "what the value must be").
      change: when the setting may change after training has started, see `Change`.
      before: what a run did that was saved before the setting was introduced; None if every run has it.

    Raises:
      TypeError: there is a lower bound without an upper one, the reverse, or two of either.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Optim:
      ...     ema_decay: float = setting(0.0, "decay of the running mean", at_least=0, below=1)
    """
    bounds = None
    given = [end is not None for end in (above, at_least, below, at_most)]
    if any(given):
        if given[0] == given[1] or given[2] == given[3]:
            raise TypeError(f"the setting of default {default!r} needs one lower and one upper bound")
        low, high = (at_least if above is None else above), (at_most if below is None else below)
        assert low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
        bounds = Bounds(low, high=high, low_open=above is not None, high_open=below is not None)
    metadata = {"doc": doc, "bounds": bounds, "must": must, "change": change, "before": before}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting of the schema with its full key.

    Attributes:
      key: 'section.name'.
      hint: the annotated type.
      default, doc, bounds, must, change, before: as given to `setting`.
    """

    key: str
    hint: Any
    default: Any
    doc: str
    bounds: Bounds | None
    must: tuple[Callable[[Any], bool], str] | None
    change: Change
    before: Any = None

    def __post_init__(self) -> None:
        if {int, float} & {self.hint, *typing.get_args(self.hint)} and self.bounds is None:
            raise TypeError(f"{self.key} is a number without bounds")

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a setting with choices, () for any other."""
        return typing.get_args(self.hint) if typing.get_origin(self.hint) is Literal else ()

    @property
    def open_ended(self) -> bool:
        """Whether the setting is a dictionary of further keywords, which the schema does not list."""
        return typing.get_origin(self.hint) is dict

    @property
    def type(self) -> str:
        """The type in words."""
        if self.choices:
            return "choice"
        if typing.get_origin(self.hint) is tuple:
            kinds = typing.get_args(self.hint)
            count = "" if kinds[-1] is Ellipsis else f"{len(kinds)} "
            return f"a list of {count}{'texts' if kinds[0] is str else 'numbers'}"
        return _KINDS[typing.get_origin(self.hint) or self.hint]

    @property
    def rule(self) -> str:
        """The values that the setting takes, in words; '' if its type says it all."""
        if self.choices:
            return f"one of {', '.join(map(repr, self.choices))}"
        each = " each" if typing.get_origin(self.hint) is tuple else ""
        parts = [f"{self.bounds}{each}"] if self.bounds else []
        return ", ".join(parts + [self.must[1]] if self.must else parts)

    def read(self, value: Any) -> Any:
        """The value as the setting's type, checked.

        Raises:
          ConfigError: naming the key, the value and what it must be.
        """
        read = self._typed(self.hint, value, value)
        if self.must and not self.must[0](read):
            raise self._refused(value, f"must be {self.rule}")
        return read

    def _typed(self, hint: Any, part: Any, whole: Any) -> Any:
        """`part` (`whole` itself, or one element of it) as type `hint`."""
        origin = typing.get_origin(hint)
        if origin is Literal:
            if not any(type(part) is type(choice) and part == choice for choice in self.choices):
                raise self._refused(whole, f"choose {self.rule}")
            return part
        if origin is tuple:
            kinds = typing.get_args(hint)
            if not isinstance(part, (tuple, list)):
                raise self._refused(whole, f"expected {self.type}")
            kinds = (kinds[0],) * len(part) if kinds[-1] is Ellipsis else kinds
            if len(kinds) != len(part):
                raise self._refused(whole, f"expected {self.type}")
            return tuple(self._typed(kind, element, whole) for kind, element in zip(kinds, part, strict=True))
        if hint is float and type(part) is int:
            self._check_bounds(part, whole)  # before the conversion, which an enormous integer overflows
            part = float(part)
        kind = origin or hint
        if not isinstance(part, kind) or (isinstance(part, bool) and kind is not bool):
            raise self._refused(whole, f"expected {self.type}")
        if kind is dict and not all(math.isfinite(x) for x in _floats(part)):
            raise self._refused(whole, "must be without NaN and infinity")
        if kind in (int, float):
            self._check_bounds(part, whole)
        return part

    def _check_bounds(self, number: float, whole: Any) -> None:
        assert self.bounds is not None, self.key
        if number not in self.bounds:
            raise self._refused(whole, f"must be {self.rule}")

    def _refused(self, value: Any, why: str) -> ConfigError:
        return ConfigError(f"config.{self.key}={value!r}: {why}")


def settings_of(section: Any, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a section class and of the sections inside it, in the schema's order."""
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        key, hint = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from settings_of(hint, f"{key}.")
        else:
            default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
            yield Setting(key, hint, default, **field.metadata)


def kind_of(value: Any) -> str:
    """The type of a value in words."""
    return _KINDS.get(type(value), type(value).__name__)


def _floats(tree: Any) -> Iterator[float]:
    """Every float inside dictionaries and lists."""
    if isinstance(tree, float):
        yield tree
    elif isinstance(tree, (dict, list, tuple)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _floats(part)
