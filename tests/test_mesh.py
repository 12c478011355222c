"""The mesh: sizes that fit, rows where they belong, rules for large kernels."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jras_jax import mesh
from jras_jax.errors import UserError


def test_the_data_axis_takes_what_the_model_axis_leaves():
    assert dict(mesh.make_mesh().shape) == {"data": 8, "model": 1}
    assert dict(mesh.make_mesh(-1, 2).shape) == {"data": 4, "model": 2}
    assert dict(mesh.make_mesh(2, 2).shape) == {"data": 2, "model": 2}
    assert dict(mesh.make_mesh(devices=jax.devices()[:1]).shape) == {"data": 1, "model": 1}


@pytest.mark.parametrize(("data", "model"), [(9, 1), (-1, 16), (5, 2), (0, 1)])
def test_a_mesh_that_does_not_fit_is_refused(data, model):
    with pytest.raises(UserError, match=r"does not fit the 8 devices"):
        mesh.make_mesh(data, model)


def test_a_batch_must_divide():
    device_mesh = mesh.make_mesh()
    mesh.check_batch(device_mesh, 16, "train.batch_size")
    with pytest.raises(UserError, match=r"config.train.batch_size=12 does not divide by the 8 devices"):
        mesh.check_batch(device_mesh, 12, "train.batch_size")


def test_rows_are_split_in_order_and_come_back_whole():
    device_mesh = mesh.make_mesh(4, 2)
    x = np.arange(16.0).reshape(8, 2)
    for put in (mesh.put_rows, mesh.put_whole):
        placed = put(device_mesh, x)
        first = next(s for s in placed.addressable_shards if s.index[0].start == 2)
        np.testing.assert_array_equal(first.data, x[2:4])
        np.testing.assert_array_equal(mesh.to_host(placed), x)
    everywhere = mesh.put_replicated(device_mesh, {"a": x})["a"]
    assert everywhere.is_fully_replicated


def test_large_kernels_are_shared_by_the_model_axis_and_nothing_else():
    device_mesh = mesh.make_mesh(2, 4)
    tree = {
        "block": {
            "query": {"kernel": np.zeros((8, 16)), "bias": np.zeros(16)},
            "attention": {"output": {"kernel": np.zeros((16, 8)), "bias": np.zeros(8)}},
            "fc1": {"kernel": np.zeros((8, 30))},  # does not divide by 4
            "fc2": {"kernel": np.zeros((32, 8))},
            "norm": {"scale": np.zeros(8)},
        },
        "conv": {"kernel": np.zeros((3, 3, 8, 16))},
    }
    placed = jax.tree.map(lambda s: s.spec, mesh.parameter_shardings(tree, device_mesh))
    block = placed["block"]
    assert block["query"] == {"kernel": P(None, "model"), "bias": P("model")}
    assert block["attention"]["output"] == {"kernel": P("model", None), "bias": P()}
    assert block["fc1"]["kernel"] == P() and block["fc2"]["kernel"] == P("model", None)
    assert block["norm"]["scale"] == P() and placed["conv"]["kernel"] == P()
    whole = mesh.parameter_shardings(tree, mesh.make_mesh(8, 1))
    assert all(s.spec == P() for s in jax.tree.leaves(whole))
