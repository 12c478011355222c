"""The network's passes in a training step, as config.train wants its memory used: in parts, and recomputed.

The loss is taken over the whole batch whatever the parts are, so batch Dice and every other term stay exact: a part's
activations are dropped after its forward pass and computed again for its backward pass, and its outputs are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jras_jax import joint
from jras_jax.config import Train
from jras_jax.errors import UserError
from jras_jax.models.layers import PRODUCT


class Passes(NamedTuple):
    """How a step applies the model.

    Attributes:
      apply: the model's.
      parts: of the batch, one after the other.
      remat: whether the backward pass computes all but the results of products again. XLA's CPU backend merges the two
        computations and plans more memory than without; what JAX keeps between the passes is tested.
      mesh: over whose data axis the batch is split; None for one device.
    """

    apply: Callable[..., Any]
    parts: int = 1
    remat: bool = False
    mesh: Mesh | None = None

    @classmethod
    def of(cls, apply: Callable[..., Any], train: Train, mesh: Mesh | None) -> Passes:
        """As config.train says.

        Raises:
          UserError: the batch does not divide into so many parts on every device.
        """
        rows = train.batch_size // (mesh.shape["data"] if mesh is not None else 1)
        if rows % train.microbatches:
            raise UserError(
                f"config.train.microbatches={train.microbatches} does not divide the {rows} slices that each device "
                f"has of config.train.batch_size={train.batch_size}"
            )
        return cls(apply, train.microbatches, train.remat, mesh)

    def __call__(
        self,
        variables: joint.Variables,
        arrays: Any,
        *,
        method: str,
        key: jax.Array | None,
        mutable: Sequence[str] = (),
    ) -> tuple[Any, Any]:
        """`method` of the model on a tuple of batched arrays (B, ...).

        Args:
          variables: of the model.
          arrays: the positional arguments, pytrees whose leaves have the batch as their first axis.
          method: of the model; each output has the batch as its first axis.
          key: of dropout, for training; None is evaluation.
          mutable: collections that the pass changes; they see the whole batch at once, so there must be one part.

        Returns:
          The outputs, and the changed collections.
        """

        def run(arrays: Any, number: Any) -> tuple[Any, Any]:
            more: dict[str, Any] = {}
            if key is not None:
                own = key if self.parts == 1 else jax.random.fold_in(key, number)
                more = {"rngs": {"dropout": own}, "mutable": list(mutable)}
            out = self.apply(variables, *arrays, key is not None, method=method, **more)
            return out if key is not None else (out, {})

        if self.remat:
            run = jax.checkpoint(run, policy=jax.checkpoint_policies.save_only_these_names(PRODUCT))
        if self.parts == 1:
            return run(arrays, 0)
        assert not mutable, "batch statistics of parts are not those of the batch"
        split = jax.tree.map(self._split, arrays)
        out = jax.lax.map(jax.checkpoint(lambda part: run(*part)[0]), (split, jnp.arange(self.parts)))
        return jax.tree.map(self._join, out), {}

    @property
    def _devices(self) -> int:
        return self.mesh.shape["data"] if self.mesh is not None else 1

    def _split(self, x: jax.Array) -> jax.Array:
        """(B, ...) -> (parts, B / parts, ...); every part has as many slices of each device."""
        rows = x.shape[0] // (self._devices * self.parts)
        x = x.reshape(self._devices, self.parts, rows, *x.shape[1:]).swapaxes(0, 1)
        return self._placed(x.reshape(self.parts, self._devices * rows, *x.shape[3:]), P(None, "data"))

    def _join(self, x: jax.Array) -> jax.Array:
        """The way back of `_split`."""
        rows = x.shape[1] // self._devices
        x = x.reshape(self.parts, self._devices, rows, *x.shape[2:]).swapaxes(0, 1)
        return self._placed(x.reshape(-1, *x.shape[3:]), P("data"))

    def _placed(self, x: jax.Array, spec: P) -> jax.Array:
        if self.mesh is None or self._devices == 1:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))
