"""Converts published weights into the project's parameter names.

A source is a Hugging Face folder (config.json and model.safetensors, sharded or not), a safetensors file, Google's npz,
or hf:org/name. The output folder gets model.safetensors, in the project's parameter names, and provenance.json. It is
what `config.backbone.init_from` and `config.retriever.init_from` take. If no config.json gives the sizes, the variant
names them.
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import flax.traverse_util

from jras_jax import models
from jras_jax.convert import rules, sources, weights
from jras_jax.convert.tables import TABLES, Fields, Table
from jras_jax.errors import UserError


def convert(source: str, model: str, output: pathlib.Path, variant: str = "") -> dict[str, Any]:
    """Converts one source into the folder `output`; returns the provenance that is written there.

    Raises:
      UserError: unknown model or variant, unreadable source. ConversionError: whatever does not fit, all listed.
    """
    if model not in TABLES:
        raise UserError(f"--model={model}: it is one of {', '.join(TABLES)}")
    table = TABLES[model]
    given = sources.read(source)
    arrays, faults = rules.translate(given.tensors, table.rules)
    fields = {**_fields(source, model=model, variant=variant, config=given.config), **table.from_arrays(arrays)}
    faults += rules.compare(arrays, _expected(table, fields, arrays), table.optional)
    advice = f"is it a {model} of {'these sizes' if given.config else f'the size {variant!r}'}?"
    rules.fail(f"{source} as {model}", faults, advice)
    facts = {
        "model": model,
        "source": source,
        "files": given.files,
        "fields": fields,
        "parameters": sum(math.prod(a.shape) for name, a in arrays.items() if name.startswith("params/")),
        "stem": _stem(table, arrays),
        "heads": list(table.heads),
        "absent": [part for part in table.optional if not any(name.startswith(part) for name in arrays)],
    }
    weights.save(output / weights.FILE, flax.traverse_util.unflatten_dict(arrays, sep="/"), facts)
    (output / "provenance.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    return facts


def _fields(source: str, model: str, variant: str, config: dict[str, Any]) -> Fields:
    table = TABLES[model]
    if variant:
        if variant not in table.variants:
            raise UserError(f"--variant={variant}: {model} has {', '.join(table.variants)}")
        return dict(table.variants[variant])
    if not config:
        raise UserError(f"{source} has no config.json: give the size, --variant={'|'.join(table.variants)}")
    kind = config.get("model_type")
    if kind not in table.model_types:
        raise UserError(f"{source}: config.json says model_type={kind!r}, which --model={model} is not for")
    try:
        return table.from_config(config)
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{source}: config.json lacks or misstates {error}") from error


def _expected(table: Table, fields: Fields, arrays: rules.Arrays) -> dict[str, tuple[int, ...]]:
    stem = arrays.get(f"params/{_stem(table, arrays)}")
    channels = 3 if stem is None else stem.shape[-2]
    abstract = models.abstract_variables(table.build(fields), (1, table.side, table.side, channels))
    return {name: tuple(leaf.shape) for name, leaf in weights.flatten(abstract).items()}


def _stem(table: Table, arrays: rules.Arrays) -> str:
    return next((path for path in table.stem if f"params/{path}" in arrays), table.stem[0])
