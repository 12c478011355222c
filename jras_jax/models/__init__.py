"""Segmentation backbones by name.

A backbone is a linen module of the contract in docs/ARCHITECTURE.md: `encode`, `decode`, `__call__`, `fusion_levels`.
The retriever's encoder is `jras_jax.models.vit`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jras_jax.errors import UserError
from jras_jax.models import sam, segformer, transunet, unet


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A module class, its table of variants (fields by name) and the variant taken where none is named."""

    module: type[nn.Module]
    variants: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    default: str = ""


_REGISTRY = {
    "unet": _Entry(unet.UNet),
    "segformer": _Entry(segformer.SegFormer, segformer.VARIANTS, "b0"),
    "sam": _Entry(sam.SAM, sam.VARIANTS, "vit_b"),
    "transunet": _Entry(transunet.TransUNet, transunet.VARIANTS, "r50_vit_b16"),
}

NAMES = tuple(_REGISTRY)


def create(name: str, *, variant: str | None = None, **options: Any) -> nn.Module:
    """The backbone `name`, in the size `variant`, with `options` as its fields.

    Args:
      name: one of `NAMES`.
      variant: one of `variants(name)`; None takes the model's default. A field given in `options` wins over the
        variant's.
      **options: fields of the module, e.g. num_classes, dtype (a dtype or its name).

    Raises:
      UserError: for an unknown name, variant or option.

    Example:
      >>> model = create("unet", num_classes=4, levels=5, dtype="bfloat16")
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 1)))
    """
    entry = _entry(name)
    fields: dict[str, Any] = {}
    if entry.variants:
        variant = variant or entry.default
        if variant not in entry.variants:
            raise UserError(f"backbone {name!r} has no variant {variant!r}: it is one of {', '.join(entry.variants)}")
        fields.update(entry.variants[variant])
    elif variant:
        raise UserError(f"backbone {name!r} has no variants, but {variant!r} was asked for")
    allowed = {field.name for field in dataclasses.fields(entry.module)} - {"parent", "name"}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise UserError(
            f"backbone {name!r} has no option {', '.join(map(repr, unknown))}: it has {', '.join(sorted(allowed))}"
        )
    fields.update(options)
    if isinstance(fields.get("dtype"), str):
        fields["dtype"] = jnp.dtype(fields["dtype"])
    return entry.module(**fields)


def variants(name: str) -> tuple[str, ...]:
    """Names of a backbone's sizes; empty for those without."""
    return tuple(_entry(name).variants)


def parameter_count(params: Any) -> int:
    """Number of numbers in a tree of arrays or of `jax.ShapeDtypeStruct`s."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def abstract_variables(model: nn.Module, shape: tuple[int, ...]) -> Any:
    """The model's variables as `jax.ShapeDtypeStruct`s for inputs of `shape`, without computing anything."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape, jnp.float32)))


def _entry(name: str) -> _Entry:
    if name not in _REGISTRY:
        raise UserError(f"unknown backbone {name!r}: it is one of {', '.join(_REGISTRY)}")
    return _REGISTRY[name]
