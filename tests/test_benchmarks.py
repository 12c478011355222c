"""The benchmark: one schema for all rows, ratios and targets as they are described, the work of collectives counted."""

import csv
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from benchmarks import evaluation, folder, frame, gpu, memory, ours, retrieval, scaling, table
from benchmarks.sizes import FULL, GPU_QUICK, QUICK, TARGETS, parts, target
from jras_jax import kernels
from jras_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEAKS = {"gflops": 100.0, "gb_per_s": 10.0}


def side(row, part="joint:unet+tiny", ms=100.0, peak_gb=1.0):
    return {
        "row": row,
        "part": part,
        "ms": ms,
        "fastest": 0.9 * ms,
        "slowest": 1.2 * ms,
        "gflop": 5.0,
        "gbyte": 0.5,
        "peak_gb": peak_gb,
    }


def test_a_merged_row_says_ratio_target_and_fractions():
    name = "joint step, U-Net, small retriever"
    (row,) = table.merge(
        [side(name)], [side(name, ms=250.0, peak_gb=2.0)], compiled=[side(name, ms=150.0)], peaks=PEAKS
    )
    assert set(row) == set(table.KEYS)
    assert (row["ratio"], row["target"], row["met"], row["torch_compile_ms"]) == (2.5, 2.0, True, 150.0)
    assert row["of_product_peak"] == pytest.approx(0.5) and row["of_copy_peak"] == pytest.approx(0.5)
    assert row["less_memory"] and row["spread"] == pytest.approx(0.3)


def test_without_torch_nothing_is_claimed():
    (row,) = table.merge([side("U-Net forward + backward", "backbone:unet")], [], compiled=[], peaks=PEAKS)
    assert row["ratio"] is row["met"] is row["torch_ms"] is row["less_memory"] is None


def test_a_missed_target_is_not_met():
    name = "U-Net forward + backward"
    (row,) = table.merge(
        [side(name, "backbone:unet")], [side(name, "backbone:unet", ms=89.0)], compiled=[], peaks=PEAKS
    )
    assert row["met"] is False


def test_an_epoch_is_refresh_plus_steps():
    def rows(name, ms):
        return table.new_row(name, "", ours_ms=ms, torch_ms=2 * ms)

    measured = [rows("refresh, whole forward, ViT-B/14", 1000.0), rows("joint step, U-Net, ViT-B/14", 10.0)]
    cached = table.new_row("refresh, cached trunk, ViT-B/14", "", ours_ms=100.0, torch_ms=2000.0)
    (epoch,) = table.epochs([*measured, cached], FULL)
    steps = FULL.gallery // FULL.batch
    assert epoch["ours_ms"] == 100.0 + steps * 10.0
    assert epoch["torch_ms"] == 2000.0 + steps * 20.0


def test_every_target_belongs_to_a_part():
    names = ["joint step, U-Net, x", "epoch, x", "search + guide forward", "predict 10 slices, x"]
    names += [f"{title} forward + backward" for title in ("SegFormer-B0", "SegFormer-B2", "U-Net")]
    assert {target(name) for name in names} == set(TARGETS.values())
    assert target("U-Net forward") is None
    assert len(set(parts(FULL))) == len(parts(FULL)) and set(QUICK.compiled) <= set(parts(QUICK))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%a = f32[2,3]{1,0} all-reduce(%x), channel_id=1", {"all-reduce": 24}),
        ("%a = (f32[4]{0}, bf16[2]{0}) all-reduce(%x, %y)", {"all-reduce": 20}),
        ("%a = u8[5]{0} reduce-scatter(%x), dimensions={0}", {"reduce-scatter": 20}),
        ("%a = s32[8,2]{1,0} all-gather-start(%x)", {"all-gather": 64}),
        ("%a = f32[2]{0} add(%all-reduce.1, %y)", {}),
    ],
)
def test_collective_bytes(line, expected):
    assert scaling.collective_bytes(f"HloModule m\n  {line}\n", 4) == expected


@pytest.mark.parametrize("name", ["segformer-b0", "unet"])
def test_drawn_variables_make_finite_outputs(name):
    model, x = ours.create_backbone(name, QUICK), jnp.ones((1, 32, 32, ours.CHANNELS))
    drawn = ours.drawn(lambda: model.init(jax.random.key(0), x))
    y = np.asarray(jax.jit(model.apply)(drawn, x))
    assert np.isfinite(y).all() and y.std() > 0


