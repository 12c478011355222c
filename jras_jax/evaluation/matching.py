"""Which prediction belongs to which reference mask.

Three rules, in this order; each looks at the files that are left, and only at what is unique on both sides:
1. the same path below the two folders, suffixes such as _gt and _pred apart;
2. the same file name, in whatever folder;
3. the same patient and phase or frame, whatever the challenge's way of writing names (`data.names`). An Info.cfg beside
   a file (ACDC's patient folders) says which frames are ED and ES.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from jras_jax.data import PHASES, finder, names, pairs, tables
from jras_jax.errors import ScanError, UserError, printable

ROLES = ("_gt", "_pred")  # of references and of predictions


class Pair(NamedTuple):
    """A reference and the prediction that belongs to it; `case` is unique among the pairs."""

    case: str
    reference: pathlib.Path
    prediction: pathlib.Path


class Matched(NamedTuple):
    """The pairs, sorted by case; a line on each file that has no partner; lines on what was passed over."""

    pairs: list[Pair]
    alone: list[str]
    notes: list[str]


def find_masks(folder: pathlib.Path, role: str, notes: list[str]) -> list[pathlib.Path]:
    """A folder's NIfTI masks, sorted; if names end in `role`, '_gt' or '_pred', only those.

    What looks like a mask but is passed over goes to `notes`.

    Raises:
      UserError: no such folder, no NIfTI file in it, or one mask in two files.
    """
    found = finder.find(folder)
    files = [p for p in found.files if pairs.stem(p).lower().endswith(role)] or found.files
    if not files:
        raise UserError(f"{folder}: holds no .nii or .nii.gz file")
    finder.check_stems(files)
    notes += found.lines()
    return files


def match(references: pathlib.Path, predictions: pathlib.Path) -> Matched:
    """Pairs the masks of two folders.

    Raises:
      UserError: see `find_masks`.
    """
    notes: list[str] = []
    truth, found = find_masks(references, ROLES[0], notes), find_masks(predictions, ROLES[1], notes)
    partners: dict[pathlib.Path, pathlib.Path] = {}
    rules: list[Callable[[pathlib.Path, pathlib.Path], Hashable]] = [_place, lambda file, root: _bare(file), _identity]
    for rule in rules:
        left = {rule(p, references): p for p in _unique(truth, references, rule)}
        right = {rule(p, predictions): p for p in _unique(found, predictions, rule)}
        new = {left[key]: right[key] for key in left if key in right}
        partners |= new
        truth = [p for p in truth if p not in new]
        found = [p for p in found if p not in set(new.values())]
    bare = [_bare(reference) for reference in partners]
    nested = len(set(bare)) < len(bare)  # equal file names in several folders: the path tells them apart
    cases = [_place(reference, references) if nested else name for reference, name in zip(partners, bare, strict=True)]
    matched = [Pair(case, *both) for case, both in zip(cases, partners.items(), strict=True)]
    alone = _alone(truth, found, root=references, other_root=predictions) + _alone(
        found, truth, root=predictions, other_root=references
    )
    return Matched(sorted(matched), alone, notes)


def _alone(
    files: list[pathlib.Path], others: list[pathlib.Path], root: pathlib.Path, other_root: pathlib.Path
) -> list[str]:
    """Why each of these files of `root` has no partner in the other folder."""
    lines = []
    unmatched = {_bare(p) for p in others}
    for file in files:
        why = f"{other_root} holds no mask of case {printable(_place(file, root))}"
        if _bare(file) in unmatched:
            why = (
                f"several files are named {printable(_bare(file))}, and their folders do not tell which belong together"
            )
        lines.append(f"{printable(file)}: {why}")
    return lines


def _unique(
    files: Iterable[pathlib.Path], root: pathlib.Path, rule: Callable[[pathlib.Path, pathlib.Path], Hashable]
) -> list[pathlib.Path]:
    """The files whose key no other has."""
    by_key: dict[Hashable, list[pathlib.Path]] = {}
    for file in files:
        by_key.setdefault(rule(file, root), []).append(file)
    return [alike[0] for alike in by_key.values() if len(alike) == 1]


def _bare(file: pathlib.Path) -> str:
    """The file's name without .nii.gz, _gt and _pred."""
    return re.sub(r"(?:_gt|_pred)+$", "", pairs.stem(file), flags=re.IGNORECASE) or pairs.stem(file)


def _place(file: pathlib.Path, root: pathlib.Path) -> str:
    return (file.relative_to(root).parent / _bare(file)).as_posix()


def _identity(file: pathlib.Path, root: pathlib.Path) -> tuple[str, str, str]:
    """(patient, view, phase); with a frame for the phase if nothing says which phase it is."""
    name = names.parse(pairs.stem(file))
    if name.phase or name.frame is None:
        return name.key, name.view, name.phase
    try:
        info = tables.read_info(file.parent / "Info.cfg")
    except ScanError:
        info = {}
    known = {int(info[phase]): phase for phase in PHASES if info.get(phase, "").isdecimal()}
    return name.key, name.view, known.get(name.frame, f"frame{name.frame}")
