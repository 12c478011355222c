"""Steps that are not finite: skipped, counted, and too many end the run with advice that can be followed."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jras_jax.commands import cli
from jras_jax.data.batches import Batches
from jras_jax.run_folder.checkpoints import Checkpoints
from jras_jax.run_folder.layout import RunFolder
from jras_jax.training import skips
from tests.test_step import ROWS, table

QUICK = {"retrieval__enabled": False, "backbone__options__base_channels": 4, "train__eval_every": 100}


@pytest.fixture
def poison(monkeypatch):
    """Puts NaN into the images of the batches whose number `bad` names; returns the rows of all batches."""

    def arrange(bad):
        plain, drawn = Batches.__next__, []

        def draw(self):
            batch = plain(self)
            drawn.append(batch["row"].tolist())
            images = batch["image"].astype(np.float32)
            return batch | {"image": images * np.float32(np.nan if bad(len(drawn)) else 1)}

        monkeypatch.setattr(Batches, "__next__", draw)
        return drawn

    return arrange


def arguments(tiny, workdir, **changes):
    return ["--config=configs/demo.py", f"--workdir={workdir}", "--no_report", *tiny.arguments(**(QUICK | changes))]


def rows(workdir):
    with (workdir / "metrics.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def test_one_batch_with_nan_is_skipped_and_counted(tiny, tmp_path, poison):
    poison(lambda number: number == 2)
    assert cli.main(["train", *arguments(tiny, tmp_path / "run")]) == 0
    logged = rows(tmp_path / "run")
    assert [bool(row["loss"]) for row in logged] == [True, False, True, True]
    assert [row["skipped"] for row in logged] == ["", "1", "1", "1"]
    kept = Checkpoints(RunFolder(tmp_path / "run"))
    assert kept.latest() == kept.best() == 4 and kept.meta(4)["skipped"] == {"total": 1, "in_a_row": 0}


def test_a_diverging_run_ends_with_its_batches_named_and_goes_on_at_another_rate(tiny, tmp_path, poison, capsys):
    workdir = tmp_path / "run"
    changes = {"train__num_steps": 6, "train__checkpoint_every": 1, "train__max_skipped": 2}
    drawn = poison(lambda number: 3 <= number <= 4)
    assert cli.main(["train", *arguments(tiny, workdir, **changes)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: loss or update was not finite in 2 steps in a row, up to step 4")
    assert "the same command with --config.optim.lr_backbone=0.001 " in said and "--resume_with_changes" in said
    named = json.loads((workdir / "diverged.json").read_text())["last"]
    assert [(entry["step"], entry["rows"]) for entry in named] == [(3, drawn[2]), (4, drawn[3])]
    train = json.loads((workdir / "splits.json").read_text())["train"]
    assert all(set(entry["patients"]) <= set(train) and len(entry["slices"]) == 8 for entry in named)
    kept = Checkpoints(RunFolder(workdir))
    assert kept.latest() == 3 and kept.best() is None  # finite, and not validated yet
    # The advice, followed.
    lower = {"optim__lr_backbone": 0.001, **changes}
    assert cli.main(["train", *arguments(tiny, workdir, **lower)]) == 2
    assert "config.optim.lr_backbone: 0.003 -> 0.001" in (said := capsys.readouterr().err) and "_with_changes" in said
    assert cli.main(["train", *arguments(tiny, workdir, **lower), "--resume_with_changes"]) == 0
    assert "resumes with other settings: config.optim.lr_backbone: 0.003 -> 0.001" in capsys.readouterr().out
    facts = json.loads((workdir / "run.json").read_text())
    assert facts["changes"] == {"optim.lr_backbone": ["0.003", "0.001"]} and facts["changed_at_step"] == 3
    assert json.loads((workdir / "config.json").read_text())["optim"]["lr_backbone"] == 0.001
    assert [row["step"] for row in rows(workdir)] == ["1", "2", "3", "4", "5", "6"] and rows(workdir)[-1]["loss"]


def test_what_a_resumed_run_cannot_follow_is_refused_with_the_flag_too(tiny, trained_run, capsys):
    changes = {"retrieval__top_k": 3, "optim__grad_clip": 0.0, "optim__lr_backbone": 0.001}
    words = ["--config=configs/demo.py", f"--workdir={trained_run}", "--no_report", *tiny.arguments(**changes)]
    assert cli.main(["train", *words, "--resume_with_changes"]) == 2
    said = capsys.readouterr().err
    assert "top_k: 2 -> 3" in said and "grad_clip: 1.0 -> 0.0" in said and "lr_backbone" not in said
    assert "--resume_with_changes" not in said


def test_parameters_that_are_not_finite_are_not_saved(tiny, tmp_path, monkeypatch, capsys):
    """As when weights to start from hold NaN."""
    from jras_jax.training import joint_run

    plain = joint_run.create_state

    def broken(*given, **named):
        state, tx, shardings = plain(*given, **named)
        return state.replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params)), tx, shardings

    monkeypatch.setattr(joint_run, "create_state", broken)
    assert cli.main(["train", *arguments(tiny, tmp_path / "run")]) == 2
    assert "some parameters are not finite: nothing is saved" in capsys.readouterr().err
    assert Checkpoints(RunFolder(tmp_path / "run")).finished() == []


def test_flags_are_read_late_but_none_is_lost(tmp_path):
    counted = skips.Skips(3, RunFolder(tmp_path), table=table(), advice="do so")
    flags = [True, False, False, True, *[True] * 20]
    for at, flag in enumerate(flags, 1):
        counted.add(at, jnp.array(flag), np.arange(4))
        assert counted.total == (0 if at <= skips.BEHIND + 1 else 1 if at == skips.BEHIND + 2 else 2)
    counted.settle()
    assert counted.state() == {"total": 2, "in_a_row": 0}
    again = skips.Skips(3, RunFolder(tmp_path), table=table(), advice="do so")
    again.restore({"total": 2, "in_a_row": 2})  # stopped in the middle of a row
    again.add(25, jnp.array(False), np.arange(ROWS - 4, ROWS))
    with pytest.raises(skips.DivergedError, match=r"in 3 steps in a row, up to step 25.*Otherwise do so"):
        again.settle()
    (entry,) = json.loads((tmp_path / "diverged.json").read_text())["last"]
    assert entry == {
        "step": 25,
        "rows": [12, 13, 14, 15],
        "patients": ["d"] * 4,
        "cases": ["d"] * 4,
        "slices": [0, 1, 2, 3],
    }


def test_a_choice_keeps_bits_and_integers():
    new, old = {"x": jnp.array([1.5, jnp.nan]), "n": jnp.array(3)}, {"x": jnp.array([-0.0, 2.0]), "n": jnp.array(2)}
    assert not bool(skips.all_finite(new)) and bool(skips.all_finite(old)) and bool(skips.all_finite({}))
    kept = skips.chosen(skips.all_finite(new), new, old)
    np.testing.assert_array_equal(np.asarray(kept["x"]).view(np.int32), np.asarray(old["x"]).view(np.int32))
    assert int(kept["n"]) == 2
