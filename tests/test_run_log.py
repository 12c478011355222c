"""What a run writes down while it trains: run.log, metrics.csv, TensorBoard; and that a full disk does not stop it."""

import csv
import errno
import logging
import os
import pathlib
import warnings

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from jras_jax import files
from jras_jax.commands import cli
from jras_jax.data.description import CARDIAC
from jras_jax.run_folder import event_log, run_log
from jras_jax.run_folder.layout import RunFolder
from jras_jax.run_folder.metric_log import MetricLog
from jras_jax.training.state import learning_rates, schedule

journal = logging.getLogger(run_log.JOURNAL)
ABSL = logging.getLogger("absl")


@pytest.fixture
def told():
    """The warnings that were given."""
    given = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: given.append(record.getMessage())
    ABSL.addHandler(handler)
    yield given
    ABSL.removeHandler(handler)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def events(folder):
    """Every event of a folder: a record is its length (8 bytes), a checksum (4), the event, a checksum (4)."""
    for file in sorted(pathlib.Path(folder).glob("events*")):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event()
            event.ParseFromString(data[12 : 12 + size])
            yield event
            data = data[16 + size :]


def table(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_log_holds_the_runs_lines_warnings_and_end_with_time_stamps(tmp_path):
    with pytest.raises(SystemExit), run_log.kept(RunFolder(tmp_path)):
        ABSL.warning("before the %s", "start")
        assert not (tmp_path / "run.log").exists()
        journal.info("step 1")
        warnings.showwarning(UserWarning("odd\nindeed"), UserWarning, __file__, 1)
        raise SystemExit("stopped by a signal")
    ABSL.warning("afterwards")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert all(line[4] == "-" and line[10] == "T" for line in lines)
    told = [line.partition(" ")[2] for line in lines]
    assert told[:3] == ["warning: before the start", "step 1", "warning: UserWarning: odd indeed"]
    assert told[-1] == "ended: SystemExit: stopped by a signal" and not any("afterwards" in t for t in told)


def test_warnings_are_printed_like_other_messages(monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])
    assert cli.main(["settings", "top_k"]) == 0
    ABSL.warning("%s is damaged", "metrics.csv")
    ABSL.error("lost")
    assert capsys.readouterr().err == "warning: metrics.csv is damaged\nerror: lost\n"


def test_a_start_that_fails_leaves_no_log(tmp_path):
    with pytest.raises(ValueError), run_log.kept(RunFolder(tmp_path / "run")):
        ABSL.warning("a warning")
        raise ValueError
    assert not (tmp_path / "run").exists()


def test_a_log_that_cannot_be_written_is_said_once_and_the_run_goes_on(tmp_path, capsys):
    (tmp_path / "run.log").mkdir()
    with run_log.kept(RunFolder(tmp_path)):
        journal.info("one")
        journal.info("two")
    said = capsys.readouterr().err
    assert said.count("run.log cannot be written") == 1 and "Traceback" not in said


def test_rows_that_a_full_disk_refused_are_written_later(tmp_path, monkeypatch, told):
    log = MetricLog(RunFolder(tmp_path), 0)
    log.write(1, {"loss": 1.0})
    before = (tmp_path / "metrics.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_text", full)
        patch.setattr(pathlib.Path, "open", full)
        log.write(2, {"loss": 2.0})
        log.write(3, {"loss": 3.0, "val/dice": 0.5})
    assert (tmp_path / "metrics.csv").read_bytes() == before
    log.write(4, {"loss": 4.0})
    log.close()
    assert [row["step"] for row in table(tmp_path)] == ["1", "2", "3", "4"]
    assert len(told) == 1 and f"{tmp_path / 'metrics.csv'} cannot be written" in told[0]


def test_events_on_a_full_disk_are_said_once_and_do_not_stop_the_run(tmp_path, monkeypatch, told):
    """tensorboardX's own writer would wait for ever here, at the eleventh value."""
    log = event_log.EventLog(RunFolder(tmp_path), 0)
    monkeypatch.setattr(event_log.EventsWriter, "write_event", full)
    for step in range(50):
        log.scalars(step, {"loss": 1.0, "dice": 0.5})
    log.close()
    assert len(told) == 1 and "TensorBoard events" in told[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"step,loss\r\n1,0.5,7\r\n", "row 2 has 3 cells"),
        (b"\xff\xfe\x00", "is damaged"),
        (b"loss\r\n0.5\r\n", "no column step"),
        (b'step,loss\r\n1,"0.5\r\n', "is damaged"),
    ],
)
def test_a_damaged_table_is_named_with_a_way_out(tmp_path, content, words):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(files.FileError, match=words) as error:
        MetricLog(RunFolder(tmp_path), 5)
    assert str(tmp_path / "metrics.csv") in str(error.value) and "delete it" in str(error.value)
    assert (tmp_path / "metrics.csv").read_bytes() == content


def test_half_a_line_of_a_killed_run_is_forgotten(tmp_path):
    """The row of step 120 was cut after "12", which is a step before the checkpoint at 100."""
    (tmp_path / "metrics.csv").write_bytes(b"step,loss\r\n50,0.5\r\n100,0.4\r\n12")
    MetricLog(RunFolder(tmp_path), 100).close()
    assert [row["step"] for row in table(tmp_path)] == ["50", "100"]


def test_learning_rates_are_those_of_the_optimiser(tiny):
    optim = tiny.config(optim__warmup_steps=10, optim__lr_retriever=0.002).optim
    for step in (1, 5, 11, 60, 100):
        rates = learning_rates(optim, 100, step)
        assert rates["lr_retriever"] == float(schedule(optim, 0.002, 100)(step - 1))
    assert learning_rates(optim, 100, 1)["lr_backbone"] == 0.0  # the warm-up begins at 0
    assert learning_rates(optim, 100, 11)["lr_backbone"] == pytest.approx(optim.lr_backbone)


def test_a_run_writes_its_log_learning_rates_settings_and_samples(trained_run):
    told = (trained_run / "run.log").read_text()
    assert "trains from step 0" in told and told.count("validated in") == 2 and told.splitlines()[-1].endswith("ended")
    assert {"lr_backbone", "lr_retriever"} <= set(table(trained_run)[0])
    images, texts, scalars = {}, {}, set()
    for event in events(trained_run):
        for value in event.summary.value:
            if value.HasField("image"):
                images.setdefault(event.step, []).append(value)
            elif value.HasField("tensor"):
                texts[value.tag] = value.tensor.string_val[0].decode()
            else:
                scalars.add(value.tag)
    assert {"loss", "lr_backbone", "val/dice"} <= scalars
    assert '"lr_backbone"' in texts["settings/text_summary"]
    assert sorted(images) == [2, 4]  # the validations
    for values in images.values():
        assert 1 <= len(values) <= 4
        for value in values:
            assert (value.image.height, value.image.width) == (32, 5 * 32)  # image, truth, prediction, two guides
            assert len(value.image.encoded_image_string) < 32 * 5 * 32 * 3


def test_samples_are_bounded_on_fine_grids():
    from jras_jax.training import samples

    image = np.zeros((1000, 1000), np.uint8)
    labels = np.full((1000, 1000), 2)
    shown = samples.painted(image, labels, CARDIAC.palette, channels=1)
    assert max(shown.shape[:2]) <= samples.SIDE and (shown == CARDIAC.palette[2] // 2).all()
