"""A run in the frame of the heart, from training to prediction."""

import dataclasses
import json
import shutil
import threading

import jax
import nibabel as nib
import numpy as np
import pytest

from jras_jax.commands import cli
from jras_jax.data.grid import framed_slices, volume_slices
from jras_jax.evaluation import evaluator
from jras_jax.evaluation.evaluate import evaluate
from jras_jax.inference.pipeline import segment_files
from jras_jax.inference.predictions import on_scan
from jras_jax.inference.scans import Task, segment_file
from jras_jax.inference.segmenter import Segmenter
from jras_jax.inference.trained_run import open_run
from jras_jax.retrieval import gallery_files
from jras_jax.run_folder.layout import RunFolder

FRAMED = {
    "dataset__frame": "heart",
    "dataset__whole_size": 32,
    "locator__base_channels": 8,
    "locator__levels": 3,
    "locator__batch_size": 16,
    "locator__lr": 0.01,
    "train__num_steps": 120,
    "train__eval_every": 120,
    "train__checkpoint_every": 120,
    "train__log_every": 30,
    "eval__batch_size": 16,
}


@pytest.fixture(scope="module")
def framed(tiny, tmp_path_factory):
    return tiny.train(tmp_path_factory.mktemp("framed") / "run", **FRAMED)


@pytest.fixture(scope="module")
def opened(framed):
    return open_run(framed)


@pytest.fixture(scope="module")
def data(opened, tiny):
    return tiny.data(opened)


def test_the_locator_finds_the_hearts_of_unseen_patients(opened, data):
    segmenter = opened.segmenter(opened.train_gallery(data).arrays)
    for volume in data.part("test"):
        located = segmenter.placed(volume).located
        assert located.frame is not None, volume.case
        # What the scan's own mask says must not matter: a scan to segment has none.
        without = segmenter.placed(dataclasses.replace(volume, mask=None))
        assert without.located.frame == located.frame


def test_the_gallery_keeps_the_whole_slices_and_where_the_crop_is(opened, data):
    gallery = opened.train_gallery(data)
    assert gallery.table.wholes.shape[1:] == (32, 32) and np.isfinite(gallery.table.corners).all()
    again, _ = gallery_files.read(opened.folder.gallery)
    np.testing.assert_array_equal(again.wholes, gallery.table.wholes)
    np.testing.assert_array_equal(again.corners, gallery.table.corners)


def test_a_patient_of_the_gallery_is_recognised_by_whole_slices(opened, data):
    """The crop of a scan depends on the frame that is found, so it cannot be compared with the gallery's."""
    gallery = opened.train_gallery(data)
    volume = data.part("train")[0]
    scan = dataclasses.replace(volume, mask=None, patient="someone")
    prediction = opened.segment_volumes([scan], gallery)[0]
    match = gallery.known.find("someone", [prediction.wholes])
    assert [gallery.table.patients[n] for n in match.patients] == [volume.patient]
    own = gallery.table.patients.index(volume.patient)
    assert own not in gallery.table.patient[prediction.slices.indices]


def test_an_evaluation_names_the_frame(opened, data):
    summary = evaluate(opened, data)
    assert summary["frame"] == {"kind": "heart", "not_found": []}
    with np.load(next(opened.folder.evaluation("test").evidence.glob("*.npz"))) as evidence:
        assert evidence["wholes"].shape[1:] == (32, 32) and evidence["corners"].shape == (4, 2)


def test_predict_writes_the_frame(framed, tiny, data, tmp_path):
    scan = next(tiny.data_dir.rglob("testing/*/*_frame01.nii.gz"))
    command = ["predict", f"--workdir={framed}", f"--input={scan}", f"--output={tmp_path}"]
    assert cli.main(command) == 0
    heart = json.loads(next(tmp_path.glob("*.json")).read_text())["frames"][0]["heart"]
    mask = np.asarray(nib.load(next(tmp_path.glob("*.nii.gz"))).dataobj)
    assert heart["radius_unit"] == "mm" and 10 < heart["radius"] < 60
    middle = np.argwhere(mask > 0)[:, :2].mean(0)
    assert np.linalg.norm(middle - heart["centre_voxel"]) < 25


def test_a_heart_that_is_not_found_is_counted_and_named(framed, opened, data):
    variables = jax.tree.map(lambda x: x, opened.variables)
    head = variables["params"]["locator"]["head_0"]
    head["bias"] = head["bias"].at[0].add(1000.0)  # this locator sees background everywhere
    once = open_run(framed, ["--config.eval.frame_rounds=1"])  # a second round would find it in the whole slices
    blind = dataclasses.replace(once, variables=variables)
    volume = data.part("test")[0]
    segmenter = blind.segmenter(blind.train_gallery(data).arrays)
    prediction = on_scan(*segmenter.settled(volume, segmenter.placed(volume), -1, None), -1)
    assert prediction.located.frame is None and prediction.labels.shape == volume.image.shape
    summary = evaluate(blind, data)
    cases = [v.case for v in data.part("test")]
    assert summary["frame"]["not_found"] == cases
    assert any(f"not found in {len(cases)} cases" in line for line in summary["warnings"])


