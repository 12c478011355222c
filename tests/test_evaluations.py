"""Several evaluations of one run: each keeps its scores and its report, and every command says which one it reads."""

import gc
import json
import os
import shutil
import weakref

import numpy as np
import pytest

from jras_jax.commands import cli
from jras_jax.errors import UserError
from jras_jax.evaluation import evaluate as evaluation
from jras_jax.evaluation import evaluator
from jras_jax.evaluation.compare import cases_file
from jras_jax.inference.trained_run import open_run
from jras_jax.report import write_report
from jras_jax.retrieval import measures
from jras_jax.run_folder.layout import RunFolder, evaluation_name, without_retrieval
from tests.commands import evaluate
from tests.fake_run import write_fake_run


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory):
    """A run that was evaluated on test, on validation, and on test with random guides."""
    folder = RunFolder(tmp_path_factory.mktemp("evaluations") / "run")
    shutil.copytree(trained_run, folder.path)
    before = {}
    for more in (["test"], ["validation"], ["test", "--config.retrieval.strategy=random"]):
        call = ["evaluate", f"--workdir={folder}", f"--config.eval.split={more[0]}", *more[1:]]
        assert cli.main(call) == 0
        for name, content in before.items():
            assert snapshot(folder.evaluation(name).path) == content, name
        before = {name: snapshot(one.path) for name, one in folder.evaluations().items()}
    return folder


def test_every_evaluation_keeps_its_files(run):
    assert list(run.evaluations()) == ["test", "validation", "test+strategy=random"]
    for name, one in run.evaluations().items():
        summary = json.loads(one.summary.read_text())
        assert summary["evaluation"] == name and summary["split"] == one.split == name.partition("+")[0]
        assert summary["mean"]["n"] == one.cases.read_text().count("\n") - 1
        assert one.report.is_file() and list(one.evidence.glob("*.npz"))
    splits = run.read_splits()
    for name in ("test", "validation"):
        assert {line.split(",")[0] for line in run.evaluation(name).cases.read_text().splitlines()[1:]} == set(
            splits[name]
        )


def test_the_report_is_about_the_last_one_or_the_one_asked_for(run, tmp_path):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, folder.path)
    last = folder.report.read_text()
    assert "report, test+strategy=random</title>" in last and "Scored on the test set" in last
    whole, own = last.split('class="links"'), folder.evaluation("test+strategy=random").report.read_text()
    assert own.split('class="links"')[0] == whole[0]  # the links to the tables are relative
    folder.evaluation("validation").report.unlink()
    assert cli.main(["report", str(folder), "--split=validation"]) == 0
    assert folder.report.read_text() == last
    asked = folder.evaluation("validation").report.read_text()
    assert "report, validation</title>" in asked and "Scored on the validation fold" in asked


def test_the_last_one_is_known_in_a_copy_without_times(run, tmp_path):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, folder.path, copy_function=shutil.copyfile)
    for file in folder.path.rglob("summary.json"):
        os.utime(file, (1, 1))
    assert folder.find_evaluation().name == "test+strategy=random"


def test_a_repeated_evaluation_writes_the_same_bytes_and_only_its_own(run, tmp_path):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, folder.path)
    (folder.evaluation("test").path / "my notes.txt").write_text("kept")
    (folder.evaluation("test").evidence / "gone_ED.npz").write_bytes(b"")
    scored = snapshot(folder.evaluation("test").path)
    evaluate(folder.path, "--config.eval.split=test")
    again = snapshot(folder.evaluation("test").path)
    missing = {str(path) for path in scored.keys() - again.keys()}
    assert missing == {"evidence/gone_ED.npz", "report.html"}  # the report is the command's
    assert all(scored[path] == data for path, data in again.items())
    assert folder.find_evaluation().name == "test"


