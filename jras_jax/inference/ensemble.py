"""The folds of a cross-validation as one model: their probabilities averaged on the grid of the scan.

Each fold retrieves from its own gallery. Of the patients of the cross-validation, all folds but one have trained on
each: the ensemble is for scans of other patients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jras_jax.errors import UserError
from jras_jax.inference import scans
from jras_jax.inference.postprocess import postprocessed
from jras_jax.inference.predictions import VolumePrediction, expected_dice, predictive_entropy
from jras_jax.inference.scans import Note, Task
from jras_jax.inference.segmenter import Segmenter
from jras_jax.inference.trained_run import RunGallery, TrainedRun, open_run
from jras_jax.run_folder.layout import RunFolder


@dataclasses.dataclass(frozen=True)
class Member:
    """One fold, ready to segment."""

    number: int
    run: TrainedRun
    gallery: RunGallery | None
    segmenter: Segmenter


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """The folds of a cross-validation; `folder` holds fold_0, fold_1, ..."""

    folder: RunFolder
    members: list[Member]

    def segment_file(self, task: Task, note: Note = lambda line: None) -> list[VolumePrediction]:
        """Segments one scan by the mean of all folds' probabilities, and writes its mask and evidence.

        The arguments, and what is raised, are those of `scans.segment_file`. The evidence has that of each fold in
        'folds'; its own 'frames' have the entropy and the expected Dice of the mean alone.
        """
        evidence: dict[str, Any] = {}
        whole: list[np.ndarray] = []
        for member in self.members:
            opened = scans.open_scan(member.run, task, gallery=member.gallery, segmenter=member.segmenter)
            ready, predicted = opened.ready.segmented(opened.ready.segmenter(member.segmenter))
            opened = opened._replace(ready=ready)
            predictions = member.run.finish(opened.ready, predicted)
            evidence[str(member.number)] = scans.evidence_of(
                member.run, opened, predictions=predictions, gallery=member.gallery
            )
            shares = [p.probabilities / np.float32(len(self.members)) for p in predictions]
            whole = shares if not whole else [a + b for a, b in zip(whole, shares, strict=True)]
        for remark in opened.remarks:
            note(remark)
        predictions = [self._decided(p, shares) for p, shares in zip(predictions, whole, strict=True)]
        facts = {k: v for k, v in evidence[str(self.members[0].number)].items() if k in _SHARED}
        facts |= {
            "run": str(self.folder),
            "checkpoint_step": [member.run.step for member in self.members],
            "frames": [
                {"frame": t, "entropy": round(p.entropy, 6), "expected_dice": round(p.expected_dice, 6)}
                for t, p in enumerate(predictions)
            ],
            "folds": evidence,
        }
        scans.write_mask_and_evidence(self.members[-1].run, opened, predictions=predictions, evidence=facts)
        return predictions

    def _decided(self, last: VolumePrediction, probabilities: np.ndarray) -> VolumePrediction:
        """The last member's prediction with the labels and the entropy of the mean probabilities (X, Y, Z, C)."""
        labels = np.argmax(probabilities, -1).astype(np.uint8)
        decided = dataclasses.replace(
            last,
            labels=labels,
            entropy=predictive_entropy(probabilities),
            expected_dice=expected_dice(probabilities),
            averaged=probabilities,
        )
        return postprocessed(decided, self.members[0].run.config.eval.postprocess)


_SHARED = ("input", "labels", "spacing", "spacing_unit", "slice_axis", "counting")


def open_ensemble(
    folder: RunFolder, overrides: Sequence[str] = (), gallery: str | None = None, labels: str | None = None
) -> Ensemble:
    """Opens every fold of a folder.

    Args:
      folder: that holds fold_0, fold_1, ...
      overrides: as of `open_run`, for each.
      gallery, labels: as of `TrainedRun.open_gallery`, for each: a folder of labelled scans (a stored gallery belongs
        to one fold's retriever). None: each fold's own.

    Raises:
      UserError: see `open_run` and `open_gallery`; or the folds were trained with different settings.
    """
    members: list[Member] = []
    for number, fold in folder.folds().items():
        run = open_run(fold.path, overrides)
        lead = members[0].run if members else run
        if _settings(run) != _settings(lead):
            raise UserError(
                f"{run.folder} and {lead.folder} were trained with different settings, so their predictions cannot be "
                "averaged; train the folds by one command"
            )
        own = run.open_gallery(gallery, labels) if run.config.retrieval.enabled or gallery else None
        arrays = own.arrays if own else None
        # One program serves all folds: it is compiled again only where their galleries differ in size.
        segmenter = members[0].segmenter.using(run.variables, arrays) if members else run.segmenter(arrays)
        members.append(Member(number, run, gallery=own, segmenter=segmenter))
    return Ensemble(folder, members)


def _settings(run: TrainedRun) -> tuple[Any, ...]:
    """What the folds must have in common."""
    dataset = dataclasses.replace(run.config.dataset, fold=0, manual_dir="", data_dir="")
    return dataclasses.replace(run.config, dataset=dataset), run.description, run.grid
