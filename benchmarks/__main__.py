"""Our joint step and its parts beside PyTorch's, in one run.

    python -m benchmarks                 everything, under 15 minutes on 2 idle cores; writes benchmarks/results.json
    python -m benchmarks --quick         small sizes, to see that it works; its figures mean nothing
    python -m benchmarks --only=joint    the parts whose name begins so; --list names them
    python -m benchmarks --gpu           the table of one GPU, in 8 minutes; see benchmarks.gpu

Each part runs ours first and then PyTorch's, each in its own process, with the same allocator settings. Without PyTorch
and transformers (requirements-parity.txt) ours is measured alone.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from benchmarks import measure, table
from benchmarks.sizes import FULL, QUICK, Sizes, parts
from benchmarks.worker import MARK
from jras_jax.errors import UserError
from jras_jax.run_folder import provenance

ROOT = pathlib.Path(__file__).resolve().parent.parent
SEEN = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")
TIMEOUT_S = 900.0


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and writes; returns the exit status."""
    options = _parse(arguments)
    sizes = QUICK if options.quick else FULL
    if options.list:
        print("\n".join(parts(sizes)))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        if options.gpu:
            from benchmarks import gpu

            return gpu.main(
                pathlib.Path(options.output or ROOT / "runs" / "benchmarks"),
                console,
                quick=options.quick,
                acdc=options.acdc,
                data_dir=options.data_dir,
                budget_s=options.budget,
            )
        results = run(sizes, options.only, with_torch=not options.no_torch, console=console)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    table.show(results, console)
    # A partial or quick run must not replace the published figures.
    published = sizes is FULL and not options.only and results["torch"]
    folder = pathlib.Path(options.output or (ROOT / "benchmarks" if published else ROOT / "runs" / "benchmarks"))
    table.save(results, folder)
    console.print(f"{results['seconds']:.0f} s; written: {folder / 'results.json'}, {folder / 'history.csv'}")
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--gpu", action="store_true", help="the table of one GPU, beside PyTorch, in 8 minutes")
    parser.add_argument("--acdc", metavar="FOLDER", help="with --gpu: ACDC's official download")
    parser.add_argument("--data_dir", metavar="FOLDER", help="with --gpu: where ACDC is built already")
    parser.add_argument("--budget", type=float, default=480.0, metavar="S", help="with --gpu: seconds (default: 480)")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="parts that begin so; repeatable")
    parser.add_argument("--no-torch", action="store_true", help="measure ours alone")
    parser.add_argument("--output", metavar="DIR", help="where results.json and history.csv go")
    parser.add_argument("--list", action="store_true", help="names of the parts")
    return parser.parse_args(arguments)


def run(sizes: Sizes, only: list[str], *, with_torch: bool, console: Console) -> dict[str, Any]:
    """All figures, as results.json holds them.

    Raises:
      UserError: `only` names no part, or a measuring process failed.
    """
    start = time.monotonic()
    chosen = [p for p in parts(sizes) if not only or p.startswith(tuple(only))]
    if not chosen:
        raise UserError(f"--only={only[0]}: no such part; they are {', '.join(parts(sizes))}")
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if with_torch and missing:
        console.print(
            f"[yellow]{' and '.join(missing)} not installed: ours is measured alone. The comparison needs "
            "`pip install -r requirements-parity.txt`.[/]"
        )
        with_torch = False
    compiles = with_torch and any(shutil.which(c) for c in ("cc", "gcc", "clang", "cl"))
    (peaks,) = worker("ours", sizes, "peaks")
    rows, scaling = [], []
    for part in chosen:
        console.print(f"[{time.monotonic() - start:4.0f} s] {part}", style="dim")
        if part == "startup":
            rows += table.startup(*_startup(sizes))
        elif part == "scaling":
            scaling = [_scaling(sizes, n) for n in sizes.devices]
        else:
            ours = _ours(sizes, part)
            eager = worker("torch", sizes, part) if with_torch else []
            compiled = worker("torch-compile", sizes, part) if compiles and part in sizes.compiled else []
            rows += table.merge(ours, eager, compiled=compiled, peaks=peaks)
    rows += table.epochs(rows, sizes)
    return facts_of_this_run() | {
        "allocator": measure.ALLOCATOR,
        "sizes": sizes.name,
        "torch": with_torch,
        "peaks": {key: peaks[key] for key in ("gflops", "gb_per_s")},
        "rows": rows,
        "scaling": scaling,
        "seconds": time.monotonic() - start,
    }


def facts_of_this_run() -> dict[str, Any]:
    """Command, date, revision, machine and versions, as every file of figures holds them."""
    module = f"benchmarks.{pathlib.Path(sys.argv[0]).stem}".removesuffix(".__main__")
    return {
        "command": f"python -m {module} {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "revision": provenance.git_revision(),
        "machine": _machine(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in SEEN},
    }


def worker(
    side: str, sizes: Sizes, part: str, *, timeout_s: float = TIMEOUT_S, **environment: str
) -> list[dict[str, Any]]:
    """The rows that one measuring process writes."""
    command = [sys.executable, "-m", "benchmarks.worker", side, sizes.name, part]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=measure.environment(**environment),
            capture_output=True,
            text=True,
            timeout=max(timeout_s, 1.0),
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{' '.join(command[1:])} took more than {timeout_s:.0f} s; is the machine busy?") from None
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise UserError(f"{' '.join(command[1:])} failed with status {done.returncode}:\n{tail}")
    return [json.loads(line.removeprefix(MARK)) for line in done.stdout.splitlines() if line.startswith(MARK)]


@contextlib.contextmanager
def _empty_cache() -> Iterator[dict[str, str]]:
    """The environment of processes that share a compilation cache, empty at first, of every program they compile."""
    with tempfile.TemporaryDirectory() as folder:
        yield {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def _ours(sizes: Sizes, part: str) -> list[dict[str, Any]]:
    """Our rows of a part, from compiled programs that a process before has left in the compilation cache."""
    with _empty_cache() as cache:
        worker("ours-fill", sizes, part, **cache)
        return worker("ours", sizes, part, **cache)


def _startup(sizes: Sizes) -> tuple[float, float]:
    """Seconds of a whole process that does one step, with an empty and with a filled compilation cache."""
    seconds = []
    with _empty_cache() as cache:
        for _ in range(2):
            start = time.monotonic()
            worker("ours", sizes, "startup", **cache)
            seconds.append(time.monotonic() - start)
    return seconds[0], seconds[1]


def _scaling(sizes: Sizes, devices: int) -> dict[str, Any]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    (row,) = worker("ours", sizes, "scaling", XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    return {k: v for k, v in row.items() if k not in ("row", "ms", "part")}


def _machine() -> str:
    """Processor, cores and memory in words."""
    info = pathlib.Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if (info.is_file())
        else [platform.processor()]
    )
    return f"{names[0]}, {len(names)} cores, {platform.system()} {platform.machine()}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
