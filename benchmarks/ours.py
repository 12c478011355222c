"""The parts of jras_jax, measured one by one. Each function yields rows: what it is called, its time, its work.

Every array that a call needs is on the device before the clock starts; compilation is not in the figures: programs come
from the compilation cache, which a process before this one has filled, so that the compiler's memory does not count as
the program's. The work (`gflop`, `gbyte`) is XLA's own count for the compiled program: operations, and bytes read and
written by all of its fused operations, so an upper bound of what must move.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, scaling
from benchmarks.setting import CHANNELS, DIM, joint_config
from benchmarks.sizes import RETRIEVER_TITLES, TITLES, Sizes
from jras_jax import config as configs
from jras_jax import joint, kernels, mesh, models
from jras_jax.commands.dataset import load_data
from jras_jax.data import NUM_CLASSES
from jras_jax.data.grid import Grid
from jras_jax.data.slice_table import SliceTable
from jras_jax.inference.embedder import Embedder
from jras_jax.inference.segmenter import Segmenter
from jras_jax.joint import losses
from jras_jax.joint.build import build_model, init_variables
from jras_jax.retrieval.gallery import Gallery, QueryKeys, gallery_from_table, with_embeddings
from jras_jax.retrieval.retriever import Retriever
from jras_jax.run_folder.layout import RunFolder
from jras_jax.training import joint_run, state, step

Row = dict[str, Any]


def measured(
    name: str,
    sizes: Sizes,
    call: Callable[[], Any],
    compiled: Any = None,
    lower: Callable[[], Any] | None = None,
    **more: Any,
) -> Row:
    """One row: `call` timed, the work counted where a compiled program is given, and this process's peak memory.

    If `lower` traces the program again, operations are counted as on an accelerator: in a compiled program XLA counts
    the body of a loop once, however often it runs, and the forms for CPU have loops.

    With `sizes.filling` nothing is timed, and a program that is compiled already is not run.
    """
    if sizes.filling:
        if compiled is None:
            jax.block_until_ready(call())
        return {"row": name}
    timing = measure.timed(lambda: jax.block_until_ready(call()), sizes.seconds, sizes.repeats)
    row: Row = {"row": name, "ms": timing.median, "fastest": timing.fastest, "slowest": timing.slowest}
    row["repeats"] = timing.repeats
    row["peak_gb"] = measure.peak_memory_gb()
    cost = {} if compiled is None else compiled.cost_analysis() or {}
    row["gbyte"] = cost["bytes accessed"] / 1e9 if "bytes accessed" in cost else None
    if lower is not None:
        with kernels.using("reference"):
            cost = lower().cost_analysis() or {}
    row["gflop"] = cost["flops"] / 1e9 if "flops" in cost else None
    return row | more


def create_backbone(name: str, sizes: Sizes) -> Any:
    """The module of a name in `sizes.BACKBONES`."""
    if name == "unet":
        return models.create("unet", num_classes=NUM_CLASSES, **sizes.unet)
    family, variant = name.split("-")
    return models.create(family, variant=variant, num_classes=NUM_CLASSES)


def drawn(initialise: Callable[[], Any]) -> Any:
    """Variables of the shapes that `initialise` returns: kernels small random numbers, made one after another.

    Models make them all in one program, whose memory would count as that of what is measured here. Scales and variances
    are 1, means and biases 0.
    """
    rng = np.random.default_rng(0)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        name = mesh.path_name(path).rpartition("/")[2]
        if name in ("scale", "var"):
            return jnp.ones(shape.shape, shape.dtype)
        size = 0.02 if len(shape.shape) > 1 else 0.0
        return jnp.asarray(size * rng.standard_normal(shape.shape, np.float32), shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(initialise))


def backbone(name: str, sizes: Sizes) -> Iterator[Row]:
    """Forward (evaluation mode), and forward + backward of Dice + cross-entropy (training mode)."""
    model = create_backbone(name, sizes)
    rng = np.random.default_rng(0)
    shape = (sizes.batch, sizes.image, sizes.image)
    x = jnp.asarray(rng.random((*shape, CHANNELS)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, NUM_CLASSES, shape), jnp.int32)
    variables = drawn(lambda: model.init(jax.random.key(0), x))
    extra = {k: v for k, v in variables.items() if k != "params"}

    def loss(params: Any, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        keys = {"dropout": jax.random.key(1)}
        logits, new = model.apply({"params": params, **extra}, x, True, rngs=keys, mutable=list(extra))
        return losses.segmentation_loss(logits, labels)[0], new

    forward = jax.jit(model.apply).lower(variables, x).compile()
    yield measured(f"{TITLES[name]} forward", sizes, call=lambda: forward(variables, x), compiled=forward)
    params = variables["params"]

    def lower() -> Any:
        return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params, x, labels)

    both = lower().compile()
    yield measured(
        f"{TITLES[name]} forward + backward", sizes, call=lambda: both(params, x, labels), compiled=both, lower=lower
    )


def retriever(name: str, sizes: Sizes) -> Iterator[Row]:
    """Embeddings of a batch, forward."""
    side = sizes.retriever_images[name]
    model = Retriever(variant=name, image_size=side, dtype=jnp.dtype(sizes.dtype))
    images = jnp.asarray(np.random.default_rng(0).random((sizes.batch, side, side)), jnp.float32)
    variables = drawn(lambda: model.init(jax.random.key(0), images))

    def lower() -> Any:
        return jax.jit(model.apply).lower(variables, images)

    forward = lower().compile()
    title = f"{RETRIEVER_TITLES[name]} forward"
    yield measured(title, sizes, call=lambda: forward(variables, images), compiled=forward, lower=lower)


def random_table(sizes: Sizes, slices_a_patient: int = 20) -> SliceTable:
    """Slices of noise with one label for each quarter of the grid: times do not depend on what is seen."""
    n, side = sizes.gallery, sizes.image
    rng = np.random.default_rng(0)
    masks = np.zeros((n, side, side), np.uint8)
    masks[:, : side // 2, side // 2 :], masks[:, side // 2 :, : side // 2], masks[:, side // 2 :, side // 2 :] = 1, 2, 3
    rows = np.arange(n, dtype=np.int32)
    patient = rows // slices_a_patient
    return SliceTable(
        images=rng.integers(0, 256, (n, side, side), np.uint8),
        masks=masks,
        case=patient,
        patient=patient,
        phase=np.zeros(n, np.int32),
        slice_index=rows % slices_a_patient,
        position=(rows % slices_a_patient / slices_a_patient).astype(np.float32),
        vendor=np.zeros(n, np.int32),
        neighbours=np.full((n, 2), -1, np.int32),
        cases=tuple(str(i) for i in range(patient[-1] + 1)),
        patients=tuple(str(i) for i in range(patient[-1] + 1)),
        vendors=("",),
    )


def random_gallery(table: SliceTable, device_mesh: Any) -> Gallery:
    """The gallery of a table, with random embeddings of norm 1."""
    rows = np.random.default_rng(1).normal(size=(len(table), DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    return with_embeddings(gallery_from_table(table, DIM, device_mesh), rows, device_mesh)


def guide(sizes: Sizes) -> Iterator[Row]:
    """Search, fetch, and the mix of the guides' images and masks into the backbone's further channels."""
    device_mesh = mesh.make_mesh(1, 1)
    gallery = random_gallery(random_table(sizes), device_mesh)
    model = build_model(joint_config("unet", "tiny", sizes))
    query = jnp.zeros((sizes.batch, sizes.image, sizes.image, 3))
    keys = QueryKeys(jnp.arange(sizes.batch), jnp.arange(sizes.batch))
    select = joint.Selection("top_k", 2, temperature=0.1, exclude="patient")

    def mixed(embeddings: jax.Array, gallery: Gallery) -> jax.Array:
        found = joint.retrieve(embeddings, gallery, queries=keys, selection=select, num_classes=NUM_CLASSES)
        return model.fusion.apply({}, query, found, method="fuse_input")[..., 3:]

    def total(embeddings: jax.Array, gallery: Gallery) -> jax.Array:
        return jnp.square(mixed(embeddings, gallery)).mean()

    e = gallery.embeddings[: sizes.batch]
    forward = jax.jit(mixed).lower(e, gallery).compile()
    yield measured("search + guide forward", sizes, call=lambda: forward(e, gallery), compiled=forward)
    both = jax.jit(jax.value_and_grad(total)).lower(e, gallery).compile()
    yield measured("search + guide forward + backward", sizes, call=lambda: both(e, gallery), compiled=both)


class JointStep:
    """Our step, compiled, with all that it needs on the device; `run()` does one. `changes` are of config.train."""

    def __init__(
        self,
        name: str,
        retriever_name: str,
        sizes: Sizes,
        table: SliceTable,
        device_mesh: Any,
        changes: dict[str, Any] | None = None,
    ):
        config = joint_config(name, retriever_name, sizes)
        self.config = dataclasses.replace(config, train=dataclasses.replace(config.train, **(changes or {})))
        self.model = build_model(self.config)
        self.state, tx, shardings = state.create_state(self.model, self.config, device_mesh)
        self.gallery = random_gallery(table, device_mesh)
        rows = np.arange(sizes.batch, dtype=np.int32)
        batch = {"image": table.images[rows], "mask": table.masks[rows], "patient": table.patient[rows], "row": rows}
        self.batch = mesh.put_rows(device_mesh, batch)
        self.cache = self._cache(len(table), sizes, device_mesh) if self.config.retriever.trained_blocks >= 0 else None
        train_step = step.make_step(self.model, tx, config=self.config, device_mesh=device_mesh)
        self._jitted = functools.partial(step.compile_step, train_step, shardings, device_mesh)
        self.compiled = self.lower().compile()

    def lower(self) -> Any:
        """The step, traced again."""
        return self._jitted().lower(self.state, self.batch, self.gallery, self.cache, False)

    def _cache(self, n: int, sizes: Sizes, device_mesh: Any) -> jax.Array:
        """An array of the states' shape: what is in it changes no time, and making it would count as peak memory."""
        image = jnp.zeros((1, sizes.image, sizes.image))
        shape = jax.eval_shape(functools.partial(self.model.apply, method="states"), self.state.variables, image).shape
        make = lambda: jnp.full((n, *shape[1:]), 0.1, jnp.bfloat16)  # noqa: E731
        return jax.jit(make, out_shardings=mesh.by_rows(device_mesh))()

    def run(self) -> Any:
        """One update; returns the metrics."""
        self.state, metrics = self.compiled(self.state, self.batch, self.gallery, self.cache)
        return metrics


