"""Overlap and surface distances of segmentations, on the grid the labels live on, with declared rules for empty masks.

Definitions, those of the M&Ms challenge's own evaluation (Campello et al., IEEE TMI 2021):
- surface: the voxels that a 6-neighbour (in 2-D, 4-neighbour) erosion removes; outside the array counts as background;
- hd: the largest distance from a voxel of one surface to the other surface, both ways (Hausdorff);
- hd95: the 95th percentile of both ways' distances pooled (MedPy's `hd95`; other tools take the larger of the two
  directed percentiles);
- assd: the mean of the two directed mean distances, as in the challenge's published scores (the mean of MedPy's `asd`
  both ways; MedPy 0.5.2's own `assd` is the mean of the pooled distances, another figure).

Empty masks: both empty, Dice and Jaccard 1, distances 0; one empty, Dice and Jaccard 0, distances NaN. `empty`
says which one it was, and `aggregate` counts them, so that no average hides them.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from jras_jax import files
from jras_jax.data import STRUCTURES, DatasetDescription
from jras_jax.data.description import CARDIAC
from jras_jax.data.dice import count, structure_counts
from jras_jax.data.slice_table import base_first
from jras_jax.errors import UserError

POSITIONS = ("base", "mid", "apex")
PAPER_SIZE = 256  # pixels: the grid of the J-RAS paper's figures
DISTANCES = ("hd", "hd95", "assd")

# The columns of cases.csv, one row a patient, phase and structure; further ones may follow them.
CASE_COLUMNS = (
    ("patient", "phase", "group", "vendor", "centre", "structure", "dice", "jaccard")
    + DISTANCES
    + ("volume_ml", "reference_volume_ml", "empty", "unit")
)
_TEXT_COLUMNS = {
    "case",
    "scan",
    "patient",
    "phase",
    "group",
    "vendor",
    "centre",
    "structure",
    "position",
    "empty",
    "unit",
}


@dataclasses.dataclass(frozen=True)
class Scores:
    """One structure of one volume.

    Attributes:
      dice, jaccard: in [0, 1].
      hd, hd95, assd: in the unit of the spacing (mm, or voxels if it is unknown); NaN if one mask is empty.
      volume_ml, reference_volume_ml: of prediction and reference; NaN if the spacing is unknown.
      voxels, reference_voxels: the same as counts.
      empty: '' neither mask is empty | 'both' | 'reference' | 'prediction'.
    """

    dice: float
    jaccard: float
    hd: float
    hd95: float
    assd: float
    volume_ml: float
    reference_volume_ml: float
    voxels: int
    reference_voxels: int
    empty: str


def confusion(reference: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) int64: voxels of each true label (row) that are predicted as each label (column)."""
    pairs = reference.astype(np.int64).ravel() * classes + prediction.ravel()
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def score_structures(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float] | np.ndarray | None,
    structures: Mapping[str, int] = STRUCTURES,
) -> dict[str, Scores]:
    """Scores every structure of one labelled volume.

    Args:
      reference, prediction: (X, Y, Z) integer labels of one shape; (X, Y) works too.
      spacing: voxel size along each axis, mm; None if it is unknown: distances in voxels, no volumes in ml.
      structures: name -> label.

    Returns:
      name -> Scores, in the order of `structures`.

    Raises:
      ValueError: shapes differ, or the spacing is not one positive number an axis.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"reference has shape {reference.shape}, prediction {prediction.shape}")
    sampling = np.ones(reference.ndim) if spacing is None else np.asarray(spacing, np.float64)
    if sampling.shape != (reference.ndim,) or not (np.isfinite(sampling).all() and (sampling > 0).all()):
        raise ValueError(f"spacing must hold {reference.ndim} positive numbers, not {spacing}")
    voxel_ml = math.nan if spacing is None else float(np.prod(sampling)) / 1000.0
    return {
        name: _score(reference == label, prediction=prediction == label, sampling=sampling, voxel_ml=voxel_ml)
        for name, label in structures.items()
    }


def _score(reference: np.ndarray, prediction: np.ndarray, sampling: np.ndarray, voxel_ml: float) -> Scores:
    """Scores of one pair of boolean masks."""
    counts = count(reference, prediction)
    if counts.empty:
        distances = (0.0, 0.0, 0.0) if counts.empty == "both" else (math.nan, math.nan, math.nan)
    else:
        distances = _surface_distances(reference, prediction, sampling)
    n_ref, n_pred = counts.reference, counts.prediction
    volumes = n_pred * voxel_ml, n_ref * voxel_ml
    return Scores(
        counts.dice, counts.jaccard, *distances, *volumes, voxels=n_pred, reference_voxels=n_ref, empty=counts.empty
    )


def _surface_distances(a: np.ndarray, b: np.ndarray, sampling: np.ndarray) -> tuple[float, float, float]:
    """(hd, hd95, assd) of two non-empty boolean masks."""
    # Nothing outside the union's box is on a surface or nearer than what is inside it: the crop changes no figure.
    box = _bounding_box(a | b)
    surface_a, surface_b = _surface(a[box]), _surface(b[box])
    a_to_b = ndimage.distance_transform_edt(~surface_b, sampling=sampling)[surface_a]
    b_to_a = ndimage.distance_transform_edt(~surface_a, sampling=sampling)[surface_b]
    pooled = np.concatenate([a_to_b, b_to_a])
    return float(pooled.max()), float(np.percentile(pooled, 95)), float((a_to_b.mean() + b_to_a.mean()) / 2)


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask, ndimage.generate_binary_structure(mask.ndim, 1))


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(tuple(i for i in range(mask.ndim) if i != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


def slice_positions(reference: np.ndarray, description: DatasetDescription = CARDIAC) -> np.ndarray:
    """Names the third of the heart that each slice belongs to.

    The rule: the slices from the first to the last that the reference labels (any structure; unlabelled ones between
    them included), counted from the base, are cut into three equal lengths, and a slice belongs to the length that
    holds its middle. So 3 slices are one each, 10 are 3 + 4 + 3, 2 are base and apex, and a single one is mid. The base
    is the end with the larger left ventricle (`slice_table.base_first`).

    Args:
      reference: (X, Y, Z) in the labels of `description`.
      description: of the data set.

    Returns:
      (Z,) of str: 'base', 'mid', 'apex', or '' outside the labelled range.
    """
    names = np.full(reference.shape[2], "", dtype="<U4")
    labelled = np.flatnonzero(reference.any((0, 1)))
    if len(labelled):
        first, last = labelled[0], labelled[-1]
        n = last - first + 1
        thirds = np.array(POSITIONS)[(3 * (np.arange(n) + 0.5) / n).astype(int)]
        names[first : last + 1] = thirds if base_first(reference, description) else thirds[::-1]
    return names


def position_scores(
    reference: np.ndarray,
    prediction: np.ndarray,
    structures: Mapping[str, int] = STRUCTURES,
    description: DatasetDescription = CARDIAC,
) -> list[dict[str, Any]]:
    """Dice of every structure in the basal, middle and apical third of a volume (see `slice_positions`).

    Overlap only: a surface distance inside a third would see the cut as a surface. What the prediction puts outside
    the labelled range belongs to no third; the volume's own Dice counts it.

    Args:
      reference, prediction: (X, Y, Z) integer labels; the reference in those of `description`.
      structures: name -> label, those to score.
      description: of the data set.

    Returns:
      Rows with the keys position, structure, dice, jaccard, voxels, reference_voxels, empty; thirds that hold no
      slice have none, nor has a data set that is not of the heart (without `frame_structures`).
    """
    if not description.frame_structures:
        return []
    names = slice_positions(reference, description)
    rows = []
    for position in POSITIONS:
        chosen = names == position
        if not chosen.any():
            continue
        for name, c in structure_counts(reference[:, :, chosen], prediction[:, :, chosen], structures).items():
            rows.append(
                {
                    "position": position,
                    "structure": name,
                    "dice": c.dice,
                    "jaccard": c.jaccard,
                    "voxels": c.prediction,
                    "reference_voxels": c.reference,
                    "empty": c.empty,
                }
            )
    return rows


def paper_2d_scores(
    reference: np.ndarray,
    prediction: np.ndarray,
    structures: Mapping[str, int] = STRUCTURES,
    *,
    size: int = PAPER_SIZE,
) -> list[dict[str, Any]]:
    """The J-RAS paper's own kind of figure: Dice and Hausdorff distance slice by slice, at `size` x `size`, in pixels.

    Labels are brought to the square grid by nearest neighbour, each axis by itself, as the authors resize whole
    slices; slices whose reference is empty are dropped, as theirs are. Not comparable with the scores per volume:
    a slice weighs the same whether it holds 20 pixels or 2,000, and a pixel is not a millimetre. The paper does not
    say what it does with a structure absent from a slice: here the rules of this module hold (both empty: 1 and 0).

    Args:
      reference, prediction: (X, Y, Z) integer labels.
      structures: name -> label.
      size: side of the square grid, pixels.

    Returns:
      Rows with the keys slice_index, structure, dice_2d, hd_2d_px, empty, and background_2d, the slice's Dice of the
      background; see `aggregate_paper_2d`.
    """
    pick = [np.minimum(((np.arange(size) + 0.5) * n / size).astype(int), n - 1) for n in reference.shape[:2]]
    rows = []
    for z in np.flatnonzero(np.isin(reference, list(structures.values())).any((0, 1))):
        grid = np.ix_(*pick, [z])
        true, found = reference[grid][..., 0], prediction[grid][..., 0]
        shared = {"slice_index": int(z), "background_2d": count(true == 0, found == 0).dice}
        for name, s in score_structures(true, prediction=found, spacing=None, structures=structures).items():
            rows.append(shared | {"structure": name, "dice_2d": s.dice, "hd_2d_px": s.hd, "empty": s.empty})
    return rows


def aggregate_paper_2d(volumes: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Mean and SD over slices of the mean over structures.

    Args:
      volumes: what `paper_2d_scores` gave, one list a volume.

    Returns:
      dice_2d, dice_2d_sd, hd_2d_px, hd_2d_px_sd (None if there is nothing to average; SD with n - 1),
      dice_2d_background (the mean over structures and background, as the authors count), n_slices, n_empty_both,
      n_no_distance (structures of a slice that only one of the two masks has: they are in no distance).
    """
    dice, whole, hd, n_both, n_missing = [], [], [], 0, 0
    for rows in volumes:
        slices: dict[int, list[Mapping[str, Any]]] = {}
        for row in rows:
            slices.setdefault(row["slice_index"], []).append(row)
            n_both += row["empty"] == "both"
            n_missing += row["empty"] in ("reference", "prediction")
        for group in slices.values():
            dice.append(float(np.mean([r["dice_2d"] for r in group])))
            whole.append(float(np.mean([group[0]["background_2d"], *(r["dice_2d"] for r in group)])))
            known = [r["hd_2d_px"] for r in group if not math.isnan(r["hd_2d_px"])]
            hd.extend([float(np.mean(known))] if known else [])
    return {
        "dice_2d": float(np.mean(dice)) if dice else None,
        "dice_2d_sd": float(np.std(dice, ddof=1)) if len(dice) > 1 else None,
        "dice_2d_background": float(np.mean(whole)) if whole else None,
        "hd_2d_px": float(np.mean(hd)) if hd else None,
        "hd_2d_px_sd": float(np.std(hd, ddof=1)) if len(hd) > 1 else None,
        "n_slices": len(dice),
        "n_empty_both": n_both,
        "n_no_distance": n_missing,
    }


