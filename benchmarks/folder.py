"""What people wait for: `jras predict` on a folder of scans, beside the same job in PyTorch and MONAI; its start-up.

    python -m benchmarks.folder --acdc=FOLDER    20 patients of ACDC's training folder, 40 volumes; the others guide
    python -m benchmarks.folder                  the same on the built-in phantom
    python -m benchmarks.folder --quick          small sizes, to see that it works; its figures mean nothing

All have SegFormer-B0 at 256 pixels, the small retriever, random weights and the same gallery. A figure is the time of a
whole process, from its start to its last file. Ours and another take turns, and a ratio is the median over the pairs.
PyTorch's job is `benchmarks.folder_torch`, MONAI's `benchmarks.folder_monai`; where one is not installed, ours runs
alone. Writes folder.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import measure
from benchmarks.__main__ import ROOT, facts_of_this_run
from benchmarks.sizes import FULL, QUICK, Sizes

TARGET, STARTUP_TARGET = 3.0, 2.5
BARE = "import jax; jax.jit(lambda x: x + 1)(1.0).block_until_ready()"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; returns the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.folder", description=__doc__.split("\n\n")[0])
    parser.add_argument("--acdc", metavar="FOLDER", help="ACDC's official download")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--pairs", type=int, default=3, help="how often each side runs")
    parser.add_argument("--output", metavar="DIR", default=str(ROOT / "runs" / "benchmarks"), help="for folder.json")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(pathlib.Path(folder), sizes, acdc=options.acdc, pairs=options.pairs)
    for row in rows:
        ratio = "" if row["ratio"] is None else f", ratio {row['ratio']:.2f}"
        ratio += "" if row["target"] is None else f" (target {row['target']})"
        print(f"{row['row']}: {row['ours_s']:.2f} s against {row['theirs_s'] or float('nan'):.2f} s{ratio}")
    output = pathlib.Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "folder.json").write_text(json.dumps(facts_of_this_run() | {"rows": rows}, indent=1) + "\n")
    return 0


def measured(
    work: pathlib.Path, sizes: Sizes, acdc: str | None, pairs: int, *, with_monai: bool = True
) -> list[dict[str, Any]]:
    """The three rows, or two without MONAI's; everything that they need is made in `work`, and not timed."""
    scans, labelled = _split(work, sizes, acdc)
    done = subprocess.run([sys.executable, "-m", "benchmarks.folder_run", sizes.name, work, labelled], cwd=ROOT)
    done.check_returncode()
    ours = [sys.executable, "run.py", "predict", f"--workdir={work / 'run'}", "--config.mesh.data=1"]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(work / "cache")}
    folder = [*ours, f"--input={scans}", f"--output={work / 'ours'}"]

    def other(name: str, *needed: str) -> list[Any]:
        """The command of another side; [] where a module that it needs is not installed."""
        there = all(importlib.util.find_spec(module) for module in needed)
        return (
            [sys.executable, "-m", f"benchmarks.folder_{name}", sizes.name, work, scans, work / name] if there else []
        )

    plain, monai = other("torch", "torch", "transformers"), other("monai", "torch", "transformers", "monai")
    first = next(path for path in sorted(scans.rglob("*.nii.gz")))
    one = [*ours, f"--input={first}", f"--output={work / 'one'}"]
    for command in (folder, one):  # fills the caches of programs
        _process(command, **cache)
    count = sum(1 for _ in scans.rglob("*.nii.gz"))
    title = f"predict a folder of {count} volumes, SegFormer-B0, small retriever"
    rows = [_row(title, TARGET, [_pair(folder, plain, cache) for _ in range(pairs)], inverse=False)]
    if with_monai:
        beside = [_pair(folder, monai, cache) for _ in range(pairs)]
        rows.append(_row(f"{title}, beside MONAI", None, beside, inverse=False))
    starts = [_pair(one, [sys.executable, "-c", BARE], cache) for _ in range(pairs)]
    title = "start-up: predict one scan, warm, against JAX's bare start"
    return [*rows, _row(title, STARTUP_TARGET, starts, inverse=True)]


def _split(work: pathlib.Path, sizes: Sizes, acdc: str | None) -> tuple[pathlib.Path, pathlib.Path]:
    """A folder with the scans of the last 20 patients, and one with the labelled scans of the others."""
    if acdc is None:
        from jras_jax.data import phantom

        acdc = str(work / "phantom")
        matrix = (3 * sizes.image // 4, sizes.image)
        phantom.write_acdc(acdc, train_patients=sum(sizes.folder), test_patients=0, matrix=matrix)
    patients = sorted(p for p in (pathlib.Path(acdc) / "training").iterdir() if p.is_dir())
    if not sizes.folder[0] < len(patients):
        raise SystemExit(f"error: {acdc}/training has {len(patients)} patients; more than {sizes.folder[0]} are needed")
    scans, labelled = work / "scans", work / "labelled"
    for patient in patients[-sizes.folder[0] :]:
        for file in patient.glob("*_frame??.nii.gz"):
            (scans / patient.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, scans / patient.name)
    for patient in patients[: -sizes.folder[0]]:
        shutil.copytree(patient, labelled / patient.name)
    return scans, labelled


def _process(command: Sequence[Any], **environment: str) -> dict[str, float]:
    """Seconds and peak memory (GB) of a process; raises SystemExit with its last lines if it fails."""
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command], cwd=ROOT, stdout=said, stderr=said, env=measure.environment(**environment)
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"error: {command[1:4]} failed:\n{said.read()[-2000:]}")
    return {"s": seconds, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_gb": usage.ru_maxrss * 1024 / 1e9}


def _pair(ours: Sequence[Any], theirs: Sequence[Any], cache: dict[str, str]) -> list[dict[str, float]]:
    """Our process and then the other one."""
    return [_process(ours, **cache), *([_process(theirs)] if theirs else [])]


def _row(title: str, target: float | None, pairs: list[list[dict[str, float]]], *, inverse: bool) -> dict[str, Any]:
    """Medians; the ratio is their time over ours, or (`inverse`) ours over theirs."""
    middle = lambda side, key: statistics.median(p[side][key] for p in pairs)  # noqa: E731
    row: dict[str, Any] = {"row": title, "target": target, "pairs": pairs, "theirs_s": None, "ratio": None}
    row |= {f"ours_{key}": middle(0, key) for key in ("s", "cpu_s", "peak_gb")}
    if len(pairs[0]) == 2:
        row |= {f"theirs_{key}": middle(1, key) for key in ("s", "cpu_s", "peak_gb")}
        for name, key in (("ratio", "s"), ("cpu_ratio", "cpu_s")):
            ratios = [p[0][key] / p[1][key] if inverse else p[1][key] / p[0][key] for p in pairs]
            row[name] = statistics.median(ratios)
        if target is not None:
            row["met"] = row["ratio"] <= target if inverse else row["ratio"] >= target
    return row


if __name__ == "__main__":
    sys.exit(main())
