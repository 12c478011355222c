"""ACDC, the Automated Cardiac Diagnosis Challenge: 100 training and 50 testing patients, five groups, ED and ES."""

from __future__ import annotations

import pathlib
import re

from jras_jax.data import finder, tables
from jras_jax.errors import ScanError, UserError
from tfds_builders import common

_FOLDERS = {"train": "training", "test": "testing"}
_PATIENT = re.compile(r"patient\d+")


class Builder(common.ScanBuilder):
    """See the module; manual_dir is the folder that holds training/ and testing/ (or database/, which holds them)."""

    RELEASE_NOTES = {"1.0.0": "First."}  # noqa: RUF012  the name TFDS reads
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Download ACDC from https://humanheart-project.creatis.insa-lyon.fr/database/ and unpack it, so that "
        "manual_dir holds training/patient001/Info.cfg and so on. testing/ may be absent."
    )
    DESCRIPTION = "Short-axis cine MRI of 150 patients of one hospital, RV, myocardium and LV drawn at ED and ES."
    HOMEPAGE = "https://www.creatis.insa-lyon.fr/Challenge/acdc/"
    CITATION = "Bernard et al., IEEE TMI 2018, doi:10.1109/TMI.2018.2837502"
    LABELS = "acdc"

    @staticmethod
    def root(manual_dir: pathlib.Path) -> pathlib.Path:
        """See `common.ScanBuilder.root`."""
        return common.find_root(manual_dir, tuple(_FOLDERS.values()), inner="database")

    @staticmethod
    def inventory(manual_dir: pathlib.Path) -> common.Inventory:
        """See `common.ScanBuilder.inventory`."""
        root = Builder.root(manual_dir)
        cases: dict[str, list[common.Case]] = {}
        infos: list[pathlib.Path] = []
        notes: list[str] = []
        skipped: list[str] = []
        for split, name in _FOLDERS.items():
            folder = root / name
            patients = common.patient_folders(folder, _is_patient, wanted="patientNNN", skipped=skipped)
            if not patients:
                there = "holds no patient folders" if folder.is_dir() else "is not there"
                notes.append(f"{folder} {there}: the data set has no split '{split}'")
                continue
            _require_masks(folder, patients)
            infos += [patient / "Info.cfg" for patient in patients]
            cases[split] = [case for patient in patients for case in _cases(patient)]
        common.check_patients(cases, manual_dir)
        return common.Inventory(root, cases, tables=infos, notes=notes, skipped=skipped)


def _is_patient(name: str) -> bool:
    return _PATIENT.fullmatch(name) is not None


def _require_masks(folder: pathlib.Path, patients: list[pathlib.Path]) -> None:
    """The challenge once shipped testing/ without masks: one message for all of it."""
    if not any(finder.stem(p).endswith("_gt") for patient in patients for p in patient.iterdir() if finder.suffix(p)):
        raise UserError(
            f"{folder}: none of its {len(patients)} patients has a mask (patientNNN_frameFF_gt.nii.gz); "
            "use the later release, which has them, or move the folder away"
        )


def _cases(patient: pathlib.Path) -> list[common.Case]:
    """ED and ES of one patient's folder."""
    info = tables.read_info(patient / "Info.cfg")
    frames = {phase: _frame_number(patient / "Info.cfg", info, phase) for phase in ("ED", "ES")}
    if frames["ED"] == frames["ES"]:
        raise ScanError(patient / "Info.cfg", f"ED and ES are the same frame, {frames['ED']}")
    if not info.get("Group"):
        raise ScanError(patient / "Info.cfg", "the line 'Group: ...' (DCM, HCM, MINF, NOR or RV) is missing")
    return [
        common.Case(
            image=common.one_of(patient, f"{patient.name}_frame{frame:02d}"),
            mask=common.one_of(patient, f"{patient.name}_frame{frame:02d}_gt"),
            patient=patient.name,
            phase=phase,
            group=info["Group"],
            vendor="Siemens",
            centre="Dijon",
        )
        for phase, frame in frames.items()
    ]


def _frame_number(path: pathlib.Path, info: dict[str, str], phase: str) -> int:
    """The frame of a phase, from 1, inside the cine where its length is given."""
    text = info.get(phase)
    if text is None:
        raise ScanError(path, f"the line '{phase}: ...' is missing")
    last = info.get("NbFrame", "")
    if not text.isdecimal() or int(text) < 1 or (last and not last.isdecimal()):
        raise ScanError(path, f"{phase}: {text!r} and NbFrame: {last!r} must be whole numbers of 1 or more")
    if last and int(text) > int(last):
        raise ScanError(path, f"{phase} is frame {text}, outside the {last} frames of NbFrame")
    return int(text)
