"""`--mode=evaluate`: scores a run's best checkpoint; writes summary, cases and the evidence that the report shows."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import rich.progress
from absl import logging

from jras_jax import choose, dataset, runs
from jras_jax.data import Volume
from jras_jax.data.preprocess import SliceTable
from jras_jax.evaluation import clinical, evaluator, export, metrics, statistics
from jras_jax.inference import VolumePrediction
from jras_jax.training import provenance

POSITION_COLUMNS = (
    "patient",
    "phase",
    "position",
    "structure",
    "dice",
    "jaccard",
    "voxels",
    "reference_voxels",
    "empty",
)
PROTOCOL = "3-D scores per volume (patient and phase) and structure, in the scan's native geometry; splits by patient"
_GUIDES = {
    "patient": "; guides come from training patients only, never from the query's own patient",
    "slice": "; guides come from training patients, other slices of the query's own patient among them (this leaks)",
    "none": "; guides come from training patients, the query's own slice among them (this leaks)",
}


def evaluate(
    workdir: str | pathlib.Path,
    build: dataset.Build,
    overrides: tuple[str, ...] = (),
    quiet: bool = False,
    submission: str | pathlib.Path | None = None,
) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run on `config.eval.split`.

    Args:
      workdir: of the run; `evaluation/` in it is replaced.
      build: prepares the data set, see `dataset.Build`.
      overrides: `--config.eval.split=test` and such.
      quiet: no progress bar.
      submission: folder for the split's masks in the layout of the data set's challenge, see `evaluation.export`.

    Returns:
      The summary, as written to `evaluation/summary.json`.

    Raises:
      UserError: see `runs.open_run` and `dataset.prepare`.
    """
    run = runs.open_run(workdir, overrides)
    config = run.config
    data = dataset.prepare(config, build, run.splits())
    volumes = data.part(config.eval.split)
    table, gallery = runs.train_gallery(run, data)
    out = run.workdir / "evaluation"
    scores = _Scores()
    retrieved = evaluator.RetrievedMasks(table) if table is not None else None
    kept = _Evidence(out / "evidence", config.eval.evidence_cases, table)
    segmenter = run.segmenter(gallery)
    bar = progress(f"evaluating {config.eval.split}", quiet)
    masks: list[export.Prediction] = []
    for volume, found in evaluator.predictions(segmenter, volumes, table, config.eval.postprocess, bar):
        if submission is not None:
            masks.append((volume, found.labels))
        kept.add(volume, found, scores.add(volume, found))
        if retrieved is not None:
            retrieved.add(volume, found)
    summary = finite(_summary(run, scores, volumes, table, retrieved))
    if jax.process_index() == 0:
        kept.write()
        metrics.write_cases_csv(out / "cases.csv", scores.cases)
        metrics.write_cases_csv(out / "positions.csv", scores.positions, POSITION_COLUMNS)
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        if submission is not None:
            write = export.export_mnms if config.dataset.convention == "mnms" else export.export_acdc
            write(masks, submission, data.scans)
    return summary


class _Scores:
    """What the volumes scored, as it is written."""

    def __init__(self) -> None:
        self.cases: list[dict[str, Any]] = []
        self.positions: list[dict[str, Any]] = []
        self.paper: list[list[dict[str, Any]]] = []

    def add(self, volume: Volume, found: VolumePrediction) -> float:
        """Scores a volume; returns its mean Dice."""
        assert volume.mask is not None
        rows = evaluator.case_rows(volume, found)
        self.cases += rows
        self.positions += evaluator.position_rows(volume, found)
        self.paper.append(metrics.paper_2d_scores(volume.mask, found.labels))
        return float(np.mean([r["dice"] for r in rows]))

    def uncertainty(self) -> dict[str, Any]:
        """How well the signs that need no truth rank the cases by Dice: Spearman's rho, near -1 where they do."""
        cases: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in self.cases:
            cases.setdefault((row["patient"], row["phase"]), []).append(row)
        dice = [float(np.mean([r["dice"] for r in rows])) for rows in cases.values()]
        signs = {
            "entropy": [rows[0]["entropy"] for rows in cases.values()],
            "guide_disagreement": [1.0 - rows[0]["guide_agreement"] for rows in cases.values()],
        }
        found = {name: statistics.spearman(values, dice) for name, values in signs.items()}
        return {f"{name}_vs_dice": {"spearman": c.rho, "p": c.p, "n": c.n} for name, c in found.items() if c.n}


