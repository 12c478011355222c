"""Evaluates a trained run on one part of its data set: scores, summary and the evidence that the report shows."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from jras_jax import config as configs
from jras_jax import files
from jras_jax.data import DatasetDescription, Volume
from jras_jax.data.load import RunData
from jras_jax.errors import UserError
from jras_jax.evaluation import choose, clinical, evaluator, export, metrics, triage
from jras_jax.evaluation.control_scores import ControlScores
from jras_jax.evaluation.evidence import EvidenceWriter
from jras_jax.inference.predictions import VolumePrediction
from jras_jax.inference.trained_run import RunGallery, TrainedRun
from jras_jax.run_folder import provenance
from jras_jax.run_folder.layout import SELECTION_OPTIONS, evaluation_name

POSITION_COLUMNS = (
    *("patient", "phase", "position", "structure", "dice", "jaccard"),
    *("voxels", "reference_voxels", "empty"),
)
PROTOCOL_2D = "2-D scores per image and structure, in the image's own pixels; splits by patient"
PROTOCOL = "3-D scores per volume (patient and phase) and structure, in the scan's native geometry; splits by patient"
PAPER_PROTOCOL = (
    "the paper's protocol, which leaks: 2-D scores per slice and structure, in the scan's native geometry; slices are "
    "split at random, each counts as a patient; paper_2d has the mean with background"
)
_GUIDES = {
    "patient": "; guides come from training patients only, never from the query's own patient",
    "slice": "; guides come from training patients, other slices of the query's own patient among them (this leaks)",
    "none": "; guides come from training patients, the query's own slice among them (this leaks)",
}


def evaluate(
    run: TrainedRun,
    data: RunData,
    *,
    submission: str | pathlib.Path | None = None,
    keep: Collection[str] | None = None,
    other: str | None = None,
    progress: Callable[[Sequence[Volume]], Iterable[Volume]] = iter,
) -> dict[str, Any]:
    """Evaluates a run on `config.eval.split` and writes the files of that evaluation, whole or not at all.

    They go to `evaluation/SPLIT/` in the run's folder, or to a folder that names the options too if these change the
    scores (see `name_of`), so that no evaluation replaces another one.

    Args:
      run: opened with the overrides that this evaluation wants.
      data: its data set, with the run's own splits.
      submission: folder for the split's masks in the layout of the data set's challenge, see `evaluation.export`; each
        patient's are written when they are complete.
      keep: names of the cases to keep evidence of; None is `eval.evidence_cases` of them.
      other: a gallery that guides in place of the run's own, see `TrainedRun.open_gallery`; the leak rule knows its
        patients by their names.
      progress: goes on with each volume that is done, to show how far the evaluation is; may raise.

    Returns:
      The summary, as written to summary.json.

    Raises:
      UserError: the data set has no patients in that split, or a file cannot be written (as far as can be told, that is
        said before the evaluation starts).
    """
    config = run.config
    volumes = data.part(config.eval.split)
    _check_submission(config, volumes, folder=submission, scans=data.scans)
    gallery = run.open_gallery(other) if other else evaluator.gallery_of(run, data, config.eval.split)
    table = gallery.table if gallery else None
    scores = _Scores(run.description.num_classes)
    retrieved = evaluator.RetrievedMasks(table, controls=run.description.num_classes) if table is not None else None
    evidence = EvidenceWriter(config.eval.evidence_cases, table, named=keep, channels=len(run.description.channels))
    evidence.check(volumes)
    segmenter = run.segmenter(gallery.arrays if gallery else None)
    controls = ControlScores(run, segmenter, table) if table is not None and config.eval.certificate else None
    masks = _Submission(volumes, config.dataset.convention, folder=submission, scans=data.scans)
    with contextlib.closing(evidence):
        predicted = evaluator.predictions(segmenter, volumes, table, rule=config.eval.postprocess, progress=progress)
        for volume, prediction, score in evaluator.beside(predicted, functools.partial(_score, evidence=evidence)):
            masks.add(volume, prediction.labels)
            scores.add(score)
            evidence.add(volume.case, score.dice, score.evidence)
            if retrieved is not None:
                retrieved.add(prediction)
            if controls is not None:
                controls.add(volume, prediction, score.dice)
        summary = _summary(run, data, scores=scores, volumes=volumes, gallery=gallery, retrieved=retrieved, other=other)
        if controls is not None:
            summary["retrieval_certificate"] = finite(controls.certificate())
        summary["evidence"] = evidence.names
        if jax.process_index() == 0:
            _write(run, scores, evidence=evidence, summary=summary)
    return summary


def _check_submission(
    config: configs.Config, volumes: Sequence[Volume], folder: str | pathlib.Path | None, scans: str | os.PathLike[str]
) -> None:
    """Raises UserError if the masks cannot be written in the challenge's layout, as far as can be told before."""
    if folder is None:
        return
    if config.protocol == "paper":
        raise UserError("--output writes whole volumes, but config.protocol='paper' scores single slices: leave it out")
    export.check(volumes, folder, scans=scans, convention=config.dataset.convention)


