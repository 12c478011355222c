"""Folds by patient: nobody in two parts, every stratum in every fold."""

import dataclasses

import pytest

from jras_jax.data.splits import make_folds, make_splits, pick
from jras_jax.errors import UserError
from tests.volumes import blob, volume

STRATA = {f"patient{i:03d}": "ABCDE"[i % 5] for i in range(83)}


def test_folds_partition_patients_and_balance_strata():
    folds = make_folds(STRATA, 5, seed=0)
    assert sorted(p for f in folds for p in f) == sorted(STRATA)
    sizes = [len(f) for f in folds]
    assert max(sizes) - min(sizes) <= 1
    for stratum in "ABCDE":
        counts = [sum(STRATA[p] == stratum for p in f) for f in folds]
        assert max(counts) - min(counts) <= 1


def test_folds_depend_on_the_seed_not_on_the_order():
    shuffled = dict(reversed(STRATA.items()))
    assert make_folds(STRATA, 5, 0) == make_folds(shuffled, 5, 0)
    assert make_folds(STRATA, 5, 0) != make_folds(STRATA, 5, 1)


def test_too_few_patients_is_said():
    with pytest.raises(UserError, match="3 patients cannot be split into 5"):
        make_folds({"a": "x", "b": "x", "c": "y"}, 5, 0)


def test_splits_never_share_a_patient():
    train = [volume(blob(), patient=p, phase=ph) for p in STRATA for ph in ("ED", "ES")]
    test = [volume(blob(), patient="t1")]
    splits = make_splits({"train": train, "test": test}, stratify="group", num_folds=5, fold=2, seed=0)
    assert not set(splits["train"]) & set(splits["validation"])
    assert len(splits["train"]) + len(splits["validation"]) == 83 and splits["test"] == ["t1"]
    picked = pick({"train": train, "test": test}, splits, "validation")
    assert {v.patient for v in picked} == set(splits["validation"]) and len(picked) == 2 * len(splits["validation"])
    few = make_splits({"train": train}, stratify="group", num_folds=5, fold=2, seed=0, max_train_patients=7)
    assert len(few["train"]) == 7 and set(few["train"]) <= set(splits["train"])
    assert few["validation"] == splits["validation"]


def test_a_group_that_is_left_out_does_not_train_but_still_validates():
    train = [dataclasses.replace(volume(blob(), patient=p), group=g) for p, g in STRATA.items()]
    options = {"stratify": "group", "num_folds": 5, "fold": 2, "seed": 0}
    whole = make_splits({"train": train}, **options)
    without = make_splits({"train": train}, **options, leave_out=("A", "C"))
    assert without["train"] == [p for p in whole["train"] if STRATA[p] not in "AC"]
    assert without["validation"] == whole["validation"]
    with pytest.raises(UserError, match=r"leave_out: no training patient has the group Z; there are A, B, C, D, E"):
        make_splits({"train": train}, **options, leave_out=("Z",))
    with pytest.raises(UserError, match=r"nobody is left"):
        make_splits({"train": train}, **options, leave_out=tuple("ABCDE"))
