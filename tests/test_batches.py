"""Batches whose order and restart are exact."""

import numpy as np
import pytest

from jras_jax.data.batches import Batches
from jras_jax.data.grid import Grid
from jras_jax.data.slice_table import slice_table
from jras_jax.errors import UserError
from tests.volumes import blob, volume


@pytest.fixture(scope="module")
def table():
    volumes = [volume(blob(), patient=f"p{i}") for i in range(5)]
    return slice_table(volumes, Grid(16, 8.0, unknown_spacing="fit", percentiles=(0, 100)), drop_empty=True)


def rows(batches, n):
    return [next(batches)["row"].tolist() for _ in range(n)]


def test_each_epoch_sees_every_slice_once(table):
    seen = np.concatenate(rows(Batches(table, 4, seed=0), 10))
    assert sorted(seen[:20]) == list(range(20)) and sorted(seen[20:]) == list(range(20))
    assert seen[:20].tolist() != seen[20:].tolist()


def test_restart_is_exact(table):
    batches = Batches(table, 4, seed=3)
    rows(batches, 7)
    state = batches.state()
    ahead = rows(batches, 6)
    again = Batches(table, 4, seed=3)
    again.restore(state)
    assert rows(again, 6) == ahead
    assert rows(Batches(table, 4, seed=4), 3) != rows(Batches(table, 4, seed=3), 3)


def test_hosts_share_the_batches_of_one(table):
    whole = rows(Batches(table, 4, seed=0), 5)
    parts = [rows(Batches(table, 4, seed=0, host=h, hosts=2), 5) for h in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_batch_holds_what_its_rows_say(table):
    batch = next(Batches(table, 6, seed=0))
    np.testing.assert_array_equal(batch["image"], table.images[batch["row"]])
    np.testing.assert_array_equal(batch["mask"], table.masks[batch["row"]])
    np.testing.assert_array_equal(batch["patient"], table.patient[batch["row"]])
    assert batch["image"].dtype == np.uint8 and batch["row"].dtype == np.int32


def test_batch_sizes_that_cannot_work_are_said(table):
    with pytest.raises(UserError, match="only 20 training slices"):
        Batches(table, 21, seed=0)
    with pytest.raises(UserError, match="does not divide"):
        Batches(table, 5, seed=0, hosts=2)
