"""Weak scaling as work: what one device computes, reads and sends in a step, as the number of devices grows.

Simulated devices share this machine's cores, so their times say nothing about scaling; the compiled program of one
device does. Slices and gallery rows a device stay the same, so flat figures are perfect weak scaling.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from benchmarks.sizes import Sizes

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_LINE = re.compile(rf"= (?P<shapes>.*?) (?P<kind>{'|'.join(COLLECTIVES)})(-start)?\(")
_SHAPE = re.compile(r"(?P<type>[a-z]+[0-9]*)\[(?P<dims>[0-9,]*)\]")


def collective_bytes(hlo: str, devices: int) -> dict[str, int]:
    """Bytes by kind of collective in a partitioned program's text.

    Counted is the whole array that the devices bring together: the result, and of a reduce-scatter the operand.

    Example:
      >>> collective_bytes("  %r = f32[2,3]{1,0} all-reduce(f32[2,3] %x), channel_id=1", 4)
      {'all-reduce': 24}
    """
    total: dict[str, int] = {}
    for found in _LINE.finditer(hlo):
        size = 0
        for shape in _SHAPE.finditer(found["shapes"]):
            count = 1
            for dim in filter(None, shape["dims"].split(",")):
                count *= int(dim)
            size += count * BYTES.get(shape["type"], 4)
        size *= devices if found["kind"] == "reduce-scatter" else 1
        total[found["kind"]] = total.get(found["kind"], 0) + size
    return total


def work_per_device(devices: int, sizes: Sizes) -> dict[str, Any]:
    """Compiles the U-Net's joint step over so many devices and counts; nothing is run. Needs that many devices."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from benchmarks import setting
    from jras_jax import kernels, mesh
    from jras_jax.joint.build import build_model
    from jras_jax.retrieval.gallery import Gallery
    from jras_jax.training import state, step

    device_mesh = mesh.make_mesh(devices, 1)
    config = setting.joint_config("unet", "tiny", dataclasses.replace(sizes, batch=sizes.batch * devices))
    model = build_model(config)
    first, tx, shardings = state.create_state(model, config, device_mesh)
    rows = mesh.by_rows(device_mesh)

    def abstract(n: int, *shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((n, *shape), dtype, sharding=rows)

    n, side, b = sizes.scaling_gallery * devices, sizes.image, sizes.batch * devices
    pixels = (side, side)
    gallery = Gallery(
        embeddings=abstract(n, setting.DIM, dtype=jnp.float32),
        images=abstract(n, *pixels, dtype=jnp.uint8),
        masks=abstract(n, *pixels, dtype=jnp.uint8),
        patient=abstract(n),
        valid=abstract(n, dtype=jnp.bool_),
    )
    batch = {name: abstract(b, *pixels, dtype=jnp.uint8) for name in ("image", "mask")}
    batch |= {name: abstract(b) for name in ("patient", "row")}
    jitted = step.compile_step(
        step.make_step(model, tx, config=config, device_mesh=device_mesh), shardings, device_mesh
    )
    with kernels.using("reference"):
        compiled = jitted.lower(first, batch, gallery, None, False).compile()
    cost = compiled.cost_analysis() or {}
    sent = collective_bytes(compiled.as_text(), devices)
    return {
        "devices": devices,
        "gflop": cost.get("flops", 0.0) / 1e9,
        "gbyte": cost.get("bytes accessed", 0.0) / 1e9,
        "collective_mb": {kind: size / 1e6 for kind, size in sorted(sent.items())},
        "parameters_mb": sum(x.size for x in jax.tree.leaves(first.params)) * 4 / 1e6,
    }


def rows(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The figures for the devices that this process simulates."""
    import jax

    yield {"row": "scaling", "ms": 0.0} | work_per_device(jax.device_count(), sizes)
