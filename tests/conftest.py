"""Shared fixtures: simulated devices, the real scans if they are there, a tiny run on the phantom, official folders."""

import dataclasses
import os
import pathlib
import shutil
import tempfile

# Programs that several tests compile are compiled once a session; processes that tests start share them too.
COMPILED = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="jras_compiled_"))

import jax  # noqa: E402
import pytest  # noqa: E402

from jras_jax import config as configs  # noqa: E402
from jras_jax.commands import train  # noqa: E402
from jras_jax.commands.dataset import load_data  # noqa: E402
from jras_jax.data import phantom  # noqa: E402
from jras_jax.data.load import RunData  # noqa: E402
from jras_jax.inference.trained_run import open_run  # noqa: E402
from jras_jax.run_folder.layout import RunFolder  # noqa: E402
from tests.official_folders import write_mnms  # noqa: E402

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
        return load_data(run.config.dataset, run.splits, run.config.protocol)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny_data"))


@pytest.fixture(scope="session")
def trained_run(tiny, tmp_path_factory) -> pathlib.Path:
    """The folder of a finished tiny run of 4 steps: for reading, or to be copied."""
    return tiny.train(tmp_path_factory.mktemp("tiny_run") / "run")


@pytest.fixture(scope="session")
def phantom_scans(tiny, trained_run) -> pathlib.Path:
    """The scans of the tiny run's data set: training/ and testing/, with patient101 to patient103 in the latter."""
    train, test = TINY["dataset.phantom_patients"], TINY["dataset.phantom_test_patients"]
    (folder,) = (tiny.data_dir / "scans").glob(f"phantom_{train}_{test}_*")
    return folder


@pytest.fixture(scope="session")
def run_with_gallery(trained_run, tiny, tmp_path_factory) -> pathlib.Path:
    """The tiny run, its gallery made; to be copied."""
    folder = pathlib.Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("with_gallery") / "run"))
    opened = open_run(folder)
    opened.train_gallery(tiny.data(opened))
    return folder


@pytest.fixture(scope="module")
def run(run_with_gallery, tmp_path_factory) -> pathlib.Path:
    """A copy of the tiny run with its gallery, for the tests of one file."""
    return pathlib.Path(shutil.copytree(run_with_gallery, tmp_path_factory.mktemp("copy") / "run"))


@pytest.fixture(scope="session")
def acdc(tmp_path_factory) -> pathlib.Path:
    """A small phantom in ACDC's layout, its groups in turn; read only."""
    folder = tmp_path_factory.mktemp("acdc")
    phantom.write_acdc(folder, train_patients=3, test_patients=1, seed=5)
    return folder


@pytest.fixture
def scans(acdc, tmp_path) -> pathlib.Path:
    """A copy of `acdc` to break."""
    return pathlib.Path(shutil.copytree(acdc, tmp_path / "acdc"))


@pytest.fixture
def mnms(tmp_path) -> pathlib.Path:
    """A small folder in M&Ms' layout."""
    return write_mnms(tmp_path / "mnms")
