"""An evaluation of many volumes: memory does not grow with their number, beyond the volumes themselves."""

import dataclasses
import gc
import shutil

import numpy as np
import pytest

from jras_jax.evaluation import evaluate as evaluation
from jras_jax.evaluation import evaluator
from jras_jax.inference.trained_run import open_run
from tests.test_long_run import heap_mb

COPIES = 14  # of six test volumes


@pytest.mark.slow
def test_eighty_volumes_take_no_more_memory_than_forty(trained_run, tiny, tmp_path, monkeypatch):
    heap_mb()
    opened = open_run(shutil.copytree(trained_run, tmp_path / "run"), ("--config.eval.split=test",))
    data = tiny.data(opened)
    test = [  # they share their arrays, which therefore cost nothing
        dataclasses.replace(volume, patient=f"{volume.patient}{copy:02d}")
        for copy in range(COPIES)
        for volume in data.volumes["test"]
    ]
    splits = data.splits | {"test": sorted({volume.patient for volume in test})}
    data = dataclasses.replace(data, volumes=data.volumes | {"test": test}, splits=splits)
    plain, memory = evaluator.case_rows, []

    def measured(*given, **named):
        gc.collect()
        memory.append(heap_mb())
        return plain(*given, **named)

    monkeypatch.setattr(evaluator, "case_rows", measured)
    summary = evaluation.evaluate(opened, data)
    assert summary["patients"] == 3 * COPIES and len(memory) == 6 * COPIES >= 80
    after_40, after_80 = (float(np.median(memory[last - 10 : last])) for last in (40, 80))
    print(f"\noutcome: {after_40:.0f} MB in use after 40 volumes, {after_80:.0f} MB after 80")
    assert after_80 < after_40 + 8
