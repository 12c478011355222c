"""The study's table: every arm has a name of its own and settings that exist."""

import json

import pytest

from benchmarks import study
from jras_jax import config as configs

ARMS = tuple(study.arms())


def test_no_two_arms_share_a_folder():
    assert len({arm.name for arm in ARMS}) == len(ARMS) == 49
    assert {arm.kind.split("/")[0] for arm in ARMS} == {"heart", "whole", "paper_whole"}


@pytest.mark.parametrize("arm", ARMS, ids=[arm.name for arm in ARMS])
def test_an_arm_differs_from_the_recipe_in_what_its_name_says(arm):
    config = configs.parse(configs.override(configs.load("configs/acdc_unet.py"), arm.options))
    assert config.dataset.frame == arm.frame and config.seed == arm.seed and config.protocol == arm.protocol
    assert config.dataset.max_train_patients == (0 if arm.patients == 64 else arm.patients)
    assert config.retrieval.enabled == (arm.guides != "none")
    if arm.guides != "none":
        assert config.fusion.name == arm.fusion
        assert (config.retriever.variant == "pixels") == (arm.guides == "pixels")
    assert bool(config.dataset.leave_out) == arm.variant.startswith("without")


def summary(dice, **certificate):
    return {
        "mean": {"dice": dice},
        "retrieval": {"retrieval_dice_1": 0.6, "retrieval_dice_k": 0.7} if certificate else {},
        "paper_2d": {"dice_2d_background": 0.9},
        **({"retrieval_certificate": certificate | {"verdict": "helps"}} if certificate else {}),
    }


def put(output, name, values, evaluation="validation"):
    folder = output / name / "evaluation" / evaluation
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(values))


def test_the_tables_hold_what_is_done(tmp_path):
    controls = {"real": 0.84, "random": 0.83, "blank": 0.82, "permuted": 0.81, "oracle": 0.86}
    put(tmp_path, "heart/none/8/seed0", summary(0.8))
    put(tmp_path, "heart/none/8/seed1", summary(0.9))
    put(tmp_path, "heart/learnt-prior/8/seed0", summary(0.84, **controls))
    grown = summary(0.87, **controls)
    put(tmp_path, "heart/learnt-prior/8/seed0", grown, "validation+gallery=gallery64-0123abcd")
    put(tmp_path, "whole/none/64/seed0", summary(0.79))
    study.write(tmp_path)
    lines = (tmp_path / "tables.md").read_text().splitlines()
    assert "| heart/none/8 | 0, 1 | 0.8000, 0.9000 | **0.8500** | - | - |" in lines
    shown = "0.8400 | 0.8300 | 0.8200 | 0.8100 | 0.8600 | +0.0200 | +0.0100"
    assert f"| heart/learnt-prior/8/seed0 | {shown} | helps |" in lines
    assert "| heart/learnt-prior/8/seed0 | 0.8400 | 0.8700 | 0.8200 | 0.8300 |" in lines
    assert "| whole/none/64/seed0 | 0.9000 | - |" in lines
    assert (tmp_path / "patients.svg").read_text().startswith("<?xml")


def test_a_record_adds_what_was_done_elsewhere_and_keeps_it(tmp_path, capsys):
    controls = {"real": 0.84, "random": 0.83, "blank": 0.82, "permuted": 0.81, "oracle": 0.86}
    names = [f"heart/learnt-prior/64/seed{seed}" for seed in range(2)]
    for machine, name in enumerate(names):
        put(tmp_path / f"machine{machine}", name, summary(0.84 + machine / 100, **controls))
        study.write(tmp_path / f"machine{machine}", tmp_path / "study.json")
    assert set(json.loads((tmp_path / "study.json").read_text())) == set(names)
    tables = (tmp_path / "machine1" / "tables.md").read_text()
    assert "| heart/learnt-prior/64 | 0, 1 | 0.8400, 0.8500 | **0.8450** | 0.600 | 0.700 |" in tables
    assert "**heart/learnt-prior/64, mean** | 0.8400 |" in tables and "| 2 seeds |" in tables
    record = f"--record={tmp_path / 'study.json'}"
    assert study.main([f"--output={tmp_path / 'new'}", f"--only={names[0][:-1]}", "--list", record]) == 0
    assert capsys.readouterr().out.splitlines() == [f"done  {names[0]}", f"done  {names[1]}", f"      {names[0][:-1]}2"]


def test_the_projects_own_record_is_of_arms_that_exist(tmp_path):
    record = study.ROOT / "benchmarks" / "study.json"
    assert set(study.read_record(record)) <= {arm.name for arm in ARMS}
    assert study.main([f"--output={tmp_path}", "--only=heart/none/8/seed0", f"--record={record}"]) == 0
    assert "| heart/none/8 |" in (tmp_path / "tables.md").read_text()


def test_what_is_done_is_listed_and_skipped(tmp_path, capsys, monkeypatch):
    put(tmp_path, "heart/none/8/seed0", summary(0.8))
    assert study.main([f"--output={tmp_path}", "--only=heart/none/8", "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "done  heart/none/8/seed0"
    ran = []
    monkeypatch.setattr(study, "build", lambda output, acdc: None)
    monkeypatch.setattr(study, "run", lambda output, arm, acdc, record: ran.append(arm.name) or "")
    assert study.main([f"--output={tmp_path}", "--only=heart/none/8", "--acdc=x", "--jobs=2"]) == 0
    assert ran == ["heart/none/8/seed1", "heart/none/8/seed2"]
    monkeypatch.setattr(study, "run", lambda output, arm, acdc, record: arm.name)
    assert study.main([f"--output={tmp_path}", "--only=heart/none/8", "--acdc=x"]) == 1
    assert "heart/none/8/seed1" in capsys.readouterr().err


def test_an_arm_whose_second_evaluation_is_missing_gets_it_and_a_failure_is_told(tmp_path, capsys, monkeypatch):
    name, ran = "heart/learnt-prior/8/seed0", []
    put(tmp_path, name, summary(0.84, real=0.84, random=0.83, blank=0.82, permuted=0.81, oracle=0.86))
    (tmp_path / name / "splits.json").write_text(json.dumps({"folds": [["a"], ["b"], ["c", "d"]]}))
    monkeypatch.setattr(study, "build", lambda output, acdc: None)
    monkeypatch.setattr(study, "_run_py", lambda log, *arguments: ran.append(arguments) or False)
    assert study.main([f"--output={tmp_path}", f"--only={name}", "--acdc=x"]) == 1
    assert name in capsys.readouterr().err
    gallery = tmp_path / "gallery64"
    assert ran == [("evaluate", f"--workdir={tmp_path / name}", f"--gallery={gallery}")]
    assert sorted(link.name for link in gallery.iterdir()) == ["b", "c", "d"]
    put(tmp_path, name, summary(0.85), study.GROWN.replace("*", "0123abcd"))
    assert study.main([f"--output={tmp_path}", f"--only={name}", "--list"]) == 0
    assert capsys.readouterr().out.strip() == f"done  {name}"
