"""Checkpoints of a run: Orbax for the arrays, and a checksum manifest of our own beside each.

Orbax is imported when a checkpoint is saved or resumed from; a run is opened without it (`stored_arrays`).

One checkpoint holds the train state, the gallery's embeddings (they are older than the state between two refreshes),
the data iterator's position, the configuration and the validation score. The best by validation Dice and the latest
are kept; if these are one, so is the one before, so that damage to a single checkpoint never loses the run.

A save is written to `STEP.saving`, signed, and renamed to `STEP`: a folder named after a step is complete and has
checksums. A step without them comes from an interrupted earlier version or an incomplete copy, and is passed over.
"""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
from absl import logging

from jras_jax import files, hosts
from jras_jax.mesh import path_name
from jras_jax.run_folder import manifests, stored_arrays
from jras_jax.run_folder.layout import RunFolder
from jras_jax.run_folder.manifests import CheckpointError

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

META, SCORE = "meta/metadata", "metrics/metrics"


class Checkpoints:
    """The checkpoints of one run folder, under `workdir/checkpoints`; saves are asynchronous.

    Reading changes nothing, so that a run can be evaluated while it trains. `resume` and `save` are for the process
    that trains it.
    """

    def __init__(self, folder: RunFolder):
        self.folder, self.manifests = folder.checkpoints.resolve(), folder.manifests.resolve()
        self.damaged = folder.damaged.resolve()
        self._writer: ocp.AsyncCheckpointer | None = None
        self._thread: threading.Thread | None = None
        self._failure: CheckpointError | None = None

    def finished(self) -> list[int]:
        """The steps that have a complete checkpoint, oldest first."""
        return [step for step in self._there() if self._manifest(step).is_file()]

    def latest(self) -> int | None:
        """The newest finished step, or None."""
        return max(self.finished(), default=None)

    def best(self) -> int | None:
        """The finished step with the best validation Dice, the earliest of several; None if none was validated."""
        scores = {step: dice for step in self.finished() if (dice := self.dice(step)) is not None}
        return max(scores, key=lambda step: (scores[step], -step), default=None)

    def dice(self, step: int) -> float | None:
        """The validation Dice of a checkpoint; None if it was not validated, or its score is damaged."""
        path = self._path(step) / SCORE
        if not path.is_file():
            return None
        try:
            manifests.check(self._path(step), self._manifest(step), only=SCORE)
            return float(json.loads(path.read_text())["dice"])
        except (CheckpointError, ValueError, KeyError, TypeError, OSError):
            logging.warning("%s is damaged: this checkpoint counts as not validated", path)
            return None

    def missing(self) -> str:
        """Why there is no checkpoint to open, and what to do, as one line."""
        if self.finished():
            return f"{self.folder} has no validated checkpoint yet: resume training with the command that started it"
        if unsigned := self._there():
            return f"{self._path(unsigned[-1])} {_UNSIGNED}"
        return f"{self.folder} has no finished checkpoint yet: resume training with the command that started it"

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON part of a checkpoint."""
        manifests.check(self._path(step), self._manifest(step), only=META)
        return files.read_json(self._path(step) / META, remedy=manifests.REMEDY)

    def verify(self, step: int) -> None:
        """Compares every file of a checkpoint with its manifest; raises CheckpointError."""
        if not self._path(step).is_dir():
            raise CheckpointError(f"{self._path(step)} is missing")
        if not self._manifest(step).is_file():
            raise CheckpointError(f"{self._path(step)} {_UNSIGNED}")
        manifests.check(self._path(step), self._manifest(step))

    def restore(self, step: int, target: Any) -> Any:
        """The arrays of a checkpoint, checked against their manifest.

        Args:
          step: which.
          target: pytree of jax.ShapeDtypeStruct with shardings; may be on another mesh than the saved one.

        Raises:
          CheckpointError: a file is missing or changed, or the model is another one.
        """
        self.verify(step)
        return self._read(step, target)

    def _read(self, step: int, target: Any) -> Any:
        import orbax.checkpoint as ocp

        path = self._path(step) / "state"
        with _reading(path), ocp.StandardCheckpointer() as reader:
            check_same_arrays(ocp.StandardCheckpointHandler().metadata(path).tree, target, self._path(step))
            return reader.restore(path, target)

    def restore_part(self, step: int, target: Any) -> Any:
        """Like `restore` for some of the saved arrays (evaluation needs no optimiser), see `stored_arrays.read`."""
        self.verify(step)
        return stored_arrays.read(self._path(step) / "state", target)

    def restore_best(self, target: Any) -> tuple[int, Any]:
        """The best step and the part of its arrays that `target` names, see `stored_arrays.read`.

        A run that trains meanwhile may remove a step that is no longer the best; the next one is then read.

        Raises:
          CheckpointError: there is none, or it is damaged.
        """
        while (best := self.best()) is not None:
            try:
                return best, self.restore_part(best, target)
            except CheckpointError as e:
                if self.best() == best:
                    raise CheckpointError(
                        f"{e}; resume training to replace it, or move {self._path(best)} out of the folder to use the "
                        "next best one"
                    ) from e
        raise CheckpointError(self.missing())

    def resume(self, target: Any, sound: Callable[[Any], bool] = lambda arrays: True) -> tuple[int, Any] | None:
        """The newest intact step and its arrays; None if nothing was saved yet. For the process that trains.

        Remains of interrupted saves are removed. A damaged step is moved to `checkpoints.damaged`, said in one line,
        and the one before is taken; so is a step without checksums.

        Args:
          target: as for `restore`.
          sound: whether restored arrays can be used.

        Raises:
          CheckpointError: every step is damaged, none has checksums, or the model is another one.
        """
        with hosts.first_host_first():
            if jax.process_index() == 0:
                self._sweep()
        while (step := self.latest()) is not None:
            fault = self._fault(step) if jax.process_index() == 0 else ""
            if not hosts.any_host(bool(fault)):
                arrays = self._read(step, target)
                if sound(arrays):
                    return step, arrays
                fault = f"{self._path(step)} holds numbers that are not finite: the run had diverged when it was saved"
            older = [s for s in self.finished() if s < step]
            if not older:
                raise CheckpointError(
                    f"{fault}, and there is no older checkpoint: restore the folder from a copy, or remove "
                    f"{self.folder} to train from the beginning"
                )
            with hosts.first_host_first():
                if jax.process_index() == 0:
                    logging.warning("%s: it is kept in %s; step %d is used", fault, self._aside(step), older[-1])
        return None

    def save(self, step: int, arrays: Any, meta: dict[str, Any], dice: float | None = None) -> None:
        """Starts to save `arrays` (a pytree) and `meta` (JSON-able) as of `step`.

        A save that fails (a full disk) is said in one line and leaves every other checkpoint as it is; `settle` raises
        it if no later save succeeds.

        Args:
          step: steps done.
          arrays: what `restore` gives back.
          meta: what `meta` gives back.
          dice: the validation score of this step, None if it has none (yet), see `score`.
        """
        import orbax.checkpoint as ocp

        self._join()
        work = self._work(step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.manifests.mkdir(parents=True, exist_ok=True)
            if self._writer is None:
                handler = ocp.CompositeCheckpointHandler(state=ocp.StandardCheckpointHandler())
                self._writer = ocp.AsyncCheckpointer(handler)
                logging.get_absl_logger().addFilter(_told_in_our_words)
            self._writer.save(work, args=ocp.args.Composite(state=ocp.args.StandardSave(arrays)), force=True)
        except Exception as e:
            self._fail(step, e)
            return
        self._thread = threading.Thread(target=self._finish, args=(step, meta, dice), name=f"save of step {step}")
        self._thread.start()

    def score(self, step: int, dice: float) -> None:
        """Records the validation Dice of a step that was saved without one; passes over a step whose save failed."""
        self._join()
        if jax.process_index() != 0 or step not in self.finished() or not math.isfinite(dice):
            return
        try:
            files.write_json(self._path(step) / SCORE, {"dice": float(dice)})
            manifests.sign_file(self._path(step), self._manifest(step), SCORE)
        except files.FileError as e:
            logging.warning("the score of step %d is not recorded: %s", step, e)
        self._prune()

    def settle(self) -> None:
        """Waits for the save under way; raises CheckpointError if the last one failed."""
        self._join()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Waits for the save under way and ends the writer."""
        self._join()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _finish(self, step: int, meta: dict[str, Any], dice: float | None) -> None:
        """In a separate thread: waits for the arrays, signs and commits the step, removes older ones."""
        assert self._writer is not None
        try:
            self._writer.wait_until_finished()
            if jax.process_index() == 0:
                self._commit(step, meta, dice)
            self._failure = None
        except BaseException as e:
            self._fail(step, e)
            return
        if jax.process_index() == 0:
            self._prune()

    def _commit(self, step: int, meta: dict[str, Any], dice: float | None) -> None:
        work = self._work(step)
        files.write_json(work / META, meta)
        if dice is not None and math.isfinite(dice):
            files.write_json(work / SCORE, {"dice": float(dice)})
        if self._path(step).exists():  # it could not be read before, or it would not be saved again
            self._aside(step)
        manifests.sign(work, self._manifest(step))
        work.rename(self._path(step))

    def _fail(self, step: int, e: BaseException) -> None:
        if jax.process_index() == 0:
            for path in self.folder.glob(f"{step}.saving*"):
                shutil.rmtree(path, ignore_errors=True)
            if not self._path(step).exists():
                with contextlib.suppress(OSError):
                    self._manifest(step).unlink(missing_ok=True)
        text = str(e).replace("\n", " ")
        why = "no space is left on the disk" if "o space left" in text else f"{type(e).__name__}: {text[:200]}"
        kept = self.latest()
        intact = f"step {kept} is intact" if kept is not None else "there is none before it"
        self._failure = CheckpointError(
            f"the checkpoint of step {step} could not be saved in {self.folder} ({why}); {intact}. Free some space, or "
            "mend what is wrong there, and give the same command again"
        )
        logging.warning(
            "the checkpoint of step %d could not be saved (%s); %s. Training continues and saves again at the next "
            "checkpoint", step, why, intact,
        )  # fmt: skip

    def _fault(self, step: int) -> str:
        try:
            self.verify(step)
        except CheckpointError as e:
            return str(e)
        return ""

    def _sweep(self) -> None:
        """Removes the remains of interrupted saves and removals, and sets aside what has no checksums."""
        there, finished = self._there(), self.finished()
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if any(mark in path.name for mark in (".saving", ".removed", ".orbax-checkpoint-tmp")):
                shutil.rmtree(path, ignore_errors=True)
        for manifest in self.manifests.glob("*.json"):
            if manifest.stem.isdigit() and int(manifest.stem) not in there:
                manifest.unlink(missing_ok=True)
        unsigned = [step for step in there if step not in finished]
        if unsigned and not finished:
            raise CheckpointError(
                f"{self._path(unsigned[-1])} {_UNSIGNED}, or remove {self.folder} to train from the beginning"
            )
        for step in unsigned:
            logging.warning("%s has no checksums: it is kept in %s, unused", self._path(step), self._aside(step))

    def _aside(self, step: int) -> pathlib.Path:
        """Moves a step that cannot be used out of the way, with its manifest; returns where to."""
        self.damaged.mkdir(parents=True, exist_ok=True)
        number = 0
        while (to := self.damaged / (f"{step}.{number}" if number else str(step))).exists():
            number += 1
        self._path(step).rename(to)
        if self._manifest(step).is_file():
            self._manifest(step).rename(to.with_name(f"{to.name}.json"))
        return to

    def _prune(self) -> None:
        """Removes all steps but the best and the newest; if these are one, the one before stays too."""
        steps = self.finished()
        kept = {steps[-1] if steps else None, self.best()} - {None}
        kept |= set([s for s in steps if s not in kept][-1:]) if len(kept) < 2 else set()
        for step in set(steps) - kept:
            gone = self.folder / f"{step}.removed"
            with contextlib.suppress(OSError):
                self._path(step).rename(gone)
                self._manifest(step).unlink(missing_ok=True)
            shutil.rmtree(gone, ignore_errors=True)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _there(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and p.is_dir())

    def _path(self, step: int) -> pathlib.Path:
        return self.folder / str(step)

    def _work(self, step: int) -> pathlib.Path:
        return self.folder / f"{step}.saving"

    def _manifest(self, step: int) -> pathlib.Path:
        return self.manifests / f"{step}.json"


_UNSIGNED = (
    "has no checksums in checkpoints.sha256 (it was copied without them, or an earlier version was interrupted while "
    "saving): copy that folder too"
)


def abstract(tree: Any) -> Any:
    """ShapeDtypeStructs, shardings included, of a pytree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except (ValueError, KeyError, OSError) as e:
        raise CheckpointError(f"{path} cannot be restored into this run's model: {_first_line(e)}") from e


def _told_in_our_words(record: Any) -> bool:
    """A filter of log records: Orbax logs a failed save with a traceback, which `_fail` says in one line."""
    return not (record.pathname.endswith("async_checkpointer.py") and record.exc_info)


def check_same_arrays(saved: Any, target: Any, where: pathlib.Path) -> None:
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
