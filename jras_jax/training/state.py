"""The train state and how it comes to be: model, optimiser and first parameters from a config."""

from __future__ import annotations

import re
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jras_jax import fusion, joint, mesh, models
from jras_jax.config import Config
from jras_jax.data import NUM_CLASSES
from jras_jax.errors import UserError
from jras_jax.retrieval import encoder


class TrainState(flax.struct.PyTreeNode):
    """All that a step changes.

    Attributes:
      step: () int32, steps done.
      params: {'backbone', 'retriever', 'fusion'} -> parameters, float32.
      extra: other variable collections ('batch_stats'), {} where there are none.
      opt_state: optax's.
      ema: running mean of params, or None.
    """

    step: jax.Array
    params: Any
    extra: Any
    opt_state: Any
    ema: Any

    @property
    def variables(self) -> joint.Variables:
        """What a training forward pass takes."""
        return {"params": self.params, **self.extra}

    @property
    def eval_variables(self) -> joint.Variables:
        """What evaluation takes: the running mean where there is one."""
        return {"params": self.params if self.ema is None else self.ema, **self.extra}


def build_model(config: Config) -> joint.JointModel:
    """The model that a config describes; without retrieval it has neither retriever nor fusion.

    Raises:
      UserError: a name or option that the model tables do not have.
    """
    dtype = jnp.dtype(config.train.dtype)
    options = dict(config.backbone.options)
    if config.backbone.variant:
        options["variant"] = config.backbone.variant
    backbone = models.create(config.backbone.name, num_classes=NUM_CLASSES, dtype=dtype, **options)
    if not config.retrieval.enabled:
        return joint.JointModel(backbone, None, None, config.backbone.in_channels)
    r = config.retriever
    retriever = encoder.Retriever(
        variant=r.variant,
        image_size=r.image_size,
        trained_blocks=r.trained_blocks,
        lora_rank=r.lora_rank,
        pool=r.pool,
        hidden=r.hidden,
        dim=r.dim,
        dropout=r.dropout,
        dtype=dtype,
    )
    fuse_options = dict(config.fusion.options)
    if config.fusion.name in fusion.ON_FEATURES:
        fuse_options.setdefault("levels", backbone.fusion_levels)
    fuse = fusion.create(config.fusion.name, num_classes=NUM_CLASSES, **fuse_options)
    return joint.JointModel(backbone, retriever, fuse, config.backbone.in_channels, config.fusion.guide_gradient)


def init_variables(model: joint.JointModel, config: Config) -> joint.Variables:
    """Random parameters by config.seed (jit-able)."""
    size, k = config.dataset.image_size, config.retrieval.top_k
    guides = joint.first_guides(1, k, size, NUM_CLASSES) if model.fusion is not None else None
    # 'rbg' compiles several times faster than the default generator; `create_state` runs this on one device, since its
    # values depend on how a computation is split.
    key, dropout = jax.random.split(jax.random.key(config.seed, impl="rbg"))
    return dict(model.init({"params": key, "dropout": dropout}, jnp.zeros((1, size, size)), guides))


def schedule(config: Config, peak: float) -> optax.Schedule:
    """Linear warm-up, then cosine decay to `final_lr_factor` of the peak at the last step."""
    warmup = min(config.optim.warmup_steps, max(config.train.num_steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else peak,
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=max(config.train.num_steps, warmup + 1),
        end_value=peak * config.optim.final_lr_factor,
    )


def parameter_groups(params: Any, config: Config) -> Any:
    """'backbone', 'retriever' or 'frozen' for each parameter.

    Raises:
      UserError: a pattern of config.backbone.frozen matches no parameter.
    """
    used: set[str] = set()
    patterns = [(p, re.compile(p)) for p in config.backbone.frozen]

    def group(path: Any, _: Any) -> str:
        name = mesh.path_name(path)
        if name.startswith("retriever/"):
            r = config.retriever
            frozen = encoder.is_frozen(name.removeprefix("retriever/"), r.variant, r.trained_blocks, r.lora_rank)
            return "frozen" if frozen else "retriever"
        hits = [p for p, regex in patterns if regex.search(name)]
        used.update(hits)
        return "frozen" if hits else "backbone"

    groups = jax.tree_util.tree_map_with_path(group, params)
    unused = [p for p, _ in patterns if p not in used]
    if unused:
        raise UserError(f"config.backbone.frozen: no parameter matches {', '.join(map(repr, unused))}")
    return groups


def build_optimizer(params: Any, config: Config) -> optax.GradientTransformation:
    """One optimiser: the global clip first, then one schedule per group; frozen parameters get no state at all."""
    o = config.optim
    groups = parameter_groups(params, config)

    def one(peak: float) -> optax.GradientTransformation:
        rate = schedule(config, peak)
        decay = lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)  # noqa: E731 - kernels, not biases and norms
        if o.name == "adamw":
            return optax.adamw(rate, weight_decay=o.weight_decay, mask=decay)
        if o.name == "adam":  # METHOD's joint step: plain Adam, the decay (if any) added to the gradient
            return optax.chain(optax.add_decayed_weights(o.weight_decay, mask=decay), optax.adam(rate))
        return optax.chain(
            optax.add_decayed_weights(o.weight_decay, mask=decay), optax.sgd(rate, momentum=0.99, nesterov=True)
        )

    frozen = jax.tree.map(lambda g: g == "frozen", groups)
    parts = [optax.masked(optax.set_to_zero(), frozen)]  # before the norm, which they must not enter
    if o.grad_clip:
        parts.append(optax.clip_by_global_norm(o.grad_clip))
    transforms = {"backbone": one(o.lr_backbone), "retriever": one(o.lr_retriever), "frozen": optax.set_to_zero()}
    return optax.chain(*parts, optax.multi_transform(transforms, groups))


def create_state(
    model: joint.JointModel, config: Config, device_mesh: Mesh, initial: joint.Variables | None = None
) -> tuple[TrainState, optax.GradientTransformation, Any]:
    """A fresh state on the mesh.

    Args:
      model: of `build_model`.
      config: the run.
      device_mesh: where it lives.
      initial: variables to start from (host arrays), None: random by the seed.

    Returns:
      The state, the optimiser, and the state's shardings (a tree like it).
    """
    shapes = jax.eval_shape(lambda: init_variables(model, config))
    tx = build_optimizer(shapes["params"], config)

    if initial is None:
        initial = jax.tree.map(np.asarray, jax.jit(lambda: init_variables(model, config))())

    def fresh(variables: joint.Variables) -> TrainState:
        params = variables["params"]
        extra = {k: v for k, v in variables.items() if k != "params"}
        ema = params if config.optim.ema_decay else None
        return TrainState(jnp.zeros((), jnp.int32), params, extra, tx.init(params), ema)

    shardings = mesh.parameter_shardings(jax.eval_shape(fresh, initial), device_mesh)
    state = jax.jit(fresh, out_shardings=shardings)(mesh.put_replicated(device_mesh, initial))
    # EMA starts as a copy: a donated state must not hold one buffer twice.
    if state.ema is not None:
        state = state.replace(ema=jax.tree.map(jnp.copy, state.ema))
    return state, tx, shardings
