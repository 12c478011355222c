"""Scoring beside the network: order, overlap, bounds and faults."""

import threading
import time

import pytest

from jras_jax import threads
from jras_jax.evaluation import evaluator


def test_scores_come_in_order_while_the_next_are_predicted():
    both = threading.Barrier(2, timeout=20)  # passed only if a score is computed while a later volume is predicted

    def predicted():
        for number in range(8):
            if number == 1:
                both.wait()
            yield number, 10 * number

    def score(volume, prediction):
        if volume == 0:
            both.wait()
        time.sleep(0.01 * (7 - volume))
        return volume + prediction

    found = list(evaluator.beside(predicted(), score))
    assert found == [(n, 10 * n, 11 * n) for n in range(8)]


def test_few_predictions_wait():
    made = []

    def predicted():
        for number in range(20):
            made.append(number)
            yield number, number

    for taken, _ in enumerate(evaluator.beside(predicted(), lambda volume, prediction: 0)):
        assert len(made) <= taken + 1 + evaluator.WAITING


def test_a_fault_of_a_score_is_raised_and_no_thread_is_left():
    def score(volume, prediction):
        if volume == 2:
            raise ZeroDivisionError("of volume 2")

    with pytest.raises(ZeroDivisionError, match="of volume 2"):
        list(evaluator.beside(((n, n) for n in range(9)), score))
    assert not [t for t in threading.enumerate() if t.name.startswith("in_order")]


def test_items_are_worked_ahead_in_their_order_and_only_a_few():
    begun = []

    def slow_first(number):
        begun.append(number)
        time.sleep(0.2 if number == 0 else 0)
        return 10 * number

    found = threads.in_order(slow_first, range(200), threads=2, ahead=4)
    assert next(found) == 0 and len(begun) <= 5
    assert list(found) == [10 * number for number in range(1, 200)]


def test_of_several_faults_the_first_is_raised_and_little_more_is_begun():
    begun = []

    def work(number):
        begun.append(number)
        time.sleep(0.01)
        if number >= 3:
            raise ValueError(str(number))
        return number

    with pytest.raises(ValueError, match=r"^3$"):
        list(threads.in_order(work, range(200), threads=2, ahead=4))
    assert len(begun) < 10
