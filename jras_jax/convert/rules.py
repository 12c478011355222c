"""The engine of weight conversion: a declared table of rules, applied to named arrays, checked against a model's own
parameters.

Nothing passes silently: a tensor that no rule takes, a parameter that no tensor fills and a shape that does not fit are
all listed in one error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from jras_jax.errors import UserError

Arrays = dict[str, np.ndarray]


class ConversionError(UserError):
    """The tensors do not fit the model; the message lists every one that does not."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a table.

    Attributes:
      source: regular expression that must match a tensor's whole name.
      target: our path ('/'-joined, collection 'params' unless it begins with 'batch_stats/'), with \\1.. for the
      groups;
        None: the tensor is known and not needed.
      transform: a key of `TRANSFORMS`.
      part: (index, count): takes that piece of the first axis, cut in `count` (a fused projection); one row for each
      piece.
    """

    source: str
    target: str | None
    transform: str = "same"
    part: tuple[int, int] | None = None


def _permute(*axes: int) -> Callable[[np.ndarray], np.ndarray]:
    def transform(x: np.ndarray) -> np.ndarray:
        if x.ndim != len(axes):
            raise ValueError(f"{len(axes)} axes expected")
        return x.transpose(axes)

    return transform


def _conv1x1(x: np.ndarray) -> np.ndarray:
    if x.ndim != 4 or x.shape[2:] != (1, 1):
        raise ValueError("a 1x1 convolution expected")
    return x[:, :, 0, 0].T


def _depthwise(x: np.ndarray) -> np.ndarray:
    if x.ndim != 4 or x.shape[1] != 1:
        raise ValueError("a depthwise convolution (C, 1, h, w) expected")
    return x[:, 0].transpose(1, 2, 0)


def _split_heads(x: np.ndarray) -> np.ndarray:
    """Google's (D, heads, D / heads) -> (D, D)."""
    if x.ndim != 3:
        raise ValueError("3 axes expected")
    return x.reshape(x.shape[0], -1)


def _merge_heads(x: np.ndarray) -> np.ndarray:
    """Google's (heads, D / heads, D) -> (D, D)."""
    if x.ndim != 3:
        raise ValueError("3 axes expected")
    return x.reshape(-1, x.shape[-1])


def _drop_first_position(x: np.ndarray) -> np.ndarray:
    """Position embeddings (1, 1 + G * G, D) with a CLS token -> (1, G, G, D) without it."""
    side = round((x.shape[1] - 1) ** 0.5) if x.ndim == 3 else 0
    if x.ndim != 3 or side * side + 1 != x.shape[1]:
        raise ValueError("position embeddings (1, 1 + G * G, D) expected")
    return x[:, 1:].reshape(1, side, side, x.shape[2])


TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda x: x,
    "flat": lambda x: x.reshape(-1),
    "linear": _permute(1, 0),  # (out, in) -> (in, out)
    "conv": _permute(2, 3, 1, 0),  # (out, in, h, w) -> (h, w, in, out)
    "conv1x1": _conv1x1,  # (out, in, 1, 1) -> (in, out)
    "depthwise": _depthwise,  # (C, 1, h, w) -> (h, w, C)
    "transposed": _permute(0, 2, 3, 1),  # ConvTranspose2d's (in, out, h, w) -> (in, h, w, out)
    "split_heads": _split_heads,
    "merge_heads": _merge_heads,
    "drop_first_position": _drop_first_position,
}


def translate(tensors: Mapping[str, np.ndarray], rules: Iterable[Rule]) -> tuple[Arrays, list[str]]:
    """Applies the rules: our names (collection first) -> float32 arrays, and what went wrong, a line each."""
    compiled = [(re.compile(rule.source), rule) for rule in rules]
    arrays: Arrays = {}
    origin: dict[str, str] = {}
    faults = []
    for name in sorted(tensors):
        matches = [(match, rule) for pattern, rule in compiled if (match := pattern.fullmatch(name))]
        if not matches:
            faults.append(f"left over: {name} {tensors[name].shape}: no rule takes it")
        for match, rule in matches:
            if rule.target is None:
                continue
            path = match.expand(rule.target)
            path = path if path.startswith("batch_stats/") else f"params/{path}"
            if path in origin:
                faults.append(f"twice: {path} from {origin[path]} and from {name}")
                continue
            origin[path] = name
            try:
                arrays[path] = _transformed(tensors[name], rule)
            except ValueError as error:
                faults.append(f"wrong shape: {name} {tensors[name].shape}: {error}")
    return arrays, faults


def _transformed(tensor: np.ndarray, rule: Rule) -> np.ndarray:
    if rule.part is not None:
        index, count = rule.part
        if tensor.ndim == 0 or tensor.shape[0] % count:
            raise ValueError(f"the first axis does not divide into {count}")
        size = tensor.shape[0] // count
        tensor = tensor[index * size : (index + 1) * size]
    return np.ascontiguousarray(TRANSFORMS[rule.transform](tensor), dtype=np.float32)


def compare(arrays: Arrays, expected: Mapping[str, tuple[int, ...]], optional: Iterable[str] = ()) -> list[str]:
    """What differs between converted arrays and a model's parameter shapes, a line each.

    Args:
      arrays: by our names. expected: shapes by our names.
      optional: prefixes of parts that a source may lack as a whole (a bare encoder has no decoder).
    """
    faults = []
    lacking = tuple(part for part in optional if not any(name.startswith(part) for name in arrays))
    for name, shape in sorted(expected.items()):
        if name not in arrays:
            if not name.startswith(lacking or ("\0",)):
                faults.append(f"missing: {name} {shape}: no tensor fills it")
        elif arrays[name].shape != shape:
            faults.append(f"wrong shape: {name} {arrays[name].shape}, but the model has {shape}")
    for name in sorted(set(arrays) - set(expected)):
        faults.append(f"left over: {name} {arrays[name].shape}: the model has no such parameter")
    return faults


def fail(what: str, faults: list[str], advice: str) -> None:
    """Raises one `ConversionError` with every fault; does nothing if there is none."""
    if faults:
        listed = "\n  ".join(faults)
        raise ConversionError(f"{what}: {len(faults)} problems\n  {listed}\n{advice}")
