"""Scores one checkpoint with the controls of the certificate of retrieval (see `evaluation.certificate`).

The leak rule holds for every control. A control is segmented, post-processed and scored as the real prediction is, by
Dice alone. The draws depend on the seed and on the order of the volumes, not on the devices.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jras_jax.data import Volume
from jras_jax.data.dice import structure_counts
from jras_jax.data.slice_table import SliceTable
from jras_jax.evaluation.certificate import CONTROLS, certify
from jras_jax.evaluation.evaluator import gallery_numbers
from jras_jax.inference.guided import Given, GuidedSegmenter
from jras_jax.inference.postprocess import postprocessed_labels
from jras_jax.inference.predictions import VolumePrediction
from jras_jax.inference.segmenter import Segmenter, filled
from jras_jax.inference.trained_run import TrainedRun
from jras_jax.joint import Selection
from jras_jax.retrieval import measures
from jras_jax.retrieval.gallery import Gallery, QueryKeys, allowed_rows
from jras_jax.retrieval.selection import select

_QUERIES = 32  # slices for which guides are chosen at once; a constant, on which the draws depend
_STREAM = 1  # folded into the seed's key, so that the draws are not those of a run with the strategy 'random'


class ControlScores:
    """Scores the controls of volumes that come one after another.

    Args:
      run: the run under evaluation, with retrieval.
      segmenter: that of the evaluation, its gallery set.
      table: the gallery's slices.
    """

    def __init__(self, run: TrainedRun, segmenter: Segmenter, table: SliceTable):
        assert segmenter.gallery is not None
        self._rule, self._blanks, self._seed = run.config.eval.postprocess, run.config.blank_share > 0, run.config.seed
        self._selection = Selection.of(run.config.retrieval)
        self._guided, self._table, self._classes = GuidedSegmenter(segmenter), table, run.description.num_classes
        self._rows = len(segmenter.gallery)  # with the padding that the devices need
        thin = jnp.asarray(measures.thinned(table.masks))
        nobody = jnp.zeros((len(table), 0))
        self._gallery = Gallery(
            nobody, thin, masks=thin, patient=jnp.asarray(table.patient), valid=jnp.ones(len(table), bool)
        )
        # A run whose own guides are a control has that control's scores already.
        self._controls = tuple(name for name in CONTROLS if name != self._selection.strategy)
        self._patients: list[str] = []
        self._dice: dict[str, list[float]] = {name: [] for name in ("real", *CONTROLS)}

    def add(self, volume: Volume, prediction: VolumePrediction, dice: float) -> None:
        """Scores the controls of a labelled volume; `dice` is the mean over structures of its real prediction."""
        assert volume.mask is not None
        given = self._given(volume, prediction)
        stacked = Given(*(np.concatenate(arrays) for arrays in zip(*given.values(), strict=True)))
        n = len(prediction.images)
        found = self._guided.probabilities(np.concatenate([prediction.images] * len(given)), stacked)
        self._patients.append(volume.patient)
        self._dice["real"].append(dice)
        for i, name in enumerate(given):
            labels = prediction.mapping.to_native(found[i * n : (i + 1) * n])
            counts = structure_counts(
                volume.mask, postprocessed_labels(labels, self._rule), volume.description.structures
            )
            self._dice[name].append(float(np.mean([c.dice for c in counts.values()])))
        for name in set(CONTROLS) - set(given):
            self._dice[name].append(dice)

    def certificate(self) -> dict[str, Any]:
        """The certificate, as summary.json holds it."""
        return certify(self._dice, self._patients, trained_with_blank=self._blanks, strategy=self._selection.strategy)

    def _given(self, volume: Volume, prediction: VolumePrediction) -> dict[str, Given]:
        """The guides of each control for the slices of a volume."""
        patient, rows = gallery_numbers(volume, self._table)
        n, mixes = len(prediction.images), self._selection.strategy == "softmax"
        whose = np.full(n, patient, np.int32)
        own = np.full(n, -1, np.int32) if rows is None else rows
        real = (prediction.slices.indices, prediction.slices.weights)
        if mixes:
            real = (np.zeros((n, 0), np.int32), self._guided.shares(prediction.images, whose, own))
        random, oracle = self._chosen(prediction, whose, own)
        guides = {"random": random, "blank": real, "permuted": real, "oracle": oracle}
        every = lambda wanted: np.full(n, wanted)  # noqa: E731
        return {
            name: Given(*guides[name], blank=every(name == "blank"), permuted=every(name == "permuted"))
            for name in self._controls
        }

    def _chosen(
        self, prediction: VolumePrediction, patient: np.ndarray, rows: np.ndarray
    ) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Rows and weights of the random guides and of the oracle's, for each slice of a volume."""
        assert prediction.masks is not None
        key = jax.random.fold_in(jax.random.key(self._seed), _STREAM)
        key = jax.random.fold_in(key, len(self._patients))
        truth = measures.thinned(prediction.masks)
        parts = []
        for start in range(0, len(truth), _QUERIES):
            at = slice(start, start + _QUERIES)
            queries = [filled(x[at], _QUERIES) for x in (truth, patient, rows)]
            options = {"selection": self._selection, "num_classes": self._classes}
            found = _choose(self._gallery, *queries, jax.random.fold_in(key, start), **options)
            parts.append([np.asarray(x)[: len(truth) - start] for x in found])
        random_rows, random_weights, oracle_rows, oracle_weights = (np.concatenate(p) for p in zip(*parts, strict=True))
        if not random_rows.shape[1]:
            pad = ((0, 0), (0, self._rows - len(self._table)))
            random_weights, oracle_weights = np.pad(random_weights, pad), np.pad(oracle_weights, pad)
        return (random_rows, random_weights), (oracle_rows, oracle_weights)


@functools.partial(jax.jit, static_argnames=("selection", "num_classes"))
def _choose(
    gallery: Gallery,
    truth: jax.Array,
    patient: jax.Array,
    row: jax.Array,
    key: jax.Array,
    *,
    selection: Selection,
    num_classes: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Rows and weights (n, K) of random guides and of the oracle's; rows (n, 0) and weights (n, N) if all are mixed."""
    allowed = allowed_rows(gallery, QueryKeys(patient, row), selection.exclude)
    overlap = measures.overlap(truth, gallery.masks, num_classes=num_classes)
    if selection.strategy == "softmax":
        none = jnp.zeros((len(truth), 0), jnp.int32)
        even = allowed / allowed.sum(1, keepdims=True)
        best = select(overlap, allowed, strategy="softmax", k=1, temperature=selection.temperature)
        return none, even, none, best.weights
    options: Any = {"k": selection.top_k, "temperature": selection.temperature}
    random = select(overlap, allowed, strategy="random", key=key, **options)
    best = select(overlap, allowed, strategy="oracle", **options)
    return random.indices, random.weights, best.indices, best.weights