def test_counted_programs_have_no_loops_of_the_forms_for_cpu():
    model, x = ours.create_backbone("segformer-b0", QUICK), jnp.ones((1, 64, 64, ours.CHANNELS))
    drawn = ours.drawn(lambda: model.init(jax.random.key(0), x))

    def text():
        return jax.jit(jax.grad(lambda v: model.apply(v, x).sum())).lower(drawn).as_text()

    with kernels.using("reference"):
        counted = text()
    assert "stablehlo.while" not in counted and "stablehlo.while" in text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("retriever:tiny", ["small retriever forward"]),
        ("guide", ["search + guide forward", "search + guide forward + backward"]),
        ("refresh:tiny", ["refresh, whole forward, small retriever"]),
        ("joint:unet+tiny", ["joint step, U-Net, small retriever"]),
        ("predict:unet+tiny", ["predict 3 slices, U-Net, small retriever"]),
    ],
)
def test_every_part_compiles_and_names_its_rows(part, names):
    assert part in parts(QUICK)
    found = list(ours.rows(part, dataclasses.replace(QUICK, filling=True)))
    assert [row["row"] for row in found] == names


@pytest.mark.slow
def test_a_step_over_two_devices_sends_at_least_its_gradients():
    work = scaling.work_per_device(2, QUICK)
    assert work["devices"] == 2 and work["gflop"] > 0 and work["gbyte"] > 0
    assert sum(work["collective_mb"].values()) >= work["parameters_mb"] > 0


def test_a_search_holds_a_devices_share_of_the_gallery():
    rows = 8192
    found = retrieval.measure(rows, 1.0, repeats=1)
    whole = 4 * retrieval.DIM * rows
    assert found["rows"] == rows and found["ms"] > 0
    assert whole / jax.device_count() <= found["bytes_per_device"] < whole / 2


def test_int8_embeddings_are_compared_with_float32_ones(tmp_path):
    assert retrieval.main(["--int8", "--devices=0", "--largest=4096", "--repeats=1", f"--output={tmp_path}"]) == 0
    found = json.loads((tmp_path / "retrieval_int8.json").read_text())
    plain, small = found["forms"]["float32"], found["forms"]["int8"]
    assert small["embedding_bytes"] / plain["embedding_bytes"] == (retrieval.DIM + 4) / (4 * retrieval.DIM)
    assert small["bytes_per_device"] < plain["bytes_per_device"]
    for recall in found["recall"].values():
        assert 0.8 < recall["recall_at_2"] <= 1 and 0.9 < recall["recall_at_16"] <= 1
        assert abs(recall["similarity_lost"]) < 1e-3


def test_an_unknown_part_is_named():
    from rich.console import Console

    from benchmarks.__main__ import run

    with pytest.raises(UserError, match="no such part"):
        run(QUICK, ["backbon_e"], with_torch=False, console=Console(quiet=True))