def aggregate(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means over all rows, and over the rows of each structure and phase.

    Args:
      rows: as in cases.csv: at least patient, phase, structure, dice, jaccard, hd, hd95, assd, empty, unit.

    Returns:
      {"mean": {...}, "by": {"LV/ED": {...}, ...}} ("LV" where the phase is unknown), each with
      - dice, jaccard, hd, hd95, assd: means; None where nothing can be averaged (JSON has no NaN), or, for distances,
        where mm and voxels would be mixed;
      - n rows, n_patients, n_empty (rows where a mask is empty), n_empty_both, n_empty_reference, n_empty_prediction;
      - n_no_distance: rows left out of the distance means, because exactly one mask is empty;
      - unit: of the distances: 'mm', 'voxel', 'mixed', '' without rows.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(f"{row['structure']}/{row['phase']}".rstrip("/"), []).append(row)
    return {"mean": _means(rows), "by": {name: _means(group) for name, group in groups.items()}}


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    units = {r["unit"] for r in rows}
    unit = "mixed" if len(units) > 1 else next(iter(units), "")
    means: dict[str, Any] = {}
    for key in ("dice", "jaccard", *DISTANCES):
        values = [float(r[key]) for r in rows if not math.isnan(float(r[key]))]
        averaged = bool(values) and not (key in DISTANCES and unit == "mixed")
        means[key] = float(np.mean(values)) if averaged else None
    empty = {kind: sum(r["empty"] == kind for r in rows) for kind in ("both", "reference", "prediction")}
    return means | {
        "n": len(rows),
        "n_patients": len({r["patient"] for r in rows}),
        "n_empty": sum(empty.values()),
        **{f"n_empty_{kind}": n for kind, n in empty.items()},
        "n_no_distance": sum(math.isnan(float(r["hd"])) for r in rows),
        "unit": unit,
    }


def write_cases_csv(
    path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = CASE_COLUMNS
) -> None:
    """Writes rows with every digit, so that `read_cases_csv` gives them back exactly; NaN is written as nan.

    The order of columns is `columns`, then whatever else the rows hold, in the order met.

    Raises:
      ValueError: a row lacks one of `columns`.
      FileError: the file cannot be written.
    """
    names = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, names, restval="")
    writer.writeheader()
    for row in rows:
        missing = [c for c in columns if c not in row]
        if missing:
            raise ValueError(f"a row for {path} has no {', '.join(missing)}: {dict(row)}")
        writer.writerow({k: _as_text(v) for k, v in row.items()})
    files.write_text(path, buffer.getvalue())


