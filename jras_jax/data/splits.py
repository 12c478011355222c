"""Who trains, who validates, who tests: folds by patient, stratified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jras_jax.data import Volume
from jras_jax.errors import UserError


def make_folds(strata: Mapping[str, str], num_folds: int, seed: int) -> list[list[str]]:
    """Splits patients into folds, stratum by stratum.

    Args:
      strata: patient -> stratum (pathology group, vendor).
      num_folds: how many folds.
      seed: of the shuffle; the order of `strata` does not matter.

    Returns:
      For each fold its patients, sorted; sizes differ by at most one, overall and within each stratum.

    Raises:
      UserError: there are fewer patients than folds.
    """
    if len(strata) < num_folds:
        raise UserError(
            f"{len(strata)} patients cannot be split into {num_folds} folds: lower config.dataset.num_folds "
            "or give more patients"
        )
    rng = np.random.default_rng(seed)
    folds: list[list[str]] = [[] for _ in range(num_folds)]
    turn = 0  # continues from stratum to stratum, so that small strata do not all fill the first folds
    for stratum in sorted(set(strata.values())):
        patients = sorted(p for p, s in strata.items() if s == stratum)
        for patient in rng.permutation(patients):
            folds[turn % num_folds].append(str(patient))
            turn += 1
    return [sorted(fold) for fold in folds]


def make_splits(
    volumes: Mapping[str, Sequence[Volume]],
    *,
    stratify: str,
    num_folds: int,
    fold: int,
    seed: int,
    max_train_patients: int = 0,
    leave_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Which patient plays which part.

    Args:
      volumes: the data set's splits ('train', 'validation', 'test'), each its volumes. An official validation split
        is not mixed into the folds: it stays one more set of unseen patients, under its own name.
      stratify: 'group' or 'vendor'.
      num_folds, fold, seed: see `make_folds`.
      max_train_patients: the first so many training patients of a seeded order; 0 all.
      leave_out: strata whose patients do not train.

    Raises:
      UserError: there are fewer patients than folds, no such stratum, or nobody is left to train.

    Returns:
      {'train': [...], 'validation': [...], 'test': [...], 'official_validation': [...], 'folds': [[...]], 'spacing':
      of the training scans, 'known', 'unknown' or 'mixed', ...}, ready for JSON.
    """
    strata = {v.patient: getattr(v, stratify) for v in volumes["train"]}
    folds = make_folds(strata, num_folds, seed)
    unknown = sorted(set(leave_out) - set(strata.values()))
    if unknown:
        raise UserError(
            f"config.dataset.leave_out: no training patient has the {stratify} {', '.join(unknown)}; there are "
            f"{', '.join(sorted(set(strata.values())))}"
        )
    train = sorted(p for i, f in enumerate(folds) if i != fold for p in f if strata[p] not in leave_out)
    if not train:
        raise UserError(f"config.dataset.leave_out={tuple(leave_out)}: nobody is left to train on")
    if max_train_patients:
        order = np.random.default_rng((seed, 1)).permutation(train)
        train = sorted(str(p) for p in order[:max_train_patients])
    known = {v.spacing_known for v in volumes["train"] if v.patient in set(train)}
    others = {name: sorted({v.patient for v in volumes.get(name, ())}) for name in ("validation", "test")}
    return {
        "train": train,
        "validation": folds[fold],
        "test": others["test"],
        "official_validation": others["validation"],
        "folds": folds,
        "fold": fold,
        "seed": seed,
        "stratify": stratify,
        "spacing": "mixed" if len(known) > 1 else "known" if known == {True} else "unknown",
    }


def pick(volumes: Mapping[str, Sequence[Volume]], splits: Mapping[str, Any], part: str) -> list[Volume]:
    """The volumes of a part ('train', 'validation', 'test'), in the data set's order."""
    wanted = set(splits[part])
    source = "test" if part == "test" else "train"
    return [v for v in volumes.get(source, ()) if v.patient in wanted]
