"""Every setting of a run, once: type, default, unit, source, rule, and when it may change after training has started.

METHOD is the J-RAS paper (arXiv 2510.09953) and its authors' published scripts. nnU-Net is Isensee et al., Nature
Methods 2021. `jras settings` prints this table. A config file starts from `config.defaults()` and changes a
few values. Rules over several settings are the `rules` methods, which yield (name, whether it holds, what it must be).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, Literal

from jras_jax.config.setting import Setting, setting, settings_of

Rules = Iterator[tuple[str, bool, str]]
MAX_SEED = 2**31 - 1  # streams use seed + 1 and seed + 2, which must stay inside 32 bits
MAX_STEPS = 10**9
MAX_BATCH = 65_536
MAX_PATIENTS = 10**6


def _are_patterns(patterns: tuple[str, ...]) -> bool:
    """Whether every pattern is a regular expression."""
    try:
        return all(re.compile(p) for p in patterns)
    except re.error:
        return False


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The scans, their split into folds, and the model grid."""

    name: Literal["acdc", "mnms", "phantom"] = setting(
        "acdc", "data set; the phantom is written by this project in the layout of ACDC"
    )
    manual_dir: str = setting("", "folder of the official download, as the challenge ships it", change="free")
    data_dir: str = setting("data_cache", "folder of the prepared TFDS data set", change="free")
    num_folds: int = setting(5, "number of folds of the stratified split of patients", at_least=2, at_most=1000)
    fold: int = setting(0, "the fold that validates; the others train", at_least=0, at_most=999)
    split_seed: int = setting(
        0, "seed of the folds; the same for all runs that you compare", at_least=0, at_most=MAX_SEED
    )
    image_size: int = setting(
        256, "S, side of the square model grid in pixels (METHOD: 256)", at_least=16, at_most=2048
    )
    spacing_mm: float = setting(
        1.4, "in-plane pixel size of the model grid in mm; 0 keeps the native one", at_least=0, at_most=50
    )
    unknown_spacing: Literal["fit", "crop"] = setting(
        "fit", "scans without spacing: 'fit' scales the field of view to the grid, 'crop' keeps native pixels"
    )
    percentiles: tuple[float, float] = setting(
        (0.5, 99.5),
        "percentiles of each volume's intensities that map to 0 and 255 (nnU-Net's clipping)",
        at_least=0,
        at_most=100,
        must=(lambda p: p[0] < p[1], "rising"),
    )
    drop_empty: bool = setting(True, "whether training leaves out slices without foreground (METHOD)")
    max_train_patients: int = setting(
        0,
        "0 trains on all; n trains on the first n of the shuffled training patients (few-label studies)",
        at_least=0,
        at_most=MAX_PATIENTS,
    )
    phantom_patients: int = setting(20, "number of training patients of the phantom", at_least=1, at_most=100_000)
    phantom_test_patients: int = setting(8, "number of test patients of the phantom", at_least=0, at_most=100_000)

    @property
    def convention(self) -> str:
        """The data set whose label values the masks use: the phantom follows ACDC."""
        return "mnms" if self.name == "mnms" else "acdc"

    def rules(self) -> Rules:
        """See the module."""
        yield "fold", self.fold < self.num_folds, f"0 to {self.num_folds - 1}, below dataset.num_folds"


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of training slices."""

    enabled: bool = setting(True, "whether training augments at all")
    rotate_deg: float = setting(30.0, "rotation, uniform in +-, degrees", at_least=0, at_most=180)
    scale: float = setting(0.2, "magnification, uniform in 1 +-", at_least=0, below=1)
    shift: float = setting(0.1, "translation, uniform in +-, as a share of the grid's side", at_least=0, at_most=1)
    retriever_share: float = setting(
        0.33,
        "share of the geometric ranges for the view that the retriever sees in training",
        at_least=0,
        at_most=1,
    )
    flip: bool = setting(
        False, "left-right flips, which put the RV on the wrong side of the heart: off if the orientation is known"
    )
    gamma: float = setting(0.3, "exponent, uniform in exp(+-)", at_least=0, at_most=5)
    contrast: float = setting(0.25, "factor, uniform in 1 +-, about the slice's mean", at_least=0, at_most=1)
    brightness: float = setting(0.15, "offset, uniform in +-, of the [0, 1] range", at_least=0, at_most=1)
    noise_std: float = setting(
        0.05, "standard deviation of noise, uniform in [0, this], of the [0, 1] range", at_least=0, at_most=1
    )
    probability: float = setting(
        0.5, "probability of each kind of intensity change, for each slice", at_least=0, at_most=1
    )


@dataclasses.dataclass(frozen=True)
class Backbone:
    """The segmentation model."""

    name: Literal["unet", "segformer", "transunet", "sam"] = setting("unet", "model")
    variant: str = setting("", "size of the model: 'b0' to 'b5' for segformer, 'vit_b' ... for sam, '' for the U-Net")
    options: dict[str, Any] = setting({}, "further keywords of the model class")  # noqa: RUF009 - makes a factory
    in_channels: Literal[1, 3] = setting(
        1, "channels of the input; 3 repeats grey as RGB, which ImageNet weights expect"
    )
    init_from: str = setting("", "converted weights (jras convert); '' starts from scratch")
    frozen: tuple[str, ...] = setting(
        (),
        "regular expressions of parameter paths that do not train",
        must=(_are_patterns, "valid regular expressions"),
    )


@dataclasses.dataclass(frozen=True)
class Retriever:
    """The model that embeds slices for retrieval."""

    variant: Literal["tiny", "vits14", "vitb14", "vitl14", "vitg14"] = setting(
        "tiny", "size of the ViT; RAD-DINO is 'vitb14' (METHOD)"
    )
    image_size: int = setting(
        64,
        "side of the retriever's input in pixels, a multiple of the patch (8 for tiny, 14 for the others)",
        at_least=8,
        at_most=2048,
    )
    trained_blocks: int = setting(
        -1,
        "-1 trains everything, 0 the projection only, n the last n blocks (METHOD's later scripts: 1)",
        at_least=-1,
        at_most=40,
    )
    lora_rank: int = setting(
        0, "above 0, the blocks that train do so only through LoRA matrices of this rank", at_least=0, at_most=1024
    )
    pool: Literal["cls", "grid"] = setting(
        "grid", "what the head sees: 'cls', the CLS token (METHOD), or 'grid', the CLS token and the patch tokens"
    )
    hidden: int = setting(256, "width of the head's hidden layer (METHOD)", at_least=1, at_most=65_536)
    dim: int = setting(128, "width of the embedding (METHOD)", at_least=1, at_most=65_536)
    dropout: float = setting(0.0, "dropout rate before the head's ReLU (METHOD: 0.3)", at_least=0, below=1)
    init_from: str = setting(
        "", "converted DINOv2 weights, or the workdir of a jras pretrain run; '' starts from scratch"
    )


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """How guides are chosen from the gallery, and how the retriever learns."""

    enabled: bool = setting(True, "False trains the same backbone without guides, the baseline")
    strategy: Literal["top_k", "softmax", "gumbel_top_k", "sparsemax", "random", "oracle"] = setting(
        "top_k",
        "how guides are chosen: 'top_k' (METHOD), 'softmax' over the whole gallery, 'gumbel_top_k', 'sparsemax', or as "
        "controls 'random' and 'oracle'",
        change="open",
    )
    top_k: int = setting(2, "guides per query (METHOD)", at_least=1, at_most=10_000)
    temperature: float = setting(
        0.1, "temperature of the softmax over cosine similarities (METHOD)", above=0, at_most=1000
    )
    exclude: Literal["patient", "slice", "none"] = setting(
        "patient",
        "gallery slices that never guide: the query's own 'patient', its own 'slice', or 'none' (METHOD, leaks)",
        change="open",
    )
    recall_target: float = setting(
        1.0,
        "recall of the search; below 1 it is approximate (jax.lax.approx_max_k)",
        above=0,
        at_most=1,
        change="open",
    )
    gallery_memory: Literal["device", "host"] = setting(
        "device", "where the gallery's images and masks are; 'host' for galleries that do not fit", change="open"
    )
    refresh: Literal["epochs", "steps", "rolling"] = setting(
        "epochs", "unit of refresh_every: 'epochs', 'steps', or 'rolling' (steps, with a part refreshed at each)"
    )
    refresh_every: int = setting(
        1, "interval between refreshes of the gallery's embeddings (METHOD: 1 epoch)", at_least=1, at_most=MAX_STEPS
    )
    overlap_weight: float = setting(
        1.0, "weight of the loss that ranks the gallery by the overlap of masks; 0 is off", at_least=0, at_most=1000
    )
    overlap_sharpness: float = setting(
        0.05, "softmax temperature of that ranking's target, in Dice", above=0, at_most=1000
    )
    contrast_weight: float = setting(
        0.0, "weight of the contrastive loss over candidates (METHOD v3); 0 is off", at_least=0, at_most=1000
    )
    contrast_candidates: int = setting(
        4, "candidates per query that are judged by their segmentation loss", at_least=2, at_most=10_000
    )
    contrast_every: int = setting(4, "steps between two contrastive terms", at_least=1, at_most=MAX_STEPS)
    contrast_temperature: float = setting(
        0.1, "temperature of the contrastive softmax over cosine similarities", above=0, at_most=1000
    )

    def rules(self) -> Rules:
        """See the module."""
        reads_every_mask = self.strategy in ("softmax", "oracle") or self.overlap_weight > 0
        yield (
            "gallery_memory",
            self.gallery_memory == "device" or not reads_every_mask,
            "'device' with strategy 'softmax' or 'oracle' and with overlap_weight above 0, which read every mask",
        )


@dataclasses.dataclass(frozen=True)
class Fusion:
    """How guides enter the backbone."""

    name: Literal["prototype", "concat", "adapter", "cross_attention"] = setting(
        "prototype", "kind of fusion; the paper's is 'concat' (METHOD)"
    )
    guide_gradient: bool = setting(
        False, "whether the encoder also trains through the features of the guides (a slower step)"
    )
    options: dict[str, Any] = setting({}, "further keywords of the fusion class")  # noqa: RUF009 - makes a factory


@dataclasses.dataclass(frozen=True)
class Loss:
    """The segmentation loss. METHOD: (1 - mean soft Dice over all classes) + cross-entropy."""

    dice_weight: float = setting(1.0, "weight of the Dice loss (METHOD)", at_least=0, at_most=1000, change="declared")
    ce_weight: float = setting(1.0, "weight of the cross-entropy (METHOD)", at_least=0, at_most=1000, change="declared")
    dice_batch: bool = setting(
        True, "True takes Dice over the whole batch (nnU-Net's batch Dice), False slice by slice"
    )
    deep_weight: float = setting(
        0.5,
        "weight of each coarser output of deep supervision relative to the next finer one (nnU-Net)",
        at_least=0,
        at_most=1,
    )

    def rules(self) -> Rules:
        """See the module."""
        yield "dice_weight", self.dice_weight + self.ce_weight > 0, "above 0 in sum with loss.ce_weight"


@dataclasses.dataclass(frozen=True)
class Optim:
    """The optimiser."""

    name: Literal["adamw", "adam", "sgd"] = setting(
        "adamw", "'adamw', 'adam' (METHOD, joint training) or 'sgd' (nnU-Net: momentum 0.99, Nesterov)"
    )
    lr_backbone: float = setting(
        1e-3, "peak learning rate of backbone and fusion", above=0, at_most=1, change="declared"
    )
    lr_retriever: float = setting(
        1e-3,
        "peak learning rate of the retriever, 0 keeps it (METHOD, pre-trained: 1e-4)",
        at_least=0,
        at_most=1,
        change="declared",
    )
    weight_decay: float = setting(
        1e-4, "weight decay, decoupled for adamw; on kernels only", at_least=0, at_most=1, change="declared"
    )
    warmup_steps: int = setting(100, "steps of linear warm-up", at_least=0, at_most=MAX_STEPS, change="declared")
    final_lr_factor: float = setting(
        0.01, "share of the peak learning rate at which the cosine decay ends", at_least=0, at_most=1, change="declared"
    )
    grad_clip: float = setting(
        1.0, "largest global norm of the gradient; 0 is off", at_least=0, at_most=10**6, change="declared"
    )
    ema_decay: float = setting(
        0.0, "decay of the running mean of the parameters that evaluation uses; 0 is off", at_least=0, below=1
    )


@dataclasses.dataclass(frozen=True)
class Train:
    """The training loop."""

    num_steps: int = setting(10_000, "length of the run in steps", at_least=1, at_most=MAX_STEPS, change="declared")
    batch_size: int = setting(8, "slices per step, over all devices", at_least=1, at_most=MAX_BATCH)
    dtype: Literal["float32", "bfloat16"] = setting("float32", "type of the computation; parameters stay float32")
    eval_every: int = setting(1_000, "steps between validations", at_least=1, at_most=MAX_STEPS, change="declared")
    checkpoint_every: int = setting(1_000, "steps between checkpoints", at_least=1, at_most=MAX_STEPS, change="resume")
    log_every: int = setting(50, "steps between lines of metrics.csv", at_least=1, at_most=MAX_STEPS, change="resume")
    max_skipped: int = setting(
        10, "steps in a row with a loss or update that is not finite, skipped, that end the run", at_least=1,
        at_most=MAX_STEPS, change="resume",
    )  # fmt: skip
    with_baseline: bool = setting(
        False, "whether to train the same run without retrieval too, in WORKDIR/baseline", change="resume"
    )
    validate_patients: int = setting(
        0, "patients of the validation fold that are scored in training; 0 is all", at_least=0, at_most=MAX_PATIENTS
    )


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """Pre-training of the retriever, `jras pretrain`: SimCLR's NT-Xent (METHOD)."""

    num_steps: int = setting(
        2_000, "length of the pre-training in steps", at_least=1, at_most=MAX_STEPS, change="declared"
    )
    batch_size: int = setting(70, "pairs per step, over all devices (METHOD)", at_least=2, at_most=MAX_BATCH)
    lr: float = setting(
        1e-3, "learning rate of Adam, times 0.1 after 70% of the steps (METHOD)", above=0, at_most=1, change="declared"
    )
    weight_decay: float = setting(1e-5, "weight decay (METHOD)", at_least=0, at_most=1, change="declared")
    temperature: float = setting(
        2.0, "temperature of NT-Xent, on dot products that are not normalised (METHOD)", above=0, at_most=1000
    )
    normalise: bool = setting(False, "True compares by cosine; a temperature of 0.1 to 0.5 is then usual")
    neighbour_probability: float = setting(
        0.5, "probability that a pair is two neighbouring slices, else two views of one slice", at_least=0, at_most=1
    )


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How the devices are arranged."""

    data: int = setting(
        -1,
        "devices along the batch; -1 takes all that remain",
        at_least=-1,
        at_most=65_536,
        must=(lambda n: n != 0, "not 0"),
        change="free",
    )
    model: int = setting(1, "devices that share one copy of large kernels", at_least=1, at_most=65_536, change="free")


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluation and prediction."""

    split: Literal["validation", "test", "train"] = setting(
        "validation",
        "patients to score: 'validation' the fold, 'test' the official test set, or 'train'",
        change="free",
    )
    batch_size: int = setting(
        16,
        "slices per call, which bound the memory of an evaluation; the last call is padded",
        at_least=1,
        at_most=MAX_BATCH,
        change="free",
    )
    gallery: Literal["train"] = setting(
        "train",
        "patients whose slices guide: the training patients of the fold, always disjoint from validation and test",
        change="free",
    )
    postprocess: Literal["none", "largest_component"] = setting(
        "none", "'largest_component' keeps only the largest component of each structure", change="free"
    )
    tta: bool = setting(False, "test-time augmentation: mean over rotations by -10, 0 and 10 degrees", change="free")
    evidence_cases: int = setting(
        8, "number of cases kept for the report", at_least=0, at_most=MAX_PATIENTS, change="free"
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run: U-Net with prototype fusion on ACDC, a small retriever, sizes for one GPU, unless changed."""

    name: str = setting("run", "name of the run; its folder is runs/NAME unless --workdir is given")
    seed: int = setting(
        0, "fixes initialisation, data order, augmentation and selection noise", at_least=0, at_most=MAX_SEED
    )
    dataset: Dataset = dataclasses.field(default_factory=Dataset)
    augment: Augment = dataclasses.field(default_factory=Augment)
    backbone: Backbone = dataclasses.field(default_factory=Backbone)
    retriever: Retriever = dataclasses.field(default_factory=Retriever)
    retrieval: Retrieval = dataclasses.field(default_factory=Retrieval)
    fusion: Fusion = dataclasses.field(default_factory=Fusion)
    loss: Loss = dataclasses.field(default_factory=Loss)
    optim: Optim = dataclasses.field(default_factory=Optim)
    train: Train = dataclasses.field(default_factory=Train)
    pretrain: Pretrain = dataclasses.field(default_factory=Pretrain)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    eval: Eval = dataclasses.field(default_factory=Eval)


SETTINGS: dict[str, Setting] = {s.key: s for s in settings_of(Config)}
