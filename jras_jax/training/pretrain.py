"""Pre-training of the retriever: contrast (SimCLR's NT-Xent) on the training slices of a run's fold.

A positive pair is a slice and its neighbour in the same volume, or two views of one slice (METHOD: rotation to 10
degrees, flips, contrast 1 to 1.3, half the time one view is the plain slice). Slices of one patient are no negatives.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jras_jax import config as configs
from jras_jax import convert, joint, mesh
from jras_jax.config import Augment, Config, Pretrain
from jras_jax.data.augment import augment
from jras_jax.data.batches import Batches
from jras_jax.data.load import RunData
from jras_jax.data.slice_table import SliceTable, slice_table
from jras_jax.errors import UserError
from jras_jax.retrieval.losses import nt_xent
from jras_jax.retrieval.retriever import PIXELS
from jras_jax.run_folder import lock, provenance
from jras_jax.run_folder.checkpoints import Checkpoints
from jras_jax.run_folder.layout import RunFolder
from jras_jax.training import initial, loop
from jras_jax.training.loop import Task
from jras_jax.training.skips import Skips, all_finite, chosen
from jras_jax.training.state import parameter_groups
from jras_jax.training.stopping import StopSignal

VIEW = Augment(  # METHOD's views; flips are left out: they would call a mirrored heart the same heart
    enabled=True,
    rotate_deg=10.0,
    scale=0.1,
    shift=0.05,
    retriever_share=1.0,
    flip=False,
    gamma=0.2,
    contrast=0.3,
    brightness=0.1,
    noise_std=0.03,
    probability=0.8,
)


@dataclasses.dataclass(kw_only=True)
class Pretraining(Task):
    """What a pre-training holds; `params` and `opt_state` change, the rest does not."""

    table: SliceTable
    params: Any
    opt_state: Any
    update: Any
    changes: dict[str, tuple[str, str]]

    def arrays(self) -> dict[str, Any]:
        """See `Task`."""
        return {"params": self.params, "opt_state": self.opt_state}

    def take(self, arrays: dict[str, Any]) -> None:
        """See `Task`."""
        self.params, self.opt_state = arrays["params"], arrays["opt_state"]

    def claim(self) -> None:
        """See `Task`."""
        configs.save(self.config, self.folder.config)
        more: dict[str, Any] = {"made_by": "pretrain"}
        more |= {"changes": self.changes, "changed_at_step": self.started_at} if self.changes else {}
        params = {"retriever": self.params}
        provenance.write(self.folder.facts, self.config, params=params, mesh=self.mesh, more=more)

    def advance(self, done: int) -> tuple[dict[str, jax.Array], np.ndarray]:
        """See `Task`."""
        drawn = next(self.batches)
        batch = mesh.put_rows(self.mesh, pairs(drawn, self.table, config=self.config, step=done + 1))
        self.params, self.opt_state, metrics = self.update(self.params, self.opt_state, batch, done + 1)
        return dict(metrics), drawn["row"]

    def rates(self, at: int) -> dict[str, float]:
        """See `Task`."""
        return {"lr_retriever": float(_rate(self.config.pretrain)(at - 1))}


def pretrain_retriever(config: Config, folder: RunFolder, data: RunData, *, with_changes: bool = False) -> pathlib.Path:
    """Trains the retriever alone, or resumes; returns the file that `config.retriever.init_from` takes.

    Raises:
      UserError: retrieval is off, there are fewer slices than the batch, the folder holds a training run or another
        pre-training, another process works in it, or a fault of config and data.
      Stopped: a signal stopped the pre-training, which is saved.
    """
    if not config.retrieval.enabled:
        raise UserError("pre-training the retriever needs config.retrieval.enabled=True")
    if config.retriever.variant == PIXELS:
        raise UserError("config.retriever.variant='pixels' has no weights: there is nothing to pre-train")
    with lock.hold(folder, "pretrain") as held, StopSignal() as stop:
        stop.leave = held.release
        task = start(config, folder, data, with_changes=with_changes)
        if folder.retriever.is_file() and task.started_at in (0, task.length):  # 0: of an earlier version
            return folder.retriever
        loop.run(task, held, stop)
        params = mesh.to_host(task.params)
        if jax.process_index() == 0:
            origin = {"made_by": "pretrain_retriever", "steps": str(config.pretrain.num_steps)}
            convert.save(folder.retriever, params, origin)
    return folder.retriever


def check_folder(config: Config, folder: RunFolder, *, with_changes: bool = False) -> dict[str, tuple[str, str]]:
    """As `joint_run.check_folder`, for the folder of a pre-training."""
    provenance.check_made_by(folder, "pretrain")
    if not folder.config.is_file():
        return {}
    return configs.check_resumed(configs.load_saved(folder.config), config, folder.path, declared=with_changes)


def start(config: Config, folder: RunFolder, data: RunData, *, with_changes: bool = False) -> Pretraining:
    """Everything before the first step; the state is restored if there is a checkpoint."""
    changes = check_folder(config, folder, with_changes=with_changes)
    device_mesh = mesh.make_mesh(config.mesh.data, 1)
    p = config.pretrain
    mesh.check_batch(device_mesh, p.batch_size, "pretrain.batch_size")
    table = slice_table(data.part("train"), data.grid, drop_empty=config.dataset.drop_empty)
    model = joint.build_model(config, data.description)
    variables = initial.variables(model, config) or joint.drawn_variables(model, config)
    params = mesh.put_replicated(device_mesh, variables["params"]["retriever"])
    tx = _optimizer(params, config)
    lower = f"--config.pretrain.lr={p.lr / 3:.2g} --resume_with_changes"
    task = Pretraining(
        config=config,
        folder=folder,
        mesh=device_mesh,
        batches=Batches(
            table,
            p.batch_size,
            config.seed,
            host=jax.process_index(),
            hosts=jax.process_count(),
            key="pretrain.batch_size",
        ),
        checkpoints=Checkpoints(folder),
        skips=Skips(
            config.train.max_skipped,
            folder,
            table=table,
            advice=f"lower the learning rate and continue from the last checkpoint: the same command with {lower}",
        ),
        title=f"{folder.path.name} (retriever)",
        length=p.num_steps,
        batch_size=p.batch_size,
        table=table,
        params=params,
        opt_state=jax.jit(tx.init)(params),
        update=jax.jit(functools.partial(_update, model=model, tx=tx, config=config), donate_argnums=(0, 1)),
        changes=changes,
    )
    task.resume()
    return task


def _rate(p: Pretrain) -> optax.Schedule:
    """METHOD's learning rate: constant, x0.1 after 70% of the steps."""
    return optax.piecewise_constant_schedule(p.lr, {int(0.7 * p.num_steps): 0.1})


