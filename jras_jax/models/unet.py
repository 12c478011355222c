"""A 2-D U-Net with the habits of nnU-Net (Isensee et al., Nature Methods 2021; arXiv 2404.09556).

Each stage has two 3x3 convolutions, instance norm (affine, float32 statistics) and leaky ReLU 0.01; the first
convolution of a stage below the finest has stride 2; the decoder mirrors the encoder, with a transposed convolution of
kernel 2 and stride 2 between stages. The convolutions have no bias, since the norm that follows would remove it.

| levels | base_channels | parameters (1 input channel, 4 classes) | receptive field, pixels |
|---|---|---|---|
| 5 | 16 | 1,942,100 | 159 |
| 5 | 32 | 7,762,084 | 159 |
| 6 | 32 | 20,611,236 | 319 |
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jras_jax import kernels
from jras_jax.models.convolution import Conv3x3
from jras_jax.models.layers import Upsample2x, pad_to_multiple

MAX_CHANNELS = 512
EPSILON, SLOPE = 1e-5, 0.01  # of instance norm and of leaky ReLU


class NormAndActivation(nn.Module):
    """`kernels.norm_and_activation`. Parameters: scale and bias (C,)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return kernels.norm_and_activation(x, scale, bias=bias, epsilon=EPSILON, slope=SLOPE)


class Stage(nn.Module):
    """Two convolutions with norm and activation; (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), features).

    Several maps of the same size are taken as one, their channels side by side.
    """

    features: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, *maps: jax.Array) -> jax.Array:
        for index, stride in enumerate((self.stride, 1)):
            x = Conv3x3(self.features, stride, self.dtype, name=f"conv_{index}")(*maps)
            x = NormAndActivation(name=f"norm_{index}")(x)
            maps = (x,)
        return maps[0]


class UNet(nn.Module):
    """The backbone `unet`.

    Attributes:
      num_classes: C of the logits.
      base_channels: channels of the finest stage; stage i has min(base_channels * 2**i, 512).
      levels: number of stages, the bottleneck included; images are padded to a multiple of 2**(levels - 1).
      deep_supervision: with `train`, logits of every decoder stage are returned too.
      dtype: of the computation; parameters and logits stay float32.
    """

    num_classes: int = 4
    base_channels: int = 32
    levels: int = 6
    deep_supervision: bool = False
    dtype: Any = jnp.float32

    @property
    def features(self) -> tuple[int, ...]:
        """Channels of the stages, finest first."""
        return tuple(min(self.base_channels * 2**i, MAX_CHANNELS) for i in range(self.levels))

    @property
    def fusion_levels(self) -> tuple[int, ...]:
        """Indices into `encode`'s tuple at strides 4 and 8, if they exist."""
        return tuple(level for level in (2, 3) if level < self.levels)

    def setup(self) -> None:
        self.down = [Stage(f, 1 if i == 0 else 2, self.dtype) for i, f in enumerate(self.features)]
        self.up = [Upsample2x(f, use_bias=False, dtype=self.dtype) for f in self.features[:-1]]
        self.merge = [Stage(f, 1, self.dtype) for f in self.features[:-1]]
        heads = self.levels - 1 if self.deep_supervision else 1
        self.head = [nn.Conv(self.num_classes, (1, 1), dtype=jnp.float32) for _ in range(heads)]

    def encode(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, ...]:
        """(B, H, W, C) -> the stages' outputs, finest first, of the padded size / 2**i; the bottleneck is last."""
        del train
        x = pad_to_multiple(x.astype(self.dtype), 2 ** (self.levels - 1))
        outputs = []
        for stage in self.down:
            x = stage(x)
            outputs.append(x)
        return tuple(outputs)

    def decode(
        self, features: tuple[jax.Array, ...], size: tuple[int, int], train: bool = False
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Logits (B, *size, classes) float32; with deep supervision and `train` a tuple, i-th of ceil(size / 2**i)."""
        auxiliary = self.deep_supervision and (train or self.is_initializing())
        x = features[-1]
        logits: list[jax.Array] = []
        for level in reversed(range(self.levels - 1)):
            x = self.merge[level](self.up[level](x), features[level].astype(self.dtype))
            if level == 0 or auxiliary:
                rows, columns = (-(-n // 2**level) for n in size)
                logits.insert(0, self.head[level](x.astype(jnp.float32))[:, :rows, :columns])
        return tuple(logits) if self.deep_supervision and train else logits[0]

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array | tuple[jax.Array, ...]:
        """(B, H, W, C) of any size -> logits (B, H, W, num_classes); see `decode`."""
        return self.decode(self.encode(x, train), (x.shape[1], x.shape[2]), train)
