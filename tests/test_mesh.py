"""The mesh: sizes that fit, rows where they belong, rules for large kernels."""

import ctypes
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jras_jax import mesh
from jras_jax.errors import UserError
from jras_jax.hosts import any_host, first_host_first, initialize_hosts


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


def test_a_single_host_needs_no_agreement(monkeypatch):
    asked = []
    monkeypatch.setattr(mesh, "_store", lambda: asked.append(True))
    assert any_host(True) is True and any_host(False) is False
    with first_host_first():
        asked.append("entered")
    assert asked == ["entered"]


def test_incomplete_host_flags_are_refused():
    with pytest.raises(UserError, match="together"):
        initialize_hosts("localhost:1", 2)


class _Store:
    """Stands for the job's key-value store: host 1 beats until it is told to fall silent."""

    def __init__(self):
        self.words, self.beats, self.silent, self.gone = {}, 0, False, False

    def key_value_set(self, key, value, allow_overwrite=False):
        if self.gone:
            raise RuntimeError("UNAVAILABLE")
        self.words[key] = value

    def key_value_dir_get(self, root):
        self.beats += not self.silent
        return [*self.words.items(), (root + "1", "end" if self.silent == "end" else str(self.beats))]


@pytest.mark.parametrize(("fate", "words"), [("silent", "host 1 has not been heard of"), ("gone", "cannot be reached")])
def test_a_lost_host_is_said_and_ends_this_one(monkeypatch, fate, words):
    store, given_up = _Store(), []
    monkeypatch.setattr(mesh, "_store", lambda: store)
    monkeypatch.setattr(mesh, "SILENCE_S", 0.3)
    monkeypatch.setattr(mesh._Watch, "EVERY_S", 0.02)

    def give_up(self, why):
        given_up.append(why)
        self._ended.set()

    monkeypatch.setattr(mesh._Watch, "_give_up", give_up)
    watch = mesh._Watch(0, 2)
    watch.start()
    watch.join(timeout=0.8)
    assert not given_up and watch.is_alive()  # as long as the other beats
    setattr(store, fate, True)
    watch.join(timeout=10)
    assert len(given_up) == 1 and words in given_up[0]


def test_a_host_that_ended_well_is_not_missed(monkeypatch):
    store, given_up = _Store(), []
    store.silent = "end"
    monkeypatch.setattr(mesh, "_store", lambda: store)
    monkeypatch.setattr(mesh, "SILENCE_S", 0.1)
    monkeypatch.setattr(mesh._Watch, "EVERY_S", 0.02)
    monkeypatch.setattr(mesh._Watch, "_give_up", lambda self, why: given_up.append(why))
    watch = mesh._Watch(0, 2)
    watch.start()
    watch.join(timeout=0.6)
    watch._end()
    assert not given_up and not watch.is_alive()
    assert store.words[mesh._Watch.ROOT + "0"] == "end"


MEMORY = """
import resource
import sys
import jax
import jax.numpy as jnp
from jras_jax import mesh

if sys.argv[1:] == ["keep"]:
    mesh.keep_freed_memory()
double, x = jax.jit(lambda x: x * 2), jnp.ones(40_000_000)
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    double(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[1:]))  # what every step costs: a kept heap, too, still grows in single ones
"""


def test_a_program_on_cpu_does_not_fetch_its_memory_from_the_kernel_again():
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("the C library is not glibc")
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    root = pathlib.Path(__file__).parents[1]

    def page_faults(*arguments: str) -> int:
        command = [sys.executable, "-c", MEMORY, *arguments]
        return int(subprocess.run(command, cwd=root, env=own, capture_output=True, text=True, check=True).stdout)

    assert 10 * page_faults("keep") < page_faults()
