"""Data flows one way: a module imports only from the packages above it in docs/ARCHITECTURE.md; read by AST."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TABLE = re.findall(r"^\| `(\w+)/?` \|.*\| (.*) \|$", (ROOT / "docs" / "ARCHITECTURE.md").read_text(), re.M)
ORDER = [name for name, _ in TABLE]
FILES = sorted((ROOT / "jras_jax").rglob("*.py"))
READ = ("description", "volume", "nifti", "pictures", "images", "layout", "geometry", "finder", "names", "cavities")
READING = tuple(f"data.{name}" for name in (*READ, "tables", "remarks"))
TOP = ("__init__", "__main__")  # the package's own front door and entry points


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(name):
    """Number of the package that a module of jras_jax belongs to."""
    parts = name.split(".")
    if len(parts) == 1 or parts[-1] == "__main__":
        return len(ORDER)
    assert parts[1] in ORDER, f"{name} is in no row of docs/ARCHITECTURE.md"
    return ORDER.index(parts[1])


def imported(path):
    """Modules of this project that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                child = f"{node.module}.{alias.name}"
                path_ = ROOT / pathlib.Path(*child.split("."))
                yield child if path_.is_dir() or path_.with_suffix(".py").is_file() else node.module


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_point_upwards(path):
    own = module(path)
    for name in imported(path):
        assert name.split(".")[0] not in ("tensorflow", "scenic"), f"{own} imports {name}"
        if not own.startswith("jras_jax.commands"):
            assert not name.startswith("tfds_builders"), f"{own} imports {name}: only commands build data sets"
        if name.startswith("jras_jax."):
            assert layer(name) <= layer(own), f"{own} imports {name}, which is below it in docs/ARCHITECTURE.md"


def test_only_commands_import_the_trainer():
    users = {module(path) for path in FILES for name in imported(path) if name.startswith("jras_jax.training")}
    assert users and all(u.startswith(("jras_jax.training", "jras_jax.commands")) for u in users), users


def test_builders_know_only_the_scans():
    allowed = {f"jras_jax.{name}" for name in ("errors", "files", "threads", "data", *READING)} | {"jras_jax"}
    for path in sorted((ROOT / "tfds_builders").rglob("*.py")):
        for name in imported(path):
            if name.split(".")[0] in ("jras_jax", "tfds_builders"):
                assert name in allowed or name.startswith("tfds_builders"), f"{module(path)} imports {name}"


def test_the_architecture_names_every_module_and_no_other():
    for name, cell in TABLE:
        folder = ROOT / "jras_jax" / name
        if not folder.is_dir():
            assert (ROOT / "jras_jax" / f"{name}.py").is_file(), name
            continue
        there = {p.stem for p in folder.glob("*.py")} - set(TOP)
        there |= {p.name for p in folder.iterdir() if (p / "__init__.py").is_file()}
        named = set(re.findall(r"(?<![/\w])`(\w+)`", cell))
        assert named == there, f"{name}/: only in the table {named - there}, only in the folder {there - named}"
    loose = {p.stem for p in (ROOT / "jras_jax").glob("*.py")} - set(TOP)
    assert loose <= set(ORDER), f"modules at the root without a row: {loose - set(ORDER)}"


def test_every_path_that_the_architecture_names_exists():
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    paths = {p for p in re.findall(r"`([\w/]+(?:\.py|/))`", text)}
    missing = {p for p in paths if not (ROOT / p).exists() and not (ROOT / "jras_jax" / p).exists()}
    assert paths and missing == {"jras_jax/configs/"}, missing  # that one exists in an installed package


@pytest.mark.parametrize(
    "path",
    [
        *FILES,
        *sorted((ROOT / "tests").glob("*.py")),
        *sorted(p for p in ROOT.glob("*/*.py") if p.parts[-2] not in ("jras_jax", "tests")),
    ],
    ids=str,
)
def test_files_and_functions_stay_short(path):
    source = path.read_text()
    assert source.count("\n") <= 400, f"{path} has {source.count(chr(10))} lines; what does it hide?"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path}: {node.name} has {length} lines"
