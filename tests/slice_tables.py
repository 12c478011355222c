"""Small slice tables of random pixels, and whether two are equal."""

import dataclasses

import numpy as np

from jras_jax.data.slice_table import SliceTable

SIDE = 4


def table(patients=("a", "b", "c"), slices=3, seed=0, vendors=("v", "w")):
    """Two cases (ED, ES) a patient, `slices` each, chained by their neighbours."""
    rng = np.random.default_rng(seed)
    rows = len(patients) * 2 * slices
    index = np.arange(rows, dtype=np.int32)
    z = index % slices
    before, after = np.where(z > 0, index - 1, -1), np.where(z < slices - 1, index + 1, -1)
    return SliceTable(
        images=rng.integers(0, 256, (rows, SIDE, SIDE), np.uint8),
        masks=rng.integers(0, 4, (rows, SIDE, SIDE), np.uint8),
        case=index // slices,
        patient=index // (2 * slices),
        phase=index // slices % 2,
        slice_index=z,
        position=(z / (slices - 1)).astype(np.float32),
        vendor=(index // (2 * slices) % len(vendors)).astype(np.int32),
        neighbours=np.stack([before, after], 1).astype(np.int32),
        cases=tuple(f"{p}_{phase}" for p in patients for phase in ("ED", "ES")),
        patients=tuple(patients),
        vendors=tuple(vendors),
    )


def equal(a, b):
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, tuple):
            assert x == y, field.name
        else:
            np.testing.assert_array_equal(x, y, err_msg=field.name)
            assert x.dtype == y.dtype, field.name