def _summary(
    run: runs.Opened,
    scores: _Scores,
    volumes: list[Volume],
    table: SliceTable | None,
    retrieved: evaluator.RetrievedMasks | None,
) -> dict[str, Any]:
    config, warnings = run.config, []
    units = {r["unit"] for r in scores.cases}
    if "voxel" in units:
        which = "the scans have" if len(units) == 1 else "some scans have"
        warnings.append(f"{which} no known voxel spacing: distances are in voxels, volumes are counts of voxels")
    if config.retrieval.enabled and config.retrieval.exclude != "patient":
        warnings.append(provenance.LEAK_WARNING % config.retrieval.exclude)
        logging.warning(provenance.LEAK_WARNING, config.retrieval.exclude)
    if config.eval.split == "test" and choose.unmeasured(run):
        warnings.append(choose.UNMEASURED)
    gallery: dict[str, Any] = {"enabled": config.retrieval.enabled}
    if table is not None:
        gallery |= {
            "split": config.eval.gallery,
            "slices": len(table),
            "patients": len(table.patients),
            "exclude": config.retrieval.exclude,
            "strategy": config.retrieval.strategy,
            "top_k": config.retrieval.top_k,
            "temperature": config.retrieval.temperature,
            "fingerprint": run.fingerprint,
        }
    return metrics.aggregate(scores.cases) | {
        "protocol": PROTOCOL + (_GUIDES[config.retrieval.exclude] if config.retrieval.enabled else ""),
        "split": config.eval.split,
        "patients": len({v.patient for v in volumes}),
        "unit": units.pop() if len(units) == 1 else "mixed",
        "gallery": gallery,
        "retrieval": retrieved.summary(controls=True) if retrieved is not None else {},
        "paper_2d": metrics.aggregate_paper_2d(scores.paper),
        "clinical": clinical.clinical_summary(scores.cases),
        "uncertainty": scores.uncertainty(),
        "checkpoint_step": run.step,
        "name": config.name,
        "fold": config.dataset.fold,
        "seed": config.seed,
        "postprocess": config.eval.postprocess,
        "tta": config.eval.tta,
        "git_revision": provenance.git_revision(),
        "warnings": warnings,
    }


class _Evidence:
    """Keeps the slices and guides of the worst and the best cases, half and half, for the report."""

    def __init__(self, folder: pathlib.Path, cases: int, table: SliceTable | None):
        self._folder, self._cases, self._table = folder, cases, table
        self._kept: list[tuple[float, str, dict[str, Any]]] = []

    def add(self, volume: Volume, found: VolumePrediction, dice: float) -> None:
        """Keeps a case, and lets go of a middling one."""
        if not self._cases:
            return
        assert volume.mask is not None
        arrays = {
            "image": found.images,
            "truth": found.mapping.labels_to_model(volume.mask),
            "prediction": np.argmax(found.slices.probabilities, -1).astype(np.uint8),
            "dice": np.float32(dice),
        }
        if self._table is not None:
            rows = found.slices.indices
            arrays |= {
                "guide_images": self._table.images[rows],
                "guide_masks": self._table.masks[rows],
                "weights": found.slices.weights,
                "similarity": found.slices.similarity,
                "guide_names": np.array([[_name(self._table, r) for r in row] for row in rows]),
            }
        self._kept.append((dice, volume.case, arrays))
        if len(self._kept) > self._cases:
            self._kept.sort(key=lambda entry: entry[:2])
            del self._kept[self._cases // 2]

    def write(self) -> None:
        """Writes the files, in place of those of an earlier evaluation."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in self._folder.glob("*.npz"):
            old.unlink()
        for _, case, arrays in self._kept:
            np.savez_compressed(self._folder / f"{case}.npz", **arrays)


def _name(table: SliceTable, row: int) -> str:
    """'patient012 ED slice 3' of a gallery row, slices counted from 1 as the report counts them."""
    patient, _, phase = table.cases[table.case[row]].rpartition("_")
    return f"{patient} {phase} slice {table.slice_index[row] + 1}"


def progress(title: str, quiet: bool) -> Any:
    """A progress bar over what it is called with."""

    def shown(items: Iterable[Any]) -> Iterable[Any]:
        if quiet:
            return items
        return rich.progress.track(list(items), title, transient=True)

    return shown


def finite(tree: Any) -> Any:
    """NaN -> None: JSON has no NaN."""
    if isinstance(tree, dict):
        return {k: finite(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [finite(v) for v in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
