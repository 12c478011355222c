"""A trained run in a program: arrays segmented, its own gallery opened, mistakes named."""

import dataclasses
import json
import shutil

import jax
import nibabel as nib
import numpy as np
import pytest

import jras_jax
from jras_jax.data import nifti
from jras_jax.data.fingerprint import fingerprints
from jras_jax.data.slice_table import slice_table
from jras_jax.errors import UserError
from jras_jax.evaluation import evaluate
from jras_jax.inference import programs, standalone
from jras_jax.inference import trained_run as trained_run_module
from jras_jax.retrieval import gallery_files
from jras_jax.retrieval.gallery import HostRows
from jras_jax.retrieval.quantised import Int8Rows, as_float
from tests.commands import predict
from tests.slice_tables import equal


@pytest.fixture(scope="module")
def run(trained_run, tiny, tmp_path_factory) -> jras_jax.TrainedRun:
    """A copy of the tiny run, its gallery made."""
    folder = tmp_path_factory.mktemp("opened") / "run"
    shutil.copytree(trained_run, folder)
    opened = jras_jax.open_run(folder)
    opened.train_gallery(tiny.data(opened))
    return opened


@pytest.fixture(scope="module")
def gallery(run) -> jras_jax.RunGallery:
    return run.open_gallery()


@pytest.fixture(scope="module")
def path(tiny, run):
    """A scan of a test patient."""
    return next(sorted(folder.rglob("*_frame01.nii.gz"))[0] for folder in (tiny.data_dir / "scans").glob("*/testing"))


@pytest.fixture(scope="module")
def scan(path) -> nifti.Scan:
    return nifti.read_scan(path)


def copied(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder.path, folder)
    return folder


def test_an_array_is_segmented_as_the_command_segments_its_file(run, gallery, path, scan, tmp_path):
    (mask,) = predict(run.folder.path, path, tmp_path)
    found = run.segment(scan.array, scan.spacing, affine=scan.affine, gallery=gallery)
    assert found.labels.dtype == np.uint8 and found.labels.any()
    np.testing.assert_array_equal(found.labels, np.asarray(nib.load(mask).dataobj))
    evidence = json.loads(mask.with_name(mask.name.replace(".nii.gz", ".json")).read_text())
    assert [s["guides"] for s in evidence["frames"][0]["slices"]] == gallery.guides(found)


def test_probabilities_are_a_distribution_whose_maximum_is_the_label(run, gallery, scan):
    found = run.segment(scan.array, scan.spacing, affine=scan.affine, gallery=gallery)
    shares = found.probabilities
    assert shares.shape == (*scan.array.shape, len(jras_jax.CLASSES)) and shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(shares.argmax(-1), found.labels)


def test_without_an_affine_the_usual_view_is_taken(run, gallery, scan):
    usual = np.diag([-scan.spacing[0], -scan.spacing[1], scan.spacing[2], 1.0])
    without, given = (run.segment(scan.array, scan.spacing, affine=a, gallery=gallery) for a in (None, usual))
    np.testing.assert_array_equal(without.labels, given.labels)


def test_slices_of_the_named_patient_do_not_guide(run, gallery, scan):
    patient = gallery.table.patients[0]
    found = run.segment(scan.array, scan.spacing, affine=scan.affine, gallery=gallery, patient=f"{patient}_ED")
    assert found.patient == 0
    cases = {guide["case"] for guides in gallery.guides(found) for guide in guides}
    assert cases and not any(case.startswith(patient) for case in cases)


def test_arrays_that_cannot_be_segmented_are_refused(run, gallery, scan):
    broken = scan.array.copy()
    broken[0, 0, 0] = np.nan
    for image in (scan.array[..., 0], scan.array[None], broken):
        with pytest.raises(UserError, match=r"finite array \(X, Y, Z\)"):
            run.segment(image, scan.spacing, gallery=gallery)
    with pytest.raises(UserError, match=r"retrieves guides: give it a gallery, such as run\.open_gallery"):
        run.segment(scan.array, scan.spacing)