def test_a_second_round_leaves_a_frame_that_is_far_from_the_mask(opened, data):
    gallery, volume = opened.train_gallery(data).arrays, data.part("test")[0]
    segmenter = opened.segmenter(gallery)
    frame = segmenter.placed(volume).located.frame
    moved = frame._replace(row=frame.row + 0.5 * frame.radius)
    wrong = framed_slices(volume, opened.grid, whole=volume_slices(volume, opened.grid.whole), frame=moved)
    better = segmenter.settled(volume, wrong, -1, None)[0].located.frame
    assert better != moved and abs(better.row - frame.row) < 0.5 * frame.radius
    segmenter.rounds = 1
    assert segmenter.settled(volume, wrong, -1, None)[0].located.frame == moved


def test_better_frames_are_looked_for_beside_the_network_and_batches_stay_full(framed, data, monkeypatch):
    """A volume's second pass waits in line with the first passes of others; predictions are those of one by one."""
    opened = open_run(framed, ["--config.eval.batch_size=7"])
    gallery = opened.train_gallery(data)
    segmenter = opened.segmenter(gallery.arrays)
    program, calls, threads = segmenter.program, [], set()
    segmenter.program = lambda *given: calls.append(1) or program(*given)
    refined = Segmenter.refined

    def shifted(own, volume, slices, predicted):
        """A better frame for every second volume, whatever the first mask says."""
        threads.add(threading.current_thread().name.split("_")[0])
        if volume.phase == "ES":
            return refined(own, volume, slices, predicted)
        frame = slices.located.frame
        whole = volume_slices(volume, opened.grid.whole)
        return framed_slices(volume, opened.grid, whole=whole, frame=frame._replace(row=frame.row + 2.0))

    monkeypatch.setattr(Segmenter, "refined", shifted)
    volumes = data.part("test")
    together = list(evaluator.predictions(segmenter, volumes, gallery.table))
    batches, passes = len(calls), 0
    assert threads == {"refiner"} and [volume.case for volume, _ in together] == [volume.case for volume in volumes]
    for volume, found in together:
        first = segmenter.placed(volume)
        alone = on_scan(*segmenter.settled(volume, first, -1, None), -1)
        passes += len(first.images) * (2 if alone.located.frame != first.located.frame else 1)
        assert found.located.frame == alone.located.frame
        np.testing.assert_allclose(found.slices.probabilities, alone.slices.probabilities, atol=1e-5)
    assert batches == -(-passes // segmenter.batch_size), "only the last batch is not full"


def test_many_scans_at_once_are_segmented_as_one_by_one(opened, tiny, data, tmp_path):
    """A second round makes slices wait again; the masks must not depend on what else is in the batch."""
    scans = sorted(tiny.data_dir.rglob("testing/*/*_frame*[0-9].nii.gz"))[:4]
    gallery = opened.train_gallery(data)
    segmenter = opened.segmenter(gallery.arrays)
    frames = [segmenter.placed(volume).located.frame for volume in data.part("test")]
    assert all(frames)
    together = [Task(scan, tmp_path / "together" / scan.name) for scan in scans]
    alone = [Task(scan, tmp_path / "alone" / scan.name) for scan in scans]
    (tmp_path / "together").mkdir()
    (tmp_path / "alone").mkdir()
    assert segment_files(opened, together, gallery) == []
    again = sum(bool(x) for x in [segment_file(opened, task, gallery=gallery, segmenter=segmenter) for task in alone])
    assert again == len(scans)
    for a, b in zip(together, alone, strict=True):
        different = np.asarray(nib.load(a.mask).dataobj) != np.asarray(nib.load(b.mask).dataobj)
        assert different.mean() < 1e-4


def test_a_run_of_an_earlier_version_saw_whole_slices(trained_run, tmp_path):
    folder = shutil.copytree(trained_run, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    del config["locator"]
    for name in ("frame", "frame_radius", "whole_size"):
        del config["dataset"][name]
    (folder / "config.json").write_text(json.dumps(config))
    run = open_run(folder)
    assert run.config.dataset.frame == "whole" and run.grid.frame is None and run.model.locator is None


def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(tiny, tmp_path):
    short = FRAMED | {"train__num_steps": 4, "train__eval_every": 4, "train__checkpoint_every": 2}
    whole = tiny.train(tmp_path / "whole", **short)
    half = tiny.train(tmp_path / "half", **short)
    for step in RunFolder(half).checkpoints.iterdir():
        if step.name == "4":
            shutil.rmtree(step)
    tiny.train(half, **short)
    rows = [(folder / "metrics.csv").read_text().splitlines()[-1].split(",") for folder in (whole, half)]
    columns = (whole / "metrics.csv").read_text().splitlines()[0].split(",")
    same = [i for i, name in enumerate(columns) if "seconds" not in name and "per_s" not in name]
    assert [rows[0][i] for i in same] == [rows[1][i] for i in same]
