"""Contrastive pre-training of the retriever: honest pairs, a file that a run starts from."""

import csv
import dataclasses
import os
import pathlib
import shutil
import signal

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy

from jras_jax.commands import cli
from jras_jax.data.batches import Batches
from jras_jax.errors import UserError
from jras_jax.joint.build import build_model, init_variables
from jras_jax.run_folder.layout import RunFolder
from jras_jax.training import initial, pretrain
from tests.test_step import ROWS, table

DEMO = pathlib.Path(__file__).resolve().parents[1] / "configs" / "demo.py"
SHORT = {"pretrain__num_steps": 3, "pretrain__batch_size": 8, "train__log_every": 1}


def batch(rows):
    rows = np.asarray(rows, np.int32)
    return {"image": table().images[rows], "mask": table().masks[rows], "patient": table().patient[rows], "row": rows}


def with_neighbours():
    index = np.arange(ROWS)
    near = np.stack([np.where(index % 4 > 0, index - 1, -1), np.where(index % 4 < 3, index + 1, -1)], 1)
    return dataclasses.replace(table(), neighbours=near.astype(np.int32))


def test_a_partner_is_a_neighbour_of_the_same_patient_or_the_slice_itself(tiny):
    rows, config = with_neighbours(), tiny.config(pretrain__neighbour_probability=0.5)
    own = other = 0
    for step in range(30):
        chosen = np.random.default_rng(step).permutation(ROWS)[:8]
        found = pretrain.pairs(batch(chosen), rows, config=config, step=step)
        for i, row in enumerate(chosen):
            partner = int(np.flatnonzero([(found["partner"][i] == image).all() for image in rows.images])[0])
            assert partner == row if found["same"][i] else partner in rows.neighbours[row]
            assert rows.patient[partner] == rows.patient[row]
            own, other = own + (partner == row), other + (partner != row)
    assert own > 40 and other > 40


def test_pairs_are_fixed_by_seed_and_step_and_may_all_be_views_of_one_slice(tiny):
    rows, config = with_neighbours(), tiny.config(pretrain__neighbour_probability=0.5)
    a, b, c = (pretrain.pairs(batch(range(8)), rows, config=config, step=step) for step in (3, 3, 4))
    np.testing.assert_array_equal(a["same"], b["same"])
    np.testing.assert_array_equal(a["partner"], b["partner"])
    assert (a["partner"] != c["partner"]).any()
    alone = pretrain.pairs(batch(range(8)), rows, config=tiny.config(pretrain__neighbour_probability=0.0), step=3)
    assert alone["same"].all() and (alone["partner"] == alone["image"]).all()


@pytest.mark.slow
def test_a_run_starts_from_a_pretrained_retriever(tiny, tmp_path, capsys):
    folder = RunFolder(tmp_path / "retriever")
    arguments = [f"--config={DEMO}", f"--workdir={folder}", *tiny.arguments(**SHORT)]
    assert cli.main(["pretrain", *arguments]) == 0
    assert f"--config.retriever.init_from={folder}" in capsys.readouterr().out
    with folder.metrics.open(newline="") as f:
        losses = [float(row["loss"]) for row in csv.DictReader(f)]
    assert len(losses) == 3 and np.isfinite(losses).all()
    trained = safetensors.numpy.load_file(folder.retriever)
    config = tiny.config(retriever__init_from=tmp_path / "retriever")
    started = initial.variables(build_model(config), config)["params"]["retriever"]
    started = flax.traverse_util.flatten_dict(started, sep="/")
    random = jax.jit(lambda: init_variables(build_model(config), config))()["params"]["retriever"]
    random = flax.traverse_util.flatten_dict(random, sep="/")
    for name in ("project2/kernel", "encoder/block_0/mlp/fc1/kernel"):
        found = next(x for key, x in trained.items() if key.endswith(name))
        np.testing.assert_array_equal(started[name], found)
        assert np.abs(started[name] - np.asarray(random[name])).max() > 1e-4


def column(folder, name="loss"):
    with folder.metrics.open(newline="") as f:
        return [row[name] for row in csv.DictReader(f)]


@pytest.mark.slow
def test_a_stopped_pretraining_resumes_to_the_bit(tiny, tmp_path, monkeypatch, capsys):
    """Stopped by SIGTERM, then killed between its last checkpoint and its file; then finished, and left alone."""
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    words = lambda folder: ["pretrain", f"--config={DEMO}", f"--workdir={folder}", *tiny.arguments(**SHORT)]  # noqa: E731
    assert cli.main(words(whole)) == 0
    plain, drawn = Batches.__next__, []

    def draw(self):
        drawn.append(1)
        if len(drawn) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__next__", draw)
        capsys.readouterr()
        assert cli.main(words(parts)) == 0
    assert "stopped by a signal at step 2; the same command resumes" in capsys.readouterr().out
    assert not parts.retriever.exists() and not parts.lock.exists()
    with monkeypatch.context() as patch:
        patch.setattr(pretrain.convert, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cli.main(words(parts))
    assert not parts.retriever.exists()
    for _ in range(2):
        assert cli.main(words(parts)) == 0
        assert parts.retriever.read_bytes() == whole.retriever.read_bytes()
        assert column(parts) == column(whole) and len(column(whole)) == 3
    rates = [float(rate) for rate in column(whole, "lr_retriever")]  # x 0.1 after 70% of the steps
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4]) and column(parts, "lr_retriever") == column(whole, "lr_retriever")


def test_training_and_pretraining_never_share_a_folder(tiny, trained_run, tmp_path, capsys):
    before = {p.name: p.read_bytes() for p in trained_run.iterdir() if p.is_file()}
    arguments = [f"--config={DEMO}", f"--workdir={trained_run}", *tiny.arguments(**SHORT)]
    assert cli.main(["pretrain", *arguments]) == 2
    assert "holds a run of jras train, whose files jras pretrain would overwrite" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in trained_run.iterdir() if p.is_file()} == before
    earlier = RunFolder(tmp_path / "retriever")  # as an earlier version left it
    earlier.path.mkdir()
    shutil.copy(trained_run / "config.json", earlier.config)
    earlier.retriever.touch()
    arguments = [f"--config={DEMO}", f"--workdir={earlier}", *tiny.arguments()]
    assert cli.main(["train", *arguments]) == 2
    assert "holds a run of jras pretrain, whose files jras train would overwrite" in capsys.readouterr().err


def test_what_cannot_be_pretrained_is_refused(tiny, tmp_path):
    folder, data = RunFolder(tmp_path), tiny.data()
    with pytest.raises(UserError, match=r"retrieval.enabled=True"):
        pretrain.pretrain_retriever(tiny.config(retrieval__enabled=False), folder, data)
    with pytest.raises(UserError, match=r"pretrain.batch_size=5000"):
        pretrain.pretrain_retriever(tiny.config(pretrain__batch_size=5000), folder, data)
    with pytest.raises(UserError, match=r"retriever.init_from='nowhere': no such file"):
        config = tiny.config(retriever__init_from="nowhere")
        initial.variables(build_model(config), config)
