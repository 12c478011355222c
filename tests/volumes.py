"""Labelled volumes made by hand."""

import numpy as np

from jras_jax.data import Volume


def blob(shape=(60, 52, 4), centre=(33, 22), radius=12.0):
    """A labelled disc of three nested structures, off centre so that flips show."""
    x, y = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    r = np.hypot(x - centre[0], y - centre[1])
    mask = np.select([r < radius * 0.5, r < radius, (r < radius * 1.6) & (x > centre[0])], [3, 2, 1], 0)
    return np.repeat(mask[..., None], shape[2], -1).astype(np.uint8)


def volume(mask, spacing=(1.5, 1.5, 8.0), known=True, affine=None, patient="p1", phase="ED"):
    image = mask.astype(np.float32) * 50 + np.linspace(0, 20, mask.size, dtype=np.float32).reshape(mask.shape)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]) if affine is None else affine
    return Volume(
        image,
        mask,
        affine=affine,
        spacing=np.array(spacing, np.float32),
        spacing_known=known,
        patient=patient,
        phase=phase,
        vendor="A",
    )
