"""What a data set says of itself: its classes and their values on disk, channels, phases and what holds of its anatomy.

Masks inside the project hold class numbers, in the order of `DatasetDescription.classes`; whoever needs a structure's
name, colour or meaning asks the description. Those of the data sets that the project knows are constants here. That of
a folder of one's own data is written with the prepared data and into each run's folder (`to_json`, `from_json`).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jras_jax import files
from jras_jax.errors import UserError

# Okabe and Ito's palette and four more, told apart by most readers, on dark and on light ground.
PALETTE = (
    *("#56b4e9", "#f0e442", "#ff8a3d", "#00c48c", "#cc79a7", "#8f7bff", "#e2574c", "#a6d854"),
    *("#b3b3b3", "#c49c63"),
)
FILE = "dataset.json"  # in a prepared data set and in a run's folder
MAX_CLASSES = 256  # a mask's pixel is one byte


@dataclasses.dataclass(frozen=True)
class DatasetDescription:
    """A data set in words; order and number of its classes decide the shape of a model's output.

    Attributes:
      name: the data set's own.
      classes: names in the order of the project's labels; the first is the background.
      values: the value of each class in the masks on disk (the data set's convention), 0 to 255.
      colours: '#rrggbb' of each structure, that is, of each class but the background.
      channels: names of the image's channels.
      dimensions: 3 for volumes, 2 for single images.
      phases: names of the phases at which a patient is labelled; () if there are none.
      enclosure: ("MYO", "LV", "RV"), of a heart seen in its short axis: the first surrounds the second and not the
        third, which tells the two apart if their values are exchanged (`data.cavities`); None for anything else.
      indices: the clinical indices that hold for it (`evaluation.clinical`); () if there are none.
      frame_structures: the structures whose centre and size make the heart's frame; () if there is none.
      frame_direction: the structure that gives the frame its direction; None if there is none.

    Raises:
      ValueError: the fields contradict each other.
    """

    name: str
    classes: tuple[str, ...]
    values: tuple[int, ...]
    colours: tuple[str, ...]
    channels: tuple[str, ...] = ("image",)
    dimensions: int = 3
    phases: tuple[str, ...] = ()
    enclosure: tuple[str, str, str] | None = None
    indices: tuple[str, ...] = ()
    frame_structures: tuple[str, ...] = ()
    frame_direction: str | None = None

    def __post_init__(self) -> None:
        n = len(self.classes)
        if not 2 <= n <= MAX_CLASSES or len(set(self.classes)) < n or not all(self.classes):
            raise ValueError(f"classes must be 2 to {MAX_CLASSES} different names, not {self.classes}")
        if len(self.values) != n or len(set(self.values)) < n or not all(0 <= v <= 255 for v in self.values):
            raise ValueError(f"values must be {n} different numbers of 0 to 255, not {self.values}")
        if len(self.colours) != n - 1:
            raise ValueError(f"there must be {n - 1} colours, one a structure, not {len(self.colours)}")
        if not self.channels or self.dimensions not in (2, 3):
            raise ValueError(f"there must be a channel, and 2 or 3 dimensions, not {self.dimensions}")
        named = {*(self.enclosure or ()), *self.frame_structures, *filter(None, [self.frame_direction])}
        if foreign := sorted(named - set(self.structures)):
            raise ValueError(f"{', '.join(foreign)}: no structure of {self.name}")

    @property
    def num_classes(self) -> int:
        """C, the background among them."""
        return len(self.classes)

    @property
    def structures(self) -> dict[str, int]:
        """{name: label}, without the background."""
        return {name: label for label, name in enumerate(self.classes) if label}

    @property
    def structure_values(self) -> dict[str, int]:
        """{name: value on disk}, without the background."""
        return {name: self.values[label] for name, label in self.structures.items()}

    @property
    def palette(self) -> np.ndarray:
        """(C, 3) uint8, red, green and blue of each class; the background is black."""
        return np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in ("#000000", *self.colours)], np.uint8)

    def labels_of(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """The labels of some structures."""
        return tuple(self.structures[name] for name in names)

    def to_json(self) -> dict[str, Any]:
        """As a tree for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> DatasetDescription:
        """What `to_json` gave; raises ValueError if it is not that."""
        known = {field.name: tree[field.name] for field in dataclasses.fields(cls) if field.name in tree}
        found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
        try:
            return cls(**found)
        except TypeError as e:
            raise ValueError(str(e)) from None


_HEART = DatasetDescription(
    name="ACDC",
    classes=("background", "RV", "MYO", "LV"),
    values=(0, 1, 2, 3),  # Bernard et al., IEEE TMI 2018: 1 RV, 2 myocardium, 3 LV
    colours=("#56b4e9", "#f0e442", "#ff8a3d"),
    channels=("MRI",),
    phases=("ED", "ES"),
    enclosure=("MYO", "LV", "RV"),
    indices=("lv_edv", "lv_esv", "lv_sv", "lv_ef", "rv_edv", "rv_esv", "rv_sv", "rv_ef", "mass"),
    frame_structures=("LV", "MYO"),
    frame_direction="RV",
)
CARDIAC = _HEART
KNOWN = {
    "acdc": _HEART,
    "mnms": dataclasses.replace(_HEART, name="M&Ms", values=(0, 3, 2, 1)),  # Campello et al., IEEE TMI 2021: 1 LV, 3 RV
    "mnms2": dataclasses.replace(_HEART, name="M&Ms-2", values=(0, 3, 2, 1)),  # 1 LV, 2 myocardium, 3 RV
    "phantom": dataclasses.replace(_HEART, name="phantom"),
    "busi": DatasetDescription(
        name="BUSI",
        classes=("background", "lesion"),
        values=(0, 255),  # Al-Dhabyani et al., Data in Brief 2020: white on black
        colours=PALETTE[:1],
        channels=("ultrasound",),
        dimensions=2,
    ),
    "covid": DatasetDescription(
        name="COVID-19-CT-Seg",
        classes=("background", "left lung", "right lung", "infection"),
        values=(0, 1, 2, 3),  # Ma et al., Medical Physics 2021
        colours=("#56b4e9", "#00c48c", "#ff8a3d"),
        channels=("CT",),
    ),
}


def named(dataset: str) -> DatasetDescription:
    """The description of a data set that the project knows, by `config.dataset.name`.

    Raises:
      UserError: the data set describes itself, so that its description must be read from its files.
    """
    if dataset not in KNOWN:
        raise UserError(
            f"config.dataset.name={dataset!r}: the data set describes itself, and its description is missing"
        )
    return KNOWN[dataset]


def read_description(path: pathlib.Path, remedy: str) -> DatasetDescription:
    """Reads the file of a description; raises FileError with `remedy` if it is missing or damaged."""
    tree = files.read_json(path, remedy=remedy)
    try:
        return DatasetDescription.from_json(tree)
    except ValueError as e:
        raise files.FileError(f"{path} is damaged ({e}): {remedy}") from None
