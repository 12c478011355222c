"""Damaged files in every reader: an error for the user or a result, never a traceback, a hang or a process that grows.

JRAS_FUZZ_CASES sets the number of cases, shared by the four readers (2000; a nightly run takes 10000).
"""

import contextlib
import gzip
import itertools
import os
import pathlib
import resource
import struct
import sys
import zlib

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jras_jax.commands import cli
from jras_jax.data import finder, nifti, pairs
from jras_jax.data.description import CARDIAC
from jras_jax.data.grid import Grid, volume_slices
from jras_jax.errors import UserError
from jras_jax.inference import scans
from tfds_builders import common
from tfds_builders.acdc import Builder

CASES = int(os.environ.get("JRAS_FUZZ_CASES", "2000"))
MEMORY_MB = 600  # more than this no damaged file may take
LABELS = {"RV": 1, "MYO": 2, "LV": 3}
AFFINE = np.array([[-1.1, -0.5, 4.1, 122.9], [0.0, -1.0, -6.5, 152.6], [0.8, -0.7, 5.8, -91.0], [0, 0, 0, 1]])
NUMBER = itertools.count()


def base(kind, label, *, frames=1):
    """The bytes of a good file: a heart of 14 x 12 x 3 voxels, image or label map."""
    x, y, _ = np.meshgrid(*map(np.arange, (14, 12, 3)), indexing="ij")
    left, right = np.hypot(x - 9, y - 6), np.hypot(x - 3, y - 6)
    mask = np.select([left < 2, left < 4, right < 3], [3, 2, 1], 0).astype(np.uint8)
    array = mask if label else (100 + 50 * mask + (7 * x + 3 * y) % 11).astype(np.int16)
    array = np.stack([array] * frames, -1) if frames > 1 else array
    image = kind(array, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    return image.to_bytes()


BASES = [
    (base(kind, False, frames=frames), base(kind, True, frames=frames))
    for kind in (nib.Nifti1Image, nib.Nifti2Image)
    for frames in (1, 2)
]
# What a number in a header may turn into: nothing, negative, huge, not a number.
NUMBERS = [0, 1, -1, 255, -32768, 32767, 2**31 - 1, 2**40]
FLOATS = [0.0, -1.5, 1e-30, 1e30, 3e38, float("nan"), float("inf"), 1e-3, 1.0]
FIELDS = st.one_of(
    st.tuples(st.sampled_from(["<h", "<i", "<q", ">h"]), st.sampled_from(NUMBERS)),
    st.tuples(st.sampled_from(["<f", "<d", ">f"]), st.sampled_from(FLOATS)),
    st.tuples(st.just("<B"), st.integers(0, 255)),
)
MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("field"), st.integers(0, 540), FIELDS),
        st.tuples(st.just("dim"), st.integers(0, 7), st.sampled_from(NUMBERS)),
        st.tuples(st.just("bit"), st.integers(0, 3000), st.integers(0, 7)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.none()),
        st.tuples(st.just("grow"), st.integers(1, 400), st.none()),
    ),
    min_size=0,
    max_size=4,
)
SOUND = st.sampled_from(["plain", "gzip", "stored", "members"])
PACKING = st.sampled_from(["plain", "gzip", "stored", "members", "gzip cut", "gzip flipped", "gzip and more", "zlib"])
SUFFIX = st.sampled_from([".nii", ".nii.gz", ".NII.GZ", ".Nii"])


def mutated(data, mutations):
    data = bytearray(data)
    for what, at, value in mutations:
        if what == "cut":
            del data[int(at * len(data)) :]
        elif what == "grow":
            data += bytes(at)
        elif what == "bit" and at < len(data):
            data[at] ^= 1 << value
        elif what == "dim" and len(data) > 48:
            wide = data[:4] == struct.pack("<i", 540)
            code, start = ("<q", 16 + 8 * at) if wide else ("<h", 40 + 2 * at)
            data[start : start + struct.calcsize(code)] = struct.pack(
                code, value if wide else max(-32768, value % 32768)
            )
        elif what == "field":
            code, number = value
            with contextlib.suppress(struct.error, OverflowError):
                packed = struct.pack(code, number)
                data[at : at + len(packed)] = packed
    return bytes(data)


