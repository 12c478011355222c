"""From the rows of both sides to one table, one JSON file and one line of history."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.sizes import RETRIEVER_TITLES, STARTUP_TARGET_S, TITLES, Sizes, target

Row = dict[str, Any]
# Every row of results.json has these keys; None where a figure does not exist.
KEYS = (
    "row", "part", "ours_ms", "torch_ms", "torch_compile_ms", "ratio", "target", "limit_ms", "met", "spread", "gflop",
    "gbyte", "of_product_peak", "of_copy_peak", "ours_peak_gb", "torch_peak_gb", "less_memory", "note",
)  # fmt: skip


def new_row(name: str, part: str, **values: Any) -> Row:
    """A row of results.json with its ratio, target and whether it is met filled in from the times."""
    row: Row = dict.fromkeys(KEYS) | {"row": name, "part": part} | values
    if row["ours_ms"] and row["torch_ms"]:
        row["ratio"] = row["torch_ms"] / row["ours_ms"]
    row["target"] = target(name)
    if row["limit_ms"]:
        row["met"] = row["ours_ms"] <= row["limit_ms"]
    elif row["ratio"] and row["target"]:
        row["met"] = row["ratio"] >= row["target"]
    return row


def merge(ours: Sequence[Row], eager: Sequence[Row], compiled: Sequence[Row], peaks: dict[str, float]) -> list[Row]:
    """Rows of a part, matched by name; the fraction of each peak that our time amounts to."""
    theirs, theirs_compiled = ({r["row"]: r for r in side} for side in (eager, compiled))
    merged = []
    for mine in ours:
        name = mine["row"]
        # A refresh from the cached trunk is compared with the reference's only kind, the whole forward pass.
        other = theirs.get(name) or theirs.get(name.replace("cached trunk", "whole forward"), {})
        seconds = mine["ms"] / 1e3
        values = {
            "ours_ms": mine["ms"],
            "torch_ms": other.get("ms"),
            "torch_compile_ms": theirs_compiled.get(name, {}).get("ms"),
            "spread": (mine["slowest"] - mine["fastest"]) / mine["ms"],
            "gflop": mine["gflop"],
            "gbyte": mine["gbyte"],
            "ours_peak_gb": mine["peak_gb"],
            "torch_peak_gb": other.get("peak_gb"),
            "note": mine.get("note"),
        }
        if mine["gflop"] is not None and peaks:
            values["of_product_peak"] = mine["gflop"] / seconds / peaks["gflops"]
            values["of_copy_peak"] = mine["gbyte"] / seconds / peaks["gb_per_s"]
        if other and mine["part"].startswith("joint"):
            values["less_memory"] = mine["peak_gb"] < other["peak_gb"]
        merged.append(new_row(name, mine["part"], **values))
    return merged


def epochs(rows: Sequence[Row], sizes: Sizes) -> list[Row]:
    """An epoch of every pair whose step and refresh were measured: refresh + N / B x step. Ours: the cached refresh."""
    by_name = {r["row"]: r for r in rows}
    steps = sizes.gallery // sizes.batch
    found = []
    for retriever in (RETRIEVER_TITLES[r] for r in sizes.retrievers):
        whole = by_name.get(f"refresh, whole forward, {retriever}")
        best = by_name.get(f"refresh, cached trunk, {retriever}", whole)
        for backbone in (TITLES[b] for b in sizes.backbones):
            step = by_name.get(f"joint step, {backbone}, {retriever}")
            if not (whole and best and step):
                continue
            theirs = whole["torch_ms"] + steps * step["torch_ms"] if step["torch_ms"] and whole["torch_ms"] else None
            found.append(
                new_row(
                    f"epoch, {backbone}, {retriever}",
                    "epoch",
                    ours_ms=best["ours_ms"] + steps * step["ours_ms"],
                    torch_ms=theirs,
                    note=f"computed: refresh + {steps} x step",
                )
            )
    return found


def startup(cold_s: float, warm_s: float) -> list[Row]:
    """From `python` to the end of the first joint step."""
    note = "wall time from the interpreter's start to the end of the first joint step, U-Net"
    return [
        new_row("start-up, empty compilation cache", "startup", ours_ms=1e3 * cold_s, note=note),
        new_row(
            "start-up, warm compilation cache",
            "startup",
            ours_ms=1e3 * warm_s,
            limit_ms=1e3 * STARTUP_TARGET_S,
            note=note,
        ),
    ]


def show(results: dict[str, Any], console: Console) -> None:
    """Prints the table, the scaling table and what the figures mean."""
    peaks = results["peaks"]
    columns = ("part", "ours ms", "torch ms", "compiled ms", "torch / ours", "target", "met", "GFLOP", "GB moved")
    table = Table(*columns, "of product peak", "of copy peak", "GB peak ours/torch", title=results["machine"])
    for column in table.columns[1:]:
        column.justify = "right"
    for r in results["rows"]:
        limit = f"< {r['limit_ms'] / 1e3:.0f} s" if r["limit_ms"] else _number(r["target"])
        memory = f"{_number(r['ours_peak_gb'])}/{_number(r['torch_peak_gb'])}" if r["ours_peak_gb"] else ""
        met = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[r["met"]]
        figures = (r["ours_ms"], r["torch_ms"], r["torch_compile_ms"], r["ratio"])
        work = (r["gflop"], r["gbyte"], r["of_product_peak"], r["of_copy_peak"])
        table.add_row(r["row"], *map(_number, figures), limit, met, *map(_number, work), memory)
    console.print(table)
    if peaks:
        console.print(
            f"Peaks measured here: {peaks['gflops']:.0f} GFLOP/s (a float32 product), {peaks['gb_per_s']:.0f} GB/s "
            "(copy, read + write). GFLOP and GB are XLA's count for our program."
        )
    for note in dict.fromkeys(f"{r['row'].split(',')[0]}: {r['note']}" for r in results["rows"] if r["note"]):
        console.print(f"  {note}")
    if results["scaling"]:
        scaling = Table("devices", "GFLOP", "GB moved", "MB in collectives", title="One device's share of a step")
        for r in results["scaling"]:
            sent = ", ".join(f"{kind} {size:.2f}" for kind, size in r["collective_mb"].items()) or "0"
            scaling.add_row(str(r["devices"]), f"{r['gflop']:.1f}", f"{r['gbyte']:.2f}", sent)
        console.print(scaling)


def _number(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def save(results: dict[str, Any], folder: pathlib.Path) -> None:
    """Writes results.json and appends the ratios to history.csv, one line a row."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    history = folder / "history.csv"
    fresh = not history.is_file()
    with history.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["date", "revision", "machine", "row", "ours_ms", "torch_ms", "ratio"])
        for r in results["rows"]:
            figures = [None if r[k] is None else round(r[k], 3) for k in ("ours_ms", "torch_ms", "ratio")]
            writer.writerow([results["date"], results["revision"], results["machine"], r["row"], *figures])
