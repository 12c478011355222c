"""Pre-training of the retriever: contrast (SimCLR's NT-Xent) on the training slices of a run's fold.

A positive pair is a slice and its neighbour in the same volume, or two views of one slice (METHOD: rotation to 10
degrees, flips, contrast 1 to 1.3, half the time one view is the plain slice). Slices of one patient are no negatives.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jras_jax import config as configs
from jras_jax import convert, joint, mesh
from jras_jax.config import Augment, Config
from jras_jax.data.augment import augment
from jras_jax.data.batches import Batches
from jras_jax.data.load import RunData
from jras_jax.data.slice_table import SliceTable, slice_table
from jras_jax.errors import UserError
from jras_jax.retrieval.losses import nt_xent
from jras_jax.run_folder.layout import RunFolder
from jras_jax.run_folder.metric_log import MetricLog
from jras_jax.training import initial
from jras_jax.training.progress import Progress
from jras_jax.training.state import parameter_groups

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


def pretrain_retriever(config: Config, folder: RunFolder, data: RunData) -> pathlib.Path:
    """Trains the retriever alone; returns the file that `config.retriever.init_from` takes.

    Raises:
      UserError: retrieval is off, there are fewer slices than the batch, or a fault of config and data.
    """
    if not config.retrieval.enabled:
        raise UserError("pre-training the retriever needs config.retrieval.enabled=True")
    folder.path.mkdir(parents=True, exist_ok=True)
    device_mesh = mesh.make_mesh(config.mesh.data, 1)
    p = config.pretrain
    mesh.check_batch(device_mesh, p.batch_size, "pretrain.batch_size")
    table = slice_table(data.part("train"), data.grid, drop_empty=config.dataset.drop_empty)
    model = joint.build_model(config)
    variables = initial.variables(model, config) or jax.jit(lambda: joint.init_variables(model, config))()
    params = mesh.put_replicated(device_mesh, variables["params"]["retriever"])
    tx = _optimizer(params, config)
    update = jax.jit(functools.partial(_update, model=model, tx=tx, config=config), donate_argnums=(0, 1))
    opt_state = jax.jit(tx.init)(params)
    batches = Batches(
        table, p.batch_size, config.seed, host=jax.process_index(), hosts=jax.process_count(), key="pretrain.batch_size"
    )
    log = MetricLog(folder, 0)
    bar = Progress(f"{folder.path.name} (retriever)", total=p.num_steps, start=0, slices_per_step=p.batch_size)
    try:
        for step in range(1, p.num_steps + 1):
            batch = mesh.put_rows(device_mesh, pairs(next(batches), table, config, step))
            params, opt_state, metrics = update(params, opt_state, batch, step)
            if step % config.train.log_every == 0 or step == p.num_steps:
                shown = {k: float(v) for k, v in metrics.items()}
                bar.update(step, shown)
                log.write(step, shown)
    finally:
        bar.close()
        log.close()
    configs.save(config, folder.config)
    origin = {"made_by": "pretrain_retriever", "steps": str(p.num_steps)}
    convert.save(folder.retriever, jax.tree.map(np.asarray, params), origin)
    return folder.retriever


def _optimizer(params: Any, config: Config) -> optax.GradientTransformation:
    """METHOD's: Adam, its rate x0.1 after 70% of the steps; frozen parameters stay."""
    p = config.pretrain
    rate = optax.piecewise_constant_schedule(p.lr, {int(0.7 * p.num_steps): 0.1})
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
        nothing = jnp.zeros(first.shape, jnp.int32)
        seen, _ = augment(k1, first, nothing, VIEW)
        plain = jax.random.bernoulli(k_plain, 0.5, (len(first), 1, 1))
        seen = jnp.where(plain, first, seen)
        other, _ = augment(k2, second, nothing, VIEW)
        both = jnp.concatenate([seen, other])
        embed = "embed_images" if config.pretrain.normalise else "project_images"
        apply: Any = model.apply
        z = apply({"params": {"retriever": params}}, both, True, method=embed, rngs={"dropout": k3})
        n = len(first)
        same_patient = batch["patient"][:, None] == batch["patient"][None]
        loss, accuracy = nt_xent(z[:n], z[n:], temperature=config.pretrain.temperature, ignore=same_patient)
        return loss, {"loss": loss, "accuracy": accuracy}

    (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, metrics
