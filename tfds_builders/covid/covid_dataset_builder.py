"""COVID-19-CT-Seg: 20 chest CT volumes with left lung, right lung and infection (Zenodo 3757476).

Ten are of Coronacases, ten of Radiopaedia. Some volumes of Radiopaedia are of one case (radiopaedia_10_85902_1 and
radiopaedia_10_85902_3; radiopaedia_29_86490_1 and radiopaedia_29_86491_1): these count as one patient.
"""

from __future__ import annotations

import pathlib
import re

from jras_jax.data import DatasetDescription, finder
from jras_jax.errors import ScanError, UserError
from tfds_builders import common

_SCANS = ("COVID-19-CT-Seg_20cases",)
_MASKS = "Lung_and_Infection_Mask"
_CASE = re.compile(r"(?P<patient>coronacases_\d+|radiopaedia_\d+)(?:_\d+)*")


class Builder(common.ScanBuilder):
    """See the module; manual_dir is the folder that holds COVID-19-CT-Seg_20cases/ and Lung_and_Infection_Mask/."""

    RELEASE_NOTES = {"1.0.0": "First."}  # noqa: RUF012  the name TFDS reads
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Download COVID-19-CT-Seg_20cases.zip and Lung_and_Infection_Mask.zip from https://zenodo.org/records/3757476 "
        "and unpack each into a folder of its name in manual_dir."
    )
    DESCRIPTION = "20 chest CT volumes of patients with COVID-19; left lung, right lung and infection."
    HOMEPAGE = "https://zenodo.org/records/3757476"
    CITATION = "Ma et al., Medical Physics 2021, doi:10.1002/mp.14676"
    LABELS = "covid"
    NAMED = True

    @classmethod
    def reader(cls, description: DatasetDescription) -> common.Reader:
        """See `common.ScanBuilder.reader`."""
        return common.any_reader(description)

    @staticmethod
    def root(manual_dir: pathlib.Path) -> pathlib.Path:
        """See `common.ScanBuilder.root`."""
        return common.find_root(manual_dir, _SCANS, inner="COVID-19-CT-Seg")

    @staticmethod
    def inventory(manual_dir: pathlib.Path) -> common.Inventory:
        """See `common.ScanBuilder.inventory`."""
        root = Builder.root(manual_dir)
        if not (root / _MASKS).is_dir():
            raise UserError(f"{root / _MASKS}: the folder is missing; unpack {_MASKS}.zip of the download there")
        cases: list[common.Case] = []
        skipped: list[str] = []
        for path in finder.find(root / _SCANS[0]).files:
            name = finder.stem(path)
            match = _CASE.fullmatch(name)
            if match is None:
                skipped.append(f"{path}: passed over, its name is not coronacases_NNN or radiopaedia_N_N_N")
                continue
            if not finder.files_of(root / _MASKS, name):
                raise ScanError(path, f"its mask {name}.nii.gz is not in {root / _MASKS}")
            source = name.partition("_")[0]
            cases.append(
                common.Case(
                    image=path,
                    mask=common.one_of(root / _MASKS, name),
                    patient=match["patient"],
                    phase="",
                    group=source,
                    vendor="",
                    centre=source,
                    name=name,
                )
            )
        common.check_patients({"train": cases}, manual_dir)
        return common.Inventory(root, {"train": cases}, tables=[], notes=[], skipped=skipped)
