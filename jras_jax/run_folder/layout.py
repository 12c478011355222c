"""Every file name of a run's folder (`--workdir`), once.

config.json            the run's settings                       splits.json       who trains, validates, tests
run.json               versions, device, command, revision      metrics.csv       one row per logged step
checkpoints/           the best by validation Dice and the latest, with their checksums in checkpoints.sha256/
checkpoints.damaged/   checkpoints that could not be used       diverged.json     batches of skipped steps
lock.json              who trains in this folder right now
events.*               TensorBoard                              retriever.safetensors  of a pre-trained retriever
gallery/               the gallery of the training patients     baseline/         the same run without retrieval
evaluation/            summary.json, cases.csv, positions.csv, choices.json, evidence/CASE.npz
report.html
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

from jras_jax import files


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The paths of one run's files. `path` is the folder; nothing is read or made until a method is called."""

    path: pathlib.Path

    def __init__(self, path: str | os.PathLike[str]):
        object.__setattr__(self, "path", pathlib.Path(path))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> pathlib.Path:
        return self.path / "config.json"

    @property
    def splits(self) -> pathlib.Path:
        return self.path / "splits.json"

    @property
    def facts(self) -> pathlib.Path:
        return self.path / "run.json"

    @property
    def metrics(self) -> pathlib.Path:
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    @property
    def manifests(self) -> pathlib.Path:
        return self.path / "checkpoints.sha256"

    @property
    def damaged(self) -> pathlib.Path:
        return self.path / "checkpoints.damaged"

    @property
    def lock(self) -> pathlib.Path:
        return self.path / "lock.json"

    @property
    def diverged(self) -> pathlib.Path:
        return self.path / "diverged.json"

    @property
    def retriever(self) -> pathlib.Path:
        return self.path / "retriever.safetensors"

    @property
    def gallery(self) -> pathlib.Path:
        return self.path / "gallery"

    @property
    def baseline(self) -> RunFolder:
        return RunFolder(self.path / "baseline")

    @property
    def report(self) -> pathlib.Path:
        return self.path / "report.html"

    @property
    def evaluation(self) -> pathlib.Path:
        return self.path / "evaluation"

    @property
    def summary(self) -> pathlib.Path:
        return self.evaluation / "summary.json"

    @property
    def cases(self) -> pathlib.Path:
        return self.evaluation / "cases.csv"

    @property
    def positions(self) -> pathlib.Path:
        return self.evaluation / "positions.csv"

    @property
    def choices(self) -> pathlib.Path:
        return self.evaluation / "choices.json"

    @property
    def evidence(self) -> pathlib.Path:
        return self.evaluation / "evidence"

    def read_splits(self) -> dict[str, Any]:
        """The content of splits.json; raises FileError."""
        return files.read_json(
            self.splits, remedy=f"restore it from a copy, or train again in another --workdir ({self})"
        )
