"""Scores a model on volumes: 3-D, per volume and structure, in the scan's native geometry; and its retriever."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from jras_jax import threads
from jras_jax.data import Volume
from jras_jax.data.dice import structure_counts
from jras_jax.data.grid import VolumeSlices
from jras_jax.data.load import RunData
from jras_jax.data.slice_table import SliceTable
from jras_jax.evaluation import metrics
from jras_jax.inference.full_batches import FullBatches
from jras_jax.inference.postprocess import postprocessed
from jras_jax.inference.predictions import SlicePredictions, VolumePrediction, on_scan
from jras_jax.inference.segmenter import Segmenter
from jras_jax.inference.trained_run import RunGallery, TrainedRun
from jras_jax.retrieval import measures

# Threads that bring volumes to the model grid, and predictions back; and those that score.
PLACERS, FINISHERS, SCORERS = 2, 2, 2
AHEAD, WAITING = 3, 2  # volumes that are being placed, and predictions that wait for the scorers
Score = TypeVar("Score")


def gallery_of(run: TrainedRun, data: RunData, split: str) -> RunGallery | None:
    """What guides an evaluation of a split: the training patients; None for a run without retrieval.

    With config.protocol='paper' it is the split itself, unless config.eval.gallery is 'train'.
    """
    own = run.train_gallery(data)  # kept in the folder in both cases: it guides new scans
    if own is None or run.config.protocol == "patient" or run.config.eval.gallery == "train":
        return own
    return run.make_gallery(run.table_of(data.part(split)))


def gallery_numbers(volume: Volume, table: SliceTable | None) -> tuple[int, np.ndarray | None]:
    """The gallery's patient number and rows (Z,) of a volume, for the leak rule; -1: not there."""
    if table is None or volume.patient not in table.patients:
        return -1, None
    rows = np.full(volume.image.shape[2], -1, np.int32)
    if volume.case in table.cases:
        own = np.flatnonzero(table.case == table.cases.index(volume.case))
        rows[table.slice_index[own]] = own
    return table.patients.index(volume.patient), rows


def predictions(
    segmenter: Segmenter,
    volumes: Sequence[Volume],
    table: SliceTable | None,
    *,
    rule: str = "none",
    progress: Callable[[Sequence[Volume]], Iterable[Volume]] = iter,
) -> Iterator[tuple[Volume, VolumePrediction]]:
    """Segments volumes, in their order, post-processed by `rule` (see `postprocessed`).

    Threads bring volumes to the model grid and predictions back to the scans' grids, while the network segments others
    in batches that are full across volumes. `progress` goes on with each volume that is done, and may raise.
    """
    with contextlib.closing(_streamed(segmenter, volumes, table, rule)) as ends:
        yield from (end for _, end in zip(progress(volumes), ends, strict=True))


def _streamed(
    segmenter: Segmenter, volumes: Sequence[Volume], table: SliceTable | None, rule: str
) -> Generator[tuple[Volume, VolumePrediction], None, None]:
    ends: dict[int, concurrent.futures.Future[tuple[Volume, VolumePrediction]]] = {}
    # Several hosts place one volume after another: the locator's program runs on the devices of all, in the same order.
    ahead = AHEAD if jax.process_count() == 1 else 0
    placed = threads.in_order(segmenter.placed, volumes, threads=PLACERS, ahead=ahead)
    told = 0
    with (
        concurrent.futures.ThreadPoolExecutor(FINISHERS, "finisher") as finishing,
        FullBatches(segmenter) as batches,
        contextlib.closing(placed),
    ):

        def finish(
            number: int, volume: Volume, patient: int, slices: VolumeSlices, predicted: SlicePredictions
        ) -> None:
            work = lambda: (volume, postprocessed(on_scan(slices, predicted, patient), rule))  # noqa: E731
            ends[number] = finishing.submit(work)

        for number, (volume, slices) in enumerate(zip(volumes, placed, strict=True)):
            patient, rows = gallery_numbers(volume, table)
            done = functools.partial(finish, number, volume, patient)
            batches.add(volume, slices, patient, rows, done=done)
            while len(ends) > WAITING and told in ends:
                yield ends.pop(told).result()
                told += 1
        batches.flush()
        while ends:
            yield ends.pop(told).result()
            told += 1


def beside(
    predicted: Iterable[tuple[Volume, VolumePrediction]], score: Callable[[Volume, VolumePrediction], Score]
) -> Iterator[tuple[Volume, VolumePrediction, Score]]:
    """Scores volumes in threads while the network segments the next ones.

    Args:
      predicted: volumes and their predictions.
      score: a pure function; what it raises is raised here.

    Yields:
      Each volume, its prediction and its score, in the order of `predicted`. At most `WAITING` predictions are held
      beside the one that is yielded.
    """
    yield from threads.in_order(lambda pair: (*pair, score(*pair)), predicted, threads=SCORERS, ahead=WAITING)