def name_of(run: TrainedRun, other: str | None = None) -> str:
    """The name of a run's evaluation with the options it is opened with, and with the gallery `other`, if any.

    The split alone, such as 'test'; with post-processing, test-time augmentation or another way to retrieve than the
    run was trained with, these too, such as 'test+tta=True+strategy=random' or 'test+gallery=clinic-1f0c2d3e'.
    """
    used = {"postprocess": run.config.eval.postprocess, "tta": run.config.eval.tta}
    options: dict[str, Any] = {key: value for key, value in used.items() if value != choose.PLAIN[key]}
    if run.config.retrieval.enabled:
        trained = configs.load_saved(run.folder.config).retrieval
        for key in SELECTION_OPTIONS:
            value = getattr(run.config.retrieval, key)
            if value != trained.get(key, value):
                options[key] = value
        if run.config.protocol == "paper" and run.config.eval.gallery == "train":
            options["gallery"] = "train"
        if other:
            options["gallery"] = gallery_name(other)
    return evaluation_name(run.config.eval.split, options)


def gallery_name(folder: str | os.PathLike[str]) -> str:
    """What an evaluation calls another gallery: its folder's name and eight digits that tell namesakes apart."""
    path = pathlib.Path(folder).resolve()
    plain = re.sub(r"[^\w.-]+", "_", path.name)
    return f"{plain}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _write(run: TrainedRun, scores: _Scores, evidence: EvidenceWriter, summary: Mapping[str, Any]) -> None:
    """Writes the files of an evaluation, all of them or none."""
    place = run.folder.evaluation(summary["evaluation"])
    with files.filling(place.path) as folder:
        new = dataclasses.replace(place, path=folder)
        evidence.write(new.evidence)
        metrics.write_cases_csv(new.cases, scores.cases)
        if scores.positions:
            metrics.write_cases_csv(new.positions, scores.positions, POSITION_COLUMNS)
        files.write_json(new.summary, summary)
    # What the same evaluation left before and does not belong to these scores.
    stale = [file for file in place.evidence.glob("*.npz") if file.stem not in evidence.names]
    for file in [*stale, place.report]:
        file.unlink(missing_ok=True)
    files.write_json(run.folder.last, {"evaluation": place.name})


