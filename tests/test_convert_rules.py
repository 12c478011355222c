"""The rules of conversion: transforms of names and shapes, and the faults they report."""

import numpy as np
import pytest

from jras_jax.convert import rules
from jras_jax.convert.rules import Rule
from tests.small_dinov2 import arange


@pytest.mark.parametrize(
    ("transform", "shape", "expected"),
    [
        ("same", (2, 3), lambda x: x),
        ("flat", (1, 1, 4), lambda x: x[0, 0]),
        ("linear", (5, 3), lambda x: x.T),
        ("conv", (5, 3, 2, 4), lambda x: np.moveaxis(np.moveaxis(x, 0, -1), 0, -2)),
        ("conv1x1", (5, 3, 1, 1), lambda x: x[:, :, 0, 0].T),
        ("depthwise", (5, 1, 3, 3), lambda x: np.moveaxis(x[:, 0], 0, -1)),
        ("transposed", (5, 3, 2, 2), lambda x: np.moveaxis(x, 1, -1)),
        ("split_heads", (6, 2, 3), lambda x: x.reshape(6, 6)),
        ("merge_heads", (2, 3, 6), lambda x: x.reshape(6, 6)),
        ("drop_first_position", (1, 10, 4), lambda x: x[:, 1:].reshape(1, 3, 3, 4)),
    ],
)
def test_transforms(transform, shape, expected):
    x = arange(*shape)
    arrays, faults = rules.translate({"a": x}, [Rule("a", "b", transform)])
    assert not faults
    np.testing.assert_array_equal(arrays["params/b"], expected(x))
    assert arrays["params/b"].flags.c_contiguous


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        ("linear", (2, 3, 1)),
        ("conv", (2, 3)),
        ("conv1x1", (2, 3, 3, 3)),
        ("depthwise", (2, 2, 3, 3)),
        ("split_heads", (2, 3)),
        ("merge_heads", (2, 3)),
        ("drop_first_position", (1, 9, 4)),
    ],
)
def test_a_transform_of_the_wrong_shape_is_a_fault(transform, shape):
    arrays, (fault,) = rules.translate({"a": arange(*shape)}, [Rule("a", "b", transform)])
    assert not arrays and fault.startswith(f"wrong shape: a {shape}")


def test_groups_collections_parts_and_unneeded_tensors():
    tensors = {"l.3.qkv": arange(6, 2).astype(np.float16), "l.3.mean": arange(2), "l.3.steps": arange(1)}
    table = [
        *(Rule(r"l\.(\d)\.qkv", rf"block_\1/{name}", transform="linear", part=(i, 3)) for i, name in enumerate("qkv")),
        Rule(r"l\.(\d)\.mean", r"batch_stats/block_\1/mean"),
        Rule(r".*\.steps", None),
    ]
    arrays, faults = rules.translate(tensors, table)
    assert not faults
    assert set(arrays) == {f"params/block_3/{name}" for name in "qkv"} | {"batch_stats/block_3/mean"}
    joined = np.concatenate([arrays[f"params/block_3/{name}"].T for name in "qkv"])
    np.testing.assert_array_equal(joined, tensors["l.3.qkv"])
    assert all(array.dtype == np.float32 for array in arrays.values())


def test_a_rule_matches_whole_names_only():
    _, faults = rules.translate({"norm.weight.extra": arange(1)}, [Rule(r"norm\.weight", "norm/scale")])
    assert len(faults) == 1 and "no rule takes it" in faults[0]


def test_two_tensors_for_one_parameter_and_uneven_parts_are_faults():
    _, faults = rules.translate({"a": arange(1), "b": arange(1)}, [Rule("[ab]", "c")])
    assert faults == ["twice: params/c from a and from b"]
    _, faults = rules.translate({"a": arange(4)}, [Rule("a", "b", part=(0, 3))])
    assert len(faults) == 1 and "does not divide into 3" in faults[0]


def test_compare_names_whatever_differs():
    arrays = {"params/a": arange(2), "params/b": arange(3), "params/x": arange(1)}
    expected = {"params/a": (2,), "params/b": (4,), "params/c": (1,), "params/head/d": (1,)}
    faults = rules.compare(arrays, expected, optional=("params/head/",))
    assert [fault.partition(":")[0] for fault in faults] == ["wrong shape", "missing", "left over"]
    assert all(name in fault for name, fault in zip(("params/b", "params/c", "params/x"), faults, strict=True))
    # An optional part that is there in pieces must be there as a whole.
    faults = rules.compare(arrays | {"params/head/e": arange(1)}, expected | {"params/head/e": (1,)}, ("params/head/",))
    assert any("missing: params/head/d" in fault for fault in faults)
