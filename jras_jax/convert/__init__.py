"""Weights that people have, in our own names: `jras convert`, and `init_from` to start from them."""

from jras_jax.convert.rules import ConversionError
from jras_jax.convert.weights import init_from, load, provenance, save

__all__ = ["ConversionError", "init_from", "load", "provenance", "save"]
