"""The log of a run: its lines, events and progress bar."""

import contextlib
import io
import json
import math
import resource

import numpy as np
import pytest
import rich.console
from tensorboardX.proto.event_pb2 import SessionLog

from segjax.training import ConfigError, metrics_writer
from segjax.training.metrics_writer import METRICS_FILE, PAGE_FILE, MetricsWriter, append, drop_after, read_log


def writer_of(workdir, start=0, steps=4, console=None):
    return MetricsWriter(workdir, start=start, steps=steps, examples_per_step=8, console=console)


def quiet():
    return rich.console.Console(file=io.StringIO(), width=120, force_terminal=True)


def test_metrics_file_has_every_value_in_order(tmp_path):
    with writer_of(tmp_path, console=quiet()) as writer:
        writer.scalars(1, {"train/loss": 0.5})
        writer.scalars(2, {"eval/mean_iou": 0.25})
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert lines == [{"step": 1, "train/loss": 0.5}, {"step": 2, "eval/mean_iou": 0.25}]


def test_resumed_writer_drops_lines_after_its_checkpoint(tmp_path):
    with writer_of(tmp_path, console=quiet()) as writer:
        for step in (1, 2, 3):
            writer.scalars(step, {"train/loss": float(step)})
    with writer_of(tmp_path, start=2, console=quiet()) as writer:
        writer.scalars(3, {"train/loss": 30.0})
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert [(line["step"], line["train/loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 30.0)]


GOOD = [b'{"step": %d, "train/loss": 1.0}\n' % step for step in (1, 2, 3)]

TEXT = b"".join(GOOD).decode()
BAD = (b"", b'{"step": 2, "tra', b"null", b'{"loss": 2}', b'{"step": "2"}', b"\xff\xfe\x00", b"[" * 10**5)


@pytest.mark.parametrize("bad", BAD)
def test_drop_after_leaves_out_a_damaged_line_and_keeps_the_others(tmp_path, bad):
    path = tmp_path / METRICS_FILE
    path.write_bytes(GOOD[0] + bad + b"\n" + GOOD[1] + GOOD[2])
    rows, damaged = drop_after(path, 2)
    assert [row["step"] for row in rows] == [1, 2]
    assert damaged == [2]
    assert path.read_bytes() == GOOD[0] + GOOD[1]


def test_drop_after_removes_a_half_written_line(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_bytes(GOOD[0] + GOOD[1][:9])
    assert drop_after(path, 5)[1] == []
    assert path.read_bytes() == GOOD[0]


@pytest.mark.parametrize("content", [b"my notes\n", TEXT.encode("utf-16"), TEXT.encode("utf-16-le")])
def test_drop_after_of_another_file_changes_nothing(tmp_path, content):
    path = tmp_path / METRICS_FILE
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{METRICS_FILE}: expected the log of a run"):
        drop_after(path, 0)
    assert path.read_bytes() == content


def test_resumed_writer_warns_of_a_damaged_line(tmp_path):
    (tmp_path / METRICS_FILE).write_bytes(GOOD[0] + b"?\n" + GOOD[1])
    console = rich.console.Console(file=io.StringIO(), width=400)
    with writer_of(tmp_path, start=2, console=console):
        pass
    assert f"{METRICS_FILE}, line 2 is damaged" in console.file.getvalue()


def test_tensorboard_events_have_scalars_and_images(tmp_path):
    image = np.zeros((4, 6, 3), np.uint8)
    with writer_of(tmp_path, console=quiet()) as writer:
        writer.scalars(1, {"train/loss": 0.5})
        writer.image(1, "eval/image", image)
    (events,) = (tmp_path / "tensorboard").iterdir()
    written = events.read_bytes()
    assert b"train/loss" in written
    assert b"eval/image" in written
    assert b"\x89PNG" in written


@contextlib.contextmanager
def largest_file(size):
    """Makes the system refuse to write beyond `size` bytes of a file, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_events_that_cannot_be_written_are_dropped_with_one_warning(tmp_path):
    console, image = quiet(), np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    with largest_file(4096), writer_of(tmp_path, console=console) as writer:
        for step in range(1, 30):  # more than the ten events that tensorboardX's queue takes
            writer.image(step, "eval/image", image)
            writer.scalars(step, {"train/loss": 0.5})
    assert console.file.getvalue().replace("\n", " ").count("cannot be written") == 1
    assert len(read_log(tmp_path)) == 29


def test_events_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "tensorboard").touch()
    console = rich.console.Console(file=io.StringIO(), width=400)
    with writer_of(tmp_path, console=console) as writer:
        writer.scalars(1, {"train/loss": 0.5})
    assert f"warning: {tmp_path}/tensorboard cannot be written" in console.file.getvalue()
    assert len(read_log(tmp_path)) == 1


def test_resumed_events_start_a_session_after_the_checkpoint(tmp_path):
    with writer_of(tmp_path, start=7, console=quiet()):
        pass
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert SessionLog(status=SessionLog.START).SerializeToString() in events.read_bytes()[-20:]


def test_log_that_cannot_be_written_is_named(tmp_path):
    with largest_file(10), pytest.raises(OSError, match=METRICS_FILE):
        append(tmp_path / METRICS_FILE, 1, {"train/loss": 0.5})


def test_progress_bar_shows_steps_rate_loss_and_time_left(tmp_path):
    console = quiet()
    with writer_of(tmp_path, console=console) as writer:
        writer.advance(1)
        writer.advance(2)
        writer.scalars(2, {"train/loss": 0.5})
        writer.scalars(2, {"eval/mean_iou": 0.25})
        writer.scalars(4, {"eval/mean_iou": 0.2})
    shown = console.file.getvalue()
    for part in ("compiling", "training", "2/4", "images/s", "loss 0.5000", "mIoU 0.200 (best 0.250)", "eta"):
        assert part in shown


def test_score_of_two_classes_is_average_precision_and_its_best_is_kept_by_a_resumed_run(tmp_path):
    with writer_of(tmp_path, console=quiet()) as writer:
        writer.scalars(1, {"eval/mean_iou": 0.5, "eval/average_precision": 0.75})
    console = rich.console.Console(file=io.StringIO(), width=120)  # no terminal
    with writer_of(tmp_path, start=1, console=console) as writer:
        writer.scalars(2, {"train/loss": 0.5})
        writer.scalars(2, {"eval/mean_iou": 0.6, "eval/average_precision": 0.7})
    assert "step 2: loss 0.5000  AP 0.700 (best 0.750)  mIoU 0.600" in console.file.getvalue()


def test_score_that_is_undefined_is_shown_and_not_logged(tmp_path):
    console = rich.console.Console(file=io.StringIO(), width=120)
    with writer_of(tmp_path, console=console) as writer:
        writer.scalars(1, {"eval/mean_iou": 0.5, "eval/average_precision": math.nan})
        writer.scalars(2, {"eval/mean_iou": math.nan, "eval/pixel_loss": 0.0})
    assert "step 1: AP n/a  mIoU 0.500 (best 0.500)" in console.file.getvalue()
    assert "step 2: mIoU n/a" in console.file.getvalue()
    assert read_log(tmp_path) == [{"step": 1, "eval/mean_iou": 0.5}, {"step": 2, "eval/pixel_loss": 0.0}]


def test_writer_of_another_host_writes_nothing(tmp_path):
    with writer_of(None, console=quiet()) as writer:
        writer.scalars(1, {"train/loss": 0.5})
        writer.image(1, "eval/image", np.zeros((4, 6, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_read_log_of_nothing_is_empty_if_it_is_not_required(tmp_path):
    assert read_log(tmp_path, required=False) == []


def test_read_log_leaves_out_a_half_written_line(tmp_path):
    (tmp_path / METRICS_FILE).write_text(
        '{"step": 1, "train/loss": 0.5}\n{"step": 2, "train/loss": NaN}\n{"step": 3, "tr'
    )
    first, second = read_log(tmp_path)
    assert first == {"step": 1, "train/loss": 0.5}
    assert second["step"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "nothing has been logged yet; expected one JSON line per logged step"),
        ("", "nothing has been logged yet"),
        ('{"step": 1}\n{"loss": 2}\n', "line 2: expected a step and the values logged there as JSON"),
        ("[1]\n", "line 1: expected a step"),
        ("\x00\n", "line 1: expected a step"),
    ],
)
def test_read_log_of_another_file_names_it(tmp_path, text, message):
    if text is not None:
        (tmp_path / METRICS_FILE).write_text(text)
    with pytest.raises(ConfigError, match=f"{METRICS_FILE}.*{message}"):
        read_log(tmp_path)


def test_events_of_a_folder_are_on_disk_when_a_checkpoint_is_published(tmp_path):
    with writer_of(tmp_path) as writer:
        writer.scalars(1, {"train/loss": 1.0})
        (events,) = (tmp_path / "tensorboard").iterdir()
        before = events.stat().st_size
        writer.publish()
        assert events.stat().st_size > before


# The page of the run.

PAGE = {"title": "unet on debris", "fields": [], "facts": {"commit": "abc"}}


def page_writer(workdir, console, start=0):
    return MetricsWriter(workdir, start=start, steps=4, examples_per_step=8, console=console, page=PAGE)


def test_page_has_the_numbers_and_refreshes_itself_until_the_run_has_ended(tmp_path):
    console = rich.console.Console(file=io.StringIO(), width=400)
    with page_writer(tmp_path, console) as writer:
        assert f"page of the run, up to date while it trains: {tmp_path / PAGE_FILE}" in console.file.getvalue()
        assert "Step 0 of 4, running" in (tmp_path / PAGE_FILE).read_text()
        for step in (1, 2):
            writer.advance(step)
            writer.scalars(step, {"train/loss": step / 4})
        writer.image(2, "eval/image", np.zeros((4, 6, 3), np.uint8))
        writer.scalars(2, {"eval/mean_iou": 0.625})
        writer.write_page()
        page = (tmp_path / PAGE_FILE).read_text()
        assert 'data-refresh="15"' in page
        assert "Step 2 of 4, running, less than a minute left" in page
        assert '"x":[1,2],"y":[0.25,0.5]' in page
        assert "<td>0.625</td>" in page
        assert "data:image/jpeg" in page
    page = (tmp_path / PAGE_FILE).read_text()
    assert "data-refresh=" not in page.split("<script>")[0]
    assert "Step 2 of 4, finished" in page


def test_page_of_a_failed_run_has_its_error_and_its_last_numbers(tmp_path):
    writer = page_writer(tmp_path, quiet()).__enter__()
    writer.scalars(1, {"train/loss": 0.125})
    writer.__exit__(ValueError, ValueError("bad <batch>"), None)
    page = (tmp_path / PAGE_FILE).read_text()
    assert "ended by ValueError: bad &lt;batch&gt;" in page
    assert '"x":[1],"y":[0.125]' in page


def test_page_of_a_resumed_run_has_the_earlier_numbers(tmp_path):
    for start in (0, 1):
        with page_writer(tmp_path, quiet(), start) as writer:
            writer.scalars(start + 1, {"train/loss": 0.5})
    assert '"x":[1,2],"y":[0.5,0.5]' in (tmp_path / PAGE_FILE).read_text()


@pytest.mark.parametrize("start", [0, 2])
def test_page_of_a_run_that_goes_on_keeps_its_examples(tmp_path, start):
    with page_writer(tmp_path, quiet()) as writer:
        writer.image(2, "eval/image", np.zeros((4, 6, 3), np.uint8))
    with page_writer(tmp_path, quiet(), start):  # from the beginning, or of a run that had ended
        pass
    page = (tmp_path / PAGE_FILE).read_text()
    assert ("Images of the evaluation split at step 2." in page) == (start == 2)


def test_page_that_cannot_be_written_is_one_warning(tmp_path, monkeypatch):
    console = rich.console.Console(file=io.StringIO(), width=400)

    def write_bytes(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(metrics_writer, "write_bytes", write_bytes)
    with page_writer(tmp_path, console) as writer:
        writer.scalars(1, {"train/loss": 0.5})
        writer.write_page()
    assert console.file.getvalue().count("warning: run.html cannot be written ([Errno 28] No space left") == 1
    assert json.loads((tmp_path / METRICS_FILE).read_text())["train/loss"] == 0.5
