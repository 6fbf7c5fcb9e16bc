import io
import json

import pytest
import rich.console

from segjax.training.checkpoint import Checkpoints
from segjax.training.tracker import Tracker
from segjax.training.watch import NonFiniteLoss, Watch

GOOD = {"loss": 0.5, "grad_norm": 1.0, "param_norm": 2.0}
NAN = float("nan")


@pytest.fixture
def told():
    return io.StringIO()


@pytest.fixture
def watch(tiny, tmp_path, told):
    console = rich.console.Console(file=told, width=200)
    with (
        Checkpoints(tmp_path) as checkpoints,
        Tracker(tmp_path, start=0, steps=9, examples_per_step=4, console=console) as tracker,
    ):
        yield Watch(checkpoints, tracker, tiny, ("background", "debris", "void"))


def logged(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_a_step_is_looked_at_when_the_next_was_dispatched(watch, tmp_path):
    watch.dispatched(1, dict(GOOD), ["a"])
    assert not (tmp_path / "metrics.jsonl").exists()
    watch.dispatched(2, dict(GOOD), ["b"])
    assert [line["step"] for line in logged(tmp_path)] == [1]
    watch.settle()
    assert [line["step"] for line in logged(tmp_path)] == [1, 2]


@pytest.mark.parametrize("key", GOOD)
def test_each_of_the_vital_numbers_stops_the_run_with_step_and_files(watch, key):
    watch.dispatched(7, GOOD | {key: NAN}, ["night/a.png", "b"])
    with pytest.raises(
        NonFiniteLoss, match=rf"step 7: .*{key} nan.*expected finite.*The batch was night/a.png, b\. No ch"
    ):
        watch.settle()


def test_steps_may_be_left_out_but_not_too_many_in_a_row(watch, tiny, tmp_path, told):
    tiny.training.skip_nonfinite = 2
    for step, loss in enumerate((NAN, 0.5, NAN), start=1):
        watch.dispatched(step, GOOD | {"loss": loss}, ["a[1].png"])
    watch.settle()
    assert "warning: step 1: loss nan" in told.getvalue()
    assert "The batch was a[1].png. The step was left out." in told.getvalue()
    assert "train/loss" not in logged(tmp_path)[0]  # JSON has no NaN
    watch.dispatched(4, GOOD | {"loss": float("inf")}, ["a"])
    with pytest.raises(
        NonFiniteLoss, match=r"step 4: loss inf.*the last of 2 in a row that were left out\. No checkpoint"
    ):
        watch.settle()
