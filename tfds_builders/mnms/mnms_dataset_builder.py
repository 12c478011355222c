"""M&Ms, the Multi-Centre, Multi-Vendor and Multi-Disease challenge: 4-D cines, ED and ES as its CSV says."""

from __future__ import annotations

import pathlib

from jras_jax.data import finder, tables
from jras_jax.errors import ScanError, UserError
from tfds_builders import common

_FOLDERS = {"train": "Training/Labeled", "validation": "Validation", "test": "Testing"}
_COLUMNS = ("External code", "VendorName", "Centre", "ED", "ES")
_OFFICIAL_CSV = "201014_M&Ms_Dataset_Information_-_opendataset.csv"


class Builder(common.ScanBuilder):
    """See the module; manual_dir is the folder that holds the CSV, Training/, Validation/ and Testing/."""

    RELEASE_NOTES = {"1.0.0": "First."}  # noqa: RUF012  the name TFDS reads
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Download M&Ms from https://www.ub.edu/mnms/ and unpack it, so that manual_dir holds the CSV and "
        "Training/Labeled, Validation and Testing (those that are absent become no splits)."
    )
    DESCRIPTION = "Short-axis cine MRI of six hospitals and four vendors, RV, myocardium and LV drawn at ED and ES."
    HOMEPAGE = "https://www.ub.edu/mnms/"
    CITATION = "Campello et al., IEEE TMI 2021, doi:10.1109/TMI.2021.3090082"
    LABELS = "mnms"

    @staticmethod
    def root(manual_dir: pathlib.Path) -> pathlib.Path:
        """See `common.ScanBuilder.root`."""
        return common.find_root(manual_dir, tuple(_FOLDERS.values()), inner="OpenDataset")

    @staticmethod
    def inventory(manual_dir: pathlib.Path) -> common.Inventory:
        """See `common.ScanBuilder.inventory`."""
        root = Builder.root(manual_dir)
        table = _find_csv(root)
        rows = _read_csv(table)
        cases: dict[str, list[common.Case]] = {}
        notes: list[str] = []
        skipped: list[str] = []
        for split, name in _FOLDERS.items():
            folder = root / name
            patients = common.patient_folders(folder, lambda name: True, wanted="a code", skipped=skipped)
            if not patients:
                there = "holds no patient folders" if folder.is_dir() else "is not there"
                notes.append(f"{folder} {there}: the data set has no split '{split}'")
                continue
            cases[split] = [case for patient in patients for case in _cases(patient, rows, table)]
        common.check_patients(cases, manual_dir)
        return common.Inventory(root, cases, tables=[table], notes=notes, skipped=skipped)


def _find_csv(root: pathlib.Path) -> pathlib.Path:
    """The one CSV with the columns needed; the official one if there are more."""
    csvs = sorted(
        p for p in root.iterdir() if p.suffix.lower() == ".csv" and p.is_file() and not finder.is_hidden(p.name)
    )
    found = [path for path in csvs if tables.has_columns(path, _COLUMNS)]
    official = [path for path in found if path.name == _OFFICIAL_CSV]
    if len(found) == 1 or official:
        return (official or found)[0]
    if found:
        raise UserError(f"{root}: {len(found)} CSV files could be the table of patients; leave one of them there")
    there = f" (there are {', '.join(p.name for p in csvs)})" if csvs else ""
    raise UserError(f"{root}: no *.csv with the columns {', '.join(_COLUMNS)}{there}; put {_OFFICIAL_CSV} there")


def _read_csv(path: pathlib.Path) -> dict[str, tables.Row]:
    """Rows by the patients' codes."""
    rows: dict[str, tables.Row] = {}
    for row in tables.read_table(path, _COLUMNS, optional=("Vendor", "Pathology")):
        code = row.cells["External code"]
        if not code:
            continue  # a remark or a sum below the table
        if code in rows:
            raise ScanError(path, f"patient {code} has two rows, {rows[code].line} and {row.line}; keep one of them")
        rows[code] = row
    return rows


def _cases(patient: pathlib.Path, rows: dict[str, tables.Row], table: pathlib.Path) -> list[common.Case]:
    """ED and ES of one patient's folder."""
    row = rows.get(patient.name)
    if row is None:
        raise ScanError(table, f"has no row for patient {patient.name}, whose folder is {patient}")
    frames = {phase: _frame_index(table, row, phase) for phase in ("ED", "ES")}
    if frames["ED"] == frames["ES"]:
        raise ScanError(
            table, f"ED and ES of patient {patient.name} are the same frame, {frames['ED']} (row {row.line})"
        )
    vendor = row.cells["VendorName"] or row.cells.get("Vendor", "")
    if not vendor:
        raise ScanError(table, f"patient {patient.name} has no VendorName (row {row.line})")
    return [
        common.Case(
            image=common.one_of(patient, f"{patient.name}_sa"),
            mask=common.one_of(patient, f"{patient.name}_sa_gt"),
            patient=patient.name,
            phase=phase,
            group=row.cells.get("Pathology", ""),
            vendor=vendor,
            centre=row.cells["Centre"],
            frame=frame,
            frame_source=f"column {phase} of {table.name}",
        )
        for phase, frame in frames.items()
    ]


def _frame_index(table: pathlib.Path, row: tables.Row, phase: str) -> int:
    """The frame of a phase, from 0; spreadsheets may have turned 12 into 12.0 or 12,0."""
    text = row.cells[phase]
    whole = text.removesuffix(".0").removesuffix(",0")
    if not (whole.isdecimal() and whole.isascii()):
        raise ScanError(
            table,
            f"{phase} of patient {row.cells['External code']} is {text!r}, not a frame number from 0 (row {row.line}, "
            f"column {phase})",
        )
    return int(whole)