def joint_step(name: str, retriever_name: str, sizes: Sizes) -> Iterator[Row]:
    """The whole step: retriever, search, guide, backbone, loss, backward, Adam."""
    made = JointStep(name, retriever_name, sizes=sizes, table=random_table(sizes), device_mesh=mesh.make_mesh(1, 1))
    title = f"joint step, {TITLES[name]}, {RETRIEVER_TITLES[retriever_name]}"
    yield measured(title, sizes, call=made.run, compiled=made.compiled, lower=made.lower)


def refresh(name: str, sizes: Sizes) -> Iterator[Row]:
    """All gallery embeddings, timed on a share of the slices and scaled; with a frozen trunk also from its cache."""
    config = joint_config("unet", name, sizes)
    model, device_mesh = build_model(config), mesh.make_mesh(1, 1)
    images = random_table(sizes).images[: sizes.refreshed[name]]
    variables = drawn(functools.partial(init_variables, model, config))
    refresher = Embedder(model, device_mesh, batch_size=32, images=images)
    scale = sizes.gallery / len(images)
    note = f"timed on {len(images)} slices, x {scale:.3g}"

    def scaled(title: str, call: Callable[[], Any]) -> Row:
        row = measured(f"{title}, {RETRIEVER_TITLES[name]}", sizes.briefly, call, note=note)
        return row | {key: row[key] * scale for key in ("ms", "fastest", "slowest") if key in row}

    yield scaled("refresh, whole forward", lambda: refresher.embeddings(variables))
    if config.retriever.trained_blocks >= 0:
        cache = refresher.states(variables)
        yield scaled("refresh, cached trunk", lambda: refresher.embeddings(variables, cache))


