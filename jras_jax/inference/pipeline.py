"""Segments many scans: reading, the network and writing at the same time, in batches that are full across volumes.

Threads read scans and bring them to the model grid; the calling thread gives their slices to the network, in the order
of the tasks; threads bring the predictions back to the scans' grids and write them. The files are those of
`scans.segment_file`, apart from rounding: what else is in its batch does not change a slice's prediction.

Memory: a scan counts, with its slices and predictions, from its reading until it is written. No further scan is given
to the network while these take more than `MEMORY`, and `AHEAD` scans are read meanwhile. So `MEMORY` and `AHEAD` + 1
times the largest scan bound what is held at once.
"""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jras_jax import files
from jras_jax.errors import UserError, printable
from jras_jax.inference.predictions import SlicePredictions
from jras_jax.inference.scans import Note, OpenedScan, Task, open_scan, write_results
from jras_jax.inference.segmenter import Segmenter, Started, fetched
from jras_jax.inference.trained_run import RunGallery, TrainedRun

MEMORY = 1 << 30  # bytes
AHEAD = 3  # scans that are being read, or wait for the network
READERS, WRITERS = 2, 2  # threads
ON_DEVICE = 2  # batches that an accelerator has at once: it computes one while the one before is copied
Tell = Callable[[int, Task, str], None]


def segment_files(
    run: TrainedRun,
    todo: Sequence[Task],
    gallery: RunGallery | None,
    segmenter: Segmenter | None = None,
    *,
    tell: Tell = lambda number, task, fault: None,
    note: Note = lambda line: None,
) -> list[str]:
    """Segments scans and writes their masks and evidence, see `scans.segment_file`.

    Args:
      run, gallery: the trained run, and what guides it.
      todo: which files; `tell` and `note` hear of them in this order.
      segmenter: one of `run.segmenter()` with this gallery; None makes one.
      tell: called when a scan is done, with its number from 1, its task, and its fault ('' if the mask is written).
      note: takes a line on what is unusual about a scan.

    Returns:
      The fault of each scan that could not be segmented, with its name.

    Raises:
      UserError: the only scan cannot be segmented, or no further mask can be written (the disk is full).
    """
    segmenter = segmenter or run.segmenter(gallery.arrays if gallery else None)
    reading = concurrent.futures.ThreadPoolExecutor(READERS, "reader")
    writing = concurrent.futures.ThreadPoolExecutor(WRITERS, "writer")
    work = _Work(run, gallery, segmenter=segmenter, writing=writing, ends=_Ends(todo, tell))
    try:
        for number, opened in _read(run, todo, gallery=gallery, segmenter=segmenter, reading=reading):
            if isinstance(opened, UserError):
                work.ends.put(number, opened)
                continue
            for remark in opened.remarks:
                note(remark)
            work.add(_Scan(number, opened))
        work.flush()
        return work.ends.faults()
    finally:  # after Ctrl-C or a full disk too: what has begun is written whole, and no thread is left
        for pool in (reading, writing):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (reading, writing):
            pool.shutdown()


def _read(
    run: TrainedRun,
    todo: Sequence[Task],
    gallery: RunGallery | None,
    segmenter: Segmenter,
    reading: concurrent.futures.Executor,
) -> Iterator[tuple[int, OpenedScan | UserError]]:
    """The number of each task and its scan, or what is wrong with it; reads up to `AHEAD` scans ahead.

    Several hosts read one scan after another: the locator's program runs on the devices of all, in the same order.
    """
    most = AHEAD if jax.process_count() == 1 else 1
    left, ahead = iter(todo), collections.deque[concurrent.futures.Future[OpenedScan]]()
    for number in range(len(todo)):
        while len(ahead) < most and (task := next(left, None)) is not None:
            ahead.append(reading.submit(open_scan, run, task, gallery, segmenter))
        try:
            opened = ahead.popleft().result()
        except UserError as e:
            yield number, e
        else:
            yield number, opened


class _Scan:
    """A scan on its way: what was read of it, and the predictions that the network has made of it so far.

    Attributes:
      missing: slices without a prediction.
      bytes: what it takes until it is written.
    """

    def __init__(self, number: int, opened: OpenedScan):
        self.number, self.opened = number, opened
        images = [s.images for s in opened.ready.slices]
        classes = opened.ready.slices[0].mapping.num_classes
        self.missing = sum(map(len, images))
        maps = 2 * sum(opened.task.maps) * (classes + 1) * opened.scan.array.size
        self.bytes = 2 * opened.scan.array.nbytes + sum(x.nbytes for x in images) * (1 + 4 * classes) + maps
        self._parts: list[list[SlicePredictions]] = [[] for _ in images]
        self._rounds = 0

    def take(self, frame: int, part: SlicePredictions) -> None:
        """Takes the predictions of the next slices of a frame."""
        self._parts[frame].append(part)
        self.missing -= len(part.probabilities)

    def again(self, segmenter: Segmenter) -> list[int]:
        """Takes better frames of the heart where there are any; the frames of the scan to be segmented again."""
        self._rounds += 1
        if self._rounds >= segmenter.rounds:
            return []
        ready, predicted, numbers = self.opened.ready, self.predictions(), []
        slices = list(ready.slices)
        for number, (volume, part) in enumerate(zip(ready.volumes, predicted, strict=True)):
            if (better := segmenter.refined(volume, slices[number], part)) is not None:
                slices[number] = better
                self._parts[number] = []
                self.missing += len(better.images)
                numbers.append(number)
        self.opened = self.opened._replace(ready=ready._replace(slices=slices))
        return numbers

    def predictions(self) -> list[SlicePredictions]:
        """For each frame."""
        return [SlicePredictions(*(np.concatenate(p) for p in zip(*own, strict=True))) for own in self._parts]


