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
import functools
from collections.abc import Callable, Iterator, Sequence

import jax

from jras_jax import files
from jras_jax.data.grid import VolumeSlices
from jras_jax.errors import UserError, printable
from jras_jax.inference.full_batches import FullBatches
from jras_jax.inference.predictions import SlicePredictions
from jras_jax.inference.scans import Note, OpenedScan, Task, open_scan, write_results
from jras_jax.inference.segmenter import Segmenter
from jras_jax.inference.trained_run import RunGallery, TrainedRun

MEMORY = 1 << 30  # bytes
AHEAD = 3  # scans that are being read, or wait for the network
READERS, WRITERS = 2, 2  # threads
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
    try:
        with FullBatches(segmenter) as batches:
            work = _Work(run, gallery, segmenter=segmenter, batches=batches, writing=writing, ends=_Ends(todo, tell))
            for number, opened in _read(run, todo, gallery=gallery, segmenter=segmenter, reading=reading):
                if isinstance(opened, UserError):
                    work.ends.put(number, opened)
                    work.ends.settle()
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
      bytes: what it takes until it is written.
    """

    def __init__(self, number: int, opened: OpenedScan):
        self.number, self.opened = number, opened
        slices = opened.ready.slices
        images = sum(s.images.nbytes for s in slices) * (1 + 4 * slices[0].mapping.num_classes)
        maps = 2 * sum(opened.task.maps) * (slices[0].mapping.num_classes + 1) * opened.scan.array.size
        self.bytes = 2 * opened.scan.array.nbytes + images + maps
        self._predicted: dict[int, tuple[VolumeSlices, SlicePredictions]] = {}

    def take(self, frame: int, slices: VolumeSlices, predicted: SlicePredictions) -> bool:
        """Takes a frame's prediction and the slices that it was made of; whether all frames are there."""
        self._predicted[frame] = slices, predicted
        return len(self._predicted) == len(self.opened.ready.slices)

    def predictions(self) -> tuple[OpenedScan, list[SlicePredictions]]:
        """The scan with the slices that were segmented, and the predictions, frame by frame."""
        frames = [self._predicted[frame] for frame in sorted(self._predicted)]
        ready = self.opened.ready._replace(slices=[slices for slices, _ in frames])
        return self.opened._replace(ready=ready), [predicted for _, predicted in frames]


class _Work:
    """From the scans that were read to the writers; all of it happens in the calling thread."""

    def __init__(
        self,
        run: TrainedRun,
        gallery: RunGallery | None,
        segmenter: Segmenter,
        batches: FullBatches,
        writing: concurrent.futures.Executor,
        ends: _Ends,
    ):
        self.ends = ends
        self._run, self._gallery, self._segmenter, self._writing = run, gallery, segmenter, writing
        self._batches, self._unfinished = batches, set[_Scan]()

    def add(self, scan: _Scan) -> None:
        """Takes a scan; waits while too much is held."""
        ready = scan.opened.ready
        alone = ready.segmenter(self._segmenter) if ready.gallery is not None else None
        self._unfinished.add(scan)
        try:
            for frame, (volume, slices) in enumerate(zip(ready.volumes, ready.slices, strict=True)):
                done = functools.partial(self._take, scan, frame)
                self._batches.add(volume, slices, ready.patient, ready.rows[frame], done=done, alone=alone)
        except UserError as e:
            self._unfinished.discard(scan)
            self.ends.put(scan.number, e)
        if sum(s.bytes for s in self._unfinished) > MEMORY:
            self.flush()
        self.ends.settle(until=MEMORY)

    def flush(self) -> None:
        """Gives the network all that waits."""
        self._batches.flush()

    def _take(self, scan: _Scan, frame: int, slices: VolumeSlices, predicted: SlicePredictions) -> None:
        """Takes a frame's prediction, and has the scan written when it is the last one."""
        if not scan.take(frame, slices, predicted):
            return
        self._unfinished.discard(scan)

        def write() -> None:
            opened, predictions = scan.predictions()
            write_results(self._run, opened, predicted=predictions, gallery=self._gallery)

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
