"""3x3 convolutions, dense and depthwise, as modules with parameters. Axes as in `layers`."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jras_jax import kernels
from jras_jax.models.layers import product

HE_LEAKY = nn.initializers.variance_scaling(2.0 / (1.0 + 0.01**2), "fan_in", "normal")


class Conv3x3(nn.Module):
    """`kernels.conv3x3` without bias, of one or several maps as if their channels stood side by side.

    Several are convolved one by one and summed, which saves the copy that joins them. Parameters: kernel (3, 3, C,
    features), C channels in all.
    """

    features: int
    stride: int = 1
    dtype: Any = jnp.float32
    kernel_init: Any = HE_LEAKY

    @nn.compact
    def __call__(self, *maps: jax.Array) -> jax.Array:
        ends = np.cumsum([0, *(x.shape[-1] for x in maps)])
        kernel = self.param("kernel", self.kernel_init, (3, 3, int(ends[-1]), self.features), jnp.float32)
        parts = zip(maps, (kernel[:, :, a:b] for a, b in itertools.pairwise(ends)), strict=True)
        convolved = (kernels.conv3x3(x.astype(self.dtype), part, self.stride) for x, part in parts)
        return product(functools.reduce(jnp.add, convolved))


class DepthwiseConv3x3(nn.Module):
    """`kernels.depthwise3x3` and a bias. Parameters: kernel (3, 3, C), bias (C,)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=(0, 1), out_axis=2)
        kernel = self.param("kernel", init, (3, 3, x.shape[-1]), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return product(kernels.depthwise3x3(x.astype(self.dtype), kernel) + bias.astype(self.dtype))
