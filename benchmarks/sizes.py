"""What is measured at which size: the two scales, the parts, and the targets they are held against."""

from __future__ import annotations

import dataclasses

BACKBONES = ("segformer-b0", "segformer-b2", "unet")
RETRIEVERS = ("tiny", "vitb14")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """One scale of the whole benchmark.

    Attributes:
      name: 'full' or 'quick'.
      image: S, side of a slice in pixels.
      batch: B, slices a step.
      gallery: N, gallery rows.
      patient: slices of the patient that is predicted.
      unet: fields of our U-Net (and of its PyTorch twin).
      retriever_images: side of the retriever's own input, pixels, by retriever.
      refreshed: slices that a refresh is timed on, by retriever; the figure is scaled to N.
      backbones, retrievers: those that are measured.
      compiled: parts that PyTorch also runs through torch.compile.
      seconds: wall time that the repeats of one figure may take; repeats: at least and at most so many.
      filling: nothing is measured, the compilation cache is filled.
      devices: numbers of simulated devices of the weak scaling. scaling_gallery: gallery rows a device there.
      folder: patients that are predicted as a folder, and phantom patients that guide them.
      dtype: of the computation.
      gpu_pairs, gpu_compiled: joint steps of the GPU's table, and those that torch.compile runs too.
      gpu_embedded: slices that the retriever embeds at once there.
      gpu_steps, gpu_recipe: real steps there, and the options of their run.
    """

    name: str
    image: int
    batch: int
    gallery: int
    patient: int
    unet: dict[str, int]
    retriever_images: dict[str, int]
    refreshed: dict[str, int]
    backbones: tuple[str, ...]
    retrievers: tuple[str, ...]
    seconds: float
    repeats: tuple[int, int]
    devices: tuple[int, ...]
    scaling_gallery: int
    folder: tuple[int, int]
    compiled: tuple[str, ...] = ()
    filling: bool = False
    dtype: str = "float32"
    gpu_pairs: tuple[str, ...] = ()
    gpu_compiled: tuple[str, ...] = ()
    gpu_embedded: int = 64
    gpu_steps: int = 0
    gpu_recipe: tuple[str, ...] = ()

    @property
    def briefly(self) -> Sizes:
        """Fewer repeats, for parts that take many seconds a call."""
        return dataclasses.replace(self, repeats=(2, 3))


FULL = Sizes(
    name="full",
    image=256,
    batch=4,
    gallery=1900,
    patient=10,
    unet={"base_channels": 32, "levels": 6},
    retriever_images={"tiny": 128, "vitb14": 224},
    refreshed={"tiny": 256, "vitb14": 16},
    backbones=BACKBONES,
    retrievers=RETRIEVERS,
    seconds=3.0,
    repeats=(3, 8),
    devices=(1, 2, 4, 8),
    scaling_gallery=1900,
    folder=(20, 60),
    compiled=("joint:segformer-b0+tiny", "joint:unet+tiny"),
)
QUICK = Sizes(
    name="quick",
    image=64,
    batch=2,
    gallery=32,
    patient=3,
    unet={"base_channels": 8, "levels": 4},
    retriever_images={"tiny": 32},
    refreshed={"tiny": 16},
    backbones=("unet",),
    retrievers=("tiny",),
    seconds=0.2,
    repeats=(2, 3),
    devices=(2,),
    scaling_gallery=32,
    folder=(2, 3),
)
GPU = dataclasses.replace(
    FULL,
    name="gpu",
    batch=16,
    dtype="bfloat16",
    seconds=2.0,
    repeats=(10, 50),
    gpu_pairs=("unet+tiny", "segformer-b0+tiny", "segformer-b2+tiny", "segformer-b0+vitb14"),
    gpu_compiled=("unet+tiny", "segformer-b0+tiny"),
    gpu_steps=1000,
    gpu_recipe=("--config.train.log_every=20", "--config.train.validate_patients=1"),
)
GPU_QUICK = dataclasses.replace(
    QUICK,
    name="gpu-quick",
    dtype="bfloat16",
    gpu_pairs=("unet+tiny",),
    gpu_embedded=2,
    gpu_steps=4,
    gpu_recipe=(
        "--config.train.log_every=2",
        "--config.train.validate_patients=1",
        "--config.train.batch_size=2",
        "--config.dataset.image_size=32",
        "--config.dataset.phantom_patients=5",
        "--config.dataset.phantom_test_patients=0",
        "--config.backbone.options.base_channels=4",
        "--config.backbone.options.levels=3",
        "--config.retriever.image_size=16",
    ),
)
BY_NAME = {sizes.name: sizes for sizes in (FULL, QUICK, GPU, GPU_QUICK)}

TITLES = {"segformer-b0": "SegFormer-B0", "segformer-b2": "SegFormer-B2", "unet": "U-Net"}
RETRIEVER_TITLES = {"tiny": "small retriever", "vitb14": "ViT-B/14"}

# torch's time over ours that each figure must reach, by the beginning of the row's name: the longest match counts.
TARGETS = {
    "joint step": 2.0,
    "epoch": 3.0,
    "search + guide": 100.0,
    "SegFormer-B0 forward + backward": 1.1,
    "SegFormer-B2 forward + backward": 1.0,
    "U-Net forward + backward": 0.9,
    "predict": 1.2,
}
STARTUP_TARGET_S = 15.0


def parts(sizes: Sizes) -> list[str]:
    """The names that `--only` takes, in the order in which they run."""
    pairs = [f"{backbone}+{retriever}" for retriever in sizes.retrievers for backbone in sizes.backbones]
    return [
        *(f"backbone:{name}" for name in sizes.backbones),
        *(f"retriever:{name}" for name in sizes.retrievers),
        "guide",
        *(f"refresh:{name}" for name in sizes.retrievers),
        *(f"joint:{pair}" for pair in pairs),
        *(f"predict:{pair}" for pair in (f"{sizes.backbones[0]}+{r}" for r in sizes.retrievers)),
        "startup",
        "scaling",
    ]


def target(row: str) -> float | None:
    """The ratio that a row must reach, or None."""
    hits = [name for name in TARGETS if row.startswith(name)]
    return TARGETS[max(hits, key=len)] if hits else None
