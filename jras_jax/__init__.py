"""Retrieval-augmented segmentation of cardiac MRI in JAX (J-RAS, arXiv 2510.09953).

    import jras_jax

    run = jras_jax.open_run("runs/acdc")
    gallery = run.open_gallery()
    result = run.segment(image, spacing=(1.4, 1.4, 8.0), gallery=gallery)

`result.labels` (X, Y, Z) are the project's labels (`STRUCTURES`), `result.probabilities` (X, Y, Z, C), and
`gallery.guides(result)` lists the cases that guided every slice. See docs/ARCHITECTURE.md for the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jras_jax.errors import UserError

if TYPE_CHECKING:
    from jras_jax.data import CLASSES as CLASSES
    from jras_jax.data import STRUCTURES as STRUCTURES
    from jras_jax.inference.pipeline import segment_files as segment_files
    from jras_jax.inference.predictions import VolumePrediction as VolumePrediction
    from jras_jax.inference.scans import segment_file as segment_file
    from jras_jax.inference.scans import tasks as tasks
    from jras_jax.inference.trained_run import RunGallery as RunGallery
    from jras_jax.inference.trained_run import TrainedRun as TrainedRun
    from jras_jax.inference.trained_run import open_run as open_run

__version__ = "0.2.0"

# Imported when first used: `import jras_jax` alone loads neither JAX nor Orbax.
_HOMES = {
    "CLASSES": "data",
    "STRUCTURES": "data",
    "RunGallery": "inference.trained_run",
    "TrainedRun": "inference.trained_run",
    "open_run": "inference.trained_run",
    "VolumePrediction": "inference.predictions",
    "segment_file": "inference.scans",
    "segment_files": "inference.pipeline",
    "tasks": "inference.scans",
}
__all__ = ["UserError", "__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jras_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jras_jax.{_HOMES[name]}"), name)
