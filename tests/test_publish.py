"""A published run: what leaves the house, the card, and the run that others open."""

import json
import pathlib
import shutil
import sys
import types

import numpy as np
import pytest
import yaml

import jras_jax
from jras_jax.commands import cli
from jras_jax.errors import UserError
from jras_jax.evaluation import certificate
from jras_jax.report import card
from jras_jax.report import files as report_files
from jras_jax.run_folder import provenance
from tests.commands import call, evaluate
from tests.fake_run import write_fake_run


@pytest.fixture(scope="module")
def scored(run_with_gallery, tmp_path_factory) -> pathlib.Path:
    """The tiny run, scored on its test patients."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    shutil.copytree(run_with_gallery, folder)
    evaluate(folder, "--config.eval.split=test")
    return folder


@pytest.fixture(scope="module")
def bare(scored, tmp_path_factory) -> pathlib.Path:
    """Published as the command does it by default."""
    folder = tmp_path_factory.mktemp("bare") / "published"
    call("publish", scored, folder)
    return folder


@pytest.fixture(scope="module")
def whole(scored, tmp_path_factory) -> pathlib.Path:
    """Published with gallery and patients."""
    folder = tmp_path_factory.mktemp("whole") / "published"
    call("publish", scored, folder, "--with_gallery", "--with_patients")
    return folder


@pytest.fixture
def hub(monkeypatch):
    """A stand-in of the hub's client that holds folders by name."""
    held, asked = {}, []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        if name not in held:
            raise LookupError(f"404: {name}\nsome more lines")
        return str(held[name])

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    return types.SimpleNamespace(held=held, asked=asked)


def texts(folder):
    return "".join(p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file())


def test_no_patient_and_no_path_of_this_machine_leaves_by_default(bare, scored):
    files = {str(p.relative_to(bare)) for p in bare.rglob("*") if p.is_file()}
    assert files == {"README.md", "config.json", "dataset.json", "model.safetensors", "published.json", "splits.json"}
    said, splits = texts(bare), json.loads((scored / "splits.json").read_text())
    for part in ("train", "validation", "test"):
        assert splits[part] and not any(patient in said for patient in splits[part])
    assert (
        str(scored) not in said and json.loads((scored / "config.json").read_text())["dataset"]["data_dir"] not in said
    )


def test_the_published_run_segments_as_the_run_does(whole, scored):
    ours, theirs = jras_jax.open_run(scored), jras_jax.open_run(whole)
    assert theirs.step == ours.step and theirs.fingerprint == ours.fingerprint
    mine, other = ours.open_gallery(), theirs.open_gallery()
    images = mine.table.images[:4]
    a, b = (r.segmenter(g.arrays).slices(images) for r, g in ((ours, mine), (theirs, other)))
    np.testing.assert_array_equal(a.probabilities, b.probabilities)
    np.testing.assert_array_equal(a.indices, b.indices)
    assert mine.table.patients == other.table.patients


def test_without_its_gallery_another_one_is_asked_for(bare, hub):
    hub.held["org/bare"] = bare
    opened = jras_jax.open_run("hf:org/bare@v1")
    assert hub.asked == [("org/bare", "v1")]
    with pytest.raises(UserError, match=r"published without its gallery: name another one with --gallery=FOLDER"):
        opened.open_gallery()


def test_predict_opens_a_run_of_the_hub(whole, hub, tiny, tmp_path):
    hub.held["org/whole"] = whole
    scan = next((tiny.data_dir / "scans").rglob("testing/*/*_frame01.nii.gz"))
    assert cli.main(["predict", "--workdir=hf:org/whole", f"--input={scan}", f"--output={tmp_path}"]) == 0
    assert len(list(tmp_path.glob("*.nii.gz"))) == 1
    assert not (whole / "evaluation").exists()


def test_what_a_run_of_the_hub_cannot_do_is_said(bare, whole, hub, tmp_path):
    hub.held |= {"org/bare": bare, "org/other": tmp_path}
    with pytest.raises(UserError, match=r"could not be fetched \(LookupError: 404: org/absent\); offline"):
        jras_jax.open_run("hf:org/absent")
    with pytest.raises(UserError, match=r"hf:org/other is not a run of this program"):
        jras_jax.open_run("hf:org/other")
    with pytest.raises(UserError, match=r"hf download org/bare --local-dir FOLDER"):
        call("evaluate", "--workdir=hf:org/bare")
    with pytest.raises(UserError, match="published without the names of its patients"):
        call("evaluate", f"--workdir={bare}")
    with pytest.raises(UserError, match=r"published run, which cannot be resumed"):
        call("train", "--config=demo", f"--workdir={bare}")


