"""The weights of a run that is opened: its best checkpoint's, or those that were published."""

from __future__ import annotations

import pathlib
from typing import Any

import jax

from jras_jax import mesh
from jras_jax.config import Config
from jras_jax.run_folder import published, stored_arrays
from jras_jax.run_folder.checkpoints import Checkpoints
from jras_jax.run_folder.layout import RunFolder


def read(config: Config, folder: RunFolder, device_mesh: jax.sharding.Mesh) -> tuple[int, dict[str, Any]]:
    """The step and the variables of a run, on a mesh (the running mean of the parameters if it kept one).

    Raises:
      UserError: there is no finished checkpoint, or it is damaged; see `published.read`.
    """
    if published.is_published(folder):
        return published.read(folder, device_mesh)
    kept = "ema" if config.optim.ema_decay else "params"
    wanted = stored_arrays.Chosen(
        lambda path: path[:2] in (("state", kept), ("state", "extra")),
        lambda shapes: mesh.parameter_shardings(shapes, device_mesh),
    )
    best, arrays = Checkpoints(folder).restore_best(wanted)
    restored = arrays.get("state", {})
    return best, {"params": restored.get(kept, {}), **restored.get("extra", {})}


def place(folder: RunFolder, step: int) -> pathlib.Path:
    """Where the weights of a run are, for messages."""
    return folder.weights if published.is_published(folder) else folder.checkpoints / str(step)
