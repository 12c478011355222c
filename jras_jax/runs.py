"""A finished (or interrupted) run, opened again: its own configuration, its best checkpoint, its gallery."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from jras_jax import config as configs
from jras_jax import dataset, inference, joint, mesh
from jras_jax.config import Config
from jras_jax.data.preprocess import Grid, SliceTable, slice_table
from jras_jax.errors import UserError
from jras_jax.evaluation import evaluator
from jras_jax.retrieval import encoder, store
from jras_jax.retrieval import gallery as galleries
from jras_jax.training import checkpoint, state, step


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run ready to evaluate or to segment.

    Attributes:
      config: the run's own, with the overrides of this call.
      workdir: its folder.
      model, variables: as of the best checkpoint (of its running mean, where it kept one).
      step: the checkpoint's step.
      device_mesh: where the variables lie.
    """

    config: Config
    workdir: pathlib.Path
    model: joint.JointModel
    variables: joint.Variables
    step: int
    device_mesh: jax.sharding.Mesh

    @property
    def fingerprint(self) -> str:
        """Of the retriever: galleries made by another one are refused."""
        params = mesh.to_host(self.variables["params"]["retriever"])
        return encoder.fingerprint(params, dataclasses.asdict(self.config.retriever))

    @property
    def grid(self) -> Grid:
        """The model grid; without the scans' spacing where no training scan had one."""
        grid = dataset.grid_of(self.config)
        return grid._replace(ignore_spacing=self.splits().get("spacing") == "unknown")

    def splits(self) -> dict[str, Any]:
        """The run's splits.json."""
        return json.loads((self.workdir / "splits.json").read_text())

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embeddings (N, dim) of slices (N, S, S) uint8 by this run's retriever."""
        batch = max(32, self.config.eval.batch_size)
        return step.Refresher(self.model, self.device_mesh, batch, images).embeddings(self.variables)

    def gallery_of(
        self,
        table: SliceTable,
        folder: pathlib.Path | None = None,
        embeddings: np.ndarray | None = None,
    ) -> galleries.Gallery:
        """The gallery of a slice table; kept in `folder` where one is given.

        `embeddings` (N, dim) of the slices by this very retriever; None: they are made here.
        """
        embeddings = self.embed(table.images) if embeddings is None else embeddings
        fingerprint = self.fingerprint  # on every host: shards that lie on several are gathered
        if folder is not None and jax.process_index() == 0:
            store.save(folder, table, embeddings, fingerprint)
        return self.gallery_from(table, embeddings)

    def gallery_from(self, table: SliceTable, embeddings: np.ndarray) -> galleries.Gallery:
        """The gallery of a slice table and its embeddings (N, dim), on the run's devices.

        Raises:
          UserError: it has fewer slices than guides are retrieved, or lies on another grid.
        """
        r, size = self.config.retrieval, self.config.dataset.image_size
        if len(table) < r.top_k:
            raise UserError(f"the gallery has {len(table)} slices, but {r.top_k} guides are retrieved: add cases")
        if table.images.shape[-1] != size:
            raise UserError(f"the gallery's slices have {table.images.shape[-1]} pixels a side, this run's {size}")
        empty = galleries.from_table(table, self.config.retriever.dim, self.device_mesh, memory=r.gallery_memory)
        return galleries.with_embeddings(empty, embeddings, self.device_mesh)

    def segmenter(self, gallery: galleries.Gallery | None) -> inference.Segmenter:
        """A segmenter with this gallery; None for a run without retrieval."""
        return evaluator.make_segmenter(self.config, self.model, self.variables, gallery, self.device_mesh, self.grid)


def open_run(workdir: str | pathlib.Path, overrides: Sequence[str] = ()) -> Opened:
    """Opens a run folder.

    Args:
      workdir: of a training run.
      overrides: `--config.a.b=value`; only settings that may change when a trained run is opened
        (`config.changeable("open")`).

    Raises:
      UserError: no run there, no finished checkpoint, a damaged one, or an override that changes the model.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise UserError(f"--workdir={workdir}: no such folder; train first: run.py --config=... --workdir={workdir}")
    saved = configs.load_saved(workdir / "config.json")
    configs.check_opened(overrides)
    config = configs.parse(configs.override(saved, overrides))
    device_mesh = mesh.make_mesh(config.mesh.data, config.mesh.model)
    checkpoints = checkpoint.Checkpoints(workdir)
    best = checkpoints.best()
    if best is None:
        raise UserError(f"{workdir} has no finished checkpoint yet: go on training with the command that started it")
    model = state.build_model(config)
    shapes = jax.eval_shape(lambda: state.init_variables(model, config))
    shardings = mesh.parameter_shardings(shapes, device_mesh)
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    kept = "ema" if config.optim.ema_decay else "params"
    extra = {k: v for k, v in target.items() if k != "params"}
    restored = checkpoints.restore_part(best, {"state": {kept: target["params"], "extra": extra}})["state"]
    checkpoints.close()
    return Opened(config, workdir, model, {"params": restored[kept], **restored["extra"]}, best, device_mesh)


def train_gallery(run: Opened, data: dataset.Data) -> tuple[SliceTable | None, galleries.Gallery | None]:
    """The gallery of the run's training patients, kept in its folder, and its slices; None for a run without."""
    if not run.config.retrieval.enabled:
        return None, None
    table = slice_table(data.part("train"), data.grid, drop_empty=run.config.dataset.drop_empty)
    return table, run.gallery_of(table, run.workdir / "gallery")


def own_gallery(run: Opened) -> tuple[galleries.Gallery, SliceTable]:
    """The gallery in a run's folder and its slices; embedded anew, and kept, where it is of an older checkpoint.

    Raises:
      UserError: no gallery there, or a damaged one.
    """
    own = run.workdir / "gallery"
    if not own.is_dir():
        raise UserError(f"{own} is missing: evaluate the run once (--mode=evaluate) to make it, or give --gallery=DIR")
    table, embeddings = store.read(own)
    if store.fingerprint_of(own) == run.fingerprint:
        return run.gallery_from(table, embeddings), table
    logging.info("embedding the gallery with the checkpoint of step %d", run.step)
    return run.gallery_of(table, own), table