def _optimizer(params: Any, config: Config) -> optax.GradientTransformation:
    """METHOD's Adam; frozen parameters stay."""
    p = config.pretrain
    rate = _rate(p)
    groups = parameter_groups({"retriever": params}, (), config.retriever)["retriever"]
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.add_decayed_weights(p.weight_decay), optax.adam(rate))
    return optax.multi_transform({"retriever": adam, "frozen": optax.set_to_zero()}, groups)


def pairs(batch: dict[str, np.ndarray], table: SliceTable, config: Config, step: int) -> dict[str, np.ndarray]:
    """Adds to a batch each slice's partner: a neighbour in its volume, or (half the time, or without one) itself.

    Returns:
      'image', 'partner' (B, S, S) uint8, 'same' (B,) bool (the partner is the slice itself), 'patient' (B,) int32.
    """
    rng = np.random.default_rng((config.seed, step, jax.process_index()))
    rows = batch["row"]
    near = table.neighbours[rows, rng.integers(0, 2, len(rows))]
    use = (near >= 0) & (rng.random(len(rows)) < config.pretrain.neighbour_probability)
    partner = np.where(use, near, rows)
    return {"image": batch["image"], "partner": table.images[partner], "same": ~use, "patient": batch["patient"]}


def _update(
    params: Any,
    opt_state: Any,
    batch: dict[str, jax.Array],
    step: jax.Array,
    *,
    model: joint.JointModel,
    tx: optax.GradientTransformation,
    config: Config,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    key = jax.random.fold_in(jax.random.key(config.seed + 2), step)
    k1, k2, k3, k_plain = jax.random.split(key, 4)

    def loss_fn(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        first, second = (batch[n].astype(jnp.float32) / 255.0 for n in ("image", "partner"))
        nothing = jnp.zeros(first.shape[:3], jnp.int32)
        seen, _ = augment(k1, first, masks=nothing, ranges=VIEW)
        plain = jax.random.bernoulli(k_plain, 0.5, (len(first),) + (1,) * (first.ndim - 1))
        seen = jnp.where(plain, first, seen)
        other, _ = augment(k2, second, masks=nothing, ranges=VIEW)
        both = jnp.concatenate([seen, other])
        embed = "embed_images" if config.pretrain.normalise else "project_images"
        apply: Any = model.apply
        z = apply({"params": {"retriever": params}}, both, True, method=embed, rngs={"dropout": k3})
        n = len(first)
        same_patient = batch["patient"][:, None] == batch["patient"][None]
        loss, accuracy = nt_xent(z[:n], z[n:], temperature=config.pretrain.temperature, ignore=same_patient)
        return loss, {"loss": loss, "accuracy": accuracy}

    (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, after = tx.update(grads, opt_state, params)
    new = optax.apply_updates(params, updates)
    finite = all_finite(metrics["loss"], new)
    params, opt_state = chosen(finite, (new, after), (params, opt_state))
    return params, opt_state, metrics | {"finite": finite}
