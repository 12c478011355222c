"""Clinical indices from the volumes of a table of scores, as the ACDC challenge computes them, and their agreement.

Volumes of the LV and RV cavities at ED and ES, stroke volume SV = EDV - ESV, ejection fraction EF = 100 SV / EDV, and
the mass of the myocardium at ED with 1.05 g/ml (Bernard et al., IEEE TMI 2018). Where the voxel spacing is unknown,
volumes are counts of voxels: EF, a ratio, still holds, a mass does not and is left out, and nothing is called ml.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jras_jax.errors import UserError

DENSITY = 1.05  # g/ml of myocardium
VOXEL_NOTE = (
    "The voxel spacing of some scans is unknown: their volumes are in voxels, their ejection fractions hold, "
    "and they have no myocardial mass."
)


@dataclasses.dataclass(frozen=True)
class Indices:
    """One patient's indices, from one set of masks.

    Attributes:
      lv_edv, lv_esv, lv_sv, rv_edv, rv_esv, rv_sv: in `PatientIndices.unit`.
      lv_ef, rv_ef: percent; NaN where the volume at ED is 0.
      mass: of the myocardium at ED, g; NaN where the spacing is unknown.

    Whatever lacks its phase or structure in the table is NaN.
    """

    lv_edv: float
    lv_esv: float
    lv_sv: float
    lv_ef: float
    rv_edv: float
    rv_esv: float
    rv_sv: float
    rv_ef: float
    mass: float


INDEX_NAMES = tuple(f.name for f in dataclasses.fields(Indices))
_RATIOS = ("lv_ef", "rv_ef")


@dataclasses.dataclass(frozen=True)
class PatientIndices:
    """A patient's indices by prediction and by reference; `unit` is that of the volumes: 'ml' or 'voxels'."""

    patient: str
    group: str
    unit: str
    predicted: Indices
    reference: Indices


class Agreement(NamedTuple):
    """Agreement of predictions with references (Bland & Altman, Lancet 1986).

    Attributes:
      n: pairs; n_missing: pairs left out because one side is NaN.
      pearson: correlation; NaN with fewer than 2 pairs or if one side is constant.
      bias: mean of prediction minus reference; sd: of the differences (n - 1).
      low, high: limits of agreement, bias -+ 1.96 sd.
      mean_absolute: mean absolute difference.
      unit: of everything but n and pearson.
    """

    n: int
    n_missing: int
    pearson: float
    bias: float
    sd: float
    low: float
    high: float
    mean_absolute: float
    unit: str


def patient_indices(rows: Sequence[Mapping[str, Any]]) -> list[PatientIndices]:
    """Computes every patient's indices.

    Args:
      rows: as in cases.csv: patient, group, phase, structure, unit, volume_ml, reference_volume_ml. Rows of unit
        'voxel' may have counts in `voxels` and `reference_voxels`; without them volume_ml is read as thousands of
        voxels, which is what a spacing of 1 makes of it.

    Raises:
      UserError: a patient has rows in mm and in voxels, or two rows of one phase and structure.
    """
    patients: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        patients.setdefault(row["patient"], []).append(row)
    out = []
    for patient, own in patients.items():
        units = {row["unit"] for row in own}
        if len(units) > 1:
            raise UserError(f"patient {patient}: some rows are in mm and some in voxels; volumes cannot be compared")
        unit = "ml" if units == {"mm"} else "voxels"
        predicted, reference = _volumes(own, "", unit), _volumes(own, "reference_", unit)
        group = str(own[0].get("group", ""))
        out.append(
            PatientIndices(
                patient,
                group=group,
                unit=unit,
                predicted=_indices(predicted, unit),
                reference=_indices(reference, unit),
            )
        )
    return out