def predict(name: str, retriever_name: str, sizes: Sizes) -> Iterator[Row]:
    """All slices of one patient: images on the host in, probabilities and evidence on the host out."""
    config = joint_config(name, retriever_name, sizes)
    model, device_mesh = build_model(config), mesh.make_mesh(1, 1)
    variables = drawn(functools.partial(init_variables, model, config))
    table = random_table(sizes)
    segmenter = Segmenter(
        lambda: model,
        joint.Selection("top_k", 2, temperature=0.1, exclude="patient"),
        Grid(sizes.image, 1.4, unknown_spacing="fit", percentiles=(0.5, 99.5)),
        batch_size=sizes.patient,
        device_mesh=device_mesh,
    ).using(variables, random_gallery(table, device_mesh))
    images = table.images[: sizes.patient]
    title = f"predict {sizes.patient} slices, {TITLES[name]}, {RETRIEVER_TITLES[retriever_name]}"
    yield measured(title, sizes, lambda: segmenter.slices(images).probabilities)


def startup(sizes: Sizes) -> Iterator[Row]:
    """Builds the U-Net's joint step and does one; the process's whole life is timed by who starts it."""
    made = JointStep("unet", "tiny", sizes=sizes, table=random_table(sizes), device_mesh=mesh.make_mesh(1, 1))
    jax.block_until_ready(made.run())
    yield {"row": "startup", "ms": 0.0}


