"""Volumes in full batches: predictions as one by one, in order, few held, programs launched one at a time."""

import threading
import time

import jax
import numpy as np
import pytest

from jras_jax.evaluation import evaluator
from jras_jax.inference.predictions import on_scan
from jras_jax.inference.trained_run import open_run


@pytest.fixture(scope="module")
def opened(trained_run):
    return open_run(trained_run, ("--config.eval.split=test", "--config.eval.batch_size=7"))


@pytest.fixture(scope="module")
def data(opened, tiny):
    return tiny.data(opened)


def counted(segmenter):
    """The segmenter, and a list that grows with each call of its program."""
    calls, plain = [], segmenter.program
    segmenter.program = lambda *given: calls.append(1) or plain(*given)
    return segmenter, calls


@pytest.mark.parametrize("strategy", ["top_k", "random", "oracle"])
def test_an_evaluation_s_predictions_are_those_of_one_volume_after_the_other(trained_run, data, strategy):
    overrides = ("--config.eval.batch_size=7", f"--config.retrieval.strategy={strategy}")
    run = open_run(trained_run, overrides)
    gallery = run.train_gallery(data)
    segmenter, calls = counted(run.segmenter(gallery.arrays))
    volumes = data.part("test") + data.part("train")[:2]  # the leak rule acts on the latter
    together = list(evaluator.predictions(segmenter, volumes, gallery.table))
    batches = len(calls)
    assert [volume.case for volume, _ in together] == [volume.case for volume in volumes]
    slices = 0
    for volume, found in together:
        patient, rows = evaluator.gallery_numbers(volume, gallery.table)
        alone = on_scan(*segmenter.settled(volume, segmenter.placed(volume), patient, rows), patient)
        slices += len(alone.images)
        np.testing.assert_array_equal(found.slices.indices, alone.slices.indices)
        np.testing.assert_allclose(found.slices.probabilities, alone.slices.probabilities, atol=1e-5)
        assert found.patient == patient and (found.labels == alone.labels).mean() > 0.9999
    if strategy == "top_k":
        assert batches == -(-slices // segmenter.batch_size), "only the last batch is not full"


def test_few_volumes_are_ahead_of_the_one_that_is_scored(opened, data):
    gallery = opened.train_gallery(data)
    segmenter, placed = opened.segmenter(gallery.arrays), []
    plain = segmenter.placed
    segmenter.placed = lambda volume: placed.append(volume) or plain(volume)
    volumes = data.part("test") * 3
    depth = min(volume.image.shape[2] for volume in volumes)
    in_batches = 2 * -(-segmenter.batch_size // depth) + 1
    most = evaluator.AHEAD + 1 + in_batches + evaluator.WAITING + 1
    assert most < len(volumes)
    for number, _ in enumerate(evaluator.predictions(segmenter, volumes, gallery.table)):
        time.sleep(0.01)  # those that place volumes could go on
        assert number < len(placed) <= number + most
    assert len(placed) == len(volumes)


def test_a_fault_in_placing_is_raised_and_no_thread_is_left(opened, data, monkeypatch):
    segmenter, plain = opened.segmenter(opened.train_gallery(data).arrays), type(opened.segmenter(None)).placed
    volumes = data.part("test")

    def faulty(own, volume, slice_axis=2):
        if volume is volumes[2]:
            raise ZeroDivisionError("of volume 2")
        return plain(own, volume, slice_axis)

    monkeypatch.setattr(type(segmenter), "placed", faulty)
    with pytest.raises(ZeroDivisionError, match="of volume 2"):
        list(evaluator.predictions(segmenter, volumes, None))
    assert not [t for t in threading.enumerate() if t.name.startswith(("in_order", "finisher", "refiner"))]


def test_programs_are_launched_one_at_a_time(opened):
    """Two threads that launch programs over several devices at once may leave them waiting for each other."""
    segmenter, running, most = opened.segmenter(None), [], []

    def program(number):
        running.append(number)
        most.append(len(running))
        time.sleep(0.01)
        running.pop()
        return jax.numpy.zeros(())

    others = [threading.Thread(target=segmenter.launched, args=(program, n)) for n in range(4)]
    twin = segmenter.using(opened.variables, None)
    others += [threading.Thread(target=twin.launched, args=(program, n)) for n in range(4)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    assert len(most) == 8 and max(most) == 1
