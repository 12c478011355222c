"""What the U-Net's joint step holds, in bytes a pixel of the batch: counted by kind of activation, and as XLA plans it.

The count is of the U-Net alone; XLA's plan has the small retriever's activations and its own scratch space too.

    python -m benchmarks.memory           compiles the step six times and runs none: some minutes
    python -m benchmarks.memory --quick   small sizes, to see that it works

XLA's plan (`memory_analysis`, temporary bytes) is taken at two batch sizes; the difference is what a pixel more costs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import ours
from benchmarks.__main__ import ROOT, facts_of_this_run
from benchmarks.sizes import FULL, QUICK, Sizes
from jras_jax import mesh
from jras_jax.data import NUM_CLASSES

BYTES = 4  # of a float32
WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "train.remat=True": {"remat": True},
    "train.microbatches=2": {"microbatches": 2},
}


def counted(base_channels: int, levels: int, widest: int = 512) -> dict[str, float]:
    """Bytes a pixel of the finest level that the backward pass of `models.unet.UNet` needs, by kind of activation.

    Level l has min(base 2^l, widest) channels on a 4^l-th of the pixels. A stage has two convolutions on the way down
    and two on the way up, each followed by a norm and a leaky ReLU; before a stage of the way up there are a transposed
    convolution and the concatenation with the way down.
    """
    shares = [min(base_channels * 2**level, widest) / 4**level for level in range(levels)]
    down, up = sum(shares), sum(shares[:-1])
    return {
        "outputs of convolutions": BYTES * (2 * down + 3 * up),
        "outputs of norms and activations": BYTES * (2 * down + 2 * up),
        "concatenations": BYTES * 2 * up,
        "logits, probabilities and labels": BYTES * 3.0 * NUM_CLASSES,
    }


def planned(sizes: Sizes, changes: dict[str, Any], batch: int) -> int:
    """XLA's temporary bytes for the joint step at a batch size."""
    own = dataclasses.replace(sizes, batch=batch)
    table = ours.random_table(dataclasses.replace(own, gallery=32))
    made = ours.JointStep("unet", "tiny", own, table=table, device_mesh=mesh.make_mesh(1, 1), changes=changes)
    return int(made.compiled.memory_analysis().temp_size_in_bytes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Counts, compiles, prints and writes memory.json; returns the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.memory", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--output", metavar="DIR", default=str(ROOT / "runs" / "benchmarks"), help="for memory.json")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else FULL
    kinds = counted(**sizes.unet)
    for kind, size in kinds.items():
        print(f"{kind}: {size:,.0f} bytes a pixel, counted")
    print(f"all: {sum(kinds.values()):,.0f} bytes a pixel, counted")
    rows = []
    for way, changes in WAYS.items():
        few, many = (planned(sizes, changes, batch) for batch in (2, 4))
        pixel = (many - few) / (2 * sizes.image**2)
        rows.append({"way": way, "batch_2": few, "batch_4": many, "bytes_a_pixel": pixel})
        print(f"{way}: {pixel:,.0f} bytes a pixel, planned ({few / 1e6:,.0f} MB at batch 2, {many / 1e6:,.0f} at 4)")
    folder = pathlib.Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    whole = facts_of_this_run() | {"sizes": sizes.name, "counted": kinds, "planned": rows}
    (folder / "memory.json").write_text(json.dumps(whole, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
