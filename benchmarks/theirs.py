"""The same parts in PyTorch, of `benchmarks.reference_torch`; the rows have the names of `benchmarks.ours`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import measure
from benchmarks import reference_torch as reference
from benchmarks.sizes import RETRIEVER_TITLES, TITLES, Sizes

Row = dict[str, Any]


def measured(name: str, sizes: Sizes, call: Callable[[], Any], **more: Any) -> Row:
    """One row: `call` timed, and this process's peak memory."""
    on_gpu = measure.device() == "cuda"

    def settled() -> None:
        call()
        if on_gpu:
            torch.cuda.synchronize()

    with torch.autocast(measure.device(), torch.bfloat16, enabled=sizes.dtype == "bfloat16"):
        timing = measure.timed(settled, sizes.seconds, sizes.repeats)
    row: Row = {"row": name, "ms": timing.median, "fastest": timing.fastest, "slowest": timing.slowest}
    return row | {"repeats": timing.repeats, "peak_gb": measure.peak_memory_gb()} | more


def backbone(name: str, sizes: Sizes, compiled: bool) -> Iterator[Row]:
    """Forward in evaluation mode without gradients, then forward + backward in training mode."""
    model = reference.backbone(name, sizes.unet)
    run = torch.compile(model) if compiled else model
    x = torch.rand(sizes.batch, reference.FUSED_CHANNELS, sizes.image, sizes.image)
    labels = torch.randint(0, reference.NUM_CLASSES, (sizes.batch, sizes.image, sizes.image))
    model.eval()
    with torch.no_grad():
        yield measured(f"{TITLES[name]} forward", sizes, lambda: run(x))
    model.train()

    def both() -> None:
        model.zero_grad(set_to_none=True)
        reference.loss(run(x), labels).backward()

    yield measured(f"{TITLES[name]} forward + backward", sizes, both)


def retriever(name: str, sizes: Sizes, compiled: bool) -> Iterator[Row]:
    """Embeddings of a batch, forward."""
    side = sizes.retriever_images[name]
    model = reference.Retriever(name, side).eval()
    run = torch.compile(model) if compiled else model
    images = torch.rand(sizes.batch, 3, side, side)
    with torch.no_grad():
        yield measured(f"{RETRIEVER_TITLES[name]} forward", sizes, lambda: run(images))


def gallery(sizes: Sizes) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, S, S) and masks (N, 1, S, S), float32, as the authors keep them."""
    images = torch.rand(sizes.gallery, 3, sizes.image, sizes.image)
    masks = torch.randint(0, reference.NUM_CLASSES, (sizes.gallery, 1, sizes.image, sizes.image), dtype=torch.uint8)
    return images, masks.float()


def guide(sizes: Sizes, compiled: bool) -> Iterator[Row]:
    """Weights over the whole gallery and the einsum."""
    images, masks = gallery(sizes)
    embeddings = F.normalize(torch.randn(sizes.gallery, 128), dim=-1)
    queries = embeddings[: sizes.batch].clone().requires_grad_()
    run = torch.compile(reference.guide) if compiled else reference.guide
    with torch.no_grad():
        yield measured("search + guide forward", sizes, lambda: run(queries, embeddings, images, masks))

    def both() -> None:
        queries.grad = None
        run(queries, embeddings, images, masks).square().mean().backward()

    yield measured("search + guide forward + backward", sizes, both)


def make_joint(name: str, retriever_name: str, sizes: Sizes, compiled: bool = False) -> reference.Joint:
    """The joint step with its gallery."""
    segmenter = reference.backbone(name, sizes.unet)
    found = reference.Retriever(retriever_name, sizes.retriever_images[retriever_name])
    return reference.Joint(segmenter, found, *gallery(sizes), compiled)


def joint_step(name: str, retriever_name: str, sizes: Sizes, compiled: bool) -> Iterator[Row]:
    """The whole step."""
    made = make_joint(name, retriever_name, sizes=sizes, compiled=compiled)
    images = made.images[: sizes.batch].clone()
    labels = made.masks[: sizes.batch, 0].long()
    title = f"joint step, {TITLES[name]}, {RETRIEVER_TITLES[retriever_name]}"
    yield measured(title, sizes, lambda: made.step(images, labels))


def refresh(name: str, sizes: Sizes, compiled: bool) -> Iterator[Row]:
    """A full forward pass over a share of the gallery, scaled."""
    del compiled
    rows = sizes.refreshed[name]
    found = reference.Retriever(name, sizes.retriever_images[name])
    images = torch.rand(rows, 3, sizes.image, sizes.image)
    made = reference.Joint(reference.backbone("unet", sizes.unet), found, images=images, masks=images[:, :1])
    scale = sizes.gallery / rows
    title = f"refresh, whole forward, {RETRIEVER_TITLES[name]}"
    row = measured(title, sizes.briefly, lambda: made.refresh(rows, 32), note=f"timed on {rows} slices, x {scale:.3g}")
    yield row | {key: row[key] * scale for key in ("ms", "fastest", "slowest")}


def predict(name: str, retriever_name: str, sizes: Sizes, compiled: bool) -> Iterator[Row]:
    """All slices of one patient as one batch: probabilities."""
    del compiled
    made = make_joint(name, retriever_name, sizes)
    images = made.images[: sizes.patient].clone()
    title = f"predict {sizes.patient} slices, {TITLES[name]}, {RETRIEVER_TITLES[retriever_name]}"
    yield measured(title, sizes, lambda: made.predict(images))


def rows(part: str, sizes: Sizes, compiled: bool) -> Iterator[Row]:
    """The rows of a part, by its name in `sizes.parts`; none where PyTorch has no counterpart."""
    torch.set_default_device(measure.device())
    torch.manual_seed(0)
    kind, _, names = part.partition(":")
    kinds: dict[str, Callable[..., Iterator[Row]]] = {
        "backbone": backbone,
        "retriever": retriever,
        "guide": guide,
        "refresh": refresh,
        "joint": joint_step,
        "predict": predict,
    }
    return kinds[kind](*(names.split("+") if names else ()), sizes, compiled) if kind in kinds else iter(())
