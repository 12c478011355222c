"""Checkpoints: every damaged or foreign one is refused with the reason; the best and the latest stay."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax import mesh
from jras_jax.run_folder import checkpoints
from jras_jax.run_folder.checkpoints import CheckpointError
from jras_jax.run_folder.layout import RunFolder


def arrays(devices=1, scale=1.0):
    on = mesh.make_mesh(devices, 1, jax.devices()[:devices])
    rows = np.arange(64, dtype=np.float32).reshape(16, 4) * scale
    return {
        "state": {"kernel": mesh.put_replicated(on, rows), "step": mesh.put_replicated(on, np.int32(scale))},
        "embeddings": mesh.put_whole(on, rows),
    }


@pytest.fixture
def saved(tmp_path):
    kept = checkpoints.Checkpoints(RunFolder(tmp_path))
    for step, dice in ((1, 0.2), (2, 0.7), (3, 0.4)):
        kept.save(step, arrays(scale=step), {"dice": dice, "step": step}, dice)
    kept.close()
    return tmp_path


def opened(workdir, act):
    kept = checkpoints.Checkpoints(RunFolder(workdir))
    try:
        return act(kept)
    finally:
        kept.close()


def restored(workdir, step, devices=1):
    return opened(workdir, lambda c: c.restore(step, checkpoints.abstract(arrays(devices))))


def test_best_and_latest_stay_with_their_checksums(saved):
    assert opened(saved, lambda c: (c.best(), c.latest())) == (2, 3)
    assert {p.name for p in (saved / "checkpoints").iterdir()} == {"2", "3"}
    assert {p.name for p in (saved / "checkpoints.sha256").iterdir()} == {"2.json", "3.json"}
    assert opened(saved, lambda c: c.meta(2)) == {"dice": 0.7, "step": 2}


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_it_is_restored_onto_any_number_of_devices(saved, devices):
    found = restored(saved, 2, devices)
    want = arrays(devices, scale=2)
    for ours, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(ours, other)
        assert ours.sharding == other.sharding


def test_a_part_is_restored_alone(saved):
    whole = checkpoints.abstract(arrays())
    part = opened(saved, lambda c: c.restore_part(2, {"state": {"kernel": whole["state"]["kernel"]}}))
    assert set(part) == {"state"} and set(part["state"]) == {"kernel"}
    np.testing.assert_array_equal(part["state"]["kernel"], arrays(scale=2)["state"]["kernel"])


def test_one_flipped_bit_in_any_file_is_refused(saved):
    folder = saved / "checkpoints" / "2"
    files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        at = len(content) // 2
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(CheckpointError, match="does not match its checksum"):
            restored(saved, 2)
        path.write_bytes(content)
    opened(saved, lambda c: c.verify(2))


def test_a_missing_file_is_refused(saved):
    listed = json.loads((saved / "checkpoints.sha256" / "2.json").read_text())
    name = next(n for n in listed if n.startswith("state/d/"))
    (saved / "checkpoints" / "2" / name).unlink()
    with pytest.raises(CheckpointError, match="is missing: the checkpoint is damaged"):
        restored(saved, 2)
    with pytest.raises(CheckpointError, match="is missing"):
        restored(saved, 9)


def test_arrays_of_another_model_are_refused_by_name(saved):
    target = checkpoints.abstract(arrays())
    kernel = target["state"]["kernel"]
    wrong = {
        "expected": jax.ShapeDtypeStruct((16, 5), kernel.dtype, sharding=kernel.sharding),
        "bfloat16": jax.ShapeDtypeStruct(kernel.shape, jnp.bfloat16, sharding=kernel.sharding),
    }
    for words, shape in wrong.items():
        other = {**target, "state": {**target["state"], "kernel": shape}}
        with pytest.raises(CheckpointError, match=f"another model.*state/kernel.*{words}"):
            opened(saved, lambda c, other=other: c.restore(2, other))
    with pytest.raises(CheckpointError, match="embeddings: only in the checkpoint"):
        opened(saved, lambda c: c.restore(2, {"state": target["state"]}))