def _volumes(rows: Sequence[Mapping[str, Any]], side: str, unit: str) -> dict[tuple[str, str], float]:
    """(structure, phase) -> volume in `unit`."""
    volumes: dict[tuple[str, str], float] = {}
    for row in rows:
        key = (row["structure"], row["phase"])
        if key in volumes:
            raise UserError(f"patient {row['patient']}: two rows of {key[0]} at {key[1] or 'an unknown phase'}")
        if unit == "ml":
            volumes[key] = float(row[f"{side}volume_ml"])
        else:
            count = row.get(f"{side}voxels", math.nan)
            volumes[key] = float(count) if not math.isnan(count) else 1000.0 * float(row[f"{side}volume_ml"])
    return volumes


def _indices(volumes: Mapping[tuple[str, str], float], unit: str) -> Indices:
    def of(structure: str, phase: str) -> float:
        return volumes.get((structure, phase), math.nan)

    values: dict[str, float] = {}
    for name in ("LV", "RV"):
        edv, esv = of(name, "ED"), of(name, "ES")
        fraction = 100.0 * (edv - esv) / edv if edv > 0 else math.nan
        prefix = name.lower()
        values |= {f"{prefix}_edv": edv, f"{prefix}_esv": esv, f"{prefix}_sv": edv - esv, f"{prefix}_ef": fraction}
    return Indices(**values, mass=DENSITY * of("MYO", "ED") if unit == "ml" else math.nan)


def agreement(predicted: Sequence[float], reference: Sequence[float], unit: str = "") -> Agreement:
    """Agreement of (n,) predictions with (n,) references; pairs with a NaN are left out and counted."""
    p, r = np.asarray(predicted, np.float64), np.asarray(reference, np.float64)
    known = ~(np.isnan(p) | np.isnan(r))
    p, r, missing = p[known], r[known], int((~known).sum())
    n, difference = len(p), p - r
    if not n:
        nan = math.nan
        return Agreement(
            0, n_missing=missing, pearson=nan, bias=nan, sd=nan, low=nan, high=nan, mean_absolute=nan, unit=unit
        )
    constant = n < 2 or np.ptp(p) == 0 or np.ptp(r) == 0
    pearson = math.nan if constant else float(stats.pearsonr(p, r).statistic)
    bias = float(difference.mean())
    sd = float(difference.std(ddof=1)) if n > 1 else math.nan
    return Agreement(
        n,
        n_missing=missing,
        pearson=pearson,
        bias=bias,
        sd=sd,
        low=bias - 1.96 * sd,
        high=bias + 1.96 * sd,
        mean_absolute=float(np.abs(difference).mean()),
        unit=unit,
    )


def clinical_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every index of every patient and its agreement, as data for JSON (None instead of NaN).

    Returns:
      unit: of the volumes, 'ml' | 'voxels' | 'mixed'; note: what does not hold, '' where all does; patients: a dict
      each (patient, group, unit, predicted, reference); agreement: index -> `Agreement` as a dict. Where scans in ml
      and in voxels are mixed, volumes agree over those in ml alone, the others count as missing; EF is over all.
    """
    patients = patient_indices(rows)
    units = {p.unit for p in patients}
    unit = "mixed" if len(units) > 1 else next(iter(units), "ml")
    volume_unit = "voxels" if unit == "voxels" else "ml"
    table: dict[str, Any] = {}
    for name in INDEX_NAMES:
        fits = [p.unit == volume_unit or name in _RATIOS for p in patients]
        predicted = [getattr(p.predicted, name) if ok else math.nan for p, ok in zip(patients, fits, strict=True)]
        reference = [getattr(p.reference, name) if ok else math.nan for p, ok in zip(patients, fits, strict=True)]
        index_unit = "%" if name in _RATIOS else "g" if name == "mass" else volume_unit
        table[name] = _without_nan(agreement(predicted, reference, index_unit)._asdict())
    return {
        "unit": unit,
        "note": "" if unit == "ml" else VOXEL_NOTE,
        "patients": [
            dataclasses.asdict(p)
            | {side: _without_nan(dataclasses.asdict(getattr(p, side))) for side in ("predicted", "reference")}
            for p in patients
        ],
        "agreement": table,
    }


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}
