"""Checkpoints: every damaged or foreign one is refused with the reason; the best and the latest stay."""

import errno
import json
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jras_jax import mesh
from jras_jax.run_folder import checkpoints
from jras_jax.run_folder.checkpoints import CheckpointError
from jras_jax.run_folder.layout import RunFolder
from jras_jax.training import skips


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


def files_of(workdir, step):
    listed = sorted(p for p in (workdir / "checkpoints" / str(step)).rglob("*") if p.is_file() and p.stat().st_size)
    return [*listed, workdir / "checkpoints.sha256" / f"{step}.json"]


def resumed(workdir, **given):
    found = opened(workdir, lambda c: c.resume(checkpoints.abstract(arrays()), **given))
    return None if found is None else found[0]


def flipped(content):
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("harm", [flipped, lambda content: content[: len(content) // 2], lambda content: b""])
def test_a_damaged_newest_step_gives_way_to_the_one_before(saved, tmp_path_factory, harm):
    """Each file in turn, the manifest among them; the damaged step is kept with what belongs to it."""
    for number, path in enumerate(files_of(saved, 3)):
        workdir = tmp_path_factory.mktemp(f"copy{number}") / "run"
        shutil.copytree(saved, workdir)
        victim = workdir / path.relative_to(saved)
        victim.write_bytes(harm(victim.read_bytes()))
        assert resumed(workdir) == 2, path
        assert (workdir / "checkpoints.damaged" / "3" / "state").is_dir()
        assert opened(workdir, lambda c: (c.latest(), c.best())) == (2, 2)


def test_a_step_without_checksums_is_never_signed_nor_used(saved, caplog):
    """Each flip of an unsigned newest step: nobody restores it, and no later save certifies it."""
    (saved / "checkpoints.sha256" / "3.json").unlink()
    victim = files_of(saved, 3)[0]
    victim.write_bytes(flipped(victim.read_bytes()))
    assert opened(saved, lambda c: (c.latest(), c.best())) == (2, 2)
    with pytest.raises(CheckpointError, match=r"3 has no checksums in checkpoints.sha256"):
        restored(saved, 3)
    assert resumed(saved) == 2
    assert [m for m in caplog.messages if "has no checksums: it is kept in" in m]
    opened(saved, lambda c: c.save(4, arrays(scale=4), {}, 0.1))
    assert {p.name for p in (saved / "checkpoints.sha256").iterdir()} == {"2.json", "4.json"}
    assert {p.name for p in (saved / "checkpoints").iterdir()} == {"2", "4"}


def test_steps_without_any_checksums_are_left_to_the_user(saved):
    shutil.rmtree(saved / "checkpoints.sha256")
    with pytest.raises(CheckpointError, match=r"3 has no checksums.*copy that folder too, or remove .*checkpoints to"):
        resumed(saved)
    with pytest.raises(CheckpointError, match=r"3 has no checksums.*copy that folder too"):
        opened(saved, lambda c: c.restore_best(checkpoints.abstract(arrays())))
    assert {p.name for p in (saved / "checkpoints").iterdir()} == {"2", "3"}


def test_if_every_step_is_damaged_nothing_is_trained_from_the_beginning_unasked(saved):
    for step in (2, 3):
        (saved / "checkpoints" / str(step) / "state" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="and there is no older checkpoint"):
        resumed(saved)


def test_arrays_that_are_not_finite_give_way_too(saved):
    """As saved by an earlier version while a run diverged."""
    broken = arrays()
    broken["state"]["kernel"] = broken["state"]["kernel"].at[3, 1].set(jnp.nan)
    opened(saved, lambda c: c.save(4, broken, {}, 0.9))
    assert resumed(saved, sound=lambda tree: bool(skips.all_finite(tree))) == 3


def test_remains_of_interrupted_saves_are_removed_before_training(saved):
    for name in ("5.saving.orbax-checkpoint-tmp", "5.saving", "1.removed"):
        (saved / "checkpoints" / name / "state").mkdir(parents=True)
    (saved / "checkpoints.sha256" / "5.json").write_text("{}")  # signed, but not committed
    assert opened(saved, lambda c: (c.latest(), c.finished())) == (3, [2, 3])
    assert resumed(saved) == 3
    assert {p.name for p in (saved / "checkpoints").iterdir()} == {"2", "3"}
    assert {p.name for p in (saved / "checkpoints.sha256").iterdir()} == {"2.json", "3.json"}


def test_what_is_not_validated_is_never_the_best_and_of_two_equals_the_earlier_is(tmp_path):
    kept = checkpoints.Checkpoints(RunFolder(tmp_path))
    for step, dice in ((1, 0.0), (2, None), (3, float("nan"))):
        kept.save(step, arrays(scale=step), {"step": step}, dice)
        kept.settle()
        assert (kept.best(), kept.latest()) == (1, step)
    kept.score(3, 0.0)
    assert kept.best() == 1
    kept.score(3, 0.25)
    assert kept.best() == 3 and kept.finished() == [1, 3]  # the one before stays: one damage must not lose the run
    kept.verify(3)
    kept.close()
    path = tmp_path / "checkpoints" / "3" / "metrics" / "metrics"
    path.write_text(path.read_text().replace("0.25", "0.05"))
    assert opened(tmp_path, lambda c: c.best()) == 1


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["commit", "sign", "start"])
def test_a_save_that_fails_keeps_all_before_and_the_next_one_is_tried(saved, monkeypatch, caplog, where):
    target = {"commit": (checkpoints.files, "write_json"), "sign": (checkpoints.manifests, "sign")}
    kept = checkpoints.Checkpoints(RunFolder(saved))
    with monkeypatch.context() as patch:
        patch.setattr(*target.get(where, (ocp.AsyncCheckpointer, "save")), full_disk)
        kept.save(4, arrays(scale=4), {}, 0.9)
        with pytest.raises(CheckpointError, match=r"step 4 could not be saved.*no space is left.*step 3 is intact"):
            kept.settle()
    assert len([m for m in caplog.messages if "step 4 could not be saved" in m]) == 1
    for step in (2, 3):
        kept.verify(step)
    assert {p.name for p in (saved / "checkpoints").iterdir()} == {"2", "3"}
    assert {p.name for p in (saved / "checkpoints.sha256").iterdir()} == {"2.json", "3.json"}
    kept.save(5, arrays(scale=5), {}, 0.9)
    kept.settle()
    kept.close()
    assert opened(saved, lambda c: (c.best(), c.latest(), c.finished())) == (5, 5, [3, 5])


def test_a_disk_that_fills_up_loses_nothing(tmp_path):
    """On a real file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"mounting is not permitted: {mount.stderr.strip()}")
    try:
        rng = np.random.default_rng(0)  # which compresses badly
        tree = {"state": jax.device_put(rng.integers(0, 2**31, 2**17, dtype=np.int32))}
        kept = checkpoints.Checkpoints(RunFolder(disk))
        kept.save(1, tree, {}, 0.5)
        kept.settle()
        (disk / "other").write_bytes(b"\0" * (3 << 20))
        kept.save(2, tree, {}, 0.6)
        with pytest.raises(CheckpointError, match=r"step 2 could not be saved.*no space is left.*step 1 is intact"):
            kept.settle()
        kept.verify(1)
        (disk / "other").unlink()
        kept.save(3, tree, {}, 0.7)
        kept.settle()
        kept.close()
        found = opened(disk, lambda c: c.restore(3, checkpoints.abstract(tree)))
        np.testing.assert_array_equal(found["state"], tree["state"])
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_run_that_trains_meanwhile_may_remove_what_was_the_best(saved, monkeypatch):
    target = {"state": {"kernel": checkpoints.abstract(arrays())["state"]["kernel"]}}
    reader = checkpoints.Checkpoints(RunFolder(saved))
    plain = reader.restore_part

    def meanwhile(step, part):
        if step == 2:
            opened(saved, lambda c: c.save(4, arrays(scale=4), {}, 0.9))
        return plain(step, part)

    monkeypatch.setattr(reader, "restore_part", meanwhile)
    step, part = reader.restore_best(target)
    assert step == 4
    np.testing.assert_array_equal(part["state"]["kernel"], arrays(scale=4)["state"]["kernel"])
