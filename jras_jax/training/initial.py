"""First parameters of a run: random, or from converted weights and pre-trained retrievers."""

from __future__ import annotations

import pathlib

from jras_jax import convert, files, joint
from jras_jax.config import Config
from jras_jax.errors import UserError
from jras_jax.run_folder.layout import RunFolder


def variables(model: joint.JointModel, config: Config) -> joint.Variables | None:
    """Variables with what `backbone.init_from` and `retriever.init_from` give; None if neither is given.

    Raises:
      UserError: a file is missing, or its weights do not fit the configured model.
    """
    sources = _sources(config)
    if not sources:
        return None
    random = joint.drawn_variables(model, config)
    result = {collection: dict(tree) for collection, tree in random.items()}
    for part, source in sources.items():
        own = {collection: tree[part] for collection, tree in random.items() if part in tree}
        for collection, tree in convert.init_from(own, _path(part, source)).items():
            result[collection][part] = tree
    return result


def check_sources(config: Config) -> None:
    """Raises UserError if `backbone.init_from` or `retriever.init_from` is not there; before the data set is built."""
    for part, source in _sources(config).items():
        _path(part, source)


def _sources(config: Config) -> dict[str, str]:
    """What is given for each part of the model."""
    sources = {"backbone": config.backbone.init_from}
    if config.retrieval.enabled:
        sources["retriever"] = config.retriever.init_from
    return {part: source for part, source in sources.items() if source}


def _path(part: str, source: str) -> pathlib.Path:
    path = files.expanded(source)
    if part == "retriever" and RunFolder(path).retriever.is_file():
        path = RunFolder(path).retriever
    if not path.exists():
        how = f"jras convert SOURCE --model=NAME --output={source}"
        how += f", or jras pretrain --config=FILE --workdir={source}" if part == "retriever" else ""
        raise UserError(f"config.{part}.init_from={source!r}: no such file or folder; make it with {how}")
    return path