def test_others_score_the_same_patients_if_they_are_named(whole, scored, tiny, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    where = [f"--config.dataset.data_dir={tiny.data_dir}", "--config.eval.split=test"]
    theirs = evaluate(tmp_path / "run", *where)
    ours = json.loads((scored / "evaluation" / "test" / "summary.json").read_text())
    assert theirs["mean"]["dice"] == pytest.approx(ours["mean"]["dice"], abs=1e-6)


@pytest.mark.parametrize("damage", ["weights", "missing", "config"])
def test_a_damaged_folder_is_refused(whole, tmp_path, damage):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    weights = folder / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "weights":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    else:
        config = json.loads((folder / "config.json").read_text())
        config["retriever"]["dim"] = 64
        (folder / "config.json").write_text(json.dumps(config))
    words = {
        "weights": "does not match its checksum",
        "missing": "is missing",
        "config": "of another model or data set",
    }[damage]
    with pytest.raises(UserError, match=words):
        jras_jax.open_run(folder)


def test_the_card_tells_what_the_run_knows(bare, whole, scored):
    text = (bare / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "apache-2.0" and head["library_name"] == "jras_jax"
    summary = json.loads((scored / "evaluation" / "test" / "summary.json").read_text())
    (dice,) = [m for m in head["model-index"][0]["results"][0]["metrics"] if m["type"] == "dice"]
    assert dice["value"] == pytest.approx(summary["mean"]["dice"], abs=1e-4)
    for words in ("Not a medical device", "no patient was ever seen", "train 4, validation 2, test 3", "3 patients"):
        assert words in text
    assert f"| mean | {summary['mean']['dice']:.3f} [" in text and summary["protocol"] in text
    assert "No run without retrieval was evaluated" in text and "Segments RV, MYO, LV slice by slice" in text
    assert certificate.sentence(summary["retrieval_certificate"]) in text and "Random guides" not in text
    assert "gallery of the training patients is not published" in text
    assert "holds images and masks of patients" in (whole / "README.md").read_text()


def test_warnings_that_name_patients_or_folders_stay_here(tmp_path):
    folder = write_fake_run(tmp_path / "run")
    leak = "config.retrieval.exclude='none' lets slices of the query's own patient guide it"
    facts = json.loads((folder / "run.json").read_text())
    facts["warnings"] = [leak, "2 test patients were added after the run was started (Jane Doe, ...)"]
    (folder / "run.json").write_text(json.dumps(facts))
    contents = card.Contents(
        [report_files.read(folder)],
        [],
        licence="mit",
        step=400,
        patients={"train": 2},
        gallery="",
        patients_named=False,
    )
    text = card.card(contents)
    assert leak in text and "Jane Doe" not in text and "1 more warnings, which name patients" in text


def test_a_run_that_leaks_by_protocol_says_so(tmp_path):
    folder = write_fake_run(tmp_path / "run")
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"warnings": [provenance.PAPER_WARNING]}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"protocol": "paper"}))
    run = report_files.read(folder)
    text = card.card(card.Contents([run], [], licence="mit", step=4, patients={}, gallery="", patients_named=False))
    assert provenance.PAPER_WARNING in text and "Slices were split at random" in text
    assert "Split by patient" not in text and "Random guides were not evaluated" in text


def test_what_cannot_be_published_is_refused(run_with_gallery, scored, bare, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"has no scores for the model card: run jras evaluate"):
        call("publish", run_with_gallery, tmp_path / "a")
    with pytest.raises(UserError, match="holds files already"):
        call("publish", scored, bare)
    with pytest.raises(UserError, match=r"leave --config\.eval\.tta=True out"):
        call("publish", scored, tmp_path / "a", "--config.eval.tta=True")
    monkeypatch.setattr(card, "LICENCES", {})
    with pytest.raises(UserError, match=r"give the licence of the weights, such as --license="):
        call("publish", scored, tmp_path / "a")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs the package huggingface_hub"):
        call("publish", scored, tmp_path / "a", "--license=mit")
    assert not (tmp_path / "a").exists()
