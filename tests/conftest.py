"""Shared fixtures: simulated devices, where the real scans lie if they do, and one tiny run on the phantom."""

import dataclasses
import os
import pathlib
import shutil
import tempfile

# Programs that several tests compile are compiled once a session; processes that tests start share them too.
COMPILED = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="jras_compiled_"))

import jax  # noqa: E402
import pytest  # noqa: E402

import jras_jax  # noqa: E402
from jras_jax import config as configs  # noqa: E402
from jras_jax.commands import train  # noqa: E402
from jras_jax.commands.dataset import load_data  # noqa: E402
from jras_jax.data.load import RunData  # noqa: E402
from jras_jax.run_folder.layout import RunFolder  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
# Six training patients (two of them validate) and three test patients; one device unless a test asks for more.
TINY = {
    "name": "tiny",
    "dataset.phantom_patients": 6,
    "dataset.phantom_test_patients": 3,
    "dataset.num_folds": 3,
    "dataset.image_size": 32,
    "dataset.spacing_mm": 4.4,
    "dataset.frame": "whole",  # tests of the heart's frame say so
    "backbone.options.base_channels": 8,
    "backbone.options.levels": 3,
    "retriever.image_size": 16,
    "optim.warmup_steps": 0,
    "train.num_steps": 4,
    "train.batch_size": 8,
    "train.eval_every": 2,
    "train.checkpoint_every": 2,
    "train.log_every": 1,
    "train.validate_patients": 1,
    "train.with_baseline": False,
    "eval.batch_size": 8,
    "mesh.data": 1,
}


@pytest.fixture
def shared() -> pathlib.Path:
    if not SHARED.is_dir():
        pytest.skip("the real scans (../shared) are not here")
    return SHARED


@dataclasses.dataclass(frozen=True)
class Tiny:
    """How a test gets a run of seconds: `config` of the phantom demo made tiny, its data written once a session."""

    data_dir: pathlib.Path

    def arguments(self, **changes) -> list[str]:
        """`--config...` arguments of run.py; a key's dots are written as two underscores (train__num_steps=2)."""
        settings = TINY | {"dataset.data_dir": str(self.data_dir)}
        settings |= {key.replace("__", "."): value for key, value in changes.items()}
        return [f"--config.{key}={value}" for key, value in settings.items()]

    def config(self, **changes) -> configs.Config:
        return configs.parse(configs.override(configs.load(ROOT / "configs" / "demo.py"), self.arguments(**changes)))

    def train(self, workdir: pathlib.Path, **changes) -> pathlib.Path:
        return train.train(self.config(**changes), RunFolder(workdir))

    def data(self, run=None) -> RunData:
        """The data set, with the splits of an opened run if one is given."""
        if run is None:
            return load_data(self.config().dataset)
        return load_data(run.config.dataset, run.splits)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny_data"))


@pytest.fixture(scope="session")
def trained_run(tiny, tmp_path_factory) -> pathlib.Path:
    """The folder of a finished tiny run of 4 steps: for reading, or to be copied."""
    return tiny.train(tmp_path_factory.mktemp("tiny_run") / "run")


@pytest.fixture(scope="session")
def guided_run(trained_run, tiny, tmp_path_factory) -> pathlib.Path:
    """The folder of the tiny run with its gallery: for reading, or to be copied."""
    folder = tmp_path_factory.mktemp("guided") / "run"
    shutil.copytree(trained_run, folder)
    opened = jras_jax.open_run(folder)
    opened.train_gallery(tiny.data(opened))
    return folder
