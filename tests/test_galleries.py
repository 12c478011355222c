"""Galleries from outside a data set: labelled scans read, galleries made, changed, swapped in, refused."""

import dataclasses
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

import run as program
from jras_jax.commands import gallery as gallery_command
from jras_jax.data import pairs
from jras_jax.errors import UserError
from jras_jax.inference import scans, trained_run
from jras_jax.retrieval import gallery_files

ACDC = pairs.convention_labels("acdc")
MNMS = pairs.convention_labels("mnms")


def write(folder, name, mask, *, image=None, zooms=(1.5, 1.5, 8.0)):
    """A pair of NIfTI files; the image is noise where it is not given."""
    folder.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).normal(100, 20, mask.shape) if image is None else image
    for suffix, array in (("", image.astype(np.float32)), ("_gt", mask.astype(np.uint8))):
        nifti = nib.Nifti1Image(array, np.diag([*zooms, 1.0]))
        nifti.header.set_xyzt_units("mm")
        nib.save(nifti, folder / f"{name}{suffix}.nii.gz")


def heart(labels=(1, 2, 3), shape=(24, 20, 3)):
    """A mask with each of three labels on every slice."""
    mask = np.zeros(shape, np.uint8)
    for i, label in enumerate(labels):
        mask[4 + 4 * i : 8 + 4 * i, 5:12] = label
    return mask


def test_acdc_folders_give_patient_phase_frame_and_group(tmp_path):
    folder = tmp_path / "patient007"
    for frame in (1, 9):
        write(folder, f"patient007_frame{frame:02d}", heart())
    (folder / "Info.cfg").write_text("ED: 1\nES: 9\nGroup: HCM\nNbFrame: 20\n")
    write(folder, "patient007_4d", np.zeros((24, 20, 3, 2)))
    (folder / "patient007_4d_gt.nii.gz").unlink()  # the cine has no mask, and is passed over
    found = pairs.read_pairs(tmp_path, ACDC)
    assert [(v.case, v.patient, v.phase, v.frame, v.group) for v in found] == [
        ("patient007_ED", "patient007", "ED", 0, "HCM"),
        ("patient007_ES", "patient007", "ES", 8, "HCM"),
    ]
    assert found[0].spacing == pytest.approx([1.5, 1.5, 8.0]) and found[0].spacing_known


def test_4d_pairs_give_their_labelled_frames_alone(tmp_path):
    mask = np.zeros((24, 20, 3, 5), np.uint8)
    mask[..., 1], mask[..., 4] = heart(MNMS.values()), heart(MNMS.values())[::-1]
    image = np.arange(mask.size, dtype=np.float32).reshape(mask.shape)
    write(tmp_path / "A1", "A1_sa", mask, image=image)
    first, second = pairs.read_pairs(tmp_path, MNMS)
    assert (first.case, second.case) == ("A1_frame01", "A1_frame04")
    assert np.array_equal(first.image, image[..., 1]) and np.array_equal(second.image, image[..., 4])
    assert np.array_equal(first.mask, heart()) and np.array_equal(second.mask, heart()[::-1])


def test_label_values_become_the_projects(tmp_path):
    write(tmp_path, "a", heart((40, 20, 10)))
    (volume,) = pairs.read_pairs(tmp_path, pairs.parse_labels("LV:10,MYO:20,RV:40"))
    assert np.array_equal(volume.mask, heart())


def test_patients_are_read_from_names():
    names = {"patient001_frame12": "patient001", "patient101_ED": "patient101", "A0S9V9_sa": "A0S9V9", "x": "x"}
    names |= {"site_7_scan": "site_7_scan", "B2_sa_ES": "B2"}
    assert {name: pairs.patient_of(name) for name in names} == names


FAULTY = ("LV:1", "LV:1,MYO:2,RV:2", "LV:1,MYO:2,RA:3", "LV:0,MYO:2,RV:3", "LV:1,LV:2,MYO:3,RV:4", "1,2,3", "")


@pytest.mark.parametrize("text", FAULTY)
def test_labels_that_are_incomplete_or_ambiguous_are_refused(text):
    with pytest.raises(UserError, match=r"--labels=.*LV:1,MYO:2,RV:3"):
        pairs.parse_labels(text)


