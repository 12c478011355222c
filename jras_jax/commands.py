"""What each `--mode` of run.py does, in words and in order; prints what a person wants to see."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import time
from typing import Any

import jax
import rich.console
import rich.table

from jras_jax import config as configs
from jras_jax import dataset
from jras_jax.config import Config
from jras_jax.data import PHASES, STRUCTURES
from jras_jax.errors import UserError


def train_mode(
    mode: str,
    config_file: str,
    workdir: str | None,
    overrides: tuple[str, ...],
    build: dataset.Build,
    no_report: bool,
) -> int:
    """Trains (or pre-trains the retriever), then evaluates and reports; returns the exit status."""
    config = configs.parse(configs.override(configs.load(config_file), overrides))
    folder = pathlib.Path(workdir or f"runs/{config.name}")
    enable_compilation_cache()
    start = time.monotonic()
    if mode == "pretrain_retriever":
        from jras_jax.training import pretrain

        written = pretrain.pretrain_retriever(config, folder, build)
        say(f"retriever: {written}\nuse it with --config.retriever.init_from={folder}")
        return 0
    from jras_jax.training import loop

    if config.train.with_baseline and not config.retrieval.enabled:
        raise UserError("config.train.with_baseline=True compares with a run without retrieval, but this run has none")
    loop.train(config, folder, build)
    if config.train.with_baseline:
        loop.train(baseline_of(config), folder / "baseline", build)
    if no_report:
        return 0
    _evaluate_and_report(folder, build, ())
    say(f"took {(time.monotonic() - start) / 60:.1f} minutes")
    return 0


def evaluate_mode(workdir: str, overrides: tuple[str, ...], build: dataset.Build, submission: str | None = None) -> int:
    """Evaluates a run (and the baseline inside it, where there is one) and writes the report."""
    folder = pathlib.Path(workdir)
    enable_compilation_cache()
    _evaluate_and_report(folder, build, overrides, submission)
    return 0


def choose_mode(workdir: str, overrides: tuple[str, ...], build: dataset.Build) -> int:
    """Measures post-processing and test-time augmentation on validation and says which to use."""
    from jras_jax import choose, evaluate

    enable_compilation_cache()
    quiet = jax.process_index() != 0
    found = choose.choose(workdir, build, overrides, lambda title, volumes: evaluate.progress(title, quiet)(volumes))
    if quiet:
        return 0
    unit = {"voxel": "voxels"}.get(found["unit"], found["unit"])
    table = rich.table.Table(title=f"Validation, {found['patients']} patients; gain over neither, 95% interval")
    for name in ("post-processing", "augmentation", "Dice", "gain", f"HD95, {unit}", "gain "):
        table.add_column(name, justify="left" if name in ("post-processing", "augmentation") else "right")
    for o in found["options"]:
        table.add_row(
            o["postprocess"], "on" if o["tta"] else "off", *_with_gain(o, "dice", 4), *_with_gain(o, "hd95", 2)
        )
    rich.console.Console(width=120).print(table)
    chosen = found["chosen"]
    flags = f"--config.eval.postprocess={chosen['postprocess']} --config.eval.tta={chosen['tta']}"
    say(f"chosen: {flags}\n({found['rule']})\nscore with it: run.py --mode=evaluate --workdir={workdir} {flags}")
    return 0


def _with_gain(option: dict[str, Any], key: str, digits: int) -> tuple[str, str]:
    """('0.9012', '+0.0031 (+0.0010 to +0.0052)'); '-' where there is no figure."""
    if option[key] is None or option[f"{key}_gain"] is None:
        return "-", "-"
    gain, low, high = (f"{option[f'{key}_gain{end}']:+.{digits}f}" for end in ("", "_low", "_high"))
    return f"{option[key]:.{digits}f}", f"{gain} ({low} to {high})"


def gallery_mode(args: argparse.Namespace, overrides: tuple[str, ...], build: dataset.Build) -> int:
    """Makes or changes a gallery; `args` are those of run.py."""
    from jras_jax import galleries

    enable_compilation_cache()
    folder, table = galleries.make(
        args.workdir,
        args.output,
        build,
        source=args.input,
        split=args.split,
        base=args.gallery,
        add=args.add,
        remove=tuple(filter(None, (name.strip() for name in args.remove.split(",")))),
        labels=args.labels,
        overrides=overrides,
    )
    say(
        f"{folder}: {galleries.contents(table)}\nuse it with --mode=predict --workdir={args.workdir} --gallery={folder}"
    )
    return 0


def predict_mode(
    workdir: pathlib.Path,
    source: str,
    output: str,
    gallery: str | None,
    labels: str | None,
    overrides: tuple[str, ...],
) -> int:
    """Segments scans."""
    from jras_jax import predict

    enable_compilation_cache()
    written = predict.predict(workdir, source, output, gallery=gallery, labels=labels, overrides=overrides)
    say(f"{len(written)} {'mask' if len(written) == 1 else 'masks'} in {output}")
    return 0


def baseline_of(config: Config) -> Config:
    """The same run without retrieval."""
    off = dataclasses.replace(config.retrieval, enabled=False)
    alone = dataclasses.replace(config.train, with_baseline=False)
    return dataclasses.replace(config, name=f"{config.name}_baseline", retrieval=off, train=alone)


def enable_compilation_cache() -> None:
    """Keeps compiled programs between starts, in JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        folder = pathlib.Path("~/.cache/jras_jax/compiled").expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return  # a read-only home: compile anew each time
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def say(text: str) -> None:
    """Prints on the first host."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _evaluate_and_report(
    folder: pathlib.Path, build: dataset.Build, overrides: tuple[str, ...], submission: str | None = None
) -> None:
    from jras_jax import evaluate, report

    quiet = jax.process_index() != 0
    summary = evaluate.evaluate(folder, build, overrides, quiet, submission)
    baseline = None
    if (folder / "baseline" / "config.json").is_file():
        baseline = evaluate.evaluate(folder / "baseline", build, overrides, quiet)
    if jax.process_index() != 0:
        return
    print_table(summary, baseline)
    for warning in summary["warnings"]:
        say(f"note: {warning}")
    page = report.write_report(folder, baseline_dir=folder / "baseline" if baseline else None)
    say(f"scores: {folder / 'evaluation' / 'summary.json'}\nreport: {page}")
    if submission:
        say(f"masks in the challenge's layout: {submission}")


def print_table(summary: dict[str, Any], baseline: dict[str, Any] | None) -> None:
    """Dice per structure and phase, with and without retrieval."""
    enabled = summary["gallery"]["enabled"]
    table = rich.table.Table(title=f"Dice, {summary['split']}, {summary['patients']} patients, 3-D per volume")
    table.add_column("structure")
    table.add_column("phase")
    table.add_column("with retrieval" if enabled else "without retrieval", justify="right")
    if baseline:
        table.add_column("without", justify="right")
    number = lambda s, k: f"{s['by'][k]['dice']:.4f}" if k in s["by"] else "-"  # noqa: E731
    for structure in STRUCTURES:
        for phase in PHASES:
            key = f"{structure}/{phase}"
            table.add_row(structure, phase, number(summary, key), *([number(baseline, key)] if baseline else []))
    table.add_section()
    mean = [f"{s['mean']['dice']:.4f}" for s in (summary, baseline) if s]
    table.add_row("mean", "", *mean)
    rich.console.Console(width=90).print(table)
