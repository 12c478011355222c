"""Tries what can go wrong, through the command line, and writes docs/RELIABILITY.md: `python -m tests.reliability`.

    python -m tests.reliability                    every row, then the table
    python -m tests.reliability --only=label       the rows with this word, without the table
    python -m tests.reliability --only=label --update    the same, and their outcomes go into the table
    python -m tests.reliability --list

A row is a function in a module `tests/reliability_*.py` that is registered with its kind of fault and what is tried:

    @row("label order", "masks that hold LV and RV the other way round", times=3)
    def exchanged(lab):
        assert lab.jras("build", ...).refused("exchanged")

It gets a `Lab` and is called `times` times, with `lab.seed` 0, 1, ... and an empty `lab.folder`. It fails if it raises
anything. What it returns, if anything, is the outcome in the table.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import io
import pathlib
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "RELIABILITY.md"
MAKER = ROOT.parent / "shared" / "cases" / "make_cases.py"
# A run of seconds on the phantom, with known spacing; `../shared/cases/README.md` has the same.
SMALL = [
    *("--config=configs/demo.py", "--config.dataset.image_size=32", "--config.dataset.spacing_mm=4.4"),
    *("--config.backbone.options.base_channels=4", "--config.backbone.options.levels=3"),
    *("--config.retriever.image_size=16", "--config.dataset.phantom_patients=6"),
    *("--config.dataset.phantom_test_patients=2", "--config.dataset.num_folds=3", "--config.train.num_steps=10"),
    *("--config.train.eval_every=10", "--config.train.checkpoint_every=10", "--config.train.with_baseline=False"),
    "--no_report",
]
# Measured by hand; a row of the table tests that the memory does not grow with the volumes.
MEMORY = """
## Memory of an evaluation

`eval.batch_size` bounds it. Peak of `jras evaluate` on CPU with the U-Net of `configs/acdc_unet.py` (20.6 M parameters,
256 pixels, guides on; phantom of 4 training and 2 test patients, `eval.evidence_cases=0`), 2026-11-26, one run each
beside other jobs; earlier runs in brackets:

| `eval.batch_size` | peak, MB |
|---|---|
| 16 | 2,630 (2,000 to 2,800) |
| 4 | 1,320 (1,200 to 1,400) |
| 1 | 867 (1,070) |

Scoring more volumes takes no more memory, but the data set itself is read into memory: 5 bytes a voxel of all its
scans, by calculation 393 MB for the 160 volumes of ACDC's 80 public training patients. On the phantom, 40 more
volumes (25 MB) raise the peak from 492 and 497 MB to 530 and 518 MB.
"""


class Absent(Exception):
    """What a row needs is not here, such as the shared cases."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table and how it is tried: `function` is called `times` times and does the fault `each` times."""

    kind: str
    tried: str
    times: int
    function: Callable[[Lab], str | None]
    each: int = 1

    @property
    def done(self) -> int:
        """How often the fault is done in all."""
        return self.times * self.each


ROWS: list[Row] = []


def row(
    kind: str, tried: str, times: int = 1, each: int = 1
) -> Callable[[Callable[[Lab], str | None]], Callable[[Lab], str | None]]:
    """Registers a function as a row of the table."""

    def register(function: Callable[[Lab], str | None]) -> Callable[[Lab], str | None]:
        ROWS.append(Row(kind, tried, times=times, function=function, each=each))
        return function

    return register


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended."""

    status: int
    out: str
    err: str

    def refused(self, *words: str, status: int = 2) -> bool:
        """Whether it ended with one line `error: ...` that holds these words, and without a traceback."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        self._no_traceback()
        return self.status == status and len(lines) == 1 and all(w in self.err for w in words)

    def said(self, *words: str, status: int = 0) -> bool:
        """Whether it ended so and said these words on standard error."""
        self._no_traceback()
        return self.status == status and all(w in self.err for w in words)

    def _no_traceback(self) -> None:
        assert "Traceback" not in self.err, self.err


@dataclasses.dataclass
class Lab:
    """What a row works with.

    Attributes:
      folder: empty, for whatever it writes.
      seed: the number of this try, from 0.
      shelf: a folder that all rows share.
    """

    folder: pathlib.Path
    seed: int
    shelf: pathlib.Path

    def jras(self, *arguments: object) -> Result:
        """Runs `jras ARGUMENTS` in this process."""
        from jras_jax.commands import cli

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(ROOT):
            try:
                status = cli.main([str(a) for a in arguments])
            except SystemExit as end:  # argparse
                status = int(end.code or 0)
        return Result(status, out.getvalue(), err.getvalue())

    def case(self, name: str) -> pathlib.Path:
        """A copy of one of the shared cases; raises Absent without them."""
        made = self.shelf / "cases"
        if not made.is_dir():
            if not MAKER.is_file():
                raise Absent("the shared cases are not here")
            subprocess.run([sys.executable, MAKER, made], check=True, capture_output=True)
        shutil.copytree(made / name, self.folder / name, symlinks=True)
        return self.folder / name

    @functools.cached_property
    def run(self) -> pathlib.Path:
        """The folder of a small run, trained and evaluated once for all rows: for reading."""
        folder = self.shelf / "run"
        if not (folder / "evaluation").is_dir():
            data = f"--config.dataset.data_dir={self.shelf / 'data'}"
            assert self.jras("train", *SMALL, data, f"--workdir={folder}").status == 0
            assert self.jras("evaluate", f"--workdir={folder}").status == 0
        return folder

    def own_run(self) -> pathlib.Path:
        """A copy of that run, to be spoilt."""
        return pathlib.Path(shutil.copytree(self.run, self.folder / "run"))

    def predict(self, source: pathlib.Path, output: pathlib.Path, *more: object) -> Result:
        """`jras predict` with the small run."""
        return self.jras("predict", f"--workdir={self.run}", f"--input={source}", f"--output={output}", *more)


