"""What the commands print: lines, score tables, progress."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax

from jras_jax.data.remarks import Teller


def say(text: str) -> None:
    """Prints on the first host."""
    if jax.process_index() == 0:
        print(text, flush=True)


def warn(text: str) -> None:
    """Prints on the first host's standard error."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def teller() -> Callable[[str], None]:
    """Takes remarks 'FILE: remark' for the user; silent on all hosts but the first."""
    return Teller() if jax.process_index() == 0 else lambda line: None


def progress(title: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A progress bar over what it is called with; silent on all hosts but the first."""

    def shown(items: Iterable[Any]) -> Iterable[Any]:
        if jax.process_index() != 0:
            return items
        import rich.progress

        return rich.progress.track(list(items), title, transient=True)

    return shown


def enable_compilation_cache() -> None:
    """Keeps compiled programs between starts, in JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        folder = pathlib.Path("~/.cache/jras_jax/compiled").expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return  # a read-only home: every start compiles
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def print_scores(summary: dict[str, Any], baseline: dict[str, Any] | None) -> None:
    """Dice per structure and phase, with and without retrieval."""
    import rich.console
    import rich.table

    enabled = summary["gallery"]["enabled"]
    per = "patients, 3-D per volume" if summary["dimensions"] == 3 else "patients, 2-D per image"
    if summary.get("config_protocol") == "paper":
        per = "slices, 2-D (this leaks)"
    table = rich.table.Table(title=f"Dice, {summary['split']}, {summary['patients']} {per}")
    table.add_column("structure")
    if phases := summary["phases"]:
        table.add_column("phase")
    table.add_column("with retrieval" if enabled else "without retrieval", justify="right")
    if baseline:
        table.add_column("without", justify="right")
    number = lambda s, k: f"{s['by'][k]['dice']:.4f}" if k in s["by"] else "-"  # noqa: E731
    for structure in summary["structures"]:
        for phase in phases or [""]:
            key = f"{structure}/{phase}".rstrip("/")
            dice = [number(s, key) for s in (summary, baseline) if s]
            table.add_row(structure, *([phase] if phases else []), *dice)
    table.add_section()
    mean = [f"{s['mean']['dice']:.4f}" for s in (summary, baseline) if s]
    table.add_row("mean", *([""] if phases else []), *mean)
    rich.console.Console(width=90).print(table)


def print_choices(result: dict[str, Any]) -> None:
    """The options that `jras choose` measured."""
    import rich.console
    import rich.table

    unit = {"voxel": "voxels"}.get(result["unit"], result["unit"])
    table = rich.table.Table(title=f"Validation, {result['patients']} patients; gain over using neither, 95% interval")
    for name in ("post-processing", "augmentation", "Dice", "gain", f"HD95, {unit}", "gain "):
        table.add_column(name, justify="left" if name in ("post-processing", "augmentation") else "right")
    for option in result["options"]:
        figures = (*_with_gain(option, "dice", 4), *_with_gain(option, "hd95", 2))
        table.add_row(option["postprocess"], "on" if option["tta"] else "off", *figures)
    rich.console.Console(width=120).print(table)


def _with_gain(option: dict[str, Any], key: str, digits: int) -> tuple[str, str]:
    """('0.9012', '+0.0031 (+0.0010 to +0.0052)'); '-' if there is no figure."""
    if option[key] is None or option[f"{key}_gain"] is None:
        return "-", "-"
    gain, low, high = (f"{option[f'{key}_gain{end}']:+z.{digits}f}" for end in ("", "_low", "_high"))
    return f"{option[key]:.{digits}f}", f"{gain} ({low} to {high})"