def packed(data, how):
    if how == "plain":
        return data
    if how == "zlib":
        return zlib.compress(data)
    if how == "members":
        return gzip.compress(data[:500], mtime=0) + gzip.compress(data[500:], mtime=0)
    out = bytearray(gzip.compress(data, 0 if how == "stored" else 6, mtime=0))
    if how == "gzip cut":
        del out[len(out) * 2 // 3 :]
    elif how == "gzip flipped":
        out[len(out) // 2] ^= 16
    elif how == "gzip and more":
        out += b"rubbish"
    return bytes(out)


@st.composite
def files(draw):
    """(suffix, scan, mask): damaged in their bytes, in their packing, in both, or not at all.

    Bytes stay whole in a quarter of the cases and packings in half of them, because a reader sees no fault but the
    first one.
    """
    scan, mask = draw(st.sampled_from(BASES))
    which = draw(st.sampled_from(["scan", "mask", "both", "neither"]))
    changes, other = draw(MUTATIONS), draw(MUTATIONS)
    scan = mutated(scan, changes) if which in ("scan", "both") else scan
    mask = mutated(mask, other if which == "both" else changes) if which in ("mask", "both") else mask
    packing = draw(st.sampled_from([SOUND, PACKING]))
    return draw(SUFFIX), packed(scan, draw(packing)), packed(mask, draw(packing))


def folder(tmp_path):
    """A new folder for each case."""
    path = tmp_path / str(next(NUMBER))
    path.mkdir()
    return path


def through_builder(root, suffix, scan, mask):
    patient = root / "training" / "patient001"
    patient.mkdir(parents=True)
    (patient / "Info.cfg").write_text("ED: 1\nES: 9\nGroup: DCM\n")
    for frame in ("01", "09"):
        (patient / f"patient001_frame{frame}{suffix}").write_bytes(scan)
        (patient / f"patient001_frame{frame}_gt{suffix}").write_bytes(mask)
    inventory = Builder.inventory(root)
    assert len(list(common.read_cases(inventory.cases["train"], CARDIAC, inventory.root))) == 2


def through_gallery(root, suffix, scan, mask):
    (root / f"a{suffix}").write_bytes(scan)
    (root / f"a_gt{suffix}").write_bytes(mask)
    assert pairs.read_pairs(root, LABELS)


def through_scoring(root, suffix, scan, mask):
    for name, content in (("ref", base(nib.Nifti1Image, True)), ("pred", mask)):
        (root / name).mkdir()
        (root / name / f"a{suffix}").write_bytes(content)
    for folders in (("ref", "pred"), ("pred", "ref")):
        status = cli.main(["score", *(str(root / name) for name in folders), "--labels=RV:1,MYO:2,LV:3"])
        if status:
            raise UserError(f"status {status}")


def through_prediction(root, suffix, scan, mask):
    (root / f"a{suffix}").write_bytes(scan)
    (task,) = scans.tasks(root, root / "out")
    for volume in scans.frames(nifti.read_scan(task.scan), CARDIAC):
        for spacing in (1.4, 0.0):
            slices = volume_slices(volume, Grid(32, spacing, unknown_spacing="fit", percentiles=(0.5, 99.5)))
            assert slices.images.shape == (volume.image.shape[2], 32, 32)


READERS = [through_builder, through_gallery, through_scoring, through_prediction]


@pytest.mark.parametrize("reader", READERS, ids=lambda f: f.__name__)
def test_a_damaged_file_gives_an_error_for_the_user_or_a_result(tmp_path, reader, capsys):
    outcomes = {"read": 0, "refused": 0}

    @settings(
        max_examples=max(1, CASES // len(READERS)),
        deadline=5000,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(files())
    def check(case):
        try:
            with np.errstate(all="raise", under="ignore"):
                reader(folder(tmp_path), *case)
            outcomes["read"] += 1
        except UserError as e:
            assert len(str(e).splitlines()) == 1, str(e)
            outcomes["refused"] += 1

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (1 if sys.platform == "darwin" else 1024)
    assert grown < MEMORY_MB * (1 if sys.platform != "darwin" else 2**20)
    assert min(outcomes.values()) > 0.10 * sum(outcomes.values()), outcomes  # it tries what is fine and what is not
    capsys.readouterr()


def test_random_names_never_confuse_the_finder(tmp_path):
    names = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=60)

    @settings(max_examples=150, deadline=5000, derandomize=True, database=None)
    @given(st.lists(names, max_size=4), st.sampled_from([".nii", ".NII.gz", ".nii.part", ""]))
    def check(stems, suffix):
        root = folder(tmp_path)
        wanted = set()
        for name in stems:
            with contextlib.suppress(OSError):  # too long in bytes, or of a name that is taken
                (root / f"{name}{suffix}").write_bytes(b"x")
                path = pathlib.Path(root / f"{name}{suffix}")
                if path.name.lower().endswith((".nii", ".nii.gz")) and not path.name.startswith((".", "__MACOSX")):
                    wanted.add(path.name)
        assert {path.name for path in finder.find(root).files} == wanted

    check()
