"""dataset.json and patients.csv of a folder of one's own data: its classes, its channels, and whose cases they are.

dataset.json is nnU-Net's (version 2, or version 1 with numbers as keys): "labels" {"background": 0, NAME: VALUE} and,
for several channels, "channel_names" {"0": NAME, "1": NAME}. A plain folder of pairs needs the labels alone.

Reference: Isensee et al., Nature Methods 2021; the raw format in nnU-Net's documentation (dataset_format.md).
"""

from __future__ import annotations

import json
import pathlib
from typing import Any, NamedTuple

from jras_jax.data import DatasetDescription, tables
from jras_jax.data.description import CARDIAC, PALETTE
from jras_jax.errors import ScanError, UserError

FILE = "dataset.json"
PATIENTS = "patients.csv"
EXAMPLE = '{"labels": {"background": 0, "tumour": 1}}'


class Facts(NamedTuple):
    """What dataset.json says.

    Attributes:
      name: of the data set.
      labels: structure -> value, without the background.
      channels: names.
      ending: 'file_ending', '' if it does not say.
    """

    name: str
    labels: dict[str, int]
    channels: tuple[str, ...]
    ending: str


class Person(NamedTuple):
    """A case's row of patients.csv."""

    patient: str
    group: str = ""
    vendor: str = ""
    centre: str = ""


def read_facts(root: pathlib.Path) -> Facts:
    """Reads dataset.json.

    Raises:
      UserError: it is missing, no JSON, or describes what is not supported; the text says what to write.
    """
    path = root / FILE
    try:
        tree = json.loads(tables.read_text(path))
    except json.JSONDecodeError as e:
        raise ScanError(path, f"is not valid JSON (line {e.lineno}: {e.msg}); correct it") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("labels"), dict):
        raise ScanError(path, f'has no "labels": name the classes and their values, as in {EXAMPLE}')
    labels = _labels(path, tree["labels"])
    channels = tree.get("channel_names", tree.get("modality", {"0": "image"}))
    if not isinstance(channels, dict) or sorted(channels) != [str(i) for i in range(len(channels))] or not channels:
        raise ScanError(path, '"channel_names" must number the channels from "0", as in {"0": "T1", "1": "T2"}')
    names = tuple(str(channels[str(i)]) for i in range(len(channels)))
    ending = tree.get("file_ending", "")
    name = tree.get("name")
    return Facts(
        str(name) if name else root.resolve().name,
        labels,
        channels=names,
        ending=ending if isinstance(ending, str) else "",
    )


def _labels(path: pathlib.Path, entries: dict[str, Any]) -> dict[str, int]:
    """Structure -> value, in the order of the values."""
    first = all(key.isdecimal() for key in entries)  # version 1 has the values as keys
    named = {str(value): int(key) for key, value in entries.items()} if first else dict(entries)
    regions = [name for name, value in named.items() if isinstance(value, (list, tuple))]
    if regions:
        raise ScanError(
            path,
            f'the label "{regions[0]}" is a region (a list of values); regions are not supported: give each value '
            "its own name",
        )
    if "ignore" in named:
        raise ScanError(path, 'the label "ignore" is not supported: label these voxels, or leave the cases out')
    wrong = [f'"{n}": {v!r}' for n, v in named.items() if type(v) is not int or not 0 <= v <= 255 or not n.strip()]
    if wrong:
        raise ScanError(path, f"{wrong[0]} in labels must be a name and a whole number of 0 to 255")
    if len(set(named.values())) < len(named):
        raise ScanError(path, "two labels have one value; give each its own")
    if 0 in named.values() and named.get("background") != 0:
        raise ScanError(path, 'the value 0 is the background\'s: write "background": 0')
    named.pop("background", None)
    if not named:
        raise ScanError(path, f"labels names no structure beside the background, as in {EXAMPLE}")
    if any(":" in n or "," in n or "/" in n for n in named):
        raise ScanError(path, "the name of a label holds ':', ',' or '/', which tables and options use; rename it")
    return dict(sorted(named.items(), key=lambda item: item[1]))


def describe(facts: Facts, dimensions: int) -> DatasetDescription:
    """The description that follows from dataset.json; one of RV, MYO and LV is of a heart in its short axis."""
    heart = set(facts.labels) == set(CARDIAC.structures)
    own = dict(zip(CARDIAC.classes[1:], CARDIAC.colours, strict=True))
    colours = [own[n] if heart else PALETTE[i % len(PALETTE)] for i, n in enumerate(facts.labels)]
    return DatasetDescription(
        name=facts.name,
        classes=("background", *facts.labels),
        values=(0, *facts.labels.values()),
        colours=tuple(colours),
        channels=facts.channels,
        dimensions=dimensions,
        enclosure=CARDIAC.enclosure if heart and dimensions == 3 else None,
        frame_structures=CARDIAC.frame_structures if heart else (),
        frame_direction=CARDIAC.frame_direction if heart else None,
    )


def read_patients(root: pathlib.Path) -> dict[str, Person]:
    """Case -> person of patients.csv; {} if there is no such file.

    Raises:
      ScanError: no such table, a row without case or patient, or a case twice.
    """
    path = root / PATIENTS
    if not path.is_file():
        return {}
    people: dict[str, Person] = {}
    for row in tables.read_table(path, ("case", "patient"), optional=("group", "vendor", "centre")):
        case, patient = row.cells["case"], row.cells["patient"]
        if not case or not patient:
            raise ScanError(path, f"row {row.line} lacks its case or its patient: complete it")
        if case in people:
            raise ScanError(path, f"case {case} has two rows, the second is {row.line}; keep one of them")
        people[case] = Person(patient, *(row.cells.get(column, "") for column in ("group", "vendor", "centre")))
    return people


def missing_facts(root: pathlib.Path, values: set[int]) -> UserError:
    """The error for a folder of pairs without dataset.json; `values` are those that its masks hold."""
    own = ", ".join(f'"NAME{i}": {v}' for i, v in enumerate(sorted(values - {0}), 1)) or '"NAME": 1'
    return UserError(
        f"{root / FILE} is missing: write it with the names of the structures in place of NAME, as in "
        f'{{"labels": {{"background": 0, {own}}}}}'
    )
