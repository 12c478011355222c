"""The choice between an operation's reference and its CPU form; see the package's docstring."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import jax

Form = Literal["reference", "cpu"]
FORMS: tuple[Form, ...] = get_args(Form)
F = TypeVar("F", bound=Callable[..., Any])

# A user context is part of the key of every tracing and compilation cache; a variable of ours would not be.
_override = jax.make_user_context(default_value=None)


def form() -> Form:
    """The form that programs traced now contain: the innermost `using`, else the default backend's."""
    return _override.value or ("cpu" if jax.default_backend() == "cpu" else "reference")


def using(form: Form) -> contextlib.AbstractContextManager[None]:
    """Programs traced in this thread within the context contain this form of every operation.

    What is already traced does not change. Both forms run on every platform; they differ in speed, and in their values
    by rounding.

    Raises:
      ValueError: `form` is not in `FORMS`.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}: choose one of {', '.join(FORMS)}")
    return _override(form)


def choose(reference: F, cpu: F) -> F:
    """The one of the two functions that `form` names."""
    return cpu if form() == "cpu" else reference
