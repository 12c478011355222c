"""What a data set says of itself, and that a run keeps it."""

import dataclasses
import json

import numpy as np
import pytest

from jras_jax import joint
from jras_jax.data import Volume, cavities
from jras_jax.data.description import CARDIAC, KNOWN, DatasetDescription, named, read_description
from jras_jax.data.grid import Grid, volume_slices
from jras_jax.data.slice_table import base_first
from jras_jax.errors import UserError
from jras_jax.evaluation import metrics
from jras_jax.run_folder.layout import RunFolder

ORGANS = DatasetDescription(
    "organs", ("background", "liver", "spleen"), values=(0, 7, 3), colours=("#56b4e9", "#f0e442")
)


@pytest.mark.parametrize("own", [*KNOWN.values(), ORGANS], ids=lambda d: d.name)
def test_a_description_survives_its_file(own, tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(own.to_json()))
    assert read_description(path, "restore it") == own


def test_names_labels_and_values_belong_together():
    assert ORGANS.structures == {"liver": 1, "spleen": 2} and ORGANS.structure_values == {"liver": 7, "spleen": 3}
    assert KNOWN["mnms"].structure_values == {"RV": 3, "MYO": 2, "LV": 1}
    assert CARDIAC.labels_of(("LV", "MYO")) == (3, 2)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"classes": ("background", "liver", "liver")}, "different names"),
        ({"values": (0, 300, 3)}, "0 to 255"),
        ({"colours": ("#ffffff",)}, "2 colours"),
        ({"frame_direction": "RV"}, "RV: no structure of organs"),
        ({"dimensions": 4}, "2 or 3 dimensions"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(change, what):
    with pytest.raises(ValueError, match=what):
        dataclasses.replace(ORGANS, **change)


@pytest.mark.parametrize("content", ['{"name": "x"}', '{"name": "x", "classes": 3, "values": [0], "colours": []}'])
def test_a_damaged_file_is_named(content, tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"dataset\.json is damaged .*: restore it"):
        read_description(path, "restore it")


def test_a_run_of_an_earlier_version_has_the_description_of_its_data_sets_name(tmp_path):
    assert RunFolder(tmp_path).read_description("mnms") == KNOWN["mnms"]
    with pytest.raises(UserError, match="its description is missing"):
        named("folder")


def test_the_model_has_a_channel_for_each_class(tiny):
    config = tiny.config()
    assert joint.build_model(config, ORGANS).num_classes == 3
    assert joint.build_model(config).num_classes == 4


def test_masks_of_any_classes_reach_the_model_grid_and_have_no_base():
    own = DatasetDescription("many", ("background", *"abcdef"), values=tuple(range(7)), colours=("#ffffff",) * 6)
    mask = np.zeros((16, 16, 2), np.uint8)
    mask[4:8, 4:8], mask[8:12, 8:12, 1] = 6, 5
    image, spacing = np.ones_like(mask, np.float32), np.ones(3, np.float32)
    volume = Volume(image, mask, affine=np.eye(4), spacing=spacing, spacing_known=False, patient="p", description=own)
    masks = volume_slices(volume, Grid(16, 0.0, unknown_spacing="crop", percentiles=(0.5, 99.5))).masks
    assert [sorted(np.unique(m)) for m in masks] == [[0, 6], [0, 5, 6]]
    assert base_first(mask, own) and not base_first(mask // 2, CARDIAC)
    assert metrics.position_scores(mask, mask, structures=own.structures, description=own) == []


def test_the_cavity_rule_follows_the_order_of_the_classes():
    order = dataclasses.replace(CARDIAC, classes=("background", "LV", "MYO", "RV"))
    mask = np.zeros((12, 12, 1), np.uint8)
    mask[2:10, 2:10], mask[4:8, 4:8] = 2, 1  # a ring around what is LV in `order` and RV in the project's
    assert cavities.seem_exchanged([mask], order) is None
    assert cavities.seem_exchanged([mask], CARDIAC) == (0.0, 1.0)