def test_the_own_gallery_of_an_older_checkpoint_is_embedded_again_and_kept(run, tmp_path):
    folder = copied(run, tmp_path)
    table, embeddings = gallery_files.read(folder / "gallery")
    gallery_files.save(folder / "gallery", table, embeddings=np.zeros_like(embeddings), fingerprint="0" * 64)
    opened = jras_jax.open_run(folder)
    found = opened.open_gallery()
    np.testing.assert_allclose(np.asarray(found.arrays.embeddings)[: len(table)], embeddings, atol=1e-5)
    kept = gallery_files.read(folder / "gallery", opened.fingerprint)[1]  # raises if it has the older fingerprint
    np.testing.assert_allclose(kept, embeddings, atol=1e-5)
    assert found.description == f"the run's own, {table.contents}"


@pytest.fixture
def work(monkeypatch):
    """What the making of galleries had to do since: 'placed' or 'embedded'."""
    done, place, embed = [], trained_run_module.slice_table, jras_jax.TrainedRun.embed
    noted = lambda what, f: lambda *given, **named: done.append(what) or f(*given, **named)  # noqa: E731
    monkeypatch.setattr(trained_run_module, "slice_table", noted("placed", place))
    monkeypatch.setattr(jras_jax.TrainedRun, "embed", noted("embedded", embed))
    return done


def test_an_evaluation_makes_the_gallery_once(run, tiny, tmp_path, work):
    folder = copied(run, tmp_path)
    shutil.rmtree(folder / "gallery")
    made, kept = (open_and_make(folder, tiny) for _ in range(2))
    assert work == ["placed", "embedded"]
    equal(made.table, kept.table)
    np.testing.assert_array_equal(np.asarray(made.arrays.embeddings), np.asarray(kept.arrays.embeddings))
    assert made.description == kept.description


def open_and_make(folder, tiny, *overrides, data=lambda data: data):
    opened = jras_jax.open_run(folder, overrides)
    return opened.train_gallery(data(tiny.data(opened)))


def with_first(data, **changes):
    """The data with another first training volume, and the fingerprint that its pixels have."""
    volumes = {part: list(own) for part, own in data.volumes.items()}
    first = data.part("train")[0]
    volumes["train"] = [dataclasses.replace(v, **changes) if v is first else v for v in volumes["train"]]
    return dataclasses.replace(data, volumes=volumes, fingerprint=fingerprints(volumes, data.splits))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: with_first(data, mask=np.roll(data.part("train")[0].mask, 1, 0)),
        lambda data: with_first(data, image=data.part("train")[0].image[::-1]),
        lambda data: with_first(data, vendor="another"),
        lambda data: with_first(data, name="another"),
        lambda data: dataclasses.replace(data, grid=data.grid._replace(percentiles=(1.0, 99.0))),
        lambda data: dataclasses.replace(data, fingerprint={}),  # nothing is known of it
    ],
    ids=["mask", "image", "vendor", "case", "grid", "no fingerprint"],
)
def test_a_kept_gallery_of_other_data_is_made_again(run, tiny, tmp_path, work, change):
    folder = copied(run, tmp_path)
    found = open_and_make(folder, tiny, data=change)
    assert work == ["placed", "embedded"]
    opened = jras_jax.open_run(folder)
    data = change(tiny.data(opened))
    equal(found.table, slice_table(data.part("train"), data.grid, drop_empty=True))


def test_a_kept_gallery_of_older_code_is_made_again(run, tiny, tmp_path, work, monkeypatch):
    folder = copied(run, tmp_path)
    monkeypatch.setattr(programs, "source", lambda: "newer code")
    open_and_make(folder, tiny)
    open_and_make(folder, tiny)
    assert work == ["placed", "embedded"]


