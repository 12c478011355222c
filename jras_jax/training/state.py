"""The train state and how it comes to be: optimiser, parameter groups, first parameters on the mesh."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jras_jax import joint, mesh
from jras_jax.config import Config, Optim, Retriever
from jras_jax.errors import UserError
from jras_jax.retrieval.retriever import is_frozen


class TrainState(flax.struct.PyTreeNode):
    """All that a step changes.

    Attributes:
      step: () int32, steps done.
      params: {'backbone', 'retriever', 'fusion'} -> parameters, float32.
      extra: other variable collections ('batch_stats'), {} if there are none.
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
        """What evaluation takes: the running mean if there is one."""
        return {"params": self.params if self.ema is None else self.ema, **self.extra}


def schedule(optim: Optim, peak: float, num_steps: int) -> optax.Schedule:
    """Linear warm-up, then cosine decay to `final_lr_factor` of the peak at the last step."""
    warmup = min(optim.warmup_steps, max(num_steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else peak,
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=max(num_steps, warmup + 1),
        end_value=peak * optim.final_lr_factor,
    )


def learning_rates(optim: Optim, num_steps: int, step: int) -> dict[str, float]:
    """The learning rates of step number `step` (from 1) of `num_steps`: 'lr_backbone' and 'lr_retriever'."""
    peaks = {"lr_backbone": optim.lr_backbone, "lr_retriever": optim.lr_retriever}
    return {name: float(schedule(optim, peak, num_steps)(step - 1)) for name, peak in peaks.items()}


def parameter_groups(params: Any, frozen: Sequence[str], r: Retriever) -> Any:
    """'backbone', 'retriever', 'locator' or 'frozen' for each parameter.

    Args:
      params: {'backbone', 'retriever', 'fusion'} -> parameters or their shapes.
      frozen: config.backbone.frozen, regular expressions of paths that do not train.
      r: the retriever's section, which says which of its blocks train.

    Raises:
      UserError: a pattern of config.backbone.frozen matches no parameter.
    """
    used: set[str] = set()
    patterns = [(p, re.compile(p)) for p in frozen]

    def group(path: Any, _: Any) -> str:
        name = mesh.path_name(path)
        if name.startswith("retriever/"):
            constant = is_frozen(
                name.removeprefix("retriever/"), r.variant, trained_blocks=r.trained_blocks, lora_rank=r.lora_rank
            )
            return "frozen" if constant else "retriever"
        if name.startswith("locator/"):
            return "locator"
        hits = [p for p, regex in patterns if regex.search(name)]
        used.update(hits)
        return "frozen" if hits else "backbone"

    groups = jax.tree_util.tree_map_with_path(group, params)
    unused = [p for p, _ in patterns if p not in used]
    if unused:
        raise UserError(f"config.backbone.frozen: no parameter matches {', '.join(map(repr, unused))}")
    return groups


def build_optimizer(groups: Any, o: Optim, num_steps: int, lr_locator: float = 0.0) -> optax.GradientTransformation:
    """One optimiser: the global clip first, then one schedule per group; frozen parameters get no state at all.

    The locator shares no parameter with the rest, so it is clipped by itself.

    Args:
      groups: of `parameter_groups`.
      o: the config's section.
      num_steps: length of the run, for the schedules.
      lr_locator: the locator's peak learning rate, for a model that has one.
    """

    def one(peak: float) -> optax.GradientTransformation:
        rate = schedule(o, peak, num_steps)
        decay = lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)  # noqa: E731 - kernels, not biases and norms
        if o.name == "adamw":
            return optax.adamw(rate, weight_decay=o.weight_decay, mask=decay)
        if o.name == "adam":  # METHOD's joint step: plain Adam, the decay (if any) added to the gradient
            return optax.chain(optax.add_decayed_weights(o.weight_decay, mask=decay), optax.adam(rate))
        return optax.chain(
            optax.add_decayed_weights(o.weight_decay, mask=decay), optax.sgd(rate, momentum=0.99, nesterov=True)
        )

    kinds = set(jax.tree.leaves(groups))
    frozen = jax.tree.map(lambda g: g == "frozen", groups)
    parts = [optax.masked(optax.set_to_zero(), frozen)]  # before the norm, which they must not enter
    if o.grad_clip:
        clip = optax.clip_by_global_norm(o.grad_clip)
        others = jax.tree.map(lambda g: g != "locator", groups)
        parts.append(optax.masked(clip, others) if "locator" in kinds else clip)
    transforms = {"backbone": one(o.lr_backbone), "retriever": one(o.lr_retriever), "frozen": optax.set_to_zero()}
    if "locator" in kinds:
        transforms["locator"] = optax.chain(optax.clip_by_global_norm(1.0), one(lr_locator))
    return optax.chain(*parts, optax.multi_transform(transforms, groups))


def create_state(
    model: joint.JointModel, config: Config, device_mesh: Mesh, initial: joint.Variables | None = None
) -> tuple[TrainState, optax.GradientTransformation, Any]:
    """A fresh state on the mesh.

    Args:
      model: of `build_model`.
      config: the run, whole: the model's shapes, what is frozen, the optimiser and the length come from six sections.
      device_mesh: whose devices hold it.
      initial: variables to start from (host arrays), None: random by the seed.

    Returns:
      The state, the optimiser, and the state's shardings (a tree like it).
    """
    shapes = jax.eval_shape(lambda: joint.init_variables(model, config))
    groups = parameter_groups(shapes["params"], config.backbone.frozen, config.retriever)
    tx = build_optimizer(groups, config.optim, num_steps=config.train.num_steps, lr_locator=config.locator.lr)

    if initial is None:
        initial = joint.drawn_variables(model, config)

    def fresh(variables: joint.Variables) -> TrainState:
        params = variables["params"]
        extra = {k: v for k, v in variables.items() if k != "params"}
        ema = params if config.optim.ema_decay else None
        return TrainState(jnp.zeros((), jnp.int32), params, extra=extra, opt_state=tx.init(params), ema=ema)

    shardings = mesh.parameter_shardings(jax.eval_shape(fresh, initial), device_mesh)
    state = jax.jit(fresh, out_shardings=shardings)(mesh.put_replicated(device_mesh, initial))
    # EMA starts as a copy: a donated state must not hold one buffer twice.
    if state.ema is not None:
        state = state.replace(ema=jax.tree.map(jnp.copy, state.ema))
    return state, tx, shardings
