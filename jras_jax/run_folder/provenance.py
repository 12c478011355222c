"""Where a run's numbers come from: code, versions, device, settings; written to run.json and shown in the report."""

from __future__ import annotations

import datetime
import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax

from jras_jax import files
from jras_jax.config import Config
from jras_jax.data import fingerprint
from jras_jax.data.load import RunData
from jras_jax.errors import UserError
from jras_jax.run_folder.layout import RunFolder

LEAK_WARNING = (
    "config.retrieval.exclude=%r lets slices of the query's own patient guide it, as the paper's scripts do: the "
    "training loss then measures copying, and scores obtained this way are not comparable with honest ones"
)
PAPER_WARNING = (
    "config.protocol='paper' follows the paper's scripts, for study only: slices of one patient both train and are "
    "scored, and every slice is in the gallery that guides it; scores obtained this way measure the leak and say "
    "nothing about new patients"
)
_REMEDY = "delete it; it only records where the run's numbers come from"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy", "nibabel")


def collect(config: Config, params: Any, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Everything that another person needs to tell this run from a similar one."""
    return {
        "command": " ".join(sys.argv),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})",
        "hosts": jax.process_count(),
        "mesh": dict(mesh.shape),
        "seed": config.seed,
        "parameters": parameter_counts(params),
        "warnings": leaks(config),
    }


def leaks(config: Config) -> list[str]:
    """What of a run's settings makes its scores incomparable with honest ones, a line each."""
    lines = [PAPER_WARNING] if config.protocol == "paper" else []
    if config.retrieval.enabled and config.retrieval.exclude != "patient":
        lines.append(LEAK_WARNING % config.retrieval.exclude)
    return lines


def parameter_counts(params: Any) -> dict[str, int]:
    """Number of parameters of 'backbone', 'retriever' and 'fusion'."""
    from jras_jax import models  # and with it Flax, which opening a run does without

    return {part: models.parameter_count(tree) for part, tree in params.items()}


def data_changes(path: pathlib.Path, data: RunData) -> list[str]:
    """What of a run's data changed since it was started, by the fingerprints in its run.json; a line each.

    Args:
      path: of run.json; runs of earlier versions have no fingerprint there, of which nothing can be said.
      data: the data as it is now.

    Raises:
      FileError: run.json is damaged.
    """
    if not path.is_file():
        return []
    saved = files.read_json(path, remedy=_REMEDY).get("data_fingerprint")
    if not isinstance(saved, dict):
        return []
    return [
        f"the {part} data changed since the run was started: {path} has the fingerprint {saved[part]}, the scans of "
        f"{data.scans} give {data.fingerprint[part]}"
        for part in fingerprint.changed(saved, data.fingerprint)
    ]


def require_same_data(path: pathlib.Path, data: RunData) -> None:
    """Refuses to train on with other data; raises UserError (see `data_changes`)."""
    changes = data_changes(path, data)
    if changes:
        raise UserError(
            "; ".join(changes) + ". Bring the old scans back to resume, or train on the new ones in another --workdir"
        )


def write(
    path: pathlib.Path, config: Config, params: Any, mesh: jax.sharding.Mesh, more: Mapping[str, Any] | None = None
) -> None:
    """Writes `collect` and `more` as JSON; a resumed run keeps the starts before it under 'earlier_starts'."""
    facts = collect(config, params, mesh) | dict(more or {})
    if path.is_file():
        before = files.read_json(path, remedy=_REMEDY)
        facts["earlier_starts"] = before.pop("earlier_starts", []) + [before]
    files.write_json(path, facts)


def check_made_by(folder: RunFolder, command: str) -> None:
    """Raises UserError if the folder holds a published run, or one of the other command: 'train' or 'pretrain'."""
    if folder.published.is_file():
        raise UserError(f"{folder} holds a published run, which cannot be resumed: give another --workdir")
    if not folder.config.is_file():
        return
    facts = {}
    if folder.facts.is_file():
        facts = files.read_json(folder.facts, remedy=_REMEDY)
    # Earlier versions did not say; their pre-training wrote no splits.
    before = "pretrain" if folder.retriever.is_file() and not folder.splits.is_file() else "train"
    if facts.get("made_by", before) != command:
        raise UserError(
            f"{folder} holds a run of jras {facts.get('made_by', before)}, whose files jras {command} would overwrite: "
            "give another --workdir"
        )


def git_revision() -> str:
    """The commit of this source tree, with '+changes' where files differ from it; 'unknown' outside git."""
    here = pathlib.Path(__file__).parent
    try:
        run = lambda *a: subprocess.run(["git", *a], cwd=here, capture_output=True, text=True, check=True, timeout=10)  # noqa: E731
        revision = run("rev-parse", "--short=12", "HEAD").stdout.strip()
        return revision + ("+changes" if run("status", "--porcelain", "-uno").stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
