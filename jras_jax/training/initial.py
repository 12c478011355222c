"""First parameters of a run: random, or from converted weights and pre-trained retrievers."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np

from jras_jax import convert, joint
from jras_jax.config import Config
from jras_jax.errors import UserError
from jras_jax.training import state

RETRIEVER_FILE = "retriever.safetensors"  # what --mode=pretrain_retriever leaves in its workdir


def variables(model: joint.JointModel, config: Config) -> joint.Variables | None:
    """Variables with what `backbone.init_from` and `retriever.init_from` give; None where nothing is given.

    Raises:
      UserError: a file is missing, or its weights do not fit the configured model.
    """
    sources = {"backbone": config.backbone.init_from}
    if config.retrieval.enabled:
        sources["retriever"] = config.retriever.init_from
    if not any(sources.values()):
        return None
    random = jax.tree.map(np.asarray, jax.jit(lambda: state.init_variables(model, config))())
    params = dict(random["params"])
    for part, source in sources.items():
        if source:
            params[part] = _load(part, params[part], source)
    return random | {"params": params}


def _load(part: str, params: Any, source: str) -> Any:
    path = pathlib.Path(source)
    if part == "retriever" and (path / RETRIEVER_FILE).is_file():
        path = path / RETRIEVER_FILE
    if not path.exists():
        raise UserError(f"config.{part}.init_from={source!r}: no such file or folder")
    return convert.init_from(params, path)
