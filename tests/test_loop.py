"""Whole runs: what they leave behind, and that stopping and going on changes no bit of them."""

import csv
import errno
import json
import os
import shutil
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jras_jax.commands import cli
from jras_jax.data.batches import Batches
from jras_jax.errors import Stopped, UserError
from jras_jax.run_folder import manifests
from jras_jax.run_folder.checkpoints import Checkpoints
from jras_jax.run_folder.layout import RunFolder
from jras_jax.training import joint_run


def arrays_of(workdir, at):
    """All arrays of a checkpoint (state and gallery embeddings) by name, without a model: as they were saved."""
    kept = Checkpoints(RunFolder(workdir))
    try:
        meta = kept.meta(at)
        shapes = ocp.StandardCheckpointHandler().metadata(workdir.resolve() / "checkpoints" / str(at) / "state").tree
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), shapes)
        tree = kept.restore(at, target)
    finally:
        kept.close()
    return {str(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}, meta


def same_bits(a, b):
    (ours, meta), (other, other_meta) = a, b
    assert ours.keys() == other.keys() and len(ours) > 100
    for name in ours:
        np.testing.assert_array_equal(ours[name], other[name], err_msg=name)
    assert meta["data"] == other_meta["data"]


@pytest.fixture
def stop_after(monkeypatch):
    """SIGTERM, as a cluster sends it, while the loop fetches the batch of step n."""

    def arrange(n):
        plain, fetched = Batches.__next__, []

        def fetch(self):
            fetched.append(1)
            if len(fetched) == n:
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(self)

        monkeypatch.setattr(Batches, "__next__", fetch)

    return arrange


def interrupted(tiny, workdir, stop_after, at, monkeypatch, **changes):
    before = signal.getsignal(signal.SIGTERM)
    stop_after(at)
    with pytest.raises(Stopped, match=f"stopped by a signal at step {at}") as stopped:
        tiny.train(workdir, **changes)
    assert stopped.value.status == 0
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()
    assert checkpoint_steps(workdir)[-1] == at


def checkpoint_steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def test_a_run_leaves_what_the_architecture_promises(trained_run):
    there = {p.name for p in trained_run.iterdir()}
    assert {"config.json", "splits.json", "metrics.csv", "run.json", "checkpoints", "checkpoints.sha256"} <= there
    assert any(name.startswith("events") for name in there)
    lines = (trained_run / "metrics.csv").read_text().splitlines()
    columns = lines[0].split(",")
    assert {"step", "loss", "dice", "overlap_loss", "val/dice", "val/retrieval_dice_1"} <= set(columns)
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3", "4"]
    splits = json.loads((trained_run / "splits.json").read_text())
    assert len(splits["train"]) == 4 and len(splits["validation"]) == 2 and len(splits["test"]) == 3
    assert not set(splits["train"]) & (set(splits["validation"]) | set(splits["test"]))


def test_best_and_latest_are_kept(trained_run):
    kept = Checkpoints(RunFolder(trained_run))
    best, latest = kept.best(), kept.latest()
    kept.close()
    assert latest == 4
    kept = {best, latest} if best != latest else {2, 4}  # never a single one, which damage would be the end of
    assert set(checkpoint_steps(trained_run)) == kept
    manifests = {p.stem for p in (trained_run / "checkpoints.sha256").iterdir()}
    assert manifests == {str(step) for step in kept}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("refresh", "more"),
    [
        ("epochs", {}),
        ("steps", {}),
        ("rolling", {}),
        ("rolling", {"retrieval__embeddings": "int8"}),
        ("steps", {"retrieval__overlap_rows": 6, "retrieval__gallery_memory": "host"}),
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(tiny, tmp_path, stop_after, monkeypatch, refresh, more):
    """Step 3 of 6 falls between two validations, checkpoints and (of two steps) refreshes."""
    changes = {"train__num_steps": 6, "train__checkpoint_every": 6, "train__eval_every": 6} | more
    if refresh != "epochs":
        changes |= {"retrieval__refresh": refresh, "retrieval__refresh_every": 2}
    steps, plain = [], joint_run.compile_step
    with monkeypatch.context() as patch:
        patch.setattr(joint_run, "compile_step", lambda *a: steps.append(plain(*a)) or steps[-1])
        whole = tiny.train(tmp_path / "whole", **changes)
    assert [s._cache_size() for s in steps] == [1]  # neither a refresh nor a validation makes it compile again
    parts = tmp_path / "parts"
    interrupted(tiny, parts, stop_after=stop_after, at=3, monkeypatch=monkeypatch, **changes)
    tiny.train(parts, **changes)
    same_bits(arrays_of(parts, 6), arrays_of(whole, 6))
    logged = [(d / "metrics.csv").read_text().splitlines() for d in (parts, whole)]
    for name in ("step", "loss", "dice", "grad_norm"):
        a, b = ([row.split(",")[lines[0].split(",").index(name)] for row in lines[1:]] for lines in logged)
        assert a == b and len(a) == 6


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices(tiny, trained_run, tmp_path, stop_after, monkeypatch):
    workdir = tmp_path / "run"
    interrupted(tiny, workdir, stop_after=stop_after, at=3, monkeypatch=monkeypatch, mesh__data=8)
    tiny.train(workdir, mesh__data=1)
    ours, one = (
        [row.split(",") for row in (d / "metrics.csv").read_text().splitlines()] for d in (workdir, trained_run)
    )
    at = ours[0].index("loss")
    for a, b in zip(ours[1:], one[1:], strict=True):
        assert float(a[at]) == pytest.approx(float(b[at]), abs=2e-5)


def test_a_finished_run_is_not_trained_further(tiny, trained_run):
    before = (trained_run / "metrics.csv").read_bytes()
    assert tiny.train(trained_run) == trained_run
    assert (trained_run / "metrics.csv").read_bytes() == before


def test_the_folder_of_another_run_is_refused(tiny, trained_run):
    with pytest.raises(UserError) as refused:
        tiny.train(trained_run, optim__lr_backbone=0.01, retrieval__top_k=3, eval__tta=True)
    said = str(refused.value)
    assert "config.retrieval.top_k: 2 -> 3, config.optim.lr_backbone: 0.003 -> 0.01. Give another --workdir" in said
    assert str(trained_run) in said and "tta" not in said and "\n" not in said
    assert json.loads((trained_run / "config.json").read_text())["optim"]["lr_backbone"] == 0.003


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_is_used(tiny, trained_run, tmp_path, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(trained_run, workdir)
    whole = arrays_of(trained_run, 4)
    data = [p for p in (workdir / "checkpoints" / "4" / "state").rglob("*") if p.is_file() and "/d/" in str(p)]
    victim = max(data, key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 4
    victim.write_bytes(content)
    tiny.train(workdir)
    lines = [line for line in caplog.messages if "does not match its checksum" in line]
    assert len(lines) == 1 and "checkpoints.damaged/4; step 2 is used" in lines[0]
    assert (workdir / "checkpoints.damaged" / "4" / victim.relative_to(workdir / "checkpoints" / "4")).is_file()
    same_bits(arrays_of(workdir, 4), whole)
    # Without an older one there is nothing to go back to: the user decides.
    shutil.rmtree(workdir / "checkpoints" / "2")
    (workdir / "checkpoints" / "4" / "state" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(UserError, match=r"does not match its checksum.*no older checkpoint.*remove .*checkpoints"):
        tiny.train(workdir)
    assert checkpoint_steps(workdir) == [4]


def test_a_start_that_fails_leaves_nothing_behind(tiny, tmp_path, monkeypatch):
    """Too large a batch, wrong options of the model, a first step that finds no memory."""
    workdir = tmp_path / "run"
    for wrong in ({"train__batch_size": 500}, {"backbone__options__levels": 0}, {"backbone__init_from": "nowhere"}):
        with pytest.raises(Exception):  # noqa: B017 - whatever it is
            tiny.train(workdir, **wrong)
        assert not workdir.exists()

    def no_memory(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(joint_run, "compile_step", lambda *_: no_memory)
        with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
            tiny.train(workdir)
    assert not workdir.exists()


@pytest.mark.parametrize("failing", [2, 4])
def test_a_full_disk_keeps_the_run_alive_or_ends_it_with_everything_before_intact(
    tiny, trained_run, tmp_path, monkeypatch, capsys, caplog, failing
):
    """At step 2 there is a next time, at step 4, the last one, there is none."""
    plain, workdir = manifests.sign, tmp_path / "run"

    def full(folder, manifest):
        if folder.name == f"{failing}.saving":
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(folder, manifest)

    words = ["train", "--config=configs/demo.py", f"--workdir={workdir}", "--no_report", *tiny.arguments()]
    with monkeypatch.context() as patch:
        patch.setattr(manifests, "sign", full)
        assert cli.main(words) == (0 if failing == 2 else 2)
    said = capsys.readouterr().err
    assert len([m for m in caplog.messages if f"the checkpoint of step {failing} could not be saved" in m]) == 1
    assert "Traceback" not in said
    assert checkpoint_steps(workdir) == ([4] if failing == 2 else [2])
    if failing == 4:
        last = said.splitlines()[-1]
        assert last.startswith("error: ") and "step 2 is intact. Free some space" in last
        assert cli.main(words) == 0
    same_bits(arrays_of(workdir, 4), arrays_of(trained_run, 4))


def test_what_is_logged_does_not_depend_on_being_stopped(tiny, tmp_path, stop_after, monkeypatch):
    """neighbour_drift is measured at a refresh (here at step 2) and stays in the rows until the next one."""
    changes = {
        "train__num_steps": 5,
        "train__eval_every": 5,
        "train__checkpoint_every": 5,
        "retrieval__refresh": "steps",
        "retrieval__refresh_every": 2,
    }
    whole, parts = tiny.train(tmp_path / "whole", **changes), tmp_path / "parts"
    interrupted(tiny, parts, stop_after=stop_after, at=3, monkeypatch=monkeypatch, **changes)
    tiny.train(parts, **changes)
    logged = []
    for workdir in (whole, parts):
        with (workdir / "metrics.csv").open(newline="") as f:
            rows = list(csv.DictReader(f))
        logged.append([{k: v for k, v in row.items() if k not in ("slices_per_s", "val/seconds")} for row in rows])
    assert logged[0] == logged[1]
    assert [bool(row["neighbour_drift"]) for row in logged[0]] == [False, False, True, True, True]


def test_too_few_candidates_end_the_run_before_its_first_step(tiny, tmp_path):
    with pytest.raises(UserError, match=r"retrieval.top_k=999"):
        tiny.train(tmp_path / "run", retrieval__top_k=999)
