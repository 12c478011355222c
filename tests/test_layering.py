"""Data flows one way: a module imports only from those above it in docs/ARCHITECTURE.md; read by AST."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Layers in order; a module belongs to the first prefix that matches, and may import its own layer and those before.
LAYERS = (
    ("jras_jax.errors", "jras_jax"),
    ("jras_jax.data",),
    ("jras_jax.kernels",),
    ("jras_jax.models",),
    ("jras_jax.convert",),
    ("jras_jax.retrieval",),
    ("jras_jax.fusion",),
    ("jras_jax.joint",),
    ("jras_jax.losses",),
    ("jras_jax.mesh",),
    ("jras_jax.config",),
    ("jras_jax.inference", "jras_jax.dataset"),
    ("jras_jax.evaluation",),
    ("jras_jax.training",),
    ("jras_jax.runs",),
    ("jras_jax.evaluate", "jras_jax.predict", "jras_jax.galleries", "jras_jax.choose"),
    ("jras_jax.report",),
    ("jras_jax.commands",),
)
FILES = sorted((ROOT / "jras_jax").rglob("*.py"))


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(name):
    matches = [
        (len(prefix), i)
        for i, group in enumerate(LAYERS)
        for prefix in group
        if name == prefix or (name.startswith(prefix + ".") and prefix != "jras_jax")
    ]
    assert matches, f"{name} has no layer"
    return max(matches)[1]


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
        assert not name.startswith("tfds_builders"), f"{own} imports {name}: run.py hands the build function over"
        assert name.split(".")[0] not in ("tensorflow", "scenic"), f"{own} imports {name}"
        if name.startswith("jras_jax"):
            assert layer(name) <= layer(own), f"{own} imports {name}, which stands below it"


def test_builders_know_only_the_scans():
    allowed = ("jras_jax.errors", "jras_jax.data", "jras_jax.data.nifti", "tfds_builders")
    for path in sorted((ROOT / "tfds_builders").rglob("*.py")):
        for name in imported(path):
            if name.split(".")[0] in ("jras_jax", "tfds_builders"):
                assert name in allowed or name.startswith("tfds_builders"), f"{module(path)} imports {name}"
