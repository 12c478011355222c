"""The settings of a run: one schema, config files that change it, and rules for what may change after training.

`load` runs a config file, `override` applies `--config.a.b=value`, `parse` checks and freezes. Nothing else in the
package reads a config.
"""

from jras_jax.config.changes import DECLARABLE, changeable, check_opened, check_resumed, differences
from jras_jax.config.files import load, load_saved, save, shipped
from jras_jax.config.listing import Description, describe, listing
from jras_jax.config.parsing import flatten, override, parse
from jras_jax.config.recipes import defaults, paper
from jras_jax.config.schema import Config
from jras_jax.config.sections_data import Augment, Dataset
from jras_jax.config.sections_model import Backbone, Fusion, Locator, Retrieval, Retriever
from jras_jax.config.sections_run import Eval, Loss, Mesh, Optim, Pretrain, Train
from jras_jax.config.setting import ConfigError

__all__ = [
    "DECLARABLE", "Augment", "Backbone", "Config", "ConfigError", "Dataset", "Description", "Eval", "Fusion", "Locator",
    "Loss", "Mesh", "Optim", "Pretrain", "Retrieval", "Retriever", "Train", "changeable", "check_opened",
    "check_resumed", "defaults", "describe", "differences", "flatten", "listing", "load", "load_saved", "override",
    "paper", "parse", "save", "shipped",
]  # fmt: skip
