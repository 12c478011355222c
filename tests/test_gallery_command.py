"""Galleries from outside a data set: made, changed, used for guidance, refused."""

import dataclasses
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from jras_jax.commands import cli
from jras_jax.data.slice_table import SliceTable
from jras_jax.errors import UserError
from jras_jax.evaluation.evaluate import gallery_name
from jras_jax.inference.trained_run import TrainedRun, open_run
from jras_jax.retrieval import gallery_files
from tests.commands import call, predict


@pytest.fixture(scope="module")
def testing(phantom_scans):
    """The phantom's folder of three test patients, patient101 to patient103: the pairs of 'another hospital'."""
    return phantom_scans / "testing"


@pytest.fixture(scope="module")
def hospital(run, testing, tmp_path_factory):
    """A gallery of the three, made once."""
    folder = tmp_path_factory.mktemp("hospital") / "g"
    make(run, output=folder, input=testing)
    return folder


def make(run, **options) -> SliceTable:
    """The slices of the gallery that `jras gallery` writes with these options."""
    assert call("gallery", f"--workdir={run}", *(f"--{name}={value}" for name, value in options.items())) == 0
    return gallery_files.read(options.get("output") or options["gallery"])[0]


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


def test_the_same_patients_from_files_and_from_the_data_set_give_the_same_gallery(run, hospital, tmp_path):
    table = make(run, output=tmp_path / "g", split="test")
    assert sorted(table.patients) == ["patient101", "patient102", "patient103"]
    same_rows(tmp_path / "g", hospital)


def test_a_gallery_without_a_patient_and_then_with_him_again_is_the_gallery(run, hospital, testing, tmp_path):
    folder = tmp_path / "g"
    shutil.copytree(hospital, folder)
    table = make(run, gallery=folder, remove="patient102")
    assert sorted(table.patients) == ["patient101", "patient103"]
    make(run, gallery=folder, add=testing / "patient102")
    same_rows(folder, hospital)
    make(run, gallery=folder, add=testing / "patient102")
    same_rows(folder, hospital)  # a case that is there already is replaced, not doubled


def test_only_the_slices_that_are_added_are_embedded(run, hospital, testing, tmp_path, monkeypatch):
    seen = []
    embed = TrainedRun.embed
    monkeypatch.setattr(TrainedRun, "embed", lambda self, images: seen.append(len(images)) or embed(self, images))
    folder = tmp_path / "g"
    make(run, output=folder, gallery=hospital, remove="patient102")
    assert seen == []
    added = len(gallery_files.read(hospital)[0]) - len(gallery_files.read(folder)[0])
    make(run, gallery=folder, add=testing / "patient102")
    assert seen == [added] and added > 0
    same_rows(folder, hospital)


def test_changes_go_to_output_if_it_is_given(run, hospital, tmp_path):
    before = (hospital / gallery_files.ARRAYS).read_bytes()
    make(run, output=tmp_path / "g", gallery=hospital, remove="patient101")
    assert (hospital / gallery_files.ARRAYS).read_bytes() == before
    assert "patient101" not in gallery_files.read(tmp_path / "g")[0].patients


def guides_of(mask):
    evidence = json.loads(mask.with_name(mask.name.replace(".nii.gz", ".json")).read_text())
    return [s["guides"] for f in evidence["frames"] for s in f["slices"]]


def test_prediction_takes_its_guides_from_the_gallery_it_is_given(run, hospital, phantom_scans, tmp_path, capsys):
    patient = open_run(run).splits["validation"][0]
    scan = next(phantom_scans.rglob(f"{patient}_frame01.nii.gz"))
    (own,) = predict(run, scan, tmp_path / "own")
    (stored,) = predict(run, scan, tmp_path / "stored", f"--gallery={hospital}")
    train = {f"{p}_{phase}" for p in open_run(run).splits["train"] for phase in ("ED", "ES")}
    test = {f"patient{n}_{phase}" for n in (101, 102, 103) for phase in ("ED", "ES")}
    assert {g["case"] for s in guides_of(own) for g in s} <= train
    assert {g["case"] for s in guides_of(stored) for g in s} <= test
    assert f"gallery: {hospital}" in capsys.readouterr().out


def test_a_folder_of_pairs_serves_as_the_gallery_made_of_it(run, hospital, testing, phantom_scans, tmp_path, capsys):
    patient = open_run(run).splits["validation"][0]
    scan = next(phantom_scans.rglob(f"{patient}_frame01.nii.gz"))
    (stored,) = predict(run, scan, tmp_path / "stored", f"--gallery={hospital}")
    capsys.readouterr()
    (direct,) = predict(run, scan, tmp_path / "direct", f"--gallery={testing}")
    lines = [line for line in capsys.readouterr().out.splitlines() if "made in memory" in line]
    assert len(lines) == 1 and "of 3 patients" in lines[0]
    # The rows may be in another order, so cases are compared, not bytes.
    named = [[[(g["case"], g["slice"]) for g in s] for s in guides_of(m)] for m in (stored, direct)]
    assert named[0] == named[1]
    assert np.array_equal(*(np.asarray(nib.load(m).dataobj) for m in (stored, direct)))
    assert not (testing / gallery_files.FACTS).exists()


def test_a_gallery_patients_scan_needs_guides_of_others(run, testing, tmp_path):
    with pytest.raises(UserError, match="0 slices of patients other than patient101"):
        predict(run, testing / "patient101", tmp_path, f"--gallery={testing / 'patient101'}")


