"""Verifies a folder of images and masks before anything is built: each fault with its file, its rule and the remedy.

    jras check PATH                     a folder of your own: nnU-Net's raw layout, or pairs
    jras check PATH --dataset=acdc      an official download

Writes a picture of some cases with their masks' outlines. Exit status: 0, or 1 if there are faults.
"""

from __future__ import annotations

import argparse
import math
import pathlib

import numpy as np
import PIL.Image
import PIL.ImageDraw
import rich.console
import rich.progress
import rich.table

import tfds_builders
from jras_jax import files
from jras_jax.data import DatasetDescription
from jras_jax.data.grid import to_uint8
from jras_jax.errors import UserError, printable
from tfds_builders.verify import Verdict, verify

TILE = 300  # pixels a side of a case in the picture
FOLDS = 5  # of the configs
GRID = 256  # pixels a side of the configs' model grid


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The command's options."""
    p.add_argument("path", type=pathlib.Path, help="the folder")
    p.add_argument("--dataset", default="folder", choices=tfds_builders.NAMES, help="what it holds [%(default)s]")
    p.add_argument("--picture", type=pathlib.Path, help="PNG file of the summary picture [check_NAME.png]")


def run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    """Checks the folder; returns the exit status."""
    path = files.expanded(args.path)
    console = rich.console.Console(stderr=True)
    hidden = not console.is_terminal
    found = verify(
        args.dataset, path, lambda cases: rich.progress.track(list(cases), "reading", console=console, disable=hidden)
    )
    out = rich.console.Console()
    out = out if out.is_terminal else rich.console.Console(width=110)
    if found.description is not None and found.cases:
        out.print(_table(found, found.description))
        for line in _facts(found):
            out.print(line, markup=False, highlight=False, soft_wrap=True)
    for remark in found.remarks:
        out.print(f"note: {printable(remark)}", markup=False, highlight=False, soft_wrap=True)
    if found.samples and found.description is not None:
        target = args.picture or pathlib.Path(f"check_{path.resolve().name}.png")
        if target.suffix.lower() != ".png":
            raise UserError(f"--picture={target}: the picture is a PNG file; end its name in .png")
        with files.replacing(target) as temporary:
            _picture(found, found.description).save(temporary, "PNG")
        out.print(f"picture: {target}", markup=False, highlight=False, soft_wrap=True)
    for fault in found.faults:
        out.print(f"fault: {fault}", markup=False, highlight=False, soft_wrap=True)
    count = len(found.faults)
    verdict = f"{count} {'fault' if count == 1 else 'faults'}: correct them, then check again" if count else "no fault"
    out.print(f"{path}: {verdict}", markup=False, highlight=False, soft_wrap=True)
    if not count and args.dataset == "folder":
        settings = "".join(f" --config.{key}={value}" for key, value in _advice(found).items())
        out.print(
            f"train: jras train --config=configs/folder.py --workdir=runs/{path.resolve().name} "
            f"--config.dataset.manual_dir={path}{settings}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return 1 if count else 0


def _table(found: Verdict, description: DatasetDescription) -> rich.table.Table:
    total = sum(found.cases.values())
    table = rich.table.Table(title=f"{description.name}: {total} cases of {len(found.patients)} patients")
    for column in ("structure", "value", "cases that have it", "voxels, median", "voxels, range"):
        table.add_column(column, justify="left" if column == "structure" else "right")
    for structure, value in description.structure_values.items():
        counts = found.voxels[structure]
        span = f"{min(counts):,} to {max(counts):,}" if counts else "-"
        median = f"{int(np.median(counts)):,}" if counts else "-"
        table.add_row(printable(structure), str(value), f"{len(counts)} of {total}", median, span)
    return table


def _facts(found: Verdict) -> list[str]:
    assert found.description is not None
    sizes = np.array(found.sizes)
    low, high = sizes.min(0), sizes.max(0)
    shape = " x ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(low, high, strict=True))
    lines = [
        "splits: " + ", ".join(f"{count} {split}" for split, count in found.cases.items()),
        f"channels: {', '.join(found.description.channels)}; size: {shape} voxels",
    ]
    if found.spacings:
        spacing = np.array(found.spacings)
        text = " x ".join(f"{v:.3g}" for v in np.median(spacing, 0))
        lines.append(f"spacing: {text} mm (median of {len(spacing)} of {len(sizes)} cases)")
    else:
        lines.append("spacing: not known; each case is scaled to the model grid, and distances are in pixels")
    return lines


def _advice(found: Verdict) -> dict[str, str]:
    """Settings that the configs' defaults do not fit."""
    advice = {}
    if not math.isnan(found.widest_mm):
        advice["dataset.spacing_mm"] = f"{math.ceil(100 * found.widest_mm / GRID) / 100:g}"
    if len(found.patients) < FOLDS:
        advice["dataset.num_folds"] = str(max(2, len(found.patients)))
    return advice


def _picture(found: Verdict, description: DatasetDescription) -> PIL.Image.Image:
    """Some cases side by side, the structures outlined in their colours, with a key."""
    columns = min(4, len(found.samples))
    rows = -(-len(found.samples) // columns)
    legend = 24 * (1 + (len(description.structures) - 1) // (2 * columns))
    sheet = PIL.Image.new("RGB", (columns * TILE, rows * (TILE + 20) + legend + 8), "black")
    draw = PIL.ImageDraw.Draw(sheet)
    for number, (name, image, mask) in enumerate(found.samples):
        x, y = number % columns * TILE, number // columns * (TILE + 20)
        tile = _tile(image, mask, description)
        sheet.paste(tile, (x + (TILE - tile.width) // 2, y + 20 + (TILE - tile.height) // 2))
        draw.text((x + 4, y + 4), printable(name)[:44], fill="white")
    for number, (structure, colour) in enumerate(zip(description.structures, description.colours, strict=True)):
        x, y = number % (2 * columns) * TILE // 2, rows * (TILE + 20) + 24 * (number // (2 * columns)) + 6
        draw.rectangle((x + 4, y, x + 18, y + 14), outline=colour, width=3)
        draw.text((x + 24, y + 1), printable(structure)[:18], fill="white")
    return sheet


def _tile(image: np.ndarray, mask: np.ndarray, description: DatasetDescription) -> PIL.Image.Image:
    """One slice (X, Y), as large as a tile allows, its structures' edges in their colours."""
    scale = TILE / max(image.shape)
    size = [max(1, round(n * scale)) for n in image.shape]
    grey = PIL.Image.fromarray(np.ascontiguousarray(to_uint8(image, (0.5, 99.5)).T)).resize(size)
    labels = np.asarray(PIL.Image.fromarray(np.ascontiguousarray(mask.T)).resize(size, PIL.Image.Resampling.NEAREST))
    padded = np.pad(labels, 1, mode="edge")
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = (labels > 0) & np.any([a != labels for a in around], axis=0)
    pixels = np.repeat(np.asarray(grey)[..., None], 3, 2).copy()
    pixels[edge] = description.palette[labels[edge]]
    return PIL.Image.fromarray(pixels)
