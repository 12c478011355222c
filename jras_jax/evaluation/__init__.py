"""Scores: metrics of masks, clinical indices, statistics over patients, post-processing, export; two command lines.

`jras score` scores folders of masks, `jras compare` compares two runs.
Everything but `evaluator` works on arrays and tables alone, without a model and without JAX.
"""
