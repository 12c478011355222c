"""Pixels for the page: PNG data URIs, contours as SVG paths, error maps. Axes: Z slices, H rows, W columns."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import NamedTuple

import numpy as np

from jras_jax.data import STRUCTURES

# Error kinds of a pixel; 0 is none.
MISSED, ADDED, CONFUSED = 1, 2, 3
ERROR_NAMES = {MISSED: "missed", ADDED: "added", CONFUSED: "wrong structure"}


class Window(NamedTuple):
    """A square part of the model grid: first row, first column, side."""

    top: int
    left: int
    side: int

    def crop(self, slices: np.ndarray) -> np.ndarray:
        """(..., S, S) -> (..., side, side)."""
        return slices[..., self.top : self.top + self.side, self.left : self.left + self.side]


def window_around(masks: list[np.ndarray], margin: float = 0.2, smallest: int = 48) -> Window:
    """The square that holds every labelled pixel of (..., S, S) masks and a margin; the whole grid if there is none."""
    size = masks[0].shape[-1]
    found = np.zeros((size, size), bool)
    for mask in masks:
        found |= (mask > 0).reshape(-1, size, size).any(0)
    if not found.any():
        return Window(0, 0, size)
    rows, cols = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    extent = max(rows[-1] - rows[0], cols[-1] - cols[0]) + 1
    side = int(min(size, max(smallest, np.ceil(extent * (1 + 2 * margin)))))
    starts = [int(np.clip((line[0] + line[-1] + 1 - side) // 2, 0, size - side)) for line in (rows, cols)]
    return Window(starts[0], starts[1], side)


def shrink(image: np.ndarray, most: int) -> np.ndarray:
    """(H, W) uint8, made smaller by area averaging so that no side is over `most` pixels."""
    height, width = image.shape
    factor = min(1.0, most / max(height, width))
    if factor == 1.0:
        return image
    rows, cols = (_area_weights(n, max(1, round(n * factor))) for n in (height, width))
    return np.rint(rows @ image.astype(np.float32) @ cols.T).astype(np.uint8)


def _area_weights(size_in: int, size_out: int) -> np.ndarray:
    """(size_out, size_in): the share of every input pixel in an output pixel."""
    edges = np.linspace(0, size_in, size_out + 1)
    low = np.maximum(edges[:-1, None], np.arange(size_in))
    high = np.minimum(edges[1:, None], np.arange(size_in) + 1)
    return np.clip(high - low, 0, None) * size_out / size_in


def png(pixels: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """A PNG file of (H, W) uint8: grey values, or indices into a (P, 4) uint8 RGBA palette."""
    if pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise ValueError(f"png needs (H, W) uint8, not {pixels.shape} {pixels.dtype}")
    height, width = pixels.shape
    if palette is None:
        # Filter 2 (difference to the row above) makes smooth images smaller.
        filtered = np.diff(pixels, axis=0, prepend=np.zeros((1, width), np.uint8))
        kind, filter_type, extra = 0, 2, b""
    else:
        filtered, kind, filter_type = pixels, 3, 0
        extra = _chunk(b"PLTE", palette[:, :3].tobytes()) + _chunk(b"tRNS", palette[:, 3].tobytes())
    rows = np.concatenate([np.full((height, 1), filter_type, np.uint8), filtered], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    body = _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + body + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def data_uri(png_bytes: bytes) -> str:
    """A PNG as an address that needs no network."""
    return "data:image/png;base64," + base64.b64encode(png_bytes).decode("ascii")


def errors(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Kind of error of every pixel: 0 none, MISSED (background predicted), ADDED (truth is background), CONFUSED."""
    kind = np.zeros(truth.shape, np.uint8)
    wrong = truth != prediction
    kind[wrong & (prediction == 0)] = MISSED
    kind[wrong & (truth == 0)] = ADDED
    kind[wrong & (truth > 0) & (prediction > 0)] = CONFUSED
    return kind


def regions(labels: np.ndarray) -> dict[str, np.ndarray]:
    """What is outlined: RV, LV (edge: the endocardium), and MYO with the LV inside (edge: the epicardium)."""
    rv, myo, lv = (labels == STRUCTURES[name] for name in ("RV", "MYO", "LV"))
    return {"RV": rv, "MYO": myo | lv, "LV": lv}


def contour_path(mask: np.ndarray) -> str:
    """The edge of a boolean (H, W) mask as the `d` of an SVG path, one closed line a region or hole; "" if empty.

    The line joins the middles of successive pixel edges, as marching squares at level 0.5 does, in units of half a
    pixel: draw it with `transform="scale(0.5)"` over an image of W x H units. Diagonal neighbours are separate.
    """
    parts = []
    for loop in _edge_loops(mask):
        # Twice the edge's middle is the sum of its two ends: integers.
        ends = np.asarray(loop)
        middles = ends + np.roll(ends, -1, axis=0)
        steps = np.roll(middles, -1, axis=0) - middles
        keep = np.any(steps != np.roll(steps, 1, axis=0), axis=1)  # a point on a straight run says nothing
        points = middles[keep]
        moves = np.diff(points, axis=0)
        start = f"M{points[0][1]} {points[0][0]}"
        parts.append(start + "".join(f"l{dx} {dy}" for dy, dx in moves) + "z")
    return "".join(parts)


def _edge_loops(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Closed walks along pixel edges, as corners (row, column), the mask on the right-hand side."""
    padded = np.pad(np.asarray(mask, bool), 1)
    inside = padded[1:-1, 1:-1]
    # side of a pixel -> (is the neighbour outside, first corner, second corner), clockwise around the pixel
    sides = (
        (~padded[:-2, 1:-1], (0, 0), (0, 1)),
        (~padded[1:-1, 2:], (0, 1), (1, 1)),
        (~padded[2:, 1:-1], (1, 1), (1, 0)),
        (~padded[1:-1, :-2], (1, 0), (0, 0)),
    )
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for outside, first, second in sides:
        for row, col in np.argwhere(inside & outside).tolist():
            following.setdefault((row + first[0], col + first[1]), []).append((row + second[0], col + second[1]))
    loops = []
    while following:
        start = here = next(iter(following))
        came: tuple[int, int] | None = None
        loop = []
        while True:
            loop.append(here)
            there = _right_turn(following, here, came)
            came, here = here, there
            if here == start and (start not in following or _closes(following, came=came, start=start, loop=loop)):
                break
        loops.append(loop)
    return loops


def _right_turn(
    following: dict[tuple[int, int], list[tuple[int, int]]], here: tuple[int, int], came: tuple[int, int] | None
) -> tuple[int, int]:
    """Takes the next edge out of the map; where two pixels touch at a corner, the one that stays on the same pixel."""
    choices = following[here]
    if came is not None and len(choices) > 1:
        dr, dc = here[0] - came[0], here[1] - came[1]
        right = (here[0] + dc, here[1] - dr)
        choices.sort(key=lambda corner: corner != right)
    there = choices.pop(0)
    if not choices:
        del following[here]
    return there


def _closes(
    following: dict[tuple[int, int], list[tuple[int, int]]],
    came: tuple[int, int],
    start: tuple[int, int],
    loop: list[tuple[int, int]],
) -> bool:
    """Whether a walk that is back at a corner of two pixels is at its end: the turn back to its first edge is right."""
    dr, dc = start[0] - came[0], start[1] - came[1]
    return loop[1] == (start[0] + dc, start[1] - dr)
