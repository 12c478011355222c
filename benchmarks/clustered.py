"""Embeddings that resemble a gallery's: slices of patients along the heart, each patient a little apart."""

from __future__ import annotations

import numpy as np

SLICES = 16  # a patient
SPREAD = 16  # dimensions in which patients differ


def embeddings(rows: int, dim: int, seed: int) -> np.ndarray:
    """(rows, dim) float32 of norm 1.

    A row is a point of one curve from base to apex, common to all patients, plus its patient's offset (length about
    0.4, in 16 dimensions), plus the slice's own (about 0.2, in all), normalised. The curve has length 1: three cosine
    waves and a mean in random directions. A patient has 16 slices, equally spaced up to 3% of the heart. `seed` draws
    patients and slices: galleries and queries of different seeds are different patients on the same curve.
    """
    world, rng = np.random.default_rng(0), np.random.default_rng(seed)
    directions = _unit(world.normal(size=(4, dim)).astype(np.float32))
    differ = np.linalg.qr(world.normal(size=(dim, min(SPREAD, dim))))[0].T.astype(np.float32)
    position = np.arange(rows) % SLICES / (SLICES - 1) + rng.uniform(-0.03, 0.03, rows)
    waves = np.stack([np.cos(np.pi * k * position) / k for k in (1, 2, 3)] + [np.ones(rows)], 1)
    out = _unit(waves.astype(np.float32) @ directions)
    patients = rng.standard_normal((-(-rows // SLICES), len(differ)), np.float32) @ differ
    out += 0.4 / len(differ) ** 0.5 * np.repeat(patients, SLICES, 0)[:rows]
    out += 0.2 / dim**0.5 * rng.standard_normal((rows, dim), np.float32)
    return _unit(out)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)
