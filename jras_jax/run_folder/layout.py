"""Every file name of a run's folder (`--workdir`), once.

config.json            the run's settings                       splits.json       who trains, validates, tests
dataset.json           the data set's description
run.json               versions, device, command, revision      metrics.csv       one row per logged step
checkpoints/           the best by validation Dice and the latest, with their checksums in checkpoints.sha256/
checkpoints.damaged/   checkpoints that could not be used       diverged.json     batches of skipped steps
lock.json              who trains in this folder right now
tracked.json, wandb/   of MLflow and Weights & Biases, if the run has them
events.*               TensorBoard                              retriever.safetensors  of a pre-trained retriever
gallery/               the gallery of the training patients     baseline/         the same run without retrieval
evaluation/NAME/        summary.json, cases.csv, positions.csv, evidence/CASE.npz, report.html; NAME is the split, with
                       the options of the evaluation if they are not the run's own, such as test+tta=True
evaluation/            choices.json, last.json (the newest NAME)
fold_0/, fold_1/, ...  the runs of a cross-validation (jras train --folds), with folds.json and folds.csv beside them
published.json         in a published folder only, beside model.safetensors: its checkpoint and checksum
report.html            of the newest evaluation           run.log           what was said, with time stamps
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jras_jax import files
from jras_jax.data.description import DatasetDescription, named, read_description
from jras_jax.errors import UserError

# The options of config.retrieval that name an evaluation.
SELECTION_OPTIONS = ("strategy", "exclude", "recall_target", "embeddings")
RETRIEVAL_OPTIONS = (*SELECTION_OPTIONS, "gallery")  # and all others that a run without retrieval does not have


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
    def dataset(self) -> pathlib.Path:
        return self.path / "dataset.json"

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
    def tracked(self) -> pathlib.Path:
        return self.path / "tracked.json"

    @property
    def published(self) -> pathlib.Path:
        return self.path / "published.json"

    @property
    def weights(self) -> pathlib.Path:
        return self.path / "model.safetensors"

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
    def log(self) -> pathlib.Path:
        return self.path / "run.log"

    @property
    def choices(self) -> pathlib.Path:
        return self.path / "evaluation" / "choices.json"

    @property
    def last(self) -> pathlib.Path:
        return self.path / "evaluation" / "last.json"

    @property
    def folds_summary(self) -> pathlib.Path:
        return self.path / "folds.json"

    @property
    def folds_cases(self) -> pathlib.Path:
        return self.path / "folds.csv"

    def fold(self, number: int) -> RunFolder:
        """The run of one fold of a cross-validation."""
        return RunFolder(self.path / f"fold_{number}")

    def folds(self) -> dict[int, RunFolder]:
        """The folds that there are, by number; none if this is the folder of a single run."""
        if self.config.is_file() or not self.path.is_dir():
            return {}
        names = [p.name.removeprefix("fold_") for p in self.path.glob("fold_*") if (p / "config.json").is_file()]
        return {number: self.fold(number) for number in sorted(int(name) for name in names if name.isdecimal())}

    def check_single(self) -> None:
        """Raises UserError if the folder holds the folds of a cross-validation."""
        if there := self.folds():
            one = next(iter(there.values()))
            raise UserError(f"--workdir={self}: holds {len(there)} folds; name one of them, such as --workdir={one}")

    def evaluation(self, name: str) -> EvaluationFolder:
        """The folder of one evaluation, named by `evaluation_name`."""
        return EvaluationFolder(name, self.path / "evaluation" / name)

    def evaluations(self) -> dict[str, EvaluationFolder]:
        """The evaluations that there are, by name; the last one made comes last.

        One that an older version wrote directly into evaluation/ goes by the name of its split.
        """
        root = self.path / "evaluation"
        folders = sorted(root.iterdir()) if root.is_dir() else []
        found = [EvaluationFolder(folder.name, folder) for folder in folders if not folder.name.startswith(".")]
        found = [one for one in found if one.written]
        older = EvaluationFolder("", root)
        if older.written:
            found.insert(0, dataclasses.replace(older, name=_entry(older.summary, "split") or "of an older version"))
        newest = _entry(self.last, "evaluation")
        if newest not in [one.name for one in found]:
            newest = max(found, key=lambda one: one.written[0].stat().st_mtime).name if found else ""
        # Of two with one name the later in the list wins: the older version's comes first.
        by_name = {one.name: one for one in found}
        return {name: by_name[name] for name in sorted(by_name, key=lambda name: name == newest)}

    def find_evaluation(self, name: str | None = None) -> EvaluationFolder:
        """The evaluation of this name; None: the last one made.

        Raises:
          UserError: there is none.
        """
        there = self.evaluations()
        if name is None and there:
            return list(there.values())[-1]
        if name in there:
            return there[name]
        how = f"jras evaluate --workdir={self} --config.eval.split={(name or 'test').partition('+')[0]}"
        if not there:
            raise UserError(f"{self.path / 'evaluation'} holds no scores: this run has not been evaluated: run {how}")
        raise UserError(f"{self} has no evaluation {name!r}, it has {', '.join(there)}; make it with {how}")

    def read_description(self, dataset: str) -> DatasetDescription:
        """The description of the run's data set; without dataset.json (an earlier version's run) that of `dataset`.

        Args:
          dataset: the run's config.dataset.name.

        Raises:
          UserError: there is no file and the data set is unknown, or the file is damaged.
        """
        if not self.dataset.is_file():
            return named(dataset)
        return read_description(self.dataset, "restore it from a copy, or train again in another --workdir")

    def read_splits(self) -> dict[str, Any]:
        """The content of splits.json; raises FileError."""
        return files.read_json(
            self.splits,
            remedy=f"restore it from a copy, or train again in another --workdir ({self})",
            holds={"train": list, "validation": list, "test": list},
        )


@dataclasses.dataclass(frozen=True)
class EvaluationFolder:
    """The paths of one evaluation's files."""

    name: str
    path: pathlib.Path

    @property
    def split(self) -> str:
        """The part of the patients: 'validation', 'test' or 'train'."""
        return self.name.partition("+")[0]

    @property
    def written(self) -> list[pathlib.Path]:
        """Those of summary.json and cases.csv that there are."""
        return [file for file in (self.summary, self.cases) if file.is_file()]

    @property
    def checkpoint_step(self) -> int | None:
        """The step of the checkpoint that was scored; None if the summary does not say."""
        step = _entry(self.summary, "checkpoint_step")
        return int(step) if step.isdigit() else None

    @property
    def summary(self) -> pathlib.Path:
        return self.path / "summary.json"

    @property
    def cases(self) -> pathlib.Path:
        return self.path / "cases.csv"

    @property
    def positions(self) -> pathlib.Path:
        return self.path / "positions.csv"

    @property
    def evidence(self) -> pathlib.Path:
        return self.path / "evidence"

    @property
    def report(self) -> pathlib.Path:
        return self.path / "report.html"


def evaluation_name(split: str, options: Mapping[str, Any]) -> str:
    """The name of an evaluation: 'test', or 'test+tta=True+strategy=random' with options that change its scores."""
    return "+".join([split, *(f"{key}={value}" for key, value in options.items())])


def without_retrieval(name: str) -> str:
    """The name of an evaluation without the options that change nothing in a run without retrieval."""
    split, *options = name.split("+")
    return "+".join([split, *(o for o in options if o.partition("=")[0] not in RETRIEVAL_OPTIONS)])


def _entry(path: pathlib.Path, key: str) -> str:
    """An entry of a JSON file; '' if there is none or the file cannot be read, which whoever needs the file says."""
    try:
        return str(files.read_json(path, remedy="").get(key) or "")
    except files.FileError:
        return ""
