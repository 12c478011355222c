"""Cost of the search from 1e3 to 1e6 gallery rows: time and memory per device, exact and approximate.

    python -m benchmarks.retrieval                  writes benchmarks/retrieval.json and benchmarks/retrieval.svg
    python -m benchmarks.retrieval --devices=8      the same over simulated devices (they share this machine's cores)
    python -m benchmarks.retrieval --int8           int8 embeddings beside float32 ones at 1e6 rows, with their recall:
                                                    writes benchmarks/retrieval_int8.json

Embeddings are 128-d float32, a batch asks for 2 guides a query under the leak rule, forward and backward to the query's
embedding. Memory is XLA's own account of the compiled search, arguments included, on each device.

Recall at k: of the k rows that the float32 search ranks first, the share that the int8 search has among its first k; a
mean over 256 queries of patients outside the gallery. Its embeddings are those of benchmarks/clustered.py, which
resemble a gallery's, and random ones for comparison.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import clustered
from jras_jax import files

HERE = pathlib.Path(__file__).parent
DIM, QUERIES, GUIDES = 128, 16, 2
RECALL_QUERIES, RECALL_AT = 256, (2, 16)


def main(arguments: list[str] | None = None) -> int:
    """Measures every size and writes table and plot."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--devices", type=int, default=1, help="simulated CPU devices; 0: the accelerators as they are")
    p.add_argument("--largest", type=float, default=1e6, help="rows of the largest gallery")
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--output", default=str(HERE))
    p.add_argument("--int8", action="store_true", help="compare int8 with float32 embeddings at the largest size")
    options = p.parse_args(arguments)
    import jax

    if options.devices:
        jax.config.update("jax_num_cpu_devices", options.devices)
    folder = pathlib.Path(options.output)
    facts = {"device": jax.devices()[0].device_kind, "devices": jax.device_count(), "jax": jax.__version__}
    if options.int8:
        found = compare_int8(int(options.largest), options.repeats)
        print(json.dumps(found, indent=1))
        files.write_json(folder / "retrieval_int8.json", facts | {"queries": QUERIES} | found, indent=1)
        return 0
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
    name = "retrieval" if options.devices <= 1 else f"retrieval_{options.devices}_devices"
    (folder / f"{name}.json").write_text(json.dumps(facts | {"queries": QUERIES, "rows": rows}, indent=1) + "\n")
    plot(rows, folder / f"{name}.svg", f"{facts['devices']} x {facts['device']}")
    return 0


def measure(size: int, recall: float, repeats: int, form: str = "float32") -> dict[str, Any]:
    """Median time in ms and bytes per device of one search with its gradient over `size` rows of a form."""
    import jax
    import jax.numpy as jnp

    from jras_jax.retrieval.gallery import Gallery, QueryKeys
    from jras_jax.retrieval.search import search

    gallery, device_mesh = _gallery(random_rows(size, 0), form)
    queries = QueryKeys(jnp.arange(QUERIES, dtype=jnp.int32), jnp.full(QUERIES, -1, jnp.int32))

    def loss(embeddings: jax.Array, gallery: Gallery) -> jax.Array:
        _, weights, similarity = search(
            gallery, embeddings, queries, strategy="top_k", k=GUIDES, temperature=0.1, exclude="patient",
            recall_target=recall, mesh=device_mesh,
        )  # fmt: skip
        return (weights * similarity).sum()

    embeddings = jnp.asarray(random_rows(QUERIES, 1))
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
        "embedding_bytes": sum(x.nbytes for x in jax.tree.leaves(gallery.embeddings)),
    }


def compare_int8(size: int, repeats: int) -> dict[str, Any]:
    """Time, bytes and recall of int8 embeddings beside float32 ones over `size` rows."""
    forms = {form: measure(size, 1.0, repeats=repeats, form=form) for form in ("float32", "int8")}
    makers = {"clustered": clustered.embeddings, "random": lambda rows, dim, seed: random_rows(rows, seed)}
    return {"forms": forms, "recall": {name: recall_of_int8(make, size) for name, make in makers.items()}}


def recall_of_int8(make: Callable[[int, int, int], np.ndarray], size: int) -> dict[str, float]:
    """Recall of the int8 search against the float32 one, and by how much its guides are less similar.

    Args:
      make: (rows, D, seed) -> (rows, D) float32 of norm 1, gallery and queries.
      size: rows of the gallery.
    """
    stride = clustered.SLICES + 1  # one slice of a patient each, at all positions in turn
    rows, queries = make(size, DIM, 1), make(RECALL_QUERIES * stride, DIM, 2)[::stride]
    exact, near = (_nearest(rows, queries, form) for form in ("float32", "int8"))
    similarity = lambda found: np.einsum("qd,qkd->qk", queries, rows[found])  # noqa: E731
    out = {"queries": len(queries), "similarity_lost": float((similarity(exact) - similarity(near)).mean())}
    for k in RECALL_AT:
        shared = [len(np.intersect1d(a[:k], b[:k])) for a, b in zip(exact, near, strict=True)]
        out[f"recall_at_{k}"] = round(float(np.mean(shared)) / k, 4)
    return out


def _nearest(rows: np.ndarray, queries: np.ndarray, form: str) -> np.ndarray:
    """The nearest rows (Q, max of RECALL_AT) of each query, best first."""
    import jax
    import jax.numpy as jnp

    from jras_jax.retrieval.gallery import QueryKeys
    from jras_jax.retrieval.search import search

    gallery, device_mesh = _gallery(rows, form)
    outside = QueryKeys(*(jnp.full(QUERIES, -1, jnp.int32),) * 2)
    run = jax.jit(
        lambda gallery, part: search(
            gallery, part, outside, strategy="top_k", k=max(RECALL_AT), temperature=0.1, exclude="patient",
            mesh=device_mesh,
        )[0]
    )  # fmt: skip
    parts = queries.reshape(-1, QUERIES, queries.shape[1])
    return np.concatenate([np.asarray(run(gallery, jnp.asarray(part))) for part in parts])


def random_rows(rows: int, seed: int) -> np.ndarray:
    """(rows, DIM) float32 of norm 1, uniform on the sphere."""
    x = np.random.default_rng(seed).standard_normal((rows, DIM), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _gallery(rows: np.ndarray, form: str) -> tuple[Any, Any]:
    """A gallery of embeddings alone, 16 rows a patient, split over all devices; and the mesh."""
    import jax

    from jras_jax import mesh as meshes
    from jras_jax.retrieval.gallery import Gallery
    from jras_jax.retrieval.quantised import quantised

    device_mesh = meshes.make_mesh()
    put = functools.partial(meshes.put_whole, device_mesh)
    none = put(np.zeros((len(rows), 1, 1), np.uint8))
    gallery = Gallery(
        embeddings=jax.tree.map(put, quantised(rows) if form == "int8" else rows),
        images=none,
        masks=none,
        patient=put(np.arange(len(rows), dtype=np.int32) // clustered.SLICES),
        valid=put(np.ones(len(rows), bool)),
    )
    return gallery, device_mesh


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