@pytest.mark.slow
def test_one_part_runs_without_torch(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only=retriever", "--no-torch", f"--output={tmp_path}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    (row,) = results["rows"]
    assert set(row) == set(table.KEYS)
    assert row["ours_ms"] > 0 and row["gflop"] > 0 and row["torch_ms"] is None
    assert results["peaks"]["gflops"] > 0 and results["versions"]["jax"] != "not installed"
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_folder_is_predicted_by_all_sides(tmp_path):
    """In full, at tiny size; without PyTorch, or without MONAI, ours alone."""
    assert folder.main(["--quick", "--pairs=1", f"--output={tmp_path}"]) == 0
    whole, monai, start = json.loads((tmp_path / "folder.json").read_text())["rows"]
    assert monai["ours_s"] > 0 and (monai["ratio"] is None) == (importlib.util.find_spec("monai") is None)
    assert "4 volumes" in whole["row"] and whole["ours_s"] > 0 and whole["ours_peak_gb"] > 0.1
    assert start["theirs_s"] > 0 and start["ratio"] == pytest.approx(start["ours_s"] / start["theirs_s"])


def test_a_ratio_is_the_median_over_pairs():
    pairs = [
        [{"s": 1.0, "cpu_s": 1.0, "peak_gb": 1.0}, {"s": s, "cpu_s": 2.0, "peak_gb": 1.0}] for s in (2.0, 9.0, 4.0)
    ]
    assert (row := folder._row("x", 3.0, pairs, inverse=False))["ratio"] == 4.0 and row["met"]
    assert (row := folder._row("x", 0.1, pairs, inverse=True))["ratio"] == 0.25 and not row["met"]


def test_an_evaluation_beside_its_network_passes(run, capsys):
    """The passes are those of the evaluation, locator included; the run's own folder stays as it was."""
    before = sorted(run.rglob("*"))
    assert evaluation.main([f"--workdir={run}", "--pairs=1"]) == 0
    said = r"of (\d+) volumes: the first ([\d.]+) s, a later one ([\d.]+) s; its (\d+) network passes alone: ([\d.]+) s"
    volumes, first, later, passes, network = (float(x) for x in re.search(said, capsys.readouterr().out).groups())
    assert passes >= volumes > 0 and first > 0 and later > 0 and network > 0
    assert sorted(run.rglob("*")) == before


def test_steps_in_the_frame_beside_steps_on_whole_slices(tiny, monkeypatch, capsys):
    """Both sides start alike, differ in the frame alone, and take as many steps."""
    runs = []
    plain = frame.started
    monkeypatch.setattr(frame, "started", lambda *given: runs.append(plain(*given)) or runs[-1])
    assert frame.main(["--config=demo", "--pairs=1", "--steps=2", *tiny.arguments()]) == 0
    found = re.search(r"takes (\d+) ms in the frame of the heart and (\d+) ms on whole slices", capsys.readouterr().out)
    assert all(int(x) > 0 for x in found.groups())
    heart, whole = runs
    assert (heart.config.dataset.frame, whole.config.dataset.frame) == ("heart", "whole")
    assert dataclasses.replace(heart.config.dataset, frame="whole") == whole.config.dataset
    assert heart.wholes is not None and whole.wholes is None
    assert int(heart.state.step) == int(whole.state.step) == 4


PARTS_OF_THE_GPU = ("card", "joint:unet+tiny", "retriever", "train", "pipeline", "folder")


def test_a_part_of_the_gpu_table_that_fails_or_finds_no_time_is_a_row(tmp_path):
    def fails():
        raise UserError("several lines\nRuntimeError: out of memory")

    board = gpu.Board(tmp_path, GPU_QUICK, budget_s=60.0)
    board.part("first", fails, 1)
    board.part("second", lambda: [{"what": "second", "ours": "1 ms"}], 1)
    board.part("third", lambda: pytest.fail("there is no time"), 61)
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["part"] for row in rows] == ["first", "second", "third"]
    assert rows[0]["failed"] == "RuntimeError: out of memory" and rows[1]["ours"] == "1 ms"
    assert rows[2]["failed"].startswith("left out: ")
    assert (tmp_path / "gpu.md").read_text().count("\n") == 5


@pytest.mark.slow
def test_the_gpu_table_runs_in_full_at_tiny_size(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--gpu", "--quick", "--budget=1500", f"--output={tmp_path}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    rows = {part: [row for row in results["rows"] if row["part"] == part] for part in PARTS_OF_THE_GPU}
    assert all(rows.values()) and not any("failed" in row or "torch_failed" in row for row in results["rows"])
    assert rows["card"][0]["bf16_gflops"] > 0
    assert rows["retriever"][0]["of_matrix_rate"] > 0
    assert rows["pipeline"][0]["real_per_s"] > 0 and rows["pipeline"][0]["same_per_s"] > 0
    (joint,) = rows["joint:unet+tiny"]
    assert joint["row"]["ms"] > 0 and (not results["torch"] or joint["times"] > 0)
    assert "4 volumes" in rows["folder"][0]["what"]
    with open(tmp_path / "gpu_loss.csv", newline="") as file:
        curve = [(int(line["step"]), float(line["loss"])) for line in csv.DictReader(file)]
    assert [step for step, _ in curve] == [2, 4] and all(np.isfinite(loss) for _, loss in curve)


def test_without_a_gpu_the_table_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "worker", lambda *_: [{"backend": "cpu"}])
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with pytest.raises(UserError, match=r"finds no GPU.*--gpu --quick"):
        gpu.main(tmp_path, Console(quiet=True), quick=False, acdc=None, data_dir=None, budget_s=9.0)


def test_activations_are_counted_by_hand():
    """Two levels of 2 and 4 channels, the lower one on a quarter of the pixels: 2 + 1 a pixel down, 2 up."""
    kinds = memory.counted(base_channels=2, levels=2)
    assert kinds["outputs of convolutions"] == 4 * (2 * 3 + 3 * 2)
    assert kinds["outputs of norms and activations"] == 4 * (2 * 3 + 2 * 2)
    assert kinds["concatenations"] == 4 * 2 * 2


@pytest.mark.slow
def test_microbatches_hold_half_of_what_xla_plans_otherwise(tmp_path):
    assert memory.main(["--quick", f"--output={tmp_path}"]) == 0
    found = json.loads((tmp_path / "memory.json").read_text())
    plain, remat, parts = (row["bytes_a_pixel"] for row in found["planned"])
    assert sum(found["counted"].values()) < plain  # the retriever's activations come on top
    assert 0.4 < parts / plain < 0.6 and remat > 0
