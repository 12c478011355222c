"""Cost of the search from 1e3 to 1e6 gallery rows: time and memory per device, exact and approximate.

    python -m benchmarks.retrieval                  writes benchmarks/retrieval.json and benchmarks/retrieval.svg
    python -m benchmarks.retrieval --devices=8      the same over simulated devices (they share this machine's cores)

Embeddings are 128-d float32, a batch asks for 2 guides a query under the leak rule, forward and backward to the query's
embedding. Memory is XLA's own account of the compiled search, arguments included, on each device.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import statistics
import time
from typing import Any

HERE = pathlib.Path(__file__).parent
DIM, QUERIES, GUIDES = 128, 16, 2


def main(arguments: list[str] | None = None) -> int:
    """Measures every size and writes table and plot."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--devices", type=int, default=1, help="simulated CPU devices; 0: the accelerators as they are")
    p.add_argument("--largest", type=float, default=1e6, help="rows of the largest gallery")
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--output", default=str(HERE))
    options = p.parse_args(arguments)
    import jax

    if options.devices:
        jax.config.update("jax_num_cpu_devices", options.devices)
    rows = []
    size = 1_000
    while size <= options.largest:
        for recall in (1.0, 0.95):
            rows.append(measure(size, recall, options.repeats))
            print(
                f"{rows[-1]['rows']:>9,} rows  recall {recall:.2f}  {rows[-1]['ms']:8.2f} ms  "
                f"{rows[-1]['bytes_per_device'] / 1e6:8.1f} MB a device",
                flush=True,
            )
        size *= 10
    folder = pathlib.Path(options.output)
    name = "retrieval" if options.devices <= 1 else f"retrieval_{options.devices}_devices"
    facts = {"device": jax.devices()[0].device_kind, "devices": jax.device_count(), "jax": jax.__version__}
    (folder / f"{name}.json").write_text(json.dumps(facts | {"queries": QUERIES, "rows": rows}, indent=1) + "\n")
    plot(rows, folder / f"{name}.svg", f"{facts['devices']} x {facts['device']}")
    return 0


def measure(size: int, recall: float, repeats: int) -> dict[str, Any]:
    """Median time in ms and bytes per device of one search with its gradient over `size` rows."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jras_jax import mesh as meshes
    from jras_jax.retrieval.gallery import Gallery, QueryKeys
    from jras_jax.retrieval.search import search

    device_mesh = meshes.make_mesh()
    rng = np.random.default_rng(0)
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    put = functools.partial(meshes.put_whole, device_mesh)
    none = put(np.zeros((size, 1, 1), np.uint8))
    gallery = Gallery(
        embeddings=put(unit(rng.normal(size=(size, DIM)))),
        images=none,
        masks=none,
        patient=put(np.arange(size, dtype=np.int32) // 16),
        valid=put(np.ones(size, bool)),
    )
    queries = QueryKeys(jnp.arange(QUERIES, dtype=jnp.int32), jnp.full(QUERIES, -1, jnp.int32))

    def loss(embeddings: jax.Array, gallery: Gallery) -> jax.Array:
        _, weights, similarity = search(
            gallery, embeddings, queries, strategy="top_k", k=GUIDES, temperature=0.1, exclude="patient",
            recall_target=recall, mesh=device_mesh,
        )  # fmt: skip
        return (weights * similarity).sum()

    embeddings = jnp.asarray(unit(rng.normal(size=(QUERIES, DIM))))
    compiled = jax.jit(jax.value_and_grad(loss)).lower(embeddings, gallery).compile()
    memory = compiled.memory_analysis()
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(embeddings, gallery))
        times.append(1e3 * (time.perf_counter() - start))
    return {
        "rows": size,
        "recall_target": recall,
        "ms": round(statistics.median(times[1:]), 3),
        "bytes_per_device": memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes,
    }


def plot(rows: list[dict[str, Any]], path: pathlib.Path, title: str) -> None:
    """Time and memory against rows, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    for axis, key, label, scale in zip(axes, ("ms", "bytes_per_device"), ("ms", "MB a device"), (1, 1e-6), strict=True):
        for recall, style in ((1.0, "o-"), (0.95, "s--")):
            own = [r for r in rows if r["recall_target"] == recall]
            name = "exact" if recall == 1 else f"approximate, recall {recall}"
            axis.loglog([r["rows"] for r in own], [r[key] * scale for r in own], style, label=name)
        axis.set_xlabel("gallery rows")
        axis.set_ylabel(label)
        axis.grid(True, which="both", alpha=0.3)
    axes[0].legend()
    figure.suptitle(f"Search, {QUERIES} queries, {DIM}-d, {title}")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