class _Slices(NamedTuple):
    """Slices of one frame, from row `first` on, that wait for the network."""

    scan: _Scan
    frame: int
    first: int
    images: np.ndarray
    rows: np.ndarray

    def split(self, count: int) -> tuple[_Slices, _Slices]:
        """The first `count` of them, and the others."""
        rest = self._replace(first=self.first + count, images=self.images[count:], rows=self.rows[count:])
        return self._replace(images=self.images[:count], rows=self.rows[:count]), rest


class _Work:
    """The network's part; all of it happens in the calling thread, and in an order that the tasks alone decide."""

    def __init__(
        self,
        run: TrainedRun,
        gallery: RunGallery | None,
        segmenter: Segmenter,
        writing: concurrent.futures.Executor,
        ends: _Ends,
    ):
        self.ends = ends
        self._run, self._gallery, self._segmenter, self._writing = run, gallery, segmenter, writing
        self._waiting: list[_Slices] = []
        self._on_device = collections.deque[tuple[list[_Slices], Started]]()

    def add(self, scan: _Scan) -> None:
        """Takes a scan; waits while too much is held."""
        ready = scan.opened.ready
        if ready.gallery is not None or self._segmenter.draws or self._segmenter.reads_truth:
            self._alone(scan)
        else:
            for frame, (slices, rows) in enumerate(zip(ready.slices, ready.rows, strict=True)):
                self._waiting.append(_Slices(scan, frame, first=0, images=slices.images, rows=rows))
            while sum(len(w.images) for w in self._waiting) >= self._segmenter.batch_size:
                self._start()
        if sum(s.bytes for s in {w.scan for w in self._waiting}) > MEMORY:
            self.flush()
        self.ends.settle(until=MEMORY)

    def flush(self) -> None:
        """Gives the network all that waits."""
        while self._waiting or self._on_device:
            if self._waiting:
                self._start()
            else:
                self._fetch()

    def _start(self) -> None:
        """Starts the next batch, and fetches an earlier one if there are too many."""
        batch: list[_Slices] = []
        room = self._segmenter.batch_size
        while self._waiting and room:
            part, rest = self._waiting.pop(0).split(room)
            room -= len(part.images)
            batch.append(part)
            if len(rest.images):
                self._waiting.insert(0, rest)
        patient = np.concatenate([np.full(len(p.images), p.scan.opened.ready.patient, np.int32) for p in batch])
        images, rows = (np.concatenate(x) for x in ([p.images for p in batch], [p.rows for p in batch]))
        self._on_device.append((batch, self._segmenter.started(images, patient, rows)))
        while len(self._on_device) >= ON_DEVICE:
            self._fetch()

    def _fetch(self) -> None:
        """Brings the oldest batch to the host, and hands complete scans to the writers."""
        batch, started = self._on_device.popleft()
        predicted, first = fetched(started), 0
        for part in batch:
            own = slice(first, first := first + len(part.images))
            part.scan.take(part.frame, SlicePredictions(*(x[own] for x in predicted)))
            if not part.scan.missing:
                self._settle(part.scan)

    def _settle(self, scan: _Scan) -> None:
        """Writes a scan, or lets frames wait again that have a better frame of the heart."""
        again = scan.again(self._segmenter)
        ready = scan.opened.ready
        for frame in again:
            self._waiting.append(
                _Slices(scan, frame, first=0, images=ready.slices[frame].images, rows=ready.rows[frame])
            )
        if not again:
            self._write(scan)

    def _alone(self, scan: _Scan) -> None:
        """Segments a scan in batches of its own: it has a gallery of its own, or what is drawn depends on the batch."""
        ready = scan.opened.ready
        segmenter = ready.segmenter(self._segmenter)
        try:
            ready, predicted = ready.segmented(segmenter)
            scan.opened = scan.opened._replace(ready=ready)
            for frame, part in enumerate(predicted):
                scan.take(frame, part)
        except UserError as e:
            self.ends.put(scan.number, e)
        else:
            self._write(scan)

    def _write(self, scan: _Scan) -> None:
        def write() -> None:
            write_results(self._run, scan.opened, predicted=scan.predictions(), gallery=self._gallery)

        self.ends.put(scan.number, self._writing.submit(write), scan.bytes)


class _Ends:
    """How each scan ends, told in the order of the tasks."""

    def __init__(self, todo: Sequence[Task], tell: Tell):
        self._todo, self._tell = todo, tell
        self._there: dict[int, tuple[concurrent.futures.Future[None] | UserError, int]] = {}
        self._told, self._held = 0, 0
        self._faults: list[str] = []

    def put(self, number: int, end: concurrent.futures.Future[None] | UserError, size: int = 0) -> None:
        """Task `number` has a fault, or is being written and takes `size` bytes until then."""
        self._there[number] = (end, size)
        self._held += size
        self.settle()

    def settle(self, until: float = float("inf")) -> None:
        """Tells of all that is done; waits for scans that are being written while more than `until` bytes are held.

        Raises:
          UserError: see `segment_files`.
        """
        while self._told in self._there:
            end, size = self._there[self._told]
            if not isinstance(end, UserError) and not end.done() and self._held <= until:
                return
            number, self._told = self._told, self._told + 1
            del self._there[number]
            self._held -= size
            task, fault = self._todo[number], ""
            try:
                if isinstance(end, UserError):
                    raise end
                end.result()
            except UserError as e:
                if len(self._todo) == 1 or files.concerns_every_file(e):
                    raise
                name = printable(task.scan)
                fault = str(e) if name in str(e) else f"{name}: {e}"
                self._faults.append(fault)
            self._tell(number + 1, task, fault)

    def faults(self) -> list[str]:
        """Waits for all, and returns the faults."""
        self.settle(until=-1)
        return self._faults
