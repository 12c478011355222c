"""Hosts: agreement, the watch over the others, and the allocator of a program on CPU."""

import ctypes
import os
import pathlib
import subprocess
import sys

import pytest

from jras_jax import hosts
from jras_jax.errors import UserError


def test_a_single_host_needs_no_agreement(monkeypatch):
    asked = []
    monkeypatch.setattr(hosts, "_store", lambda: asked.append(True))
    assert hosts.any_host(True) is True and hosts.any_host(False) is False
    with hosts.first_host_first():
        asked.append("entered")
    assert asked == ["entered"]


def test_incomplete_host_flags_are_refused():
    with pytest.raises(UserError, match="together"):
        hosts.initialize_hosts("localhost:1", 2)


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
    monkeypatch.setattr(hosts, "_store", lambda: store)
    monkeypatch.setattr(hosts, "SILENCE_S", 0.3)
    monkeypatch.setattr(hosts._Watch, "EVERY_S", 0.02)

    def give_up(self, why):
        given_up.append(why)
        self._ended.set()

    monkeypatch.setattr(hosts._Watch, "_give_up", give_up)
    watch = hosts._Watch(0, 2)
    watch.start()
    watch.join(timeout=0.8)
    assert not given_up and watch.is_alive()  # as long as the other beats
    setattr(store, fate, True)
    watch.join(timeout=10)
    assert len(given_up) == 1 and words in given_up[0]


def test_a_host_that_ended_well_is_not_missed(monkeypatch):
    store, given_up = _Store(), []
    store.silent = "end"
    monkeypatch.setattr(hosts, "_store", lambda: store)
    monkeypatch.setattr(hosts, "SILENCE_S", 0.1)
    monkeypatch.setattr(hosts._Watch, "EVERY_S", 0.02)
    monkeypatch.setattr(hosts._Watch, "_give_up", lambda self, why: given_up.append(why))
    watch = hosts._Watch(0, 2)
    watch.start()
    watch.join(timeout=0.6)
    watch._end()
    assert not given_up and not watch.is_alive()
    assert store.words[hosts._Watch.ROOT + "0"] == "end"


MEMORY = """
import resource
import sys
import jax
import jax.numpy as jnp
from jras_jax import hosts

if sys.argv[1:] == ["keep"]:
    hosts.keep_freed_memory()
double, x = jax.jit(lambda x: x * 2), jnp.ones(40_000_000)
faults = []
for _ in range(25):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    double(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[1:]))  # what every step costs: a kept heap, too, still grows in the first ones (five with JAX 0.12)
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
