"""M&Ms, the Multi-Centre, Multi-Vendor and Multi-Disease challenge: 4-D cines, ED and ES as its CSV says."""

from __future__ import annotations

import csv
import pathlib

from jras_jax.data.nifti import ScanError
from jras_jax.errors import UserError
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
    def inventory(manual_dir: pathlib.Path) -> common.Inventory:
        """See `common.ScanBuilder.inventory`."""
        root = common.find_root(manual_dir, tuple(_FOLDERS.values()), inner="OpenDataset")
        table = _find_csv(root)
        rows = _read_csv(table)
        cases: dict[str, list[common.Case]] = {}
        notes = []
        for split, name in _FOLDERS.items():
            folder = root / name
            patients = sorted(p for p in folder.glob("*") if p.is_dir() and not p.name.startswith((".", "__")))
            if not patients:
                there = "holds no patient folders" if folder.is_dir() else "is not there"
                notes.append(f"{folder} {there}: the data set has no split '{split}'")
                continue
            cases[split] = [case for patient in patients for case in _cases(patient, rows, table)]
        common.check_patients(cases, manual_dir)
        return common.Inventory(root, cases, [table], notes)


def _find_csv(root: pathlib.Path) -> pathlib.Path:
    """The one CSV with the columns needed; the official one where there are more."""
    tables = [path for path in sorted(root.glob("*.csv")) if set(_COLUMNS) <= set(_header(path))]
    official = [path for path in tables if path.name == _OFFICIAL_CSV]
    if len(tables) == 1 or official:
        return (official or tables)[0]
    if tables:
        raise UserError(f"{root}: {len(tables)} CSV files could be the table of patients; leave one of them there")
    raise UserError(f"{root}: no *.csv with the columns {', '.join(_COLUMNS)}; put {_OFFICIAL_CSV} there")


def _header(path: pathlib.Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise ScanError(path, f"cannot be read as CSV ({e})") from e


def _read_csv(path: pathlib.Path) -> dict[str, dict[str, str]]:
    """Rows by the patients' codes."""
    rows: dict[str, dict[str, str]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file, restval=""):
                code = row["External code"].strip()
                if code in rows:
                    raise ScanError(path, f"patient {code} has two rows")
                rows[code] = {key: value.strip() for key, value in row.items() if key and isinstance(value, str)}
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise ScanError(path, f"cannot be read as CSV ({e})") from e
    return rows


def _cases(patient: pathlib.Path, rows: dict[str, dict[str, str]], table: pathlib.Path) -> list[common.Case]:
    """ED and ES of one patient's folder."""
    row = rows.get(patient.name)
    if row is None:
        raise ScanError(table, f"has no row for patient {patient.name}, whose folder is {patient}")
    frames = {phase: _frame_index(table, row, phase) for phase in ("ED", "ES")}
    if frames["ED"] == frames["ES"]:
        raise ScanError(table, f"ED and ES of patient {patient.name} are the same frame, {frames['ED']}")
    vendor = row["VendorName"] or row.get("Vendor", "")
    if not vendor:
        raise ScanError(table, f"patient {patient.name} has no VendorName")
    return [
        common.Case(
            image=common.one_of(patient, f"{patient.name}_sa"),
            mask=common.one_of(patient, f"{patient.name}_sa_gt"),
            patient=patient.name,
            phase=phase,
            group=row.get("Pathology", ""),
            vendor=vendor,
            centre=row["Centre"],
            frame=frame,
            frame_source=f"column {phase} of {table.name}",
        )
        for phase, frame in frames.items()
    ]


def _frame_index(table: pathlib.Path, row: dict[str, str], phase: str) -> int:
    """The frame of a phase, from 0; spreadsheets may have turned 12 into 12.0."""
    text = row[phase]
    whole = text.removesuffix(".0")
    if not whole.isdecimal():
        raise ScanError(table, f"{phase} of patient {row['External code']} is {text!r}, not a frame number from 0")
    return int(whole)
