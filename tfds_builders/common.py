"""What the builders share: the features of an example, how a case is read and checked, and the base class."""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import rich.console
import rich.progress
import tensorflow_datasets as tfds

from jras_jax import threads
from jras_jax.data import DatasetDescription, cavities, finder, geometry, images, remarks
from jras_jax.data.description import KNOWN
from jras_jax.data.finder import one_of
from jras_jax.data.nifti import Scan, read_labels, read_scan
from jras_jax.errors import ScanError, UserError

__all__ = ["Case", "Inventory", "ScanBuilder", "check_patients", "find_root", "one_of", "patient_folders"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One patient at one phase, its files, and what the data set's tables say of it.

    Attributes:
      image, mask: the files; 3-D, or 4-D with `frame` chosen.
      patient, phase, group, vendor, centre: as in `jras_jax.data.Volume`.
      frame: index in the file from 0; None where the file must be 3-D.
      frame_source: what gave the frame ("the CSV's column ED"), for messages.
      more_images: the files of the further channels.
      more_masks: further masks of the same image, which are united with the first.
      name: the data set's own name of the case; "" where patient and phase name it.
    """

    image: pathlib.Path
    mask: pathlib.Path
    patient: str
    phase: str
    group: str
    vendor: str
    centre: str
    frame: int | None = None
    frame_source: str = ""
    more_images: tuple[pathlib.Path, ...] = ()
    more_masks: tuple[pathlib.Path, ...] = ()
    name: str = ""

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """Every file of the case."""
        return (self.image, *self.more_images, self.mask, *self.more_masks)


# The image and the mask of a case.
Reader = Callable[[Case], tuple[Scan, Scan]]


@dataclasses.dataclass(frozen=True)
class Inventory:
    """What a manual_dir holds, found without reading a voxel.

    Attributes:
      root: the folder that holds the splits' folders.
      cases: of each split that is there.
      tables: the text files that were read (their content decides what is built).
      notes: lines to tell the user, as of a split that is not there.
      skipped: lines on what looks like a patient or scan but is passed over.
    """

    root: pathlib.Path
    cases: dict[str, list[Case]]
    tables: list[pathlib.Path]
    notes: list[str]
    skipped: list[str] = dataclasses.field(default_factory=list)


class ScanBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg, misc]
    """Base of the builders: one example per patient and phase. Writes ArrayRecord, never needs TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION: str
    HOMEPAGE: str
    CITATION: str
    LABELS: str  # key of description.KNOWN; a builder whose folder describes itself has its own `describe`
    NAMED = False  # whether examples have a name of their own, and images an axis of channels

    def __init__(self, *, file_format: Any = "array_record", **kwargs: Any):
        super().__init__(file_format=file_format, **kwargs)

    @classmethod
    def describe(cls, manual_dir: pathlib.Path) -> DatasetDescription:
        """The description of the data set in manual_dir; raises UserError if it is to describe itself and does not."""
        return KNOWN[cls.LABELS]

    @classmethod
    def reader(cls, description: DatasetDescription) -> Reader:
        """What reads the files of a case."""
        return _cine_reader(description)

    @staticmethod
    @abc.abstractmethod
    def root(manual_dir: pathlib.Path) -> pathlib.Path:
        """The folder in manual_dir that holds the splits' folders; raises UserError if there is none."""

    @staticmethod
    @abc.abstractmethod
    def inventory(manual_dir: pathlib.Path) -> Inventory:
        """Finds the cases of a manual_dir.

        Raises:
          UserError: a file is missing or a table is wrong; the text names file and rule.
        """

    def _info(self) -> tfds.core.DatasetInfo:
        grid = (None, None, None)
        pixels = (*grid, None) if self.NAMED else grid
        names = {"name": tfds.features.Text()} if self.NAMED else {}
        # 'bytes', as ArrayRecord compresses its records itself. With 'zlib' beneath it three quarters of a build went
        # into compressing, for files of the same size that took twice as long to read.
        features = tfds.features.FeaturesDict(
            names
            | {
                "image": tfds.features.Tensor(shape=pixels, dtype=np.float32, encoding="bytes"),
                "mask": tfds.features.Tensor(shape=grid, dtype=np.uint8, encoding="bytes"),
                "affine": tfds.features.Tensor(shape=(4, 4), dtype=np.float64),
                "spacing": tfds.features.Tensor(shape=(3,), dtype=np.float32),
                "spacing_known": tfds.features.Scalar(dtype=np.bool_),
                "patient": tfds.features.Text(),
                "phase": tfds.features.Text(),
                "group": tfds.features.Text(),
                "vendor": tfds.features.Text(),
                "centre": tfds.features.Text(),
                "frame": tfds.features.Scalar(dtype=np.int32),
                "source": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=features,
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        manual_dir = pathlib.Path(dl_manager.manual_dir)
        found, description = self.inventory(manual_dir), self.describe(manual_dir)
        return {
            split: self._generate_examples(found.root, split, cases=cases, description=description)
            for split, cases in found.cases.items()
        }

    def _generate_examples(
        self, root: pathlib.Path, split: str, cases: list[Case], description: DatasetDescription
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        console = rich.console.Console(stderr=True)
        hidden = not sys.stderr.isatty()
        read = read_cases(cases, description, root=root, reader=self.reader)
        title = f"{self.name}: {split}"
        for case, found in rich.progress.track(read, title, total=len(cases), console=console, disable=hidden):
            if self.NAMED:
                image = found["image"]
                found |= {"name": case.name, "image": image if image.ndim == 4 else image[..., None]}
            yield case.name or f"{case.patient}_{case.phase}", found


def _cine_reader(description: DatasetDescription) -> Reader:
    """Reads NIfTI files; ED and ES of a 4-D file follow each other, so that the last file read serves both."""
    image_of = functools.lru_cache(maxsize=1)(read_scan)
    allowed = sorted(description.values)
    mask_of = functools.lru_cache(maxsize=1)(
        lambda mask, image: read_labels(mask, like=image_of(image), allowed=allowed)
    )
    return lambda case: (image_of(case.image), mask_of(case.mask, case.image))


def any_reader(description: DatasetDescription) -> Reader:
    """Reads images of any format and number of channels, one frame each; several masks are united."""
    allowed = sorted(description.values)

    def read(case: Case) -> tuple[Scan, Scan]:
        scan = images.read_image((case.image, *case.more_images), len(description.channels))
        masks = [images.read_mask(path, scan, allowed) for path in (case.mask, *case.more_masks)]
        united = functools.reduce(np.maximum, (mask.array for mask in masks))
        remarks = tuple(remark for mask in masks for remark in mask.remarks)
        return scan, dataclasses.replace(masks[0], array=united, remarks=remarks)

    return read


def read_cases(
    cases: Iterable[Case],
    description: DatasetDescription,
    root: pathlib.Path,
    reader: Callable[[DatasetDescription], Reader] = _cine_reader,
) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Reads the cases of a split, each with its example; afterwards tells what is unusual about the files on stderr.

    Threads read ahead, one a processor and at most 8.

    Args:
      cases: of `Inventory`.
      description: of the data set.
      root: the folder `source` is relative to.
      reader: the builder's.

    Raises:
      ScanError: a file breaks a rule of its format, its slices run along another axis than the third, LV and RV seem
        exchanged, or see `example`; of several such cases, for the first.
    """
    notes: list[str] = []
    rims = np.zeros((2, 2))
    case: Case | None = None

    def together(own: list[Case]) -> list[tuple[Case, dict[str, Any], list[str], np.ndarray]]:
        """Cases of the same image, which a reader of their own decompresses once."""
        it = reader(description)
        return [(case, *read_case(case, description, root=root, read=it)) for case in own]

    groups = (list(own) for _, own in itertools.groupby(cases, lambda case: case.image))
    workers = min(os.cpu_count() or 1, 8)
    read = threads.in_order(together, groups, threads=workers, ahead=2 * workers)
    for case, found, remarked, own in itertools.chain.from_iterable(read):
        rims += own
        notes += remarked
        yield case, found
    if case is not None and description.enclosure is not None:
        _check_cavities(case, description, cavities.exchanged(rims), certain=False)
    remarks.tell(notes)


def read_case(
    case: Case, description: DatasetDescription, root: pathlib.Path, read: Reader
) -> tuple[dict[str, Any], list[str], np.ndarray]:
    """The example of one case, what is unusual about its files, and the rims of its cavities (`cavities.rims`).

    Raises:
      ScanError: as `read_cases`.
    """
    scan, mask = read(case)
    if scan.header is not None:
        geometry.require_slices_last(scan)
    found = example(case, scan, mask=mask, description=description, root=root)
    rims = np.zeros((2, 2))
    if description.enclosure is not None:
        rims = cavities.rims(found["mask"], description)
        _check_cavities(case, description, cavities.exchanged(rims), certain=True)
    return found, [f"{s.path}: {remark}" for s in (scan, mask) for remark in s.remarks], rims


def _check_cavities(
    case: Case, description: DatasetDescription, shares: tuple[float, float] | None, *, certain: bool
) -> None:
    """Refuses a mask whose LV and RV seem exchanged, if it leaves no doubt (`certain`); or all masks of a split."""
    if shares is None or (certain and not (shares[0] < 0.5 and shares[0] + 0.25 < shares[1])):
        return
    ours = ", ".join(
        f"{name} {value}" for name, value in sorted(description.structure_values.items(), key=lambda n: n[1])
    )
    labels, other = ("mnms", "acdc") if description is KNOWN["mnms"] else ("acdc", "mnms")
    left, right = shares
    if description not in KNOWN.values():
        raise ScanError(
            case.mask,
            f"LV and RV seem exchanged: myocardium surrounds {right:.0%} of what is read as RV, but {left:.0%} of what "
            f"is read as LV. dataset.json has {ours}; exchange the names there, or the values in the masks",
        )
    raise ScanError(
        case.mask,
        f"LV and RV seem exchanged: myocardium surrounds {right:.0%} of what is read as RV, but {left:.0%} of what is "
        f"read as LV. The masks of {labels} hold {ours}; if these follow the order of {other}, exchange the values of "
        "LV and RV in them",
    )


def example(case: Case, scan: Scan, mask: Scan, description: DatasetDescription, root: pathlib.Path) -> dict[str, Any]:
    """The example of a case, its frame cut out and its labels brought to the project's.

    Args:
      case: the case.
      scan, mask: what its files hold.
      description: of the data set.
      root: the folder `source` is relative to.

    Raises:
      ScanError: the frame lies outside the file, a 3-D file is expected, or nothing is labelled in a frame of a data
        set that has phases.
    """
    image = scan.array if len(description.channels) > 1 else _frame(case, scan)
    labels = _frame(case, mask)
    if description.phases and not labels.any():
        where = "" if case.frame is None else f" in frame {case.frame}, the {case.phase} of {case.frame_source}"
        raise ScanError(case.mask, f"the mask is empty{where}; every {case.phase} has labels")
    values = list(description.values)
    ours = np.zeros(max(values) + 1, np.uint8)
    ours[values] = np.arange(len(values))
    return {
        "image": np.ascontiguousarray(image),
        "mask": np.ascontiguousarray(ours[labels]),
        "affine": scan.affine,
        "spacing": scan.spacing,
        "spacing_known": scan.spacing_known,
        "patient": case.patient,
        "phase": case.phase,
        "group": case.group,
        "vendor": case.vendor,
        "centre": case.centre,
        "frame": case.frame or 0,
        "source": case.image.relative_to(root).as_posix(),
    }


def _frame(case: Case, scan: Scan) -> np.ndarray:
    """(X, Y, Z) of the case's frame."""
    if case.frame is None:
        if scan.array.ndim != 3:
            raise ScanError(scan.path, f"its shape is {scan.array.shape}; the file of one frame must have 3 axes")
        return scan.array
    frames = scan.array.shape[3] if scan.array.ndim == 4 else 1
    if not 0 <= case.frame < frames:
        raise ScanError(
            scan.path,
            f"{case.frame_source} puts {case.phase} at frame {case.frame}, but the file holds frames 0 to {frames - 1}",
        )
    return scan.array[..., case.frame] if scan.array.ndim == 4 else scan.array


def find_root(manual_dir: pathlib.Path, folders: tuple[str, ...], inner: str) -> pathlib.Path:
    """The folder that holds at least one of `folders`: manual_dir, or `inner` in it (the archive's own top folder).

    Raises:
      UserError: neither does.
    """
    if not manual_dir.is_dir():
        raise UserError(f"{manual_dir}: not a folder; give the folder of the unpacked official download")
    for root in (manual_dir, manual_dir / inner):
        if any((root / folder).is_dir() for folder in folders):
            return root
    raise UserError(
        f"{manual_dir}: holds none of {', '.join(f'{f}/' for f in folders)}; "
        "give the folder of the unpacked official download as manual_dir"
    )


def patient_folders(
    folder: pathlib.Path, is_patient: Callable[[str], bool], wanted: str, skipped: list[str]
) -> list[pathlib.Path]:
    """The patients' folders of a split, sorted, links to folders among them.

    Args:
      folder: of the split; it may be absent.
      is_patient: whether a folder's name is a patient's.
      wanted: how these names look, for messages.
      skipped: takes a line on each other folder, link that leads nowhere, and scan that is in no patient's folder.
    """
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir()):
        if finder.is_hidden(path.name):
            continue
        if path.is_dir():
            if is_patient(path.name):
                found.append(path)
            else:
                skipped.append(f"{path}: passed over, its name is not {wanted}")
        elif path.is_symlink() and not path.exists():
            skipped.append(f"{path}: passed over, {finder.fault(path)}")
        elif finder.suffix(path):
            skipped.append(f"{path}: passed over, it is in no patient's folder")
    return found


def check_patients(cases: dict[str, list[Case]], manual_dir: pathlib.Path) -> None:
    """Checks that there are patients, and that none is in two splits.

    Raises:
      UserError: one is, or there are none.
    """
    home: dict[str, str] = {}
    for split, members in cases.items():
        for case in members:
            other = home.setdefault(case.patient, split)
            if other != split:
                raise UserError(f"{case.image.parent}: the patient is in two splits, {other} and {split}")
    if not home:
        raise UserError(f"{manual_dir}: holds no patients; give the folder of the unpacked official download")
