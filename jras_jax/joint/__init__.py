"""The J-RAS model without a trainer: retriever, selection, fusion and backbone as one differentiable function."""

from jras_jax.joint.build import build_model, drawn_variables, init_variables
from jras_jax.joint.model import JointModel, Variables, first_guides, retrieve, standardise
from jras_jax.retrieval.selection import Selection

__all__ = [
    "JointModel",
    "Selection",
    "Variables",
    "build_model",
    "drawn_variables",
    "first_guides",
    "init_variables",
    "retrieve",
    "standardise",
]
