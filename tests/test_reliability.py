"""The frame of docs/RELIABILITY.md: what a row may do, and that the table has every row."""

import pathlib

import pytest

from tests import reliability
from tests.reliability import Absent, Row, attempt, load_rows, table, updated


def test_the_table_has_every_row_and_each_held():
    text = reliability.TABLE.read_text(encoding="utf-8")
    rows = load_rows()
    assert len({(r.kind, r.tried) for r in rows}) == len(rows) > 30
    for row in rows:
        assert f"| {row.kind} | {row.tried} | {row.done} | " in text, f"{row.tried}: run python -m tests.reliability"
    assert "FAILS" not in text


def test_a_row_is_tried_as_often_as_it_says_and_in_an_empty_folder(tmp_path, capsys):
    seen = []

    def function(lab):
        assert isinstance(lab.folder, pathlib.Path) and not list(lab.folder.iterdir())
        (lab.folder / "x").write_text("")
        seen.append(lab.seed)
        assert lab.seed < 2, "the third fails"

    assert attempt(Row("k", "t", times=2, function=function), tmp_path) == (True, "as it must")
    assert attempt(Row("k", "t", times=4, function=function), tmp_path) == (
        False,
        "FAILS (AssertionError), held 2 of 4 times",
    )
    assert seen == [0, 1, 0, 1, 2] and not list(tmp_path.iterdir())
    assert "the third fails" in capsys.readouterr().err


def test_what_cannot_be_tried_here_is_no_failure(tmp_path):
    def function(lab):
        raise Absent("no cases")

    assert attempt(Row("k", "t", times=1, function=function), tmp_path) == (None, "not tried: no cases")


def test_commands_run_as_on_the_command_line(tmp_path):
    lab = reliability.Lab(tmp_path, 0, tmp_path)
    assert lab.jras("no_such_command").refused("is not a command")
    assert not lab.jras("no_such_command").refused("other words")
    assert "commands:" in lab.jras("--help").out
    with pytest.raises(AssertionError):
        reliability.Result(1, "", "Traceback (most recent call last):").refused(status=1)


def test_the_table_is_markdown():
    text = table([(Row("a|b", "c\nd", times=3, function=lambda lab: None, each=2), "fine")])
    assert "\n| a\\|b | c d | 6 | fine |\n" in text


def test_rows_that_are_not_tried_keep_their_outcome():
    first, second, new = (Row("kind", tried, times=1, function=lambda lab: None) for tried in ("a", "b", "c"))
    text = table([(first, "x | y"), (second, "old")])
    assert updated([first, second, new], [(second, "fresh")], text) == [(first, "x | y"), (second, "fresh")]
