"""Operations that have a second form for CPU, and the switch between the two forms.

Each module here holds one operation three times: `reference`, plain JAX as XLA expects it on an accelerator; `cpu`, an
equivalent that XLA's CPU backend runs faster; and the public function, which calls one of them. Models call the public
functions and know nothing of platforms.

The form follows the platform: `cpu` if `jax.default_backend()` is "cpu", `reference` otherwise. It is chosen when a
program is traced, so an accelerator's program contains neither a CPU form nor a `jax.custom_vjp`, and `jax.jvp` and
`jax.hessian` work in it. `using` overrides the choice:

    with kernels.using("reference"):
        lowered = jax.jit(step).lower(state, batch)  # what an accelerator would run

The override is part of `jax.jit`'s cache key: a jitted function called under both forms is traced once for each.

Axes: B batch, H rows, W columns, C and F channels, T and S tokens, N heads, D width.
"""

from jras_jax.kernels.activation import gelu
from jras_jax.kernels.attention import attend
from jras_jax.kernels.convolution import conv3x3
from jras_jax.kernels.depthwise import depthwise3x3
from jras_jax.kernels.normalisation import norm_and_activation
from jras_jax.kernels.product import matmul
from jras_jax.kernels.resampling import resample
from jras_jax.kernels.switch import FORMS, Form, choose, form, using
from jras_jax.kernels.upsampling import upsample2x

__all__ = [
    "FORMS",
    "Form",
    "attend",
    "choose",
    "conv3x3",
    "depthwise3x3",
    "form",
    "gelu",
    "matmul",
    "norm_and_activation",
    "resample",
    "upsample2x",
    "using",
]