def ring(lv, rv, shape=(30, 40, 2)):
    """The LV in a ring of myocardium, the RV beside it."""
    x, y = np.mgrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, np.uint8)
    mask[np.hypot(x - 15, y - 14) < 10] = rv
    mask[np.hypot(x - 15, y - 24) < 11] = 2
    mask[np.hypot(x - 15, y - 24) < 7] = lv
    return mask


def test_lv_and_rv_exchanged_are_noticed_although_the_values_are_the_same(tmp_path):
    write(tmp_path, "a", ring(lv=1, rv=3))
    assert len(pairs.read_pairs(tmp_path, MNMS)) == 1
    with pytest.raises(UserError, match=r"LV and RV seem exchanged.*--labels=LV:1,MYO:2,RV:3"):
        pairs.read_pairs(tmp_path, ACDC)
    assert len(pairs.read_pairs(tmp_path, pairs.parse_labels("LV:1,MYO:2,RV:3"))) == 1


@pytest.mark.parametrize(("name", "labels"), [("acdc/training/patient001", ACDC), ("mnms", MNMS)])
def test_real_scans_are_read_under_their_own_convention_alone(shared, name, labels):
    found = pairs.read_pairs(shared / "data" / name, labels)
    assert {v.mask.max() for v in found} == {3} and len(found) >= 2
    with pytest.raises(UserError, match="LV and RV seem exchanged"):
        pairs.read_pairs(shared / "data" / name, MNMS if labels is ACDC else ACDC)


def test_faulty_pairs_are_named(tmp_path):
    def refused(name, message, labels=ACDC):
        with pytest.raises(UserError, match=message):
            pairs.read_pairs(tmp_path / name, labels)

    (tmp_path / "none").mkdir()
    refused("none", "none: holds no labelled scans; a pair is NAME.nii.gz and its mask NAME_gt.nii.gz")
    refused("absent", "absent: no such folder")
    write(tmp_path / "foreign", "a", heart((1, 2, 7)))
    refused("foreign", r"a_gt\.nii\.gz: holds the labels \[7\], but RV:1,MYO:2,LV:3 .*--labels=")
    write(tmp_path / "alone", "a", heart())
    (tmp_path / "alone" / "a.nii.gz").unlink()
    refused("alone", r"a_gt\.nii\.gz: its scan a\.nii\.gz is not beside it")
    write(tmp_path / "shape", "a", heart(), image=np.ones((24, 20, 4)))
    refused("shape", "its shape .* is not that of its image")
    write(tmp_path / "twice" / "x", "a", heart())
    write(tmp_path / "twice" / "y", "a", heart())
    refused("twice", "are both case a_frame00; keep one")
    write(tmp_path / "empty", "a", np.zeros((24, 20, 3)))
    refused("empty", "the mask of every pair is empty")


@pytest.fixture(scope="module")
def run(trained_run, tiny, tmp_path_factory):
    """A copy of the tiny run, its gallery made."""
    folder = tmp_path_factory.mktemp("galleries") / "run"
    shutil.copytree(trained_run, folder)
    opened = trained_run.open_run(folder)
    trained_run.train_gallery(opened, trained_run.dataset.prepare(opened.config, tiny.build, opened.splits()))
    return folder


@pytest.fixture(scope="module")
def testing(tiny, run):
    """The phantom's folder of three test patients, patient101 to patient103: the pairs of 'another hospital'."""
    return next((tiny.data_dir / "scans").glob("*")) / "testing"


@pytest.fixture(scope="module")
def hospital(run, testing, tiny, tmp_path_factory):
    """A gallery of the three, made once."""
    return gallery_command.make(run, tmp_path_factory.mktemp("hospital") / "g", tiny.build, source=testing)[0]


def same_rows(a, b):
    """Two galleries hold the same slices, in whatever order."""

    def rows(folder):
        table, embeddings = gallery_files.read(folder)
        names = [f"{table.cases[c]} {z}" for c, z in zip(table.case, table.slice_index, strict=True)]
        pixels = (np.concatenate([table.images, table.masks], 1), embeddings)
        return {name: [x[i] for x in pixels] for i, name in enumerate(names)}

    first, second = rows(a), rows(b)
    assert first.keys() == second.keys()
    for name in first:
        assert np.array_equal(first[name][0], second[name][0])
        np.testing.assert_allclose(first[name][1], second[name][1], atol=1e-5)


