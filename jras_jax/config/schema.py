"""Every setting of a run, once: type, default, unit, source, rule, and when it may change after training has started.

METHOD is the J-RAS paper (arXiv 2510.09953) and its authors' published scripts. nnU-Net is Isensee et al., Nature
Methods 2021. `jras settings` prints this table. A config file starts from `config.defaults()` and changes a
few values. Rules over several settings are the `rules` methods, which yield (name, whether it holds, what it must be).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from jras_jax.config.limits import MAX_SEED, Rules
from jras_jax.config.sections_data import Augment, Dataset
from jras_jax.config.sections_model import Backbone, Fusion, Locator, Retrieval, Retriever
from jras_jax.config.sections_run import Eval, Loss, Mesh, Optim, Pretrain, Train
from jras_jax.config.setting import Setting, setting, settings_of

WITH_BATCH_NORM = ("segformer", "transunet")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run: U-Net with guides as a prior on ACDC, a small retriever, sizes for one GPU, unless changed."""

    name: str = setting("run", "name of the run; its folder is runs/NAME unless --workdir is given")
    seed: int = setting(
        0, "fixes initialisation, data order, augmentation and selection noise", at_least=0, at_most=MAX_SEED
    )
    protocol: Literal["patient", "paper"] = setting(
        "patient",
        "'patient' splits and scores by patient; 'paper' is the paper's protocol, which leaks, for study only: slices "
        "are split at random, nothing is excluded from guiding (sets retrieval.exclude='none'), and the evaluated "
        "slices' own masks are the gallery of an evaluation",
        before="patient",
    )
    dataset: Dataset = dataclasses.field(default_factory=Dataset)
    augment: Augment = dataclasses.field(default_factory=Augment)
    backbone: Backbone = dataclasses.field(default_factory=Backbone)
    locator: Locator = dataclasses.field(default_factory=Locator)
    retriever: Retriever = dataclasses.field(default_factory=Retriever)
    retrieval: Retrieval = dataclasses.field(default_factory=Retrieval)
    fusion: Fusion = dataclasses.field(default_factory=Fusion)
    loss: Loss = dataclasses.field(default_factory=Loss)
    optim: Optim = dataclasses.field(default_factory=Optim)
    train: Train = dataclasses.field(default_factory=Train)
    pretrain: Pretrain = dataclasses.field(default_factory=Pretrain)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    eval: Eval = dataclasses.field(default_factory=Eval)

    def rules(self) -> Rules:
        """See the module; of settings in several sections."""
        yield (
            "train.microbatches",
            self.train.microbatches == 1 or self.backbone.name not in WITH_BATCH_NORM,
            f"1 with backbone.name={self.backbone.name!r}: its batch norm takes statistics over the whole batch. Lower "
            "train.batch_size, or set train.remat=True",
        )
        few = self.dataset.max_train_patients > 0
        yield "protocol", self.protocol == "patient" or not few, "'patient' with dataset.max_train_patients above 0"
        alone = self.protocol == "paper" and self.dataset.neighbours
        yield "dataset.neighbours", not alone, "False with protocol 'paper', which takes stacks apart"

    @property
    def blank_share(self) -> float:
        """`fusion.blank_share`, its automatic value resolved; 0 without retrieval."""
        if not self.retrieval.enabled:
            return 0.0
        automatic = 0.1 if self.dataset.frame == "heart" else 0.0
        return automatic if self.fusion.blank_share < 0 else self.fusion.blank_share


SETTINGS: dict[str, Setting] = {s.key: s for s in settings_of(Config)}
