"""Made-up hearts for the phantom: contours in millimetres, by pathology group and phase.

In polar coordinates about the axis of the left ventricle: a cavity that tapers as an ellipsoid, a myocardium of
constant volume over the beat, an RV crescent that ends before the apex, and the valve plane, which moves towards the
apex in systole. The five pathology groups of ACDC differ as their definitions say (Bernard et al., IEEE TMI 2018,
section II): NOR; DCM, a wide LV with an EF under 40 %; HCM, thick walls, mostly the septum; MINF, a thin sector that
does not move; RV, a wide RV with a poor EF.

Axes: X along image columns (towards the patient's left), Y along rows (towards back and feet), Z from base to apex.
Lengths in mm, angles in radians from X towards Y.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from jras_jax.data import STRUCTURES

_WIDEST = 0.25  # share of the LV's length, from the base, where it is widest
_OUTSIDE = np.float32(1e3)  # mm: the distance where there is no contour


class Range(NamedTuple):
    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(self.low, self.high))


class Group(NamedTuple):
    """A pathology group: radius and wall of the LV at ED (mm), its EF, depth of the RV crescent (mm), the RV's EF."""

    radius: Range
    wall: Range
    ef: Range
    rv_depth: Range
    rv_ef: Range


GROUPS = {
    "NOR": Group(
        Range(21, 25), wall=Range(7, 9), ef=Range(0.56, 0.68), rv_depth=Range(22, 27), rv_ef=Range(0.50, 0.62)
    ),
    "DCM": Group(
        Range(30, 35), wall=Range(6.5, 8.5), ef=Range(0.14, 0.30), rv_depth=Range(20, 27), rv_ef=Range(0.35, 0.50)
    ),
    "HCM": Group(
        Range(19, 23), wall=Range(12, 16), ef=Range(0.62, 0.75), rv_depth=Range(20, 25), rv_ef=Range(0.50, 0.62)
    ),
    "MINF": Group(
        Range(25, 29), wall=Range(7, 9), ef=Range(0.42, 0.52), rv_depth=Range(21, 26), rv_ef=Range(0.45, 0.58)
    ),
    "RV": Group(Range(20, 24), wall=Range(7, 9), ef=Range(0.50, 0.62), rv_depth=Range(33, 40), rv_ef=Range(0.20, 0.36)),
}


@dataclasses.dataclass(frozen=True)
class Heart:
    """Contours of a heart; angles from X towards Y."""

    group: str
    radius: float  # of the LV cavity at its widest, ED
    wall: float  # of the myocardium there, ED
    length: float  # of the LV cavity, base to apex, ED
    ef: float
    rv_depth: float  # of the crescent, septum to free wall, ED
    rv_ef: float
    rv_end: float  # where the RV ends, as a share of the LV's length
    septum: float  # direction from the LV to the RV
    wobble: tuple[tuple[float, float], ...]  # amplitude and phase of the contour's harmonics 2, 3, 4
    tilt: tuple[float, float]  # of the axis: mm in X and Y for each mm towards the apex
    papillary: float  # radius of the papillary muscles, ED
    scar: tuple[float, float, float]  # direction, half width, share of the length where it begins


class Contours(NamedTuple):
    """Signed distances in mm, roughly, negative inside; (Z, X, Y) float32."""

    endo: np.ndarray
    epi: np.ndarray
    rv: np.ndarray
    papillary: np.ndarray
    atria: np.ndarray


@dataclasses.dataclass(frozen=True)
class Stage:
    """The slices' positions: grids x, y (Z, X, Y) relative to the LV's axis at the base, and depth z (Z, 1, 1); mm."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    pixel: float
    thickness: float


def draw_heart(rng: np.random.Generator, group: str) -> Heart:
    shape = GROUPS[group]
    septum = np.pi + rng.normal(0.15, 0.28)  # towards the patient's right and a little forwards
    return Heart(
        group=group,
        radius=shape.radius.draw(rng),
        wall=shape.wall.draw(rng),
        length=shape.radius.draw(rng) * 1.2 + rng.uniform(45, 58),
        ef=shape.ef.draw(rng),
        rv_depth=shape.rv_depth.draw(rng),
        rv_ef=shape.rv_ef.draw(rng),
        rv_end=float(rng.uniform(0.70, 0.86)),
        septum=float(septum),
        wobble=tuple((float(rng.uniform(0, 0.09 / k)), float(rng.uniform(0, 2 * np.pi))) for k in (2, 3, 4)),
        tilt=(float(rng.normal(0.05, 0.05)), float(rng.normal(0.03, 0.05))),
        papillary=float(rng.uniform(2.5, 4.5)),
        scar=(float(rng.uniform(-1.2, 1.2)), float(rng.uniform(0.7, 1.1)), float(rng.uniform(0.1, 0.35))),
    )


def _profile(t: np.ndarray) -> np.ndarray:
    """Radius of the LV over its largest, at a share t of the way from base (0) to apex (1); 0 beyond the apex."""
    below = np.clip((t - _WIDEST) / (1 - _WIDEST), 0, 1)
    above = np.clip((_WIDEST - t) / _WIDEST, 0, 2)
    return np.sqrt(1 - below**2) * (1 - 0.10 * above**2)


def _window(theta: np.ndarray, centre: float, half: float) -> np.ndarray:
    """1 within `half` of an angle, 0 beyond, with a smooth edge of 0.3 rad."""
    away = np.abs(np.angle(np.exp(1j * (theta - centre)))).astype(np.float32)
    return 0.5 - 0.5 * np.tanh((away - half) / 0.15)


def contours(heart: Heart, phase: str, stage: Stage) -> Contours:
    """Signed distances to a heart's contours at a phase, "ED" or "ES"."""
    x, y = stage.x, stage.y
    rho, theta = np.hypot(x, y), np.arctan2(y, x)
    systole = phase == "ES"
    long_axis = 1 - 0.2 * heart.ef if systole else 1.0
    shrink = np.sqrt((1 - heart.ef) / long_axis) if systole else 1.0
    radius, length = heart.radius * shrink, heart.length * long_axis
    # Myocardium keeps its volume: the wall's cross-section grows as the LV shortens.
    section = ((heart.radius + heart.wall) ** 2 - heart.radius**2) / long_axis
    wall = np.sqrt(radius**2 + section) - radius
    depth = stage.z - (heart.length - length)  # the apex stays, the valve plane comes down
    t = depth / length
    endo, epi = _walls(heart, radius=radius, wall=wall, theta=theta, t=t, t_ed=stage.z / heart.length)
    rv = np.maximum(
        _rv(heart, systole=systole, stage=stage, depth=depth, length=length, outer=radius + wall), epi - rho
    )
    papillary = _papillary(heart, x=x, y=y, endo=endo, shrink=shrink, t=t)
    atria = np.minimum(np.hypot(x, y - 4) - 0.8 * heart.radius, np.hypot(x + 26, y + 6) - 0.55 * heart.radius)
    return Contours(
        *(
            np.where(where, distance, _OUTSIDE).astype(np.float32)
            for where, distance in (
                ((t >= 0) & (t < 1), rho - endo),
                ((t >= 0) & (epi > 0), rho - epi),
                (t >= 0, rv),
                (t >= 0, papillary),
                (t < 0, atria),
            )
        )
    )