def test_the_same_patients_from_files_and_from_the_data_set_give_the_same_gallery(run, hospital, tiny, tmp_path):
    folder, table = gallery_command.make(run, tmp_path / "g", tiny.build, split="test")
    assert sorted(table.patients) == ["patient101", "patient102", "patient103"]
    same_rows(folder, hospital)


def test_a_gallery_without_a_patient_and_then_with_him_again_is_the_gallery(run, hospital, testing, tiny, tmp_path):
    folder = tmp_path / "g"
    shutil.copytree(hospital, folder)
    _, table = gallery_command.make(run, None, tiny.build, base=folder, remove=("patient102",))
    assert sorted(table.patients) == ["patient101", "patient103"] == sorted(gallery_files.read(folder)[0].patients)
    gallery_command.make(run, None, tiny.build, base=folder, add=testing / "patient102")
    same_rows(folder, hospital)
    gallery_command.make(run, None, tiny.build, base=folder, add=testing / "patient102")
    same_rows(folder, hospital)  # a case that is there already is replaced, not doubled


def test_only_the_slices_that_are_added_are_embedded(run, hospital, testing, tiny, tmp_path, monkeypatch):
    seen = []
    embed = trained_run.Opened.embed
    monkeypatch.setattr(
        trained_run.Opened, "embed", lambda self, images: seen.append(len(images)) or embed(self, images)
    )
    folder = tmp_path / "g"
    gallery_command.make(run, folder, tiny.build, base=hospital, remove=("patient102",))
    assert seen == []
    added = len(gallery_files.read(hospital)[0]) - len(gallery_files.read(folder)[0])
    gallery_command.make(run, None, tiny.build, base=folder, add=testing / "patient102")
    assert seen == [added] and added > 0
    same_rows(folder, hospital)


def test_changes_go_to_output_where_it_is_given(run, hospital, tiny, tmp_path):
    before = (hospital / gallery_files.ARRAYS).read_bytes()
    gallery_command.make(run, tmp_path / "g", tiny.build, base=hospital, remove=("patient101",))
    assert (hospital / gallery_files.ARRAYS).read_bytes() == before
    assert "patient101" not in gallery_files.read(tmp_path / "g")[0].patients


def guides_of(mask):
    evidence = json.loads(mask.with_name(mask.name.replace(".nii.gz", ".json")).read_text())
    return [s["guides"] for f in evidence["frames"] for s in f["slices"]]


def test_prediction_takes_its_guides_from_the_gallery_it_is_given(run, hospital, tiny, tmp_path, capsys):
    patient = trained_run.open_run(run).splits()["validation"][0]
    scan = next((tiny.data_dir / "scans").rglob(f"{patient}_frame01.nii.gz"))
    (own,) = scans.predict(run, scan, tmp_path / "own")
    (stored,) = scans.predict(run, scan, tmp_path / "stored", gallery=hospital)
    train = {f"{p}_{phase}" for p in trained_run.open_run(run).splits()["train"] for phase in ("ED", "ES")}
    test = {f"patient{n}_{phase}" for n in (101, 102, 103) for phase in ("ED", "ES")}
    assert {g["case"] for s in guides_of(own) for g in s} <= train
    assert {g["case"] for s in guides_of(stored) for g in s} <= test
    assert f"gallery: {hospital}" in capsys.readouterr().out


def test_a_folder_of_pairs_serves_as_the_gallery_made_of_it(run, hospital, testing, tiny, tmp_path, capsys):
    patient = trained_run.open_run(run).splits()["validation"][0]
    scan = next((tiny.data_dir / "scans").rglob(f"{patient}_frame01.nii.gz"))
    (stored,) = scans.predict(run, scan, tmp_path / "stored", gallery=hospital)
    capsys.readouterr()
    (direct,) = scans.predict(run, scan, tmp_path / "direct", gallery=testing)
    lines = [line for line in capsys.readouterr().out.splitlines() if "made in memory" in line]
    assert len(lines) == 1 and "of 3 patients" in lines[0]
    # Rows may stand in another order, so that equal cases are compared, not bytes.
    named = [[[(g["case"], g["slice"]) for g in s] for s in guides_of(m)] for m in (stored, direct)]
    assert named[0] == named[1]
    assert np.array_equal(*(np.asarray(nib.load(m).dataobj) for m in (stored, direct)))
    assert not (testing / gallery_files.FACTS).exists()