def peaks(sizes: Sizes) -> Iterator[Row]:
    """This machine's ceilings."""
    yield {"row": "peaks", "ms": 0.0} | measure.machine_peaks(sizes.seconds / 3)


def card(sizes: Sizes) -> Iterator[Row]:
    """The device and its ceilings; matrices of 8192 a side on a GPU."""
    device, gpu = jax.devices()[0], jax.default_backend() != "cpu"
    found = measure.machine_peaks(sizes.seconds / 3, size=8192 if gpu else 512, copied_mb=2048 if gpu else 64)
    bf16 = measure.product_gflops(sizes.seconds / 3, 8192 if gpu else 512, "bfloat16")
    yield {"row": "card", "backend": jax.default_backend(), "device": device.device_kind, "bf16_gflops": bf16} | found


def pipeline(folder: str, sizes: Sizes) -> Iterator[Row]:
    """Steps a second of a run's training, from its own batches and from one batch that stays on the device."""
    with tempfile.TemporaryDirectory() as empty:
        config = configs.parse(configs.load_saved(pathlib.Path(folder) / "config.json"))
        run = joint_run.start(config, RunFolder(empty), load_data(config.dataset))
        run.prepare(0)
        count = max(sizes.gpu_steps // 5, 2)
        for done in range(5):
            metrics, _ = run.advance(done)
        rows_ = next(run.batches)
        batch = mesh.put_rows(run.mesh, rows_ | run.located_rows(0))
        arrays = (run.gallery.arrays, run.gallery.cache) if run.gallery else (None, None)

        def real(done: int) -> Any:
            return run.advance(done)[0]

        def same(_: int) -> Any:
            run.state, found = run.step(run.state, batch, *arrays, False)
            return found

        rates: dict[str, list[float]] = {"real_per_s": [], "same_per_s": []}
        for turn in range(6):  # in turns, so that a change of the card's clock meets both
            name, step_ = (("real_per_s", real), ("same_per_s", same))[turn % 2]
            jax.block_until_ready(metrics)
            start = time.perf_counter()
            for done in range(count):
                metrics = step_(10 + done)
            jax.block_until_ready(metrics)
            rates[name].append(count / (time.perf_counter() - start))
        run.checkpoints.close()
        yield {"row": "pipeline"} | {name: float(np.median(values)) for name, values in rates.items()}


def rows(part: str, sizes: Sizes) -> Iterator[Row]:
    """The rows of a part, by its name in `sizes.parts`."""
    kind, _, names = part.partition(":")
    kinds: dict[str, Callable[..., Iterator[Row]]] = {
        "backbone": backbone,
        "retriever": retriever,
        "guide": guide,
        "refresh": refresh,
        "joint": joint_step,
        "predict": predict,
        "startup": startup,
        "peaks": peaks,
        "card": card,
        "pipeline": pipeline,
        "scaling": scaling.rows,
    }
    return kinds[kind](*(names.split("+") if names else ()), sizes)
