"""Stored galleries: what was saved comes back, what was damaged or made by another retriever does not."""

import json

import jax
import numpy as np
import pytest

from jras_jax import files, mesh
from jras_jax.data.slice_table import joined
from jras_jax.retrieval import gallery_files
from jras_jax.retrieval.gallery import gallery_from_table, with_embeddings
from tests.slice_tables import equal, table

DIM = 8


def embeddings(rows):
    x = np.random.default_rng(5).normal(size=(rows, DIM)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def saved(tmp_path):
    rows = table()
    gallery_files.save(tmp_path / "gallery", rows, embeddings=embeddings(len(rows)), fingerprint="f" * 64)
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
    read, vectors = gallery_files.read(saved, "f" * 64)
    empty = gallery_from_table(read, DIM, device_mesh, memory=memory)
    gallery = with_embeddings(empty, vectors, device_mesh)
    rows = table()
    assert len(gallery) == -(-len(rows) // devices) * devices
    np.testing.assert_array_equal(np.asarray(gallery.embeddings)[: len(rows)], embeddings(len(rows)))
    np.testing.assert_array_equal(np.asarray(gallery.masks[: len(rows)]), rows.masks)
    assert read.describe(4) == {"case": "a_ES", "slice": 1}


def test_a_gallery_of_another_retriever_is_refused(saved):
    with pytest.raises(gallery_files.GalleryError, match=r"made by another retriever.*eeeeeeeeeeee"):
        gallery_files.read(saved, "e" * 64)


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
    facts["sha256"] = files.sha256(saved / gallery_files.ARRAYS)
    (saved / gallery_files.FACTS).write_text(json.dumps(facts))
    with pytest.raises(gallery_files.GalleryError, match="not a readable safetensors"):
        gallery_files.read(saved)


def test_saving_again_replaces_the_gallery(saved):
    other = table(patients=("x",))
    gallery_files.save(saved, other, embeddings=embeddings(len(other)), fingerprint="0" * 64)
    equal(gallery_files.read(saved, "0" * 64)[0], other)


def test_a_joined_gallery_survives_the_disk(tmp_path):
    both = joined(table(("a",)), table(("b",), seed=1))
    gallery_files.save(tmp_path, both, embeddings=embeddings(len(both)), fingerprint="1" * 64)
    equal(gallery_files.read(tmp_path)[0], both)