def files_of(folder: pathlib.Path) -> list[str]:
    """The files below a folder, hidden ones too; none if there is no folder."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []


def load_rows() -> list[Row]:
    """The rows of every module tests/reliability_*.py, in the order of their names."""
    for path in sorted(pathlib.Path(__file__).parent.glob("reliability_*.py")):
        importlib.import_module(f"tests.{path.stem}")
    return ROWS


def attempt(item: Row, shelf: pathlib.Path) -> tuple[bool | None, str]:
    """Tries a row; (whether it held, or None if it cannot be tried here, the outcome in words)."""
    outcome, held = "", 0
    for seed in range(item.times):
        with tempfile.TemporaryDirectory(dir=shelf) as folder:
            try:
                outcome = item.function(Lab(pathlib.Path(folder), seed, shelf)) or "as it must"
                held += 1
            except Absent as e:
                return None, f"not tried: {e}"
            except Exception as e:
                traceback.print_exc()
                outcome = f"FAILS ({type(e).__name__})"
                break
    return held == item.times, outcome if held == item.times else f"{outcome}, held {held} of {item.times} times"


def table(results: list[tuple[Row, str]]) -> str:
    """docs/RELIABILITY.md."""
    lines = [
        "# Reliability",
        "",
        "What was tried against wrong results in silence, lost work and tracebacks, through the command line. Made by",
        "`python -m tests.reliability`; each row is a function in `tests/reliability_*.py`. Refused means: exit status",
        "2 (or 1 for some of several files), one line that names the file and the remedy, nothing written.",
        "",
        "| kind | tried | times | outcome |",
        "|---|---|---|---|",
    ]
    lines += [_beginning(item) + f"{_cell(outcome)} |" for item, outcome in results]
    return "\n".join(lines) + "\n" + MEMORY


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _beginning(item: Row) -> str:
    """What the line of a row begins with, up to its outcome."""
    return f"| {_cell(item.kind)} | {_cell(item.tried)} | {item.done} | "


def updated(rows: list[Row], results: list[tuple[Row, str]], text: str) -> list[tuple[Row, str]]:
    """The outcomes of all `rows`: of `results` if they are there, else what the table `text` says of them."""
    found = []
    tried = {item.tried: outcome for item, outcome in results}
    for item in rows:
        said = [line for line in text.splitlines() if line.startswith(_beginning(item))]
        if item.tried in tried:
            found.append((item, tried[item.tried]))
        elif said:
            found.append((item, said[0].removeprefix(_beginning(item)).removesuffix(" |").replace("\\|", "|")))
    return found


def main() -> int:
    """Tries the rows; exit status 1 if one fails."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", default="", help="words of the kind, the text or the function's name, by commas")
    p.add_argument("--update", action="store_true", help="write the outcomes of --only into the table")
    p.add_argument("--list", action="store_true", help="list the rows, try none")
    args = p.parse_args()
    rows, words = load_rows(), args.only.split(",")
    chosen = [r for r in rows if any(w in f"{r.kind} {r.tried} {r.function.__name__}" for w in words)]
    if args.list:
        print("\n".join(f"{r.kind}: {r.tried} (x{r.done}, {r.function.__name__})" for r in chosen))
        return 0
    results, failed = [], 0
    with tempfile.TemporaryDirectory(prefix="reliability_") as shelf:
        for item in chosen:
            held, outcome = attempt(item, pathlib.Path(shelf))
            failed += held is False
            results.append((item, outcome))
            print(f"[{len(results)}/{len(chosen)}] {item.kind}: {item.tried}: {outcome}", flush=True)
    if args.update or not args.only:
        TABLE.write_text(table(updated(rows, results, TABLE.read_text(encoding="utf-8"))), encoding="utf-8")
    print(
        f"{len(results) - failed} of {len(results)} rows hold" + (f"; {TABLE}" if args.update or not args.only else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.modules["tests.reliability"] = sys.modules["__main__"]  # the rows register here
    sys.exit(main())
