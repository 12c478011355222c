"""M&Ms-2, the Multi-Disease, Multi-View and Multi-Center challenge: short axes at ED and ES of 360 patients.

The long axes (NNN_LA_...) are another view of the heart and are never mixed with the short ones: they are passed over.
The challenge's split goes by the patients' numbers: 1 to 160 train, 161 to 200 validate, 201 to 360 test.
"""

from __future__ import annotations

import pathlib

from jras_jax.data import tables
from jras_jax.errors import ScanError, UserError
from tfds_builders import common

_COLUMNS = ("SUBJECT_CODE", "DISEASE", "VENDOR")
_TABLE = "dataset_information.csv"
_LAST = {"train": 160, "validation": 200, "test": 360}  # patient of each split


class Builder(common.ScanBuilder):
    """See the module; manual_dir is the folder that holds dataset_information.csv and dataset/001, dataset/002, ..."""

    RELEASE_NOTES = {"1.0.0": "First."}  # noqa: RUF012  the name TFDS reads
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Download M&Ms-2 from https://www.ub.edu/mnms-2/ and unpack it, so that manual_dir holds "
        "dataset_information.csv and dataset/001/001_SA_ED.nii.gz and so on."
    )
    DESCRIPTION = "Cardiac MRI of 360 patients, three hospitals and three vendors; RV, myocardium and LV at ED and ES."
    HOMEPAGE = "https://www.ub.edu/mnms-2/"
    CITATION = "Martín-Isla et al., IEEE JBHI 2023, doi:10.1109/JBHI.2023.3267857"
    LABELS = "mnms2"

    @staticmethod
    def root(manual_dir: pathlib.Path) -> pathlib.Path:
        """See `common.ScanBuilder.root`."""
        if not manual_dir.is_dir():
            raise UserError(f"{manual_dir}: not a folder; give the folder of the unpacked official download")
        found = next((r for r in (manual_dir, manual_dir / "MnM2") if (r / _TABLE).is_file()), None)
        if found is None:
            raise UserError(f"{manual_dir}: holds no {_TABLE}; give the folder of the unpacked official download")
        return found

    @staticmethod
    def inventory(manual_dir: pathlib.Path) -> common.Inventory:
        """See `common.ScanBuilder.inventory`."""
        root = Builder.root(manual_dir)
        rows = _read_table(root / _TABLE)
        skipped: list[str] = []
        folder = root / "dataset" if (root / "dataset").is_dir() else root
        patients = common.patient_folders(
            folder, lambda name: name.isdecimal(), wanted="a number such as 001", skipped=skipped
        )
        cases: dict[str, list[common.Case]] = {}
        long_axes = 0
        for patient in patients:
            long_axes += sum("_LA_" in path.name.upper() for path in patient.iterdir())
            cases.setdefault(_split_of(patient), []).extend(_cases(patient, rows, root / _TABLE))
        common.check_patients(cases, manual_dir)
        notes = [f"{folder}: passes over {long_axes} long-axis files; short axes alone are read"] if long_axes else []
        notes += [f"{folder}: the data set has no split '{split}'" for split in _LAST if split not in cases]
        return common.Inventory(root, cases, tables=[root / _TABLE], notes=notes, skipped=skipped)


def _split_of(patient: pathlib.Path) -> str:
    number = int(patient.name)
    for split, last in _LAST.items():
        if 1 <= number <= last:
            return split
    raise UserError(f"{patient}: M&Ms-2 has the patients 1 to {_LAST['test']}; rename or remove the folder")


def _read_table(path: pathlib.Path) -> dict[int, tables.Row]:
    """Rows by the patients' numbers, which the table has without the folders' zeros."""
    rows: dict[int, tables.Row] = {}
    for row in tables.read_table(path, _COLUMNS, optional=("SCANNER", "FIELD")):
        code = row.cells["SUBJECT_CODE"].removesuffix(".0")
        if not code:
            continue
        if not code.isdecimal():
            raise ScanError(path, f"SUBJECT_CODE is {code!r}, not a number (row {row.line})")
        if int(code) in rows:
            raise ScanError(path, f"patient {code} has two rows, {rows[int(code)].line} and {row.line}; keep one")
        rows[int(code)] = row
    return rows


def _cases(patient: pathlib.Path, rows: dict[int, tables.Row], table: pathlib.Path) -> list[common.Case]:
    """ED and ES of one patient's folder, in the short axis."""
    row = rows.get(int(patient.name))
    if row is None:
        raise ScanError(table, f"has no row for patient {patient.name}, whose folder is {patient}")
    return [
        common.Case(
            image=common.one_of(patient, f"{patient.name}_SA_{phase}"),
            mask=common.one_of(patient, f"{patient.name}_SA_{phase}_gt"),
            patient=patient.name,
            phase=phase,
            group=row.cells["DISEASE"],
            vendor=row.cells["VENDOR"],
            centre="",
        )
        for phase in ("ED", "ES")
    ]
