"""Checkpoints of a run: Orbax for the arrays, and a checksum manifest of our own beside each.

One checkpoint holds the train state, the gallery's embeddings (they are older than the state between two refreshes),
the data iterator's position, the configuration and the validation scores. The best by validation Dice and the latest
are kept. Orbax restores a flipped bit without a word, hence the checksums.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as policies

from jras_jax import files
from jras_jax.errors import UserError
from jras_jax.mesh import path_name
from jras_jax.run_folder.layout import RunFolder


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another model."""


class Checkpoints:
    """The checkpoints of one run folder, under `workdir/checkpoints`; saves are asynchronous."""

    def __init__(self, folder: RunFolder):
        self.folder, self.manifests = folder.checkpoints.resolve(), folder.manifests.resolve()
        dice = lambda metrics: metrics["dice"]  # noqa: E731
        keep = policies.AnyPreservationPolicy(
            [policies.LatestN(1), policies.BestN(get_metric_fn=dice, n=1, reverse=False)]
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=dice, best_mode="max", preservation_policy=keep, create=True, enable_async_checkpointing=True
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        except ValueError as e:  # JSON of some checkpoint that cannot be read
            for step in self.folder.iterdir():
                if step.name.isdigit():
                    self.verify(int(step.name))
            raise CheckpointError(f"{self.folder} cannot be read: {_first_line(e)}") from e

    def save(self, step: int, arrays: Any, meta: dict[str, Any], dice: float) -> None:
        """Starts to save `arrays` (a pytree) and `meta` (JSON-able) as of `step`, scored `dice` on validation."""
        self._sign()
        args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta))
        # force: a checkpoint on request (SIGTERM) may fall on a step that the manager would pass over.
        self._manager.save(step, args=args, metrics={"dice": float(dice)}, force=True)

    def latest(self) -> int | None:
        """The newest finished step, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The finished step with the best validation Dice, or None."""
        return self._manager.best_step()

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON part of a checkpoint."""
        return self._restore(step, meta=ocp.args.JsonRestore())["meta"]

    def restore(self, step: int, target: Any) -> Any:
        """The arrays of a checkpoint, checked against their manifest.

        Args:
          step: which.
          target: pytree of jax.ShapeDtypeStruct with shardings; may lie on another mesh than the saved one.

        Raises:
          CheckpointError: a file is missing or changed, or the model is another one.
        """
        self.verify(step)
        saved = self._manager.item_metadata(step)["state"]
        _same_shapes(saved, target, self.folder / str(step))
        return self._restore(step, state=ocp.args.StandardRestore(target))["state"]

    def restore_part(self, step: int, target: Any) -> Any:
        """Like `restore` for a target that names only some of the saved entries (evaluation needs no optimiser)."""
        self.verify(step)
        path = self.folder / str(step) / "state"
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        try:
            with ocp.PyTreeCheckpointer() as reader:
                args = ocp.args.PyTreeRestore(target, restore_args=restore_args, partial_restore=True)
                return reader.restore(path, args=args)
        except (ValueError, KeyError, FileNotFoundError) as e:
            raise CheckpointError(f"{path} cannot be restored into this run's model: {_first_line(e)}") from e

    def verify(self, step: int) -> None:
        """Compares every file of a checkpoint with its manifest."""
        folder, manifest = self.folder / str(step), self.manifests / f"{step}.json"
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is missing")
        if not manifest.is_file():
            logging.warning("%s has no checksums (the run died while saving): restored unchecked", folder)
            return
        for name, digest in files.read_json(
            manifest, remedy="delete this file to restore the checkpoint unchecked"
        ).items():
            path = folder / name
            if not path.is_file():
                raise CheckpointError(
                    f"{path} is missing: the checkpoint is damaged; remove {folder} to use an older one"
                )
            if files.sha256(path) != digest:
                raise CheckpointError(
                    f"{path} does not match its checksum: the file was damaged; remove {folder} to use an older one"
                )

    def close(self) -> None:
        """Waits for the last save and signs it."""
        self._sign()
        self._manager.close()

    def _sign(self) -> None:
        """Waits for the save under way and writes checksums for what has none; drops those of deleted steps."""
        self._manager.wait_until_finished()
        if jax.process_index() != 0:
            return
        self.manifests.mkdir(parents=True, exist_ok=True)
        steps = {int(s) for s in self._manager.all_steps()}
        for old in self.manifests.glob("*.json"):
            if int(old.stem) not in steps:
                old.unlink()
        for step in steps:
            manifest, folder = self.manifests / f"{step}.json", self.folder / str(step)
            if not manifest.exists():
                digests = {
                    str(p.relative_to(folder)): files.sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()
                }
                files.write_json(manifest, digests)

    def _restore(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, FileNotFoundError) as e:
            raise CheckpointError(f"{self.folder / str(step)} cannot be restored: {_first_line(e)}") from e


def abstract(tree: Any) -> Any:
    """ShapeDtypeStructs, shardings included, of a pytree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _same_shapes(saved: Any, target: Any, where: pathlib.Path) -> None:
    """Raises where the saved arrays are not those of the target; a wrong dtype would be cast in silence."""
    describe = lambda tree: {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}  # noqa: E731
    have, want = describe(saved), describe(target)
    wrong = [f"{n}: not in the checkpoint" for n in want if n not in have]
    wrong += [f"{n}: only in the checkpoint" for n in have if n not in want]
    for name in want.keys() & have.keys():
        a, b = have[name], want[name]
        if tuple(a.shape) != tuple(b.shape) or a.dtype != b.dtype:
            wrong.append(f"{name}: {a.dtype}{tuple(a.shape)} saved, {b.dtype}{tuple(b.shape)} expected")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(f"{where} is of another model or data set: " + "; ".join(sorted(wrong)[:5]) + more)


def _first_line(e: BaseException) -> str:
    return str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