def test_a_damaged_gallery_is_made_again(run, tiny, tmp_path, work):
    folder = copied(run, tmp_path)
    path = folder / "gallery" / gallery_files.ARRAYS
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    open_and_make(folder, tiny)
    assert work == ["placed", "embedded"]
    gallery_files.read(folder / "gallery")


def test_another_checkpoint_embeds_the_kept_slices_again(run, tiny, tmp_path, work):
    folder = copied(run, tmp_path)
    opened = jras_jax.open_run(folder)
    variables = jax.tree.map(lambda x: x, opened.variables)
    variables["params"]["retriever"] = jax.tree.map(lambda x: x * 1.1, variables["params"]["retriever"])
    other = dataclasses.replace(opened, variables=variables)
    assert other.fingerprint != opened.fingerprint
    before, found = opened.open_gallery(), other.train_gallery(tiny.data(opened))
    assert work == ["embedded"]
    equal(before.table, found.table)
    assert np.abs(np.asarray(found.arrays.embeddings) - np.asarray(before.arrays.embeddings)).max() > 1e-4
    gallery_files.read(folder / "gallery", other.fingerprint)


def test_a_missing_gallery_says_how_to_make_it(run, tmp_path):
    folder = copied(run, tmp_path)
    shutil.rmtree(folder / "gallery")
    with pytest.raises(UserError, match=r"make it with jras gallery --workdir=.* --split=train.*--gallery=FOLDER"):
        jras_jax.open_run(folder).open_gallery()


def test_galleries_that_do_not_fit_the_run_are_refused(run, gallery):
    k = run.config.retrieval.top_k
    names = [f.name for f in dataclasses.fields(gallery.table) if f.name not in ("cases", "patients", "vendors")]
    few = dataclasses.replace(gallery.table, **{name: getattr(gallery.table, name)[: k - 1] for name in names})
    with pytest.raises(UserError, match=f"has {k - 1} slices, but {k} guides are retrieved"):
        run.make_gallery(few)
    coarse = dataclasses.replace(gallery.table, images=gallery.table.images[:, ::2, ::2])
    with pytest.raises(UserError, match="slices have 16 pixels a side, this run's 32"):
        run.make_gallery(coarse)
    with pytest.raises(UserError, match="no such folder"):
        run.open_gallery(run.folder.path / "absent")


def test_the_package_offers_its_names_and_no_others():
    assert set(jras_jax.__all__) <= {*dir(jras_jax), *jras_jax._HOMES}
    for name in jras_jax.__all__:
        assert getattr(jras_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'segment'"):
        jras_jax.segment  # noqa: B018


def test_a_run_opens_with_int8_embeddings_and_its_stored_gallery_stays_float(run, gallery, scan):
    opened = jras_jax.open_run(run.folder.path, ["--config.retrieval.embeddings=int8"])
    found = opened.open_gallery()
    assert isinstance(found.arrays.embeddings, Int8Rows)
    stored = gallery_files.read(run.folder.gallery)[1]
    assert stored.dtype == np.float32
    np.testing.assert_allclose(as_float(found.arrays.embeddings)[: len(stored)], stored, atol=0.01)
    assert "embeddings=int8" in evaluate.name_of(opened)
    ours = opened.segment(scan.array, scan.spacing, affine=scan.affine, gallery=found)
    plain = run.segment(scan.array, scan.spacing, affine=scan.affine, gallery=gallery)
    np.testing.assert_allclose(ours.probabilities, plain.probabilities, atol=0.02)
    program = standalone.program(opened, found, takes_gallery=True)  # which ranks by floats
    assert program.gallery["embeddings"].dtype == np.float32


def test_a_run_trained_with_the_ranking_loss_opens_with_its_gallery_in_host_memory(run):
    opened = jras_jax.open_run(run.folder.path, ["--config.retrieval.gallery_memory=host"])
    assert isinstance(opened.open_gallery().arrays.images, HostRows)
