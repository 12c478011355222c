"""The table of slices: its rows' identity and neighbours, and that edits change nothing else."""

import dataclasses

import numpy as np
import pytest

from jras_jax.data.grid import Grid
from jras_jax.data.slice_table import base_first, joined, slice_table, without
from jras_jax.errors import UserError
from tests.slice_tables import equal, table
from tests.volumes import blob, volume


def described(rows):
    """What each row is, by name: what no renumbering may change. {(case, slice): (...)}."""
    key = lambda i: (rows.describe(i)["case"], rows.describe(i)["slice"])  # noqa: E731
    return {
        key(i): (
            rows.patients[rows.patient[i]],
            rows.vendors[rows.vendor[i]],
            rows.images[i].tobytes(),
            rows.masks[i].tobytes(),
            int(rows.phase[i]),
            float(rows.position[i]),
            tuple(None if n < 0 else key(n) for n in rows.neighbours[i]),
        )
        for i in range(len(rows))
    }


def test_table_neighbours_and_identity():
    first, second = blob(), blob()
    first[..., 0] = 0  # an empty slice at the end and one in the middle
    second[..., 2] = 0
    table = slice_table(
        [volume(first), volume(second, patient="p2", phase="ES")],
        Grid(32, 4.0, unknown_spacing="fit", percentiles=(0, 100)),
        drop_empty=True,
    )
    assert len(table) == 6
    assert table.slice_index.tolist() == [1, 2, 3, 0, 1, 3]
    assert table.neighbours.tolist() == [[-1, 1], [0, 2], [1, -1], [-1, 4], [3, -1], [-1, -1]]
    assert table.patient.tolist() == [0, 0, 0, 1, 1, 1] and table.phase.tolist() == [0] * 3 + [1] * 3
    assert table.cases == ("p1_ED", "p2_ES")
    assert (
        len(slice_table([volume(first)], Grid(32, 4.0, unknown_spacing="fit", percentiles=(0, 100)), drop_empty=False))
        == 4
    )


def test_base_is_where_the_ventricle_is_wide():
    mask = np.concatenate([blob(radius=r)[..., :1] for r in (14, 12, 8, 4)], -1)
    assert base_first(mask) and not base_first(mask[..., ::-1])


def test_a_removed_patient_leaves_all_other_rows_as_they_were():
    rows = table()
    left = without(rows, ("b",))
    want = {key: value for key, value in described(rows).items() if value[0] != "b"}
    assert described(left) == want
    assert left.patients == ("a", "c") and left.cases == ("a_ED", "a_ES", "c_ED", "c_ES")
    assert left.vendors == ("v",)  # only b was of vendor w


def test_joined_tables_hold_the_rows_of_both():
    a, b = table(("a", "b")), table(("c", "d"), slices=2, seed=1, vendors=("w", "x"))
    both = joined(a, b)
    assert described(both) == described(a) | described(b)
    assert both.patients == ("a", "b", "c", "d") and both.vendors == ("v", "w", "x")


def test_of_a_case_in_both_tables_the_second_one_counts():
    old, new = table(("a", "b")), table(("b", "c"), slices=2, seed=1)
    both = joined(old, new)
    want = {key: value for key, value in described(old).items() if value[0] != "b"} | described(new)
    assert described(both) == want
    assert len(both) == len(want)  # no row twice
    assert both.patients.count("b") == 1


def test_removing_what_was_added_gives_the_first_table_back():
    a, b = table(("a", "b")), table(("c",), seed=1)
    equal(without(joined(a, b), ("c",)), a)


def test_what_cannot_be_joined_or_removed_is_said():
    rows = table()
    with pytest.raises(UserError, match=r"no patient z; it has a, b, c"):
        without(rows, ("z",))
    with pytest.raises(UserError, match="no slice would be left"):
        without(rows, rows.patients)
    small = dataclasses.replace(rows, images=rows.images[:, :2, :2], masks=rows.masks[:, :2, :2])
    with pytest.raises(UserError, match="2 and 4 pixels"):
        joined(small, rows)
