"""The sections on scans and their augmentation. METHOD and sources: see `config.schema`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jras_jax.config.limits import MAX_PATIENTS, MAX_SEED, Rules
from jras_jax.config.setting import setting


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The scans, their split into folds, and the model grid."""

    name: Literal["acdc", "mnms", "mnms2", "busi", "covid", "folder", "phantom"] = setting(
        "acdc",
        "data set; 'folder' is one of your own, in nnU-Net's raw layout or of pairs; the phantom is written by this "
        "project in the layout of ACDC",
    )
    manual_dir: str = setting(
        "", "folder of the official download, as the challenge ships it, or of your own data", change="free"
    )
    data_dir: str = setting("data_cache", "folder of the prepared TFDS data set", change="free")
    num_folds: int = setting(5, "number of folds of the stratified split of patients", at_least=2, at_most=1000)
    fold: int = setting(0, "the fold that validates; the others train", at_least=0, at_most=999)
    split_seed: int = setting(
        0, "seed of the folds; the same for all runs that you compare", at_least=0, at_most=MAX_SEED
    )
    image_size: int = setting(
        256, "S, side of the square model grid in pixels (METHOD: 256)", at_least=16, at_most=2048
    )
    frame: Literal["heart", "whole"] = setting(
        "heart",
        "what the model sees: 'heart', a crop in the frame of the heart, which the locator finds; or 'whole' slices "
        "(3-D Dice on ACDC at equal cost: docs/STUDY.md)",
        before="whole",
    )
    frame_radius: float = setting(
        0.2,
        "radius of the left ventricle with its myocardium on the crop, as a share of the grid's side",
        at_least=0.05,
        at_most=0.5,
        before=0.2,
    )
    whole_size: int = setting(
        64,
        "side in pixels of the grid to which whole slices are fitted for the locator",
        at_least=16,
        at_most=1024,
        before=64,
    )
    neighbours: bool = setting(
        False,
        "whether the retriever also sees the slices before and after in the stack, as red and blue where it otherwise "
        "sees the same slice as all three colours; the backbone sees the slice alone. With the small ViT it found no "
        "better guides (docs/lab-notes/2026-11-27-neighbours-in-the-stack.md)",
        before=False,
    )
    spacing_mm: float = setting(
        1.4, "in-plane pixel size of the grid of whole slices in mm; 0 keeps the native one", at_least=0, at_most=50
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
    leave_out: tuple[str, ...] = setting(
        (),
        "pathology groups (of M&Ms: vendors) whose patients do not train; they still validate (studies of what a model "
        "has never seen)",
        must=(lambda groups: all(group.strip() for group in groups), "names of groups"),
        before=(),
    )
    phantom_patients: int = setting(20, "number of training patients of the phantom", at_least=1, at_most=100_000)
    phantom_test_patients: int = setting(8, "number of test patients of the phantom", at_least=0, at_most=100_000)

    @property
    def convention(self) -> str:
        """Whose layout exports follow: 'mnms', 'acdc' (the phantom too), or 'own', one mask a case."""
        return {"mnms": "mnms", "acdc": "acdc", "phantom": "acdc"}.get(self.name, "own")

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