def test_a_gallery_of_another_retriever_is_refused(run, hospital, tmp_path):
    folder = tmp_path / "g"
    shutil.copytree(hospital, folder)
    facts = json.loads((folder / gallery_files.FACTS).read_text())
    (folder / gallery_files.FACTS).write_text(json.dumps(facts | {"fingerprint": "0" * 64}))
    for use in (
        lambda: open_run(run).open_gallery(folder),
        lambda: make(run, gallery=folder, remove="patient101"),
    ):
        with pytest.raises(gallery_files.GalleryError, match=r"made by another retriever .*jras gallery"):
            use()


def test_changed_bytes_are_found(run, hospital, tmp_path):
    folder = tmp_path / "g"
    shutil.copytree(hospital, folder)
    path = folder / gallery_files.ARRAYS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(gallery_files.GalleryError, match="does not match its checksum"):
        open_run(run).open_gallery(folder)


def test_mistakes_are_named_before_anything_is_written(run, hospital, testing, tmp_path):
    def refused(message, **options):
        with pytest.raises(UserError, match=message):
            make(run, **options)

    out = tmp_path / "out"
    refused("starts from one of --input, --split, --gallery; you gave none of them", output=out)
    refused("you gave --input and --split", output=out, input=testing, split="test")
    refused("say what to change", gallery=hospital)
    refused("needs --output", input=testing)
    refused("choose one of train, validation, test", output=out, split="tests")
    refused(r"no patient nobody; it has patient101", gallery=hospital, remove="nobody")
    refused("no slice would be left", gallery=hospital, remove="patient101,patient102,patient103")
    refused("run's own gallery", output=run / "gallery", input=testing)
    refused("holds the labels", output=out, input=testing, labels="LV:1,MYO:2,RV:9")
    assert not out.exists()
    with pytest.raises(UserError, match=r"holds neither a gallery .* nor labelled scans"):
        open_run(run).open_gallery(tmp_path)


def test_a_run_without_retrieval_has_no_use_for_a_gallery(run, testing, tmp_path, monkeypatch):
    opened = open_run(run)
    config = dataclasses.replace(opened.config, retrieval=dataclasses.replace(opened.config.retrieval, enabled=False))
    for command in ("gallery", "predict"):
        alone = dataclasses.replace(opened, config=config)
        monkeypatch.setattr(f"jras_jax.commands.{command}.open_run", lambda *a, run=alone: run)
    with pytest.raises(UserError, match="trained without retrieval"):
        make(run, output=tmp_path / "g", input=testing)
    with pytest.raises(UserError, match="trained without retrieval"):
        predict(run, testing / "patient101", tmp_path / "out", f"--gallery={testing}")


def test_the_command_line_makes_changes_and_uses_a_gallery(run, testing, tmp_path, capsys):
    folder = tmp_path / "g"
    command = ["gallery", f"--workdir={run}"]
    assert cli.main([*command, f"--input={testing}", f"--output={folder}"]) == 0
    assert "of 3 patients" in capsys.readouterr().out
    assert cli.main([*command, f"--gallery={folder}", "--remove=patient101, patient103"]) == 0
    assert "of 1 patient\n" in capsys.readouterr().out
    scan = testing / "patient101" / "patient101_frame01.nii.gz"
    options = [f"--gallery={folder}", f"--input={scan}", f"--output={tmp_path / 'o'}"]
    assert cli.main(["predict", f"--workdir={run}", *options]) == 0
    cases = {g["case"] for s in guides_of(tmp_path / "o" / scan.name) for g in s}
    assert cases <= {"patient102_ED", "patient102_ES"}
    assert cli.main([*command, f"--gallery={folder}"]) == 2
    assert "say what to change" in capsys.readouterr().err


def test_an_evaluation_with_another_gallery_keeps_the_leak_rule_and_its_own_folder(run, testing, hospital):
    """The other gallery holds the very patients that are evaluated: none of them guides himself."""
    names = []
    for gallery in (testing, hospital):
        assert call("evaluate", f"--workdir={run}", "--config.eval.split=test", f"--gallery={gallery}") == 0
        names.append(f"test+gallery={gallery_name(gallery)}")
    summaries = [json.loads((run / "evaluation" / name / "summary.json").read_text()) for name in names]
    for summary, gallery in zip(summaries, (testing, hospital), strict=True):
        assert summary["gallery"]["patients"] == 3 and str(gallery) in summary["gallery"]["made_of"]
        assert summary["protocol"].endswith(f"guides come from the gallery {gallery}")
        assert any("another gallery" in line and str(gallery) in line for line in summary["warnings"])
    assert "not the training patients guide, but another gallery" in (run / "report.html").read_text()
    assert summaries[0]["mean"] == summaries[1]["mean"]
    kept = list((run / "evaluation" / names[1] / "evidence").glob("*.npz"))
    assert kept
    for file in kept:
        with np.load(file) as shown:
            guides = [str(name) for name in shown["guide_names"].ravel()]
        assert guides and not any(name.startswith(file.stem.split("_")[0]) for name in guides)
    assert not (run / "evaluation" / "test").exists()


def test_galleries_of_one_name_have_evaluations_of_their_own(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "b")
    names = [gallery_name(tmp_path / path) for path in ("a/train", "b/train", "link/train", "b/of Ulm/../train")]
    assert names[0] != names[1] == names[2] == names[3]
    assert all(re.fullmatch(r"train-[0-9a-f]{8}", name) for name in names)  # `train` alone is of the paper's protocol


def test_an_evaluation_with_a_gallery_that_is_none_says_so(run, tmp_path):
    with pytest.raises(UserError, match=r"--gallery=.*none: no such folder"):
        call("evaluate", f"--workdir={run}", f"--gallery={tmp_path / 'none'}")