def _walls(
    heart: Heart, radius: float, wall: float, theta: np.ndarray, t: np.ndarray, t_ed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Radii of endocardium and epicardium, (Z, X, Y) mm.

    Args:
      heart: the heart.
      radius, wall: of the LV where it is widest, at this phase.
      theta: (Z, X, Y) direction.
      t, t_ed: (Z, 1, 1) share of the way from base to apex, at this phase and at ED.
    """
    harmonics = zip((2, 3, 4), heart.wobble, strict=True)
    outline = 1 + sum(amplitude * np.cos(k * theta - angle) for k, (amplitude, angle) in harmonics)
    septal = np.maximum(0, np.cos(theta - heart.septum)) ** 2
    if heart.group == "RV":
        outline = outline * (1 - 0.14 * septal)  # the loaded RV flattens the septum
    endo = radius * _profile(t) * outline
    thick = np.full_like(endo, wall)
    if heart.group == "HCM":
        thick, endo = thick * (1 + 0.22 * septal), endo - 0.16 * wall * septal
    if heart.group == "MINF":
        scar = _window(theta, *heart.scar[:2]) * (t > heart.scar[2])
        at_rest = heart.radius * _profile(t_ed) * outline
        endo = endo + 0.9 * scar * (at_rest - endo)
        thick = thick + scar * (0.6 * heart.wall - thick)
    # Beyond the cavity's end the wall closes over it.
    beyond = (t - 1) * heart.length / (0.6 * heart.wall)
    closing = wall * np.sqrt(np.clip(1 - beyond, 0, 1)) * outline
    return endo, np.where(t < 1, np.maximum(endo, 0) + thick, closing)


def _papillary(
    heart: Heart, x: np.ndarray, y: np.ndarray, endo: np.ndarray, shrink: float, t: np.ndarray
) -> np.ndarray:
    """Signed distance to the two papillary muscles, which the masks count as cavity, as ACDC's do."""
    size = heart.papillary * np.sqrt(shrink)
    distance = np.full(x.shape, _OUTSIDE, np.float32)
    for side in (-0.9, 0.9):
        angle = heart.septum + np.pi + side
        at = endo * 0.72
        distance = np.minimum(distance, np.hypot(x - at * np.cos(angle), y - at * np.sin(angle)) - size)
    return np.where((t > 0.2) & (t < 0.7), distance, _OUTSIDE)


def _rv(heart: Heart, systole: bool, stage: Stage, depth: np.ndarray, length: float, outer: float) -> np.ndarray:
    """Signed distance to the RV's outline: an ellipse half behind the LV, so that a crescent shows."""
    left = (1 - heart.rv_ef) if systole else 1.0
    taper = np.sqrt(np.clip(1 - np.maximum(depth / (heart.rv_end * length), 0) ** 2, 0, 1))
    along = stage.x * np.cos(heart.septum) + stage.y * np.sin(heart.septum)
    across = stage.y * np.cos(heart.septum) - stage.x * np.sin(heart.septum)
    epi = outer * _profile(depth / length)
    middle = 0.4 * epi
    half_along = np.maximum(epi - middle + heart.rv_depth * left**0.65 * taper, 1.0)
    half_across = np.maximum((0.6 * (heart.radius + heart.wall) + 0.8 * heart.rv_depth) * left**0.25 * taper**0.7, 1.0)
    u, v = (along - middle) / half_along, (across + 2.0) / half_across
    bend = 1 + 0.06 * np.cos(3 * np.arctan2(v, u) + heart.wobble[0][1])
    distance = (np.hypot(u, v) - bend) * np.minimum(half_along, half_across)
    return np.where(taper > 0.2, distance, _OUTSIDE)


def labels(contours: Contours) -> np.ndarray:
    """(X, Y, Z) uint8 in the project's labels, which are ACDC's."""
    mask = np.zeros(contours.endo.shape, np.uint8)
    mask[contours.rv < 0] = STRUCTURES["RV"]
    mask[contours.epi < 0] = STRUCTURES["MYO"]
    mask[contours.endo < 0] = STRUCTURES["LV"]
    return np.moveaxis(mask, 0, 2)
