"""The wheel: everything a user needs is in it, and the command works without the checkout."""

import pathlib
import subprocess
import sys
import zipfile

import pytest

import jras_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    copy = tmp_path_factory.mktemp("source")  # setuptools leaves a build folder behind
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    if not files[0]:
        pytest.skip("not a git checkout")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_module_config_and_asset(wheel):
    there = set(zipfile.ZipFile(wheel).namelist())
    want = {p.relative_to(ROOT).as_posix() for f in ("jras_jax", "tfds_builders") for p in (ROOT / f).rglob("*.py")}
    want |= {f"jras_jax/configs/{p.name}" for p in (ROOT / "configs").glob("*.py")}
    want |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "jras_jax" / "report" / "assets").iterdir()}
    want |= {"jras_jax/py.typed"}
    assert want <= there, sorted(want - there)
    top = {name.split("/")[0] for name in there}
    assert top == {"jras_jax", "tfds_builders", f"jras_jax-{jras_jax.__version__}.dist-info"}


def test_the_wheel_names_command_licence_and_extras(wheel):
    archive = zipfile.ZipFile(wheel)
    info = f"jras_jax-{jras_jax.__version__}.dist-info"
    assert "jras = jras_jax.commands.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
    metadata = archive.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata and f"{info}/licenses/LICENSE" in archive.namelist()
    extras = {line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Provides-Extra")}
    assert {"cuda", "tpu", "convert", "dev"} <= extras


@pytest.mark.slow
def test_an_unpacked_wheel_runs_by_itself(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()

    def jras(*arguments):
        command = [
            sys.executable,
            "-c",
            "import sys; from jras_jax.commands.cli import main; sys.exit(main())",
            *arguments,
        ]
        environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        return subprocess.run(
            command,
            cwd=tmp_path / "elsewhere",
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    assert jras("--version").stdout == f"jras_jax {jras_jax.__version__}\n"
    assert "--config.optim.lr_backbone" in jras("settings").stdout
    missing = jras("train", "--config=demoo")
    assert missing.returncode == 2 and "did you mean demo?" in missing.stderr
    refused = jras("train", "--config=acdc_unet")  # found inside the wheel; it then asks for the data
    assert refused.returncode == 2 and "config.dataset.manual_dir is empty" in refused.stderr
