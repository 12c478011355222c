"""Makes what both sides of `benchmarks.folder` start from: a run folder of ours, and the same for PyTorch.

`python -m benchmarks.folder_run SIZES WORK LABELLED` writes WORK/run (random weights, and a gallery of the scans of
LABELLED) and WORK/gallery.npz.
"""

from __future__ import annotations

import pathlib
import sys

import jax
import numpy as np

from benchmarks.setting import joint_config
from benchmarks.sizes import BY_NAME
from jras_jax import config as configs
from jras_jax import files, mesh
from jras_jax.data import pairs
from jras_jax.inference.trained_run import open_run
from jras_jax.joint.build import build_model
from jras_jax.run_folder.checkpoints import Checkpoints
from jras_jax.run_folder.layout import RunFolder
from jras_jax.training.state import create_state


def main(size: str, work: str, labelled: str) -> None:
    """Writes both."""
    sizes, folder = BY_NAME[size], RunFolder(pathlib.Path(work) / "run")
    config = joint_config("segformer-b0", "tiny", sizes)
    folder.path.mkdir(parents=True)
    configs.save(config, folder.config)
    names = sorted(path.name for path in pathlib.Path(labelled).iterdir())
    files.write_json(folder.splits, {"train": names, "validation": [], "test": []})
    state, _, _ = create_state(build_model(config), config, mesh.make_mesh(1, 1, jax.devices()[:1]))
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, {"state": state}, {}, 0.5)
    checkpoints.settle()
    checkpoints.close()
    run = open_run(folder.path)
    table = run.table_of(pairs.read_pairs(labelled, run.label_values(None), run.description))
    made = run.make_gallery(table, folder.gallery)
    embeddings = np.asarray(made.arrays.embeddings)[: len(table)]
    np.savez(pathlib.Path(work) / "gallery.npz", images=table.images, masks=table.masks, embeddings=embeddings)


if __name__ == "__main__":
    main(*sys.argv[1:])
