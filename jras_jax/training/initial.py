"""First parameters of a run: random, or from converted weights and pre-trained retrievers."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np

from jras_jax import convert, joint
from jras_jax.config import Config
from jras_jax.errors import UserError
from jras_jax.run_folder.layout import RunFolder


def variables(model: joint.JointModel, config: Config) -> joint.Variables | None:
    """Variables with what `backbone.init_from` and `retriever.init_from` give; None if neither is given.

    Raises:
      UserError: a file is missing, or its weights do not fit the configured model.
    """
    sources = {"backbone": config.backbone.init_from}
    if config.retrieval.enabled:
        sources["retriever"] = config.retriever.init_from
    if not any(sources.values()):
        return None
    random = jax.tree.map(np.asarray, jax.jit(lambda: joint.init_variables(model, config))())
    result = {collection: dict(tree) for collection, tree in random.items()}
    for part, source in sources.items():
        if source:
            own = {collection: tree[part] for collection, tree in random.items() if part in tree}
            for collection, tree in _load(part, own, source).items():
                result[collection][part] = tree
    return result


def _load(part: str, variables: Any, source: str) -> Any:
    path = pathlib.Path(source)
    if part == "retriever" and RunFolder(path).retriever.is_file():
        path = RunFolder(path).retriever
    if not path.exists():
        how = f"jras convert SOURCE --model=NAME --output={source}"
        how += f", or jras pretrain --config=FILE --workdir={source}" if part == "retriever" else ""
        raise UserError(f"config.{part}.init_from={source!r}: no such file or folder; make it with {how}")
    return convert.init_from(variables, path)
