"""Stored galleries: what was saved comes back, what was damaged or made by another retriever does not."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jras_jax import mesh
from jras_jax.data.slice_table import SliceTable, joined, without
from jras_jax.errors import UserError
from jras_jax.retrieval import gallery_files

SIDE, DIM = 4, 8


def table(patients=("a", "b", "c"), slices=3, seed=0, vendors=("v", "w")):
    """Two cases (ED, ES) a patient, `slices` each, chained by their neighbours."""
    rng = np.random.default_rng(seed)
    rows = len(patients) * 2 * slices
    index = np.arange(rows, dtype=np.int32)
    z = index % slices
    before, after = np.where(z > 0, index - 1, -1), np.where(z < slices - 1, index + 1, -1)
    return SliceTable(
        images=rng.integers(0, 256, (rows, SIDE, SIDE), np.uint8),
        masks=rng.integers(0, 4, (rows, SIDE, SIDE), np.uint8),
        case=index // slices,
        patient=index // (2 * slices),
        phase=index // slices % 2,
        slice_index=z,
        position=(z / (slices - 1)).astype(np.float32),
        vendor=(index // (2 * slices) % len(vendors)).astype(np.int32),
        neighbours=np.stack([before, after], 1).astype(np.int32),
        cases=tuple(f"{p}_{phase}" for p in patients for phase in ("ED", "ES")),
        patients=tuple(patients),
        vendors=tuple(vendors),
    )


def embeddings(rows):
    x = np.random.default_rng(5).normal(size=(rows, DIM)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def equal(a, b):
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, tuple):
            assert x == y, field.name
        else:
            np.testing.assert_array_equal(x, y, err_msg=field.name)
            assert x.dtype == y.dtype, field.name


def described(rows):
    """What each row is, by name: what no renumbering may change. {(case, slice): (...)}."""
    names = gallery_files.names_of(rows)
    key = lambda i: (names.describe(i)["case"], names.describe(i)["slice"])  # noqa: E731
    return {
        key(i): (
            rows.patients[rows.patient[i]],
            rows.vendors[rows.vendor[i]],
            rows.images[i].tobytes(),
            rows.masks[i].tobytes(),
            int(rows.phase[i]),
            float(rows.position[i]),
            tuple(None if n < 0 else key(n) for n in rows.neighbours[i]),
        )
        for i in range(len(rows))
    }


@pytest.fixture
def saved(tmp_path):
    rows = table()
    gallery_files.save(tmp_path / "gallery", rows, embeddings(len(rows)), "f" * 64)
    return tmp_path / "gallery"


def test_a_saved_gallery_comes_back_whole(saved):
    rows, vectors = gallery_files.read(saved, "f" * 64)
    equal(rows, table())
    np.testing.assert_array_equal(vectors, embeddings(len(rows)))
    assert gallery_files.is_stored(saved) and gallery_files.fingerprint_of(saved) == "f" * 64
    assert sorted(p.name for p in saved.iterdir()) == [gallery_files.FACTS, gallery_files.ARRAYS]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("memory", ["device", "host"])
def test_it_is_loaded_onto_any_mesh(saved, devices, memory):
    device_mesh = mesh.make_mesh(devices, 1, jax.devices()[:devices])
    gallery, names = gallery_files.load(saved, "f" * 64, device_mesh, memory=memory)
    rows = table()
    assert len(gallery) == -(-len(rows) // devices) * devices
    np.testing.assert_array_equal(np.asarray(gallery.embeddings)[: len(rows)], embeddings(len(rows)))
    np.testing.assert_array_equal(np.asarray(gallery.masks[: len(rows)]), rows.masks)
    assert names.describe(4) == {"case": "a_ES", "slice": 1}


def test_a_gallery_of_another_retriever_is_refused(saved):
    with pytest.raises(gallery_files.GalleryError, match=r"made by another retriever.*eeeeeeeeeeee"):
        gallery_files.load(saved, "e" * 64)


@pytest.mark.parametrize("at", [0.02, 0.3, 0.6, 0.99])
def test_one_flipped_bit_anywhere_is_refused(saved, at):
    path = saved / gallery_files.ARRAYS
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(gallery_files.GalleryError, match="does not match its checksum"):
        gallery_files.read(saved)


def test_other_damage_is_named(saved, tmp_path):
    with pytest.raises(gallery_files.GalleryError, match="holds no gallery"):
        gallery_files.read(tmp_path / "nowhere")
    facts = saved / gallery_files.FACTS
    text = facts.read_text()
    facts.write_text(text[: len(text) // 2])
    with pytest.raises(gallery_files.GalleryError, match="damaged"):
        gallery_files.read(saved)
    facts.write_text(text)
    (saved / gallery_files.ARRAYS).unlink()
    with pytest.raises(gallery_files.GalleryError, match="missing"):
        gallery_files.read(saved)


def test_a_file_that_is_no_safetensors_is_refused_even_with_a_right_checksum(saved):
    (saved / gallery_files.ARRAYS).write_bytes(b"not tensors")
    facts = json.loads((saved / gallery_files.FACTS).read_text())
    facts["sha256"] = gallery_files._digest(saved / gallery_files.ARRAYS)
    (saved / gallery_files.FACTS).write_text(json.dumps(facts))
    with pytest.raises(gallery_files.GalleryError, match="not a readable safetensors"):
        gallery_files.read(saved)


def test_saving_again_replaces_the_gallery(saved):
    other = table(patients=("x",))
    gallery_files.save(saved, other, embeddings(len(other)), "0" * 64)
    equal(gallery_files.read(saved, "0" * 64)[0], other)


def test_a_removed_patient_leaves_all_other_rows_as_they_were():
    rows = table()
    left = without(rows, ("b",))
    want = {key: value for key, value in described(rows).items() if value[0] != "b"}
    assert described(left) == want
    assert left.patients == ("a", "c") and left.cases == ("a_ED", "a_ES", "c_ED", "c_ES")
    assert left.vendors == ("v",)  # only b was of vendor w


def test_joined_tables_hold_the_rows_of_both():
    a, b = table(("a", "b")), table(("c", "d"), slices=2, seed=1, vendors=("w", "x"))
    both = joined(a, b)
    assert described(both) == described(a) | described(b)
    assert both.patients == ("a", "b", "c", "d") and both.vendors == ("v", "w", "x")


def test_of_a_case_in_both_tables_the_second_one_counts():
    old, new = table(("a", "b")), table(("b", "c"), slices=2, seed=1)
    both = joined(old, new)
    want = {key: value for key, value in described(old).items() if value[0] != "b"} | described(new)
    assert described(both) == want
    assert len(both) == len(want)  # no row twice
    assert both.patients.count("b") == 1


def test_removing_what_was_added_gives_the_first_table_back():
    a, b = table(("a", "b")), table(("c",), seed=1)
    equal(without(joined(a, b), ("c",)), a)


def test_a_joined_gallery_survives_the_disk(tmp_path):
    both = joined(table(("a",)), table(("b",), seed=1))
    gallery_files.save(tmp_path, both, embeddings(len(both)), "1" * 64)
    equal(gallery_files.read(tmp_path)[0], both)


def test_what_cannot_be_joined_or_removed_is_said():
    rows = table()
    with pytest.raises(UserError, match=r"no patient z; it has a, b, c"):
        without(rows, ("z",))
    with pytest.raises(UserError, match="no slice would be left"):
        without(rows, rows.patients)
    small = dataclasses.replace(rows, images=rows.images[:, :2, :2], masks=rows.masks[:, :2, :2])
    with pytest.raises(UserError, match="2 and 4 pixels"):
        joined(small, rows)