class _Submission:
    """Writes the masks of each patient in the challenge's layout as soon as all of the patient's cases are there.

    Args:
      volumes: all that will come.
      convention: whose layout, 'acdc', 'mnms' or 'own'.
      folder: where to; None writes nothing.
      scans: the folder that the volumes' sources are relative to.
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        convention: str,
        folder: str | pathlib.Path | None,
        scans: str | os.PathLike[str],
    ):
        self._left = collections.Counter(volume.patient for volume in volumes)
        self._kept: dict[str, list[export.Prediction]] = {}
        ways = {"acdc": export.export_acdc, "mnms": export.export_mnms, "own": export.export_own}
        self._export: Callable[..., list[pathlib.Path]] = ways[convention]
        self._folder, self._scans = folder if jax.process_index() == 0 else None, scans

    def add(self, volume: Volume, labels: np.ndarray) -> None:
        """Takes the labels (X, Y, Z) of a case; raises what the export does."""
        if self._folder is None:
            return
        self._kept.setdefault(volume.patient, []).append((volume, labels))
        self._left[volume.patient] -= 1
        if not self._left[volume.patient]:
            self._export(self._kept.pop(volume.patient), self._folder, self._scans)


class _Score(NamedTuple):
    """What one volume scored, as `_Scores` collects it; `dice` is the mean over its structures."""

    cases: list[dict[str, Any]]
    positions: list[dict[str, Any]]
    paper: list[dict[str, Any]]
    confusion: np.ndarray
    unlocated: list[str]
    dice: float
    evidence: bytes


def _score(volume: Volume, prediction: VolumePrediction, evidence: EvidenceWriter) -> _Score:
    """Scores a volume, and packs what the report may show of it."""
    assert volume.mask is not None
    own = volume.description
    cases = evaluator.case_rows(volume, prediction)
    dice = float(np.mean([row["dice"] for row in cases]))
    return _Score(
        cases,
        evaluator.position_rows(volume, prediction),
        paper=metrics.paper_2d_scores(volume.mask, prediction.labels, own.structures),
        confusion=metrics.confusion(volume.mask, prediction.labels, own.num_classes),
        unlocated=[volume.case] if prediction.located is not None and prediction.located.frame is None else [],
        dice=dice,
        evidence=evidence.packed(volume, prediction, dice),
    )


class _Scores:
    """What the volumes scored, as it is written."""

    def __init__(self, classes: int) -> None:
        self.cases: list[dict[str, Any]] = []
        self.positions: list[dict[str, Any]] = []
        self.paper: list[list[dict[str, Any]]] = []
        self.confusion = np.zeros((classes, classes), np.int64)
        self.unlocated: list[str] = []

    def add(self, score: _Score) -> None:
        """Takes the score of a volume."""
        self.cases += score.cases
        self.positions += score.positions
        self.paper.append(score.paper)
        self.confusion += score.confusion
        self.unlocated += score.unlocated

    def uncertainty(self) -> dict[str, Any]:
        """How well the signs that need no truth rank the cases by Dice, see `triage.ranking`."""
        return triage.ranking(self.cases)


def _described(description: DatasetDescription) -> dict[str, Any]:
    """What a summary says of the data set."""
    return {
        "dataset": description.name,
        "structures": list(description.structures),
        "phases": list(description.phases),
        "dimensions": description.dimensions,
    }


def _summary(
    run: TrainedRun,
    data: RunData,
    scores: _Scores,
    volumes: list[Volume],
    gallery: RunGallery | None,
    retrieved: evaluator.RetrievedMasks | None,
    other: str | None,
) -> dict[str, Any]:
    config, warnings = run.config, _changes(run, data)
    units = {r["unit"] for r in scores.cases}
    if "voxel" in units:
        which = "the scans have" if len(units) == 1 else "some scans have"
        warnings.append(f"{which} no known voxel spacing: distances are in voxels, volumes are counts of voxels")
    warnings += _told(provenance.leaks(config))
    if other and gallery:
        warnings.append(f"not the training patients guide, but another gallery: {gallery.description}")
    if scores.unlocated:
        names = ", ".join(scores.unlocated[:3]) + (", ..." if len(scores.unlocated) > 3 else "")
        warnings.append(f"the heart was not found in {len(scores.unlocated)} cases, segmented as whole slices: {names}")
    if config.eval.split == "test" and choose.unmeasured(run):
        warnings.append(choose.UNMEASURED)
    guided_by: dict[str, Any] = {"enabled": config.retrieval.enabled}
    if gallery is not None:
        guided_by |= {
            "split": "train" if config.protocol == "patient" else _paper_gallery(config),
            **({"split": None, "made_of": gallery.description} if other else {}),
            "slices": len(gallery.table),
            "patients": len(gallery.table.patients),
            "exclude": config.retrieval.exclude,
            "strategy": config.retrieval.strategy,
            "top_k": config.retrieval.top_k,
            "temperature": config.retrieval.temperature,
            "fingerprint": run.fingerprint,
        }
    whole = metrics.aggregate(scores.cases) | {
        "protocol": _protocol(config, run.description.dimensions, other),
        "config_protocol": config.protocol,
        **_described(run.description),
        "split": config.eval.split,
        "evaluation": name_of(run, other),
        "patients": len({v.patient for v in volumes}),
        "unit": units.pop() if len(units) == 1 else "mixed",
        "gallery": guided_by,
        "retrieval": retrieved.summary() if retrieved is not None else {},
        "frame": _frame(config.dataset.frame, scores),
        "paper_2d": metrics.aggregate_paper_2d(scores.paper),
        "clinical": clinical.clinical_summary(scores.cases) if _has_indices(run) else {},
        "uncertainty": scores.uncertainty(),
        "confusion": scores.confusion.tolist(),
        "checkpoint_step": run.step,
        "name": config.name,
        "fold": config.dataset.fold,
        "seed": config.seed,
        "postprocess": config.eval.postprocess,
        "tta": config.eval.tta,
        "git_revision": provenance.git_revision(),
        "warnings": warnings,
    }
    return finite(whole)


def _told(warnings: list[str]) -> list[str]:
    """The warnings, which are logged too."""
    for line in warnings:
        logging.warning("%s", line)
    return warnings


def _has_indices(run: TrainedRun) -> bool:
    """Whether clinical indices hold: of whole hearts, not of single slices."""
    return bool(run.description.indices) and run.config.protocol == "patient"


def _protocol(config: configs.Config, dimensions: int, other: str | None = None) -> str:
    """What the scores are, in a line."""
    if other:
        return (PROTOCOL if dimensions == 3 else PROTOCOL_2D) + f"; guides come from the gallery {other}"
    if config.protocol == "patient":
        scores = PROTOCOL if dimensions == 3 else PROTOCOL_2D
        return scores + (_GUIDES[config.retrieval.exclude] if config.retrieval.enabled else "")
    guides = f"; guides come from the {_paper_gallery(config)} slices" if config.retrieval.enabled else ""
    return PAPER_PROTOCOL + guides


def _paper_gallery(config: configs.Config) -> str:
    """The split that guides an evaluation under the paper's protocol."""
    return "train" if config.eval.gallery == "train" else config.eval.split


def _frame(kind: str, scores: _Scores) -> dict[str, Any]:
    """What the model saw: whole slices, or crops in the frame of the heart and the cases where it was not found."""
    return {"kind": kind} | ({"not_found": scores.unlocated} if kind == "heart" else {})


def _changes(run: TrainedRun, data: RunData) -> list[str]:
    """What of the data is not as it was when the run was started."""
    changes = provenance.data_changes(run.folder.facts, data)
    if data.added and run.config.eval.split == "test":
        names = ", ".join(data.added[:3]) + (", ..." if len(data.added) > 3 else "")
        changes.append(f"{len(data.added)} test patients were added after the run was started ({names})")
    return changes


def finite(tree: Any) -> Any:
    """NaN -> None: JSON has no NaN."""
    if isinstance(tree, dict):
        return {k: finite(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [finite(v) for v in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
