"""What a start does not do: import what its command does not need, and trace what an earlier start has traced."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jras_jax.inference import programs
from jras_jax.inference.trained_run import open_run

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Each takes 0.05 to 1 s to import.
HEAVY = ("flax", "optax", "orbax", "tensorflow_datasets", "grain", "matplotlib", "tensorboardX", "scipy.stats")
HEAVY += ("scipy.ndimage", "rich", "jras_jax.models", "jras_jax.evaluation", "jras_jax.report", "jras_jax.training")
LISTED = """
import sys, json
from jras_jax.commands import cli
try:
    cli.main(sys.argv[1:])
except SystemExit:
    pass
print(json.dumps(sorted(sys.modules)))
"""


def imported(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", LISTED, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | environment,
    )  # fmt: skip
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    return sorted(name for name in HEAVY if name in modules), modules


def test_help_imports_little():
    heavy, modules = imported("predict", "--help")
    assert heavy == [] and "jras_jax.commands.predict" in modules


@pytest.fixture(scope="module")
def run(trained_run, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("startup") / "run"
    shutil.copytree(trained_run, folder)
    opened = open_run(folder)
    opened.train_gallery(tiny.data(opened))
    return folder


def test_a_second_prediction_imports_no_model_and_gives_the_same_files(run, tiny, tmp_path):
    scan = next((tiny.data_dir / "scans").glob("*/testing/*/*_frame01.nii.gz"))
    results = []
    for number in range(2):
        out = tmp_path / str(number)
        heavy, _ = imported(
            "predict", f"--workdir={run}", f"--input={scan}", f"--output={out}",
            JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"), JAX_NUM_CPU_DEVICES="1",
        )  # fmt: skip
        results.append({p.name: p.read_bytes() for p in out.iterdir()})
        assert number == 0 or heavy == []
    assert len(results[0]) == 2 and results[0] == results[1]


def test_a_damaged_program_is_traced_again(run, monkeypatch, tmp_path):
    monkeypatch.setattr(programs, "folder", lambda: tmp_path)
    opened = open_run(run)
    images = np.random.default_rng(0).integers(0, 255, (3, 32, 32), np.uint8)
    gallery = opened.open_gallery().arrays
    first = opened.segmenter(gallery).slices(images)
    (file,) = tmp_path.glob("*.stablehlo")
    whole = file.read_bytes()
    for content in (whole[:-10], whole[:100] + b"x" + whole[101:], b""):
        file.write_bytes(content)
        again = opened.segmenter(gallery).slices(images)
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)
        assert programs._read(file.name) is not None


def test_names_depend_on_settings_shapes_source_and_devices(run, monkeypatch):
    opened = open_run(run)
    name = programs.name_of({"a": 1}, opened.variables)
    assert name == programs.name_of({"a": 1}, opened.variables)
    assert name != programs.name_of({"a": 2}, opened.variables)
    assert name != programs.name_of({"a": 1}, opened.variables, np.zeros(3))
    monkeypatch.setattr(programs, "source", lambda: "other")
    assert name != programs.name_of({"a": 1}, opened.variables)
