"""Scores: metrics of masks, clinical indices, statistics over patients, post-processing, export; two command lines.

`python -m jras_jax.evaluation` scores folders of masks, `python -m jras_jax.evaluation.compare` two runs.
Everything but `evaluator` works on arrays and tables alone, without a model and without JAX.
"""
