"""A folder of one's own data: nnU-Net's raw layout, or pairs of images and masks; dataset.json names the classes."""

from __future__ import annotations

import pathlib

from jras_jax.data import DatasetDescription, images, layout, names, pictures
from jras_jax.errors import ScanError, UserError
from tfds_builders import common
from tfds_builders.folder import contents

_MANY_VALUES = 200  # masks that are looked at for the values of a folder without dataset.json


class Builder(common.ScanBuilder):
    """See the modules `layout` and `contents` for what manual_dir may hold."""

    RELEASE_NOTES = {"1.0.0": "First."}  # noqa: RUF012  the name TFDS reads
    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir is a folder of your own in nnU-Net's raw layout, or of pairs."
    DESCRIPTION = "A folder of one's own images and masks."
    HOMEPAGE = ""
    CITATION = ""
    NAMED = True

    @classmethod
    def describe(cls, manual_dir: pathlib.Path) -> DatasetDescription:
        """See `common.ScanBuilder.describe`."""
        facts = _facts(manual_dir)
        first = next(iter(_files(manual_dir, facts)[0].values())).cases
        flat = bool(first) and pictures.is_picture(next(iter(first.values()))[1])
        return contents.describe(facts, 2 if flat else 3)

    @classmethod
    def reader(cls, description: DatasetDescription) -> common.Reader:
        """See `common.ScanBuilder.reader`."""
        return common.any_reader(description)

    @staticmethod
    def root(manual_dir: pathlib.Path) -> pathlib.Path:
        """See `common.ScanBuilder.root`."""
        return manual_dir

    @staticmethod
    def inventory(manual_dir: pathlib.Path) -> common.Inventory:
        """See `common.ScanBuilder.inventory`; the first fault of `survey` is raised, and how many more there are."""
        found, faults = survey(manual_dir)
        if faults:
            more = f" ({len(faults) - 1} more: jras check {manual_dir} lists them all)" if len(faults) > 1 else ""
            raise UserError(faults[0] + more)
        return found


def survey(manual_dir: pathlib.Path) -> tuple[common.Inventory, list[str]]:
    """What a folder holds, and every fault that shows without reading a voxel.

    Raises:
      UserError: there is no such folder, no dataset.json, or no case at all.
    """
    facts = _facts(manual_dir)
    splits, notes = _files(manual_dir, facts)
    faults = [fault for files in splits.values() for fault in files.faults]
    people = contents.read_patients(manual_dir)
    cases = {
        split: _cases(files, people, manual_dir=manual_dir, faults=faults)
        for split, files in splits.items()
        if files.cases
    }
    if not cases and not faults:
        raise UserError(
            f"{manual_dir}: holds no cases: neither nnU-Net's imagesTr/ and labelsTr/, nor images with their masks "
            "(NAME.png with NAME_gt.png, or images/ and masks/)"
        )
    if unknown := sorted(set(people) - {c.name for own in cases.values() for c in own}):
        notes.append(f"{manual_dir / contents.PATIENTS}: names cases that are not there, such as {unknown[0]}")
    if not people and not any(c.patient != c.name for own in cases.values() for c in own):
        notes.append(
            f"{manual_dir}: every case counts as a separate patient; if patients have several cases, say whose they "
            f"are in {contents.PATIENTS} (columns case, patient)"
        )
    faults += _shared(cases)
    tables = [manual_dir / contents.FILE, *([manual_dir / contents.PATIENTS] if people else [])]
    skipped = [line for files in splits.values() for line in files.skipped]
    return common.Inventory(manual_dir, cases, tables=tables, notes=notes, skipped=skipped), faults


def _facts(manual_dir: pathlib.Path) -> contents.Facts:
    if not manual_dir.is_dir():
        raise UserError(f"{manual_dir}: there is no such folder; give the folder of your images and masks")
    if not (manual_dir / contents.FILE).is_file():
        inside = [p.parent.name for p in sorted(manual_dir.glob(f"*/{contents.FILE}"))]
        if inside:
            raise UserError(f"{manual_dir}: holds the data sets {', '.join(inside)}; give the folder of one of them")
        raise contents.missing_facts(manual_dir, _values(manual_dir))
    return contents.read_facts(manual_dir)


def _values(manual_dir: pathlib.Path) -> set[int]:
    """The values in the masks of a folder without dataset.json, as far as they can be read."""
    found = (
        layout.nnunet(manual_dir, "Tr", channels=1, ending="")
        if layout.is_nnunet(manual_dir)
        else layout.pairs(manual_dir, 1)
    )
    values: set[int] = set()
    for files, mask in list(found.cases.values())[:_MANY_VALUES]:
        try:
            values |= set(images.read_mask(mask, images.read_image(files, 1)).array.ravel().tolist())
        except ScanError:
            continue
    return values


def _files(manual_dir: pathlib.Path, facts: contents.Facts) -> tuple[dict[str, layout.Files], list[str]]:
    """The files of each split, and notes."""
    channels = len(facts.channels)
    if not layout.is_nnunet(manual_dir):
        return {split: layout.pairs(f, channels) for split, f in layout.splits_of(manual_dir).items()}, []
    found = {"train": layout.nnunet(manual_dir, "Tr", channels=channels, ending=facts.ending)}
    notes = []
    if (manual_dir / "labelsTs").is_dir():
        found["test"] = layout.nnunet(manual_dir, "Ts", channels=channels, ending=facts.ending)
    elif (manual_dir / "imagesTs").is_dir():
        notes.append(
            f"{manual_dir / 'imagesTs'}: has no masks (labelsTs), so there is no test split; jras predict reads it"
        )
    return found, notes


def _cases(
    files: layout.Files, people: dict[str, contents.Person], manual_dir: pathlib.Path, faults: list[str]
) -> list[common.Case]:
    cases = []
    for name, (paths, mask) in sorted(files.cases.items()):
        if people and name not in people:
            faults.append(f"{manual_dir / contents.PATIENTS}: has no row for case {name}; add one with its patient")
        person = people.get(name, contents.Person(names.parse(name).patient))
        cases.append(
            common.Case(
                image=paths[0],
                more_images=tuple(paths[1:]),
                mask=mask,
                patient=person.patient,
                phase="",
                group=person.group,
                vendor=person.vendor,
                centre=person.centre,
                name=name,
            )
        )
    return cases


def _shared(cases: dict[str, list[common.Case]]) -> list[str]:
    """A fault for each patient who has cases in two splits."""
    home: dict[str, str] = {}
    faults = []
    for split, own in cases.items():
        for case in own:
            other = home.setdefault(case.patient, split)
            if other != split:
                faults.append(f"{case.image}: patient {case.patient} has cases in {other} and {split}; keep one place")
                home[case.patient] = split
    return faults