def test_compare_asks_which_if_there_are_several(run, tmp_path, capsys):
    assert cli.main(["compare", str(run), str(run)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "choose one of test, validation, test+strategy=random with --split=NAME" in line
    assert cli.main(["compare", str(run), str(run), "--split=validation"]) == 0
    assert f"A: {run.evaluation('validation').cases}" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"has no evaluation '\.\./\.\.', it has test"):
        cases_file(run.path, "../..")


def test_a_run_of_an_older_version_is_still_read(tmp_path, capsys):
    folder = RunFolder(write_fake_run(tmp_path / "run", patients=2, shown=1))
    for file in folder.evaluation("validation").path.iterdir():
        file.rename(tmp_path / "run" / "evaluation" / file.name)
    folder.evaluation("validation").path.rmdir()
    assert list(folder.evaluations()) == ["validation"]
    assert cases_file(folder.path) == tmp_path / "run" / "evaluation" / "cases.csv"
    assert write_report(folder.path) == folder.report
    assert cli.main(["report", str(folder), "--split=validation"]) == 0


def test_a_baseline_is_compared_on_the_same_patients_only(tmp_path):
    run = RunFolder(write_fake_run(tmp_path / "run", patients=2, shown=1))
    write_fake_run(run.baseline.path, patients=2, shown=0, guides=0)
    assert "against the baseline" in write_report(run.path).read_text()
    run.baseline.evaluation("validation").path.rename(run.baseline.evaluation("test").path)
    assert "No evaluated baseline was given" in write_report(run.path).read_text()
    with pytest.raises(UserError, match=r"baseline has no evaluation 'validation', it has test; make it with jras"):
        write_report(run.path, baseline_dir=run.baseline.path)
    run.evaluation("validation").path.rename(run.evaluation("test+strategy=random").path)
    assert "against the baseline" in write_report(run.path).read_text()  # which has no retrieval to vary


def test_names_hold_what_changes_the_scores(trained_run):
    names = {
        "": "test",
        "--config.eval.batch_size=3": "test",
        "--config.eval.split=validation": "validation",
        "--config.eval.tta=True": "test+tta=True",
        "--config.retrieval.strategy=top_k": "test",
        "--config.retrieval.exclude=none": "test+exclude=none",
    }
    for flag, name in names.items():
        assert evaluation.name_of(open_run(trained_run, (flag,) if flag else ())) == name
    name = evaluation_name("test", {"tta": True, "strategy": "random", "exclude": "none"})
    assert without_retrieval(name) == "test+tta=True"


def test_the_scores_of_another_checkpoint_are_replaced_and_that_is_said(run, tmp_path, capsys):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, folder.path)
    place = folder.evaluation("test").summary
    place.write_text(json.dumps(json.loads(place.read_text()) | {"checkpoint_step": 1}))
    capsys.readouterr()
    assert cli.main(["evaluate", f"--workdir={folder}", "--config.eval.split=test"]) == 0
    assert "replaces the scores of step 1 with those of step" in capsys.readouterr().out


def test_the_evaluation_holds_few_volumes_predictions_at_once(trained_run, tiny, tmp_path, monkeypatch):
    """Masks are written and retrieval is measured as the volumes come, not at the end."""
    shutil.copytree(trained_run, tmp_path / "run")
    opened = open_run(tmp_path / "run", ("--config.eval.split=train", "--config.eval.evidence_cases=0"))
    plain, alive, most, seen = evaluator.predictions, [], [], []

    def watched(*arguments, **settings):
        for volume, prediction in plain(*arguments, **settings):
            alive.append(weakref.ref(prediction))
            seen.append(volume.case)
            written = {path.name for path in (tmp_path / "masks").glob("*")}
            assert len(written) >= len(seen) - 2 - evaluator.WAITING, "a patient's masks wait for other patients"
            gc.collect()
            most.append(sum(one() is not None for one in alive))
            yield volume, prediction
            del prediction

    monkeypatch.setattr(evaluator, "predictions", watched)
    evaluation.evaluate(opened, tiny.data(opened), submission=tmp_path / "masks")
    assert len(seen) == 8 and max(most) <= 2 + evaluator.WAITING
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 8


def test_controls_do_not_depend_on_how_the_queries_come(monkeypatch):
    rng = np.random.default_rng(0)
    truth, masks = (rng.integers(0, 4, (n, 140, 140), np.uint8) for n in (23, 30))
    images, rows = (rng.integers(0, 256, (n, 140, 140), np.uint8) for n in (23, 30))
    allowed = rng.random((23, 30)) > 0.2
    monkeypatch.setattr(measures, "CHUNK", 8)
    whole = measures.controls(truth, images, allowed=allowed, masks=masks, gallery_images=rows)
    for sizes in ([1] * 23, [10, 0, 13], [3, 20]):
        scores, at = measures.Controls(masks, rows), 0
        for size in sizes:
            part = slice(at, at + size)
            scores.add(truth[part], images[part], allowed[part])
            assert len(scores._waiting) < 8
            at += size
        assert scores.averages() == whole