def case_rows(volume: Volume, prediction: VolumePrediction) -> list[dict[str, Any]]:
    """One row per structure of a scored volume, as `cases.csv` has them."""
    assert volume.mask is not None
    spacing = volume.spacing if volume.spacing_known else None
    scores = metrics.score_structures(
        volume.mask, prediction.labels, spacing=spacing, structures=volume.description.structures
    )
    agreement = prediction.slices.agreement
    known = np.isfinite(agreement)
    shared = {
        "patient": volume.patient,
        **({"scan": volume.name} if volume.name else {}),
        "phase": volume.phase,
        "group": volume.group,
        "vendor": volume.vendor,
        "centre": volume.centre,
        "unit": "mm" if volume.spacing_known else "voxel",
        "expected_dice": prediction.expected_dice,
        "entropy": prediction.entropy,
        "guide_agreement": float(agreement[known].mean()) if known.any() else float("nan"),
    }
    fields = [f.name for f in dataclasses.fields(metrics.Scores)]
    return [shared | {"structure": name} | {f: getattr(s, f) for f in fields} for name, s in scores.items()]


def position_rows(volume: Volume, prediction: VolumePrediction) -> list[dict[str, Any]]:
    """One row per third of the heart and structure of a scored volume, as `positions.csv` has them."""
    assert volume.mask is not None
    shared = {"patient": volume.patient, "phase": volume.phase}
    own = volume.description
    rows = metrics.position_scores(volume.mask, prediction.labels, structures=own.structures, description=own)
    return [shared | row for row in rows]


def validate(
    segmenter: Segmenter,
    volumes: Sequence[Volume],
    table: SliceTable | None,
    *,
    progress: Callable[[Sequence[Volume]], Iterable[Volume]] = iter,
    seen: Callable[[Volume, VolumePrediction], None] = lambda volume, prediction: None,
) -> dict[str, float]:
    """Mean 3-D Dice over volumes: 'val/dice', 'val/dice_RV', ...; the retriever's 'val/retrieval_dice_1' and more.

    `progress` is as in `predictions`; `seen` is called with each volume and its prediction.
    """
    start = time.monotonic()
    scores: list[dict[str, float]] = []
    retrieved = RetrievedMasks(table) if table is not None else None
    for volume, prediction in predictions(segmenter, volumes, table, progress=progress):
        assert volume.mask is not None
        counts = structure_counts(volume.mask, prediction.labels, volume.description.structures)
        scores.append({name: c.dice for name, c in counts.items()})
        if retrieved is not None:
            retrieved.add(prediction)
        seen(volume, prediction)
    values = {f"val/dice_{name}": float(np.mean([s[name] for s in scores])) for name in scores[0]}
    values["val/dice"] = float(np.mean(list(values.values())))
    if retrieved is not None:
        values |= {f"val/{k}": v for k, v in retrieved.summary().items()}
    values["val/seconds"] = time.monotonic() - start
    return values


class RetrievedMasks:
    """Measures what was retrieved for each query slice; of each volume only its values are kept, not its slices.

    Args:
      table: the gallery's slices.
      controls: the number of classes, to measure random rows, pixel similarity and the oracle too (slower); 0 does not.
    """

    def __init__(self, table: SliceTable, *, controls: int = 0):
        self._table = table
        self._controls = measures.Controls(table.masks, table.images, controls) if controls else None
        self._first: list[np.ndarray] = []
        self._mixed: list[np.ndarray] = []
        self._indices: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []

    def add(self, prediction: VolumePrediction) -> None:
        """Adds the slices of a labelled volume that have foreground."""
        assert prediction.masks is not None
        kept = prediction.masks.any((1, 2))
        truth, indices = prediction.masks[kept], prediction.slices.indices[kept]
        weights = prediction.slices.weights[kept]
        first, mixed = measures.guide_dice(truth, indices, weights=weights, masks=self._table.masks)
        self._first.append(first)
        self._mixed.append(mixed)
        self._indices.append(indices)
        self._weights.append(weights)
        if self._controls is not None:
            allowed = np.full(len(truth), prediction.patient)[:, None] != self._table.patient[None]
            self._controls.add(truth, prediction.images[kept], allowed)

    def summary(self) -> dict[str, float]:
        """Dice of the retrieved masks at 1 and at k; entropy; share of the gallery used; the controls if wanted."""
        first, mixed, indices, weights = map(np.concatenate, (self._first, self._mixed, self._indices, self._weights))
        values = measures.averages(first, mixed, indices=indices, weights=weights, rows=len(self._table.masks))
        return values | (self._controls.averages() if self._controls is not None else {})