def _as_text(value: Any) -> Any:
    # numpy 2 writes repr(np.float32(0.1)) as "np.float32(0.1)"; item() makes it a Python number of the same value.
    return value.item() if isinstance(value, np.generic) else value


def read_cases_csv(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads what `write_cases_csv` wrote, and the scores of `jras score`.

    Names stay text (patient '001' too); in other columns integers and decimals become int and float, an empty cell
    NaN, and what is not a number stays text.

    Raises:
      UserError: no such file, no row, or not such a table; the missing column is named.
    """
    columns, rows = files.read_rows(path, remedy="a table of scores (cases.csv) belongs there; write it again")
    missing = [c for c in ("patient", "phase", "structure", "dice") if c not in columns]
    if missing:
        raise UserError(f"{path}: not a table of scores; it has no column {', '.join(missing)}")
    if not rows:
        raise UserError(f"{path}: the table has no rows")
    return [{k: _as_value(k, v) for k, v in row.items()} for row in rows]


def _as_value(column: str, text: str | None) -> Any:
    if column in _TEXT_COLUMNS:
        return text or ""
    if not text:
        return math.nan
    kinds: tuple[Callable[[str], Any], ...] = (int, float)
    for kind in kinds:
        try:
            return kind(text)
        except ValueError:
            continue
    return text
