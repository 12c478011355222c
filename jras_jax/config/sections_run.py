"""The sections on losses, training and evaluation. METHOD and sources: see `config.schema`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jras_jax.config.limits import MAX_BATCH, MAX_PATIENTS, MAX_STEPS, Rules
from jras_jax.config.setting import setting


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
    microbatches: int = setting(
        1,
        "parts of the batch that pass through the network one after the other: less memory, one more forward pass, the "
        "same loss and gradient; not with backbones that have batch norm (segformer, transunet)",
        at_least=1,
        at_most=MAX_BATCH,
        change="resume",
    )
    remat: bool = setting(
        False,
        "whether the backward pass computes norms and activations again instead of keeping them: meant for "
        "accelerators, not measured on one; on CPU XLA undoes it and plans 38% more (benchmarks/RESULTS.md)",
        change="resume",
    )
    eval_every: int = setting(1_000, "steps between validations", at_least=1, at_most=MAX_STEPS, change="declared")
    checkpoint_every: int = setting(1_000, "steps between checkpoints", at_least=1, at_most=MAX_STEPS, change="resume")
    log_every: int = setting(50, "steps between lines of metrics.csv", at_least=1, at_most=MAX_STEPS, change="resume")
    max_skipped: int = setting(
        10, "steps in a row with a loss or update that is not finite, skipped, that end the run", at_least=1,
        at_most=MAX_STEPS, change="resume",
    )  # fmt: skip
    trackers: tuple[str, ...] = setting(
        ("tensorboard",),
        "where the run is followed beside metrics.csv: some of 'tensorboard', 'mlflow', 'wandb', which their own "
        "environment variables set up",
        must=(lambda names: set(names) <= {"tensorboard", "mlflow", "wandb"}, "some of tensorboard, mlflow, wandb"),
        change="resume",
    )
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
        "slices per call, which bound the memory of an evaluation (measured on CPU, U-Net of 20.6 M parameters, 256 "
        "pixels: 0.9 GB at 1, 1.3 GB at 4, 2.6 GB at 16); the last call is padded",
        at_least=1,
        at_most=MAX_BATCH,
        change="free",
    )
    gallery: Literal["auto", "train"] = setting(
        "auto",
        "whose slices guide: 'train', the training patients of the fold, always disjoint from validation and test; "
        "'auto' is the same, but with protocol='paper' the evaluated slices themselves",
        change="free",
    )
    postprocess: Literal["none", "largest_component"] = setting(
        "none", "'largest_component' keeps only the largest component of each structure", change="free"
    )
    tta: bool = setting(False, "test-time augmentation: mean over rotations by -10, 0 and 10 degrees", change="free")
    certificate: bool = setting(
        True,
        "whether an evaluation also scores the checkpoint with random, blank, permuted and oracle guides, which tells "
        "whether retrieval helps; about four more passes",
        change="free",
    )
    frame_rounds: int = setting(
        2,
        "passes at most over a volume in the frame of the heart; the second takes its frame from the first's mask, "
        "if that is far from the locator's (docs/STUDY.md)",
        at_least=1,
        at_most=5,
        change="free",
    )
    evidence_cases: int = setting(
        9,
        "number of cases kept for the report, evenly over the ranking by Dice; an odd number has the median case",
        at_least=0,
        at_most=MAX_PATIENTS,
        change="free",
    )