def test_a_gallery_patients_scan_needs_guides_of_others(run, testing, tmp_path):
    with pytest.raises(UserError, match="0 slices of patients other than patient101"):
        scans.predict(run, testing / "patient101", tmp_path, gallery=testing / "patient101")


def test_a_gallery_of_another_retriever_is_refused(run, hospital, tiny, tmp_path):
    folder = tmp_path / "g"
    shutil.copytree(hospital, folder)
    facts = json.loads((folder / gallery_files.FACTS).read_text())
    (folder / gallery_files.FACTS).write_text(json.dumps(facts | {"fingerprint": "0" * 64}))
    for use in (
        lambda: gallery_command.opened(trained_run.open_run(run), folder),
        lambda: gallery_command.make(run, None, tiny.build, base=folder, remove=("patient101",)),
    ):
        with pytest.raises(gallery_files.GalleryError, match=r"made by another retriever .*--mode=gallery"):
            use()


def test_changed_bytes_are_found(run, hospital, tmp_path):
    folder = tmp_path / "g"
    shutil.copytree(hospital, folder)
    path = folder / gallery_files.ARRAYS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(gallery_files.GalleryError, match="does not match its checksum"):
        gallery_command.opened(trained_run.open_run(run), folder)


def test_mistakes_are_named_before_anything_is_written(run, hospital, testing, tiny, tmp_path):
    def refused(message, output=None, **arguments):
        with pytest.raises(UserError, match=message):
            gallery_command.make(run, output, tiny.build, **arguments)

    out = tmp_path / "out"
    refused("starts from one of --input, --split, --gallery; none", out)
    refused("--input and --split given", out, source=testing, split="test")
    refused("say what to change", None, base=hospital)
    refused("needs --output", None, source=testing)
    refused("choose one of train, validation, test", out, split="tests")
    refused(r"no patient nobody; it has patient101", None, base=hospital, remove=("nobody",))
    refused("no slice would be left", None, base=hospital, remove=("patient101", "patient102", "patient103"))
    refused("run's own gallery", run / "gallery", source=testing)
    refused("holds the labels", out, source=testing, labels="LV:1,MYO:2,RV:9")
    assert not out.exists()
    with pytest.raises(UserError, match=r"holds neither a gallery .* nor labelled scans"):
        gallery_command.opened(trained_run.open_run(run), tmp_path)


def test_a_run_without_retrieval_has_no_use_for_a_gallery(run, testing, tiny, tmp_path, monkeypatch):
    opened = trained_run.open_run(run)
    config = dataclasses.replace(opened.config, retrieval=dataclasses.replace(opened.config.retrieval, enabled=False))
    monkeypatch.setattr(trained_run, "open_run", lambda *a: dataclasses.replace(opened, config=config))
    with pytest.raises(UserError, match="trained without retrieval"):
        gallery_command.make(run, tmp_path / "g", tiny.build, source=testing)
    with pytest.raises(UserError, match="trained without retrieval"):
        scans.predict(run, testing / "patient101", tmp_path / "out", gallery=testing)


def test_the_command_line_makes_changes_and_uses_a_gallery(run, testing, tmp_path, capsys):
    folder = tmp_path / "g"
    mode = ["--mode=gallery", f"--workdir={run}"]
    assert program.main([*mode, f"--input={testing}", f"--output={folder}"]) == 0
    assert "of 3 patients" in capsys.readouterr().out
    assert program.main([*mode, f"--gallery={folder}", "--remove=patient101, patient103"]) == 0
    assert "of 1 patient\n" in capsys.readouterr().out
    scan = testing / "patient101" / "patient101_frame01.nii.gz"
    use = [f"--workdir={run}", "--mode=predict", f"--gallery={folder}", f"--input={scan}", f"--output={tmp_path / 'o'}"]
    assert program.main(use) == 0
    cases = {g["case"] for s in guides_of(tmp_path / "o" / scan.name) for g in s}
    assert cases <= {"patient102_ED", "patient102_ES"}
    assert program.main([*mode, f"--gallery={folder}"]) == 2
    assert "say what to change" in capsys.readouterr().err
