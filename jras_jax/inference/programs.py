"""Traced programs kept between starts, beside JAX's cache of compiled ones.

Tracing a model takes longer than loading its compiled program. A program is kept as StableHLO (`jax.export`) under a
name that depends on everything it could depend on: the package's source, the versions of JAX, the devices, the run's
settings, and shapes and types of all arguments. Whatever cannot be kept or read is traced as usual.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

import jras_jax
from jras_jax import files, kernels

KEPT = 64  # files; those used least recently go
_DIGEST = 64  # hexadecimal digits before the content


def folder() -> pathlib.Path | None:
    """Where programs are kept: in JAX's compilation cache, None if that is off or not a local folder."""
    cache = getattr(jax.config, "jax_compilation_cache_dir", None)
    return pathlib.Path(cache) / "traced" if cache and "://" not in cache else None


def name_of(facts: Mapping[str, Any], *arguments: Any) -> str:
    """The name (64 hexadecimal digits) of what depends on `facts` (JSON-able) and on the shapes of `arguments`."""
    leaves, tree = jax.tree.flatten(arguments)
    device = jax.devices()[0]
    known = {
        "source": source(),
        "versions": [importlib.metadata.version(name) for name in ("jax", "jaxlib")],
        "device": [device.platform, device.device_kind, kernels.form()],
        "jax": {name: str(getattr(jax.config, name)) for name in ("jax_enable_x64", "jax_default_matmul_precision")},
        "facts": facts,
        "tree": str(tree),
        "leaves": [f"{x.dtype}{x.shape}" for x in leaves],
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


def is_known(name: str) -> bool:
    """Whether `remember` was called with this name, by this or an earlier start."""
    place = folder()
    return place is not None and (place / f"{name}.known").is_file()


def remember(name: str) -> None:
    """Remembers that a check has passed."""
    _write(f"{name}.known", b"")


class Kept:
    """A jitted function whose traced programs are kept.

    Args:
      jitted: of positional arguments, pytrees of arrays on one device.
      facts: JSON-able, all that the function depends on beside its arguments.

    Attributes:
      programs: one for each set of shapes that it was called with.
    """

    def __init__(self, jitted: Any, facts: Mapping[str, Any]):
        self._jitted, self._facts = jitted, facts
        self.programs: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns."""
        leaves, tree = jax.tree.flatten(arguments)
        signature = (tree, tuple((x.shape, x.dtype) for x in leaves))
        if signature not in self.programs:
            self.programs[signature] = self._program(arguments, leaves, tree)
        return self.programs[signature](*leaves)

    def _program(self, arguments: Any, leaves: list[Any], tree: Any) -> Callable[..., Any]:
        """A function of the arguments' leaves."""

        def flat(*leaves: Any) -> Any:
            return self._jitted(*jax.tree.unflatten(tree, leaves))

        if folder() is None:
            return flat
        from jax import export

        name = f"{name_of(self._facts, *arguments)}.stablehlo"
        try:
            content = _read(name)
            if content is None:
                content = bytes(export.export(jax.jit(flat))(*leaves).serialize())
                _write(name, hashlib.sha256(content).hexdigest().encode() + content)
            return jax.jit(export.deserialize(bytearray(content)).call)
        except Exception as e:  # some operations cannot be kept; an error of the function itself is raised again below
            logging.info("the program is not kept: %s", e)
            return flat


def _read(name: str) -> bytes | None:
    """The content of a file that was written whole; None if there is none."""
    path = (folder() or pathlib.Path()) / name
    try:
        content = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    digest, content = content[:_DIGEST], content[_DIGEST:]
    return content if hashlib.sha256(content).hexdigest().encode() == digest else None


def _write(name: str, content: bytes) -> None:
    """Writes a file and removes those that were used least recently; a folder that cannot be written is passed over."""
    place = folder()
    if place is None:
        return
    with contextlib.suppress(files.FileError, OSError):
        with files.replacing(place / name) as temporary:
            temporary.write_bytes(content)
        for suffix in (".stablehlo", ".known"):
            there = sorted(place.glob(f"*{suffix}"), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in there[KEPT:]:
                path.unlink(missing_ok=True)


@functools.cache
def source() -> str:
    """A checksum of the package's source."""
    digest = hashlib.sha256()
    root = pathlib.Path(jras_jax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()
