"""A trained model as ONNX, for one batch size: converted by jax2onnx, and checked in onnxruntime before it is kept."""

from __future__ import annotations

import logging
import operator
import pathlib
from typing import Any

import jax
import jax.extend.core
import numpy as np

from jras_jax import kernels
from jras_jax.errors import UserError
from jras_jax.inference.standalone import Arrays, Program

MODEL = "model.onnx"
TOLERANCE = 1e-4  # largest difference to the program in JAX, of probabilities, weights and similarities
INSTALL = "pip install '.[onnx]' && pip install --no-deps jax2onnx==0.17.1"


def require() -> None:
    """Raises UserError if what converts and checks is not installed."""
    try:
        import jax2onnx  # noqa: F401
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as e:
        raise UserError(f"--onnx needs the package {e.name}, which is not installed: {INSTALL}") from e


def save(path: pathlib.Path, it: Program, images: np.ndarray, patient: np.ndarray) -> float:
    """Converts a program for the batch size of `images`, runs both on them and writes the file if they agree.

    Args:
      path: the file to write.
      it: a program with its gallery inside.
      images: (b, S, S) uint8.
      patient: (b,) int32.

    Returns:
      The largest difference.

    Raises:
      UserError: a package is missing, jax2onnx does not know an operation of the model, or the two differ.
    """
    require()
    import jax2onnx
    import onnx

    given = (images, patient) if it.gallery else (images,)
    shapes = it.arguments(len(images))
    names = sorted(jax.eval_shape(it.call, *shapes))
    with kernels.using("reference"):
        # As operations of JAX alone: jax2onnx has its own, more limited form of some functions of jax.image.
        traced = jax.make_jaxpr(lambda *x: operator.itemgetter(*names)(it.call(*x)))(*shapes)
        expected = jax.jit(it.call)(*given)
    try:
        model: Any = jax2onnx.to_onnx(jax.extend.core.jaxpr_as_fun(traced), inputs=list(shapes))
        _rename(model.graph, ["images", "patient"][: len(given)], names)
        onnx.save(model, path)
        found = _run(path, dict(zip(["images", "patient"], given, strict=False)), names)
    except Exception as e:  # the converter's and the runtime's errors share no base class
        path.unlink(missing_ok=True)
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        raise UserError(f"this model cannot be converted to ONNX ({reason}): leave --onnx out") from e
    difference = _difference(found, expected)
    if not difference <= TOLERANCE:
        path.unlink(missing_ok=True)
        raise UserError(
            f"the ONNX model differs from this one by {difference:.1e}, more than {TOLERANCE}, so it is not kept: "
            "leave --onnx out"
        )
    return difference


def _rename(graph: Any, inputs: list[str], outputs: list[str]) -> None:
    """Gives the inputs and outputs of an ONNX graph these names, in order."""
    new = dict(zip([x.name for x in graph.input], inputs, strict=True))
    new |= dict(zip([x.name for x in graph.output], outputs, strict=True))
    for value in (*graph.input, *graph.output):
        value.name = new[value.name]
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]


def _run(path: pathlib.Path, given: Arrays, names: list[str]) -> Arrays:
    """The outputs of an ONNX file on the CPU, by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of every constant that it folds
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, given), strict=True))


def _difference(found: Arrays, expected: Arrays) -> float:
    """The largest difference of any output; infinite where other rows guide."""
    if "guides" in expected and not np.array_equal(found["guides"], expected["guides"]):
        return float("inf")
    return max(float(np.abs(found[name] - np.asarray(expected[name])).max()) for name in expected)


logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of shapes that it does not know, which do no harm
