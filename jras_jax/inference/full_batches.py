"""The network's part where many volumes are segmented: batches that are full across volumes, and second passes."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jras_jax.data import Volume
from jras_jax.data.grid import VolumeSlices
from jras_jax.inference.predictions import SlicePredictions, joined
from jras_jax.inference.segmenter import Segmenter, Started, fetched

# Batches that an accelerator has at once: it computes one while the one before is copied. Several hosts wait for each,
# as programs that run at the same time may exchange their data in another order on each host.
ON_DEVICE = 2
Done = Callable[[VolumeSlices, SlicePredictions], None]


class _Passing:
    """A volume on its way through the network, perhaps for the second time, see `Segmenter.refined`."""

    def __init__(self, volume: Volume, slices: VolumeSlices, patient: int, rows: np.ndarray | None, done: Done):
        self.volume, self.slices, self.patient, self.done = volume, slices, patient, done
        self.rows = np.full(len(slices.images), -1, np.int32) if rows is None else rows
        self.passes = 1
        self._parts: list[SlicePredictions] = []

    def take(self, part: SlicePredictions) -> bool:
        """Takes the predictions of the next slices; whether all are there."""
        self._parts.append(part)
        return sum(len(p.probabilities) for p in self._parts) == len(self.slices.images)

    def predicted(self) -> SlicePredictions:
        """The predictions of all its slices."""
        return joined(self._parts)

    def again(self, better: VolumeSlices) -> None:
        """Goes back to pass again, in a better frame of the heart."""
        self.slices, self._parts = better, []
        self.passes += 1


class _Waiting(NamedTuple):
    """Slices `first` to `last` of a volume that wait for the network."""

    volume: _Passing
    first: int
    last: int


class _Refining(NamedTuple):
    """A volume whose better frame is looked for beside the network; `batches` had been started by then."""

    volume: _Passing
    predicted: SlicePredictions
    better: concurrent.futures.Future[VolumeSlices | None]
    batches: int


class FullBatches(contextlib.AbstractContextManager["FullBatches"]):
    """Gives the slices of volumes to a segmenter, in batches that are full across volumes.

    The volumes alone decide what is in which batch. What else is in its batch does not change a slice's prediction,
    apart from rounding. All happens in the calling thread, but for the better frames, which a thread looks for while
    the network has the next batch. Volumes whose guides are drawn or chosen by their true masks have batches of their
    own. To be used in a `with` block, which ends the thread.

    Args:
      segmenter: with its variables and gallery.
    """

    def __init__(self, segmenter: Segmenter):
        self._segmenter = segmenter
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._on_device: collections.deque[tuple[list[_Waiting], Started]] = collections.deque()
        self._refining: collections.deque[_Refining] = collections.deque()
        self._beside = concurrent.futures.ThreadPoolExecutor(1, "refiner")
        self._batches = 0  # that were started

    def __exit__(self, *_: object) -> None:
        self._beside.shutdown(cancel_futures=True)

    def add(
        self,
        volume: Volume,
        slices: VolumeSlices,
        patient: int,
        rows: np.ndarray | None,
        done: Done,
        alone: Segmenter | None = None,
    ) -> None:
        """Takes a volume.

        Args:
          volume, slices: the volume, and its slices on the model grid.
          patient, rows: see `Segmenter.slices`.
          done: is called, now or at a later `add` or `flush`, with the slices and their predictions.
          alone: segments this volume in place of the segmenter, in batches of its own.

        Raises:
          UserError: see `Segmenter.slices`.
        """
        if alone is not None or self._segmenter.draws or self._segmenter.reads_truth:
            done(*(alone or self._segmenter).settled(volume, slices, patient, rows))
            return
        self._queue(_Passing(volume, slices, patient, rows, done))
        while self._full():
            self._start()

    def flush(self) -> None:
        """Gives the network all that waits, and waits for it; only the last batch is not full."""
        while self._waiting or self._on_device or self._refining:
            if self._full():
                self._start()
            elif self._on_device:
                self._fetch()
            elif self._refining:
                self._settle(self._batches)
            else:
                self._start()

    def _full(self) -> bool:
        """Whether a batch waits."""
        return sum(w.last - w.first for w in self._waiting) >= self._segmenter.batch_size

    def _queue(self, passing: _Passing) -> None:
        self._waiting.append(_Waiting(passing, 0, len(passing.slices.images)))

    def _start(self) -> None:
        """Starts the next batch, and fetches an earlier one if there are too many.

        Volumes that completed before the batch before this one have had that batch's time for their better frame.
        """
        self._settle(self._batches - 1)
        batch: list[_Waiting] = []
        room = self._segmenter.batch_size
        while self._waiting and room:
            part = self._waiting.popleft()
            middle = min(part.last, part.first + room)
            batch.append(part._replace(last=middle))
            room -= middle - part.first
            if middle < part.last:
                self._waiting.appendleft(part._replace(first=middle))
        images = np.concatenate([p.volume.slices.images[p.first : p.last] for p in batch])
        rows = np.concatenate([p.volume.rows[p.first : p.last] for p in batch])
        patient = np.concatenate([np.full(p.last - p.first, p.volume.patient, np.int32) for p in batch])
        self._on_device.append((batch, self._segmenter.started(images, patient, rows)))
        self._batches += 1
        while len(self._on_device) >= (ON_DEVICE if jax.process_count() == 1 else 1):
            self._fetch()

    def _fetch(self) -> None:
        """Brings the oldest batch to the host; volumes that are complete are handed over, or may pass again."""
        batch, started = self._on_device.popleft()
        predicted, at = fetched(started), 0
        for part in batch:
            own = slice(at, at := at + part.last - part.first)
            if part.volume.take(SlicePredictions(*(x[own] for x in predicted))):
                self._completed(part.volume)

    def _completed(self, volume: _Passing) -> None:
        """Hands a volume over, or has a better frame looked for."""
        predicted, segmenter = volume.predicted(), self._segmenter
        if volume.passes >= segmenter.rounds or volume.slices.located is None:
            volume.done(volume.slices, predicted)
            return
        better = self._beside.submit(segmenter.refined, volume.volume, volume.slices, predicted)
        self._refining.append(_Refining(volume, predicted, better, self._batches))

    def _settle(self, batches: int) -> None:
        """Volumes that completed when at most so many batches had been started are handed over, or wait again."""
        while self._refining and self._refining[0].batches <= batches:
            volume, predicted, found, _ = self._refining.popleft()
            better = found.result()
            if better is None:
                volume.done(volume.slices, predicted)
            else:
                volume.again(better)
                self._queue(volume)
