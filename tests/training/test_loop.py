import io
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
import rich.console

from segjax.data import DataError, open_split
from segjax.trained_run import fingerprint, load_run
from segjax.training import CheckpointError, ConfigError, NonFiniteLoss, Terminated, train
from segjax.training.checkpoint import Checkpoints
from segjax.training.evaluation import evaluate
from segjax.training.train_step import init_state, make_model, make_train_step


def quiet():
    return rich.console.Console(file=io.StringIO(), width=160)


def final_state(config, workdir):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore(init_state(config, make_model(config, 2)), config.training.steps)


@pytest.fixture
def tiny(tiny):
    """All that makes one step differ from the next: phases, dropout, a running mean."""
    tiny.training.phases = ((0.6, 1, 2e-3), (0.75, 2, 2e-3), (1.0, 1, 1e-3))
    tiny.training.ema_decay, tiny.training.gradient_budget = 0.9, True
    tiny.model.dropout, tiny.model.dropout_mask = "sampled", "channel"
    tiny.objective.uncertainty_weight, tiny.objective.background = 1.0, 0
    return tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Where the undisturbed run of four steps lies, once a test has made it."""
    return tmp_path_factory.mktemp("runs") / "whole"


@pytest.fixture(scope="module")
def traces():
    """One entry each time that the step of the undisturbed run was traced."""
    return []


@pytest.fixture
def done(tiny, whole, traces, monkeypatch):
    def counting(*arguments):
        step = make_train_step(*arguments)

        def counted(*operands):
            traces.append(operands)
            return step(*operands)

        return counted

    if not whole.exists():
        monkeypatch.setattr("segjax.training.loop.make_train_step", counting)
        train(tiny, whole, console=quiet())
        monkeypatch.undo()
    return whole


def test_a_run_leaves_config_metrics_events_checkpoints_and_scores(done, tiny):
    assert {p.name for p in done.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "scores.json",
    }
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]
    evaluated = [line for line in lines if "eval/mean_iou" in line]
    assert [line["step"] for line in evaluated] == [2, 4]
    assert {"eval/iou/debris", "eval/recall/debris"} <= set(evaluated[0])
    assert {"train/pixel_loss", "train/penalty"} <= set(lines[0])
    scores = json.loads((done / "scores.json").read_text())
    assert scores["images"] == tiny.data.val_examples
    assert scores["provenance"]["versions"]["jax"] == jax.__version__


def test_the_phases_of_a_curriculum_share_one_compilation(done, traces):
    rates = [json.loads(line).get("train/learning_rate") for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert len({rate for rate in rates if rate}) > 1
    assert len(traces) == 1


def test_the_gradient_budget_is_logged_by_class(done):
    line = json.loads((done / "metrics.jsonl").read_text().splitlines()[0])
    shares = {key: value for key, value in line.items() if key.startswith("budget/")}
    assert set(shares) == {f"budget/{name}/{kind}" for name in ("background", "debris") for kind in ("easy", "hard")}
    assert sum(shares.values()) == pytest.approx(1.0)


def test_every_labelled_pixel_of_the_split_is_scored_once(done, tiny):
    source = open_split(tiny.data, "val")
    labelled = sum(int((source[i]["label"] != 255).sum()) for i in range(len(source)))
    scores = json.loads((done / "scores.json").read_text())
    assert np.sum(scores["confusion"]) == labelled


def test_a_run_that_was_cut_ends_as_if_it_had_not_been(done, tiny, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segjax.training.loop.evaluate", _cut)  # at step 2, after the checkpoint of step 1
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path, console=quiet())
    console = quiet()
    train(tiny, tmp_path, console=console)
    assert "resumed at step 1 of 4" in console.file.getvalue()
    (resumed, resumed_position), (whole, position) = final_state(tiny, tmp_path), final_state(tiny, done)
    assert resumed_position == position
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, resumed.opt_state, whole.opt_state)
    jax.tree.map(np.testing.assert_array_equal, resumed.ema, whole.ema)
    assert (tmp_path / "metrics.jsonl").read_text() == (done / "metrics.jsonl").read_text()


def _cut(*args):
    raise KeyboardInterrupt


def test_a_finished_run_is_scored_again_and_not_trained(done, tiny, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(done, again)
    scores = train(tiny, again, console=quiet())
    before = json.loads((done / "scores.json").read_text())
    assert scores["confusion"] == before["confusion"]
    assert (again / "metrics.jsonl").read_text() == (done / "metrics.jsonl").read_text()


def test_a_changed_config_is_said_on_resume(done, tiny, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(done, again)
    tiny.objective.gamma = 1.0
    console = quiet()
    train(tiny, again, console=console)
    assert "config.objective.gamma is now 1.0; the run was started with 2.0" in console.file.getvalue()


def test_a_loss_that_is_not_finite_stops_with_step_files_and_checkpoint(tiny, tmp_path):
    tiny.training.phases, tiny.optimizer.learning_rate = (), 1e30
    tiny.optimizer.name, tiny.optimizer.clip_norm = "sgd", 0.0
    with pytest.raises(
        NonFiniteLoss, match=r"step \d: loss .*expected finite values. The batch was \S+, \S+, \S+, \S+\."
    ):
        train(tiny, tmp_path, console=quiet())


def test_a_run_is_opened_by_its_workdir_or_by_a_checkpoint(done, tiny):
    latest = load_run(done / "checkpoints" / "latest")
    assert int(latest.state.step) == 4
    assert load_run(done).label_set.names == latest.label_set.names
    assert load_run(done / "checkpoints" / "4").config.model.width == tiny.model.width


def test_a_network_is_known_by_its_numbers(done):
    latest, first = (load_run(done / "checkpoints" / step) for step in ("latest", "2"))
    assert fingerprint(load_run(done / "checkpoints" / "4")) == fingerprint(latest) != fingerprint(first)


def test_a_folder_that_is_no_run_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a run: expected .*config.json"):
        load_run(tmp_path)


@pytest.mark.parametrize("text", ['{"model.width": 8', "[1, 2]", '{"learning_rate": 0.1}'])
def test_a_config_that_is_damaged_or_another_programs_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/config.json is not the config of a run, or is damaged \("):
        load_run(tmp_path)


def test_bad_input_stops_before_training(tiny, tmp_path):
    tiny.data.channels, tiny.data.mean = 1, (0.5,)
    with pytest.raises(ConfigError, match=r"config.data.channels = 1, but the images of road_debris have 3"):
        train(tiny, tmp_path / "grey", console=quiet())
    tiny.data.channels, tiny.data.eval_split = 3, "tset"
    with pytest.raises(DataError, match="tset"):
        train(tiny, tmp_path / "split", console=quiet())
    assert not any(tmp_path.iterdir())


def test_a_signal_within_an_evaluation_does_not_wait_for_it_and_nothing_is_missed(done, tiny, tmp_path, monkeypatch):
    def heard(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr("segjax.training.loop.evaluate", heard)
    with pytest.raises(
        Terminated, match=r"stopped after step 2 of 4, which is saved in .*; the same command carries on"
    ):
        train(tiny, tmp_path, console=quiet())
    monkeypatch.undo()
    train(tiny, tmp_path, console=quiet())
    assert (tmp_path / "metrics.jsonl").read_text() == (done / "metrics.jsonl").read_text()
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {p.name for p in (done / "checkpoints").iterdir()}


def test_a_damaged_newest_checkpoint_is_named_and_the_run_ends_as_if_it_had_not_been(done, tiny, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(done, again)
    (again / "checkpoints" / "4" / "state" / "_METADATA").write_bytes(b"{}")
    console = quiet()
    train(tiny, again, console=console)
    assert "warning: checkpoint 4 is damaged" in console.file.getvalue()
    assert "resumed at step 3 of 4" in console.file.getvalue()
    (resumed, _), (whole, _) = final_state(tiny, again), final_state(tiny, done)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


def test_a_checkpoint_of_another_network_stops_the_run_and_the_config_is_kept(done, tiny, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(done, again)
    tiny.model.width = 6
    console = quiet()
    with pytest.raises(CheckpointError, match=r"is of another network or optimizer: params/down0/conv1/kernel is"):
        train(tiny, again, console=console)
    assert "config.model.width is now 6; the run was started with 4" in console.file.getvalue()
    assert (again / "config.json").read_text() == (done / "config.json").read_text()


def test_steps_that_are_not_finite_are_left_out_counted_and_too_many_stop(tiny, tmp_path):
    tiny.training.phases, tiny.optimizer.learning_rate = (), 1e30
    tiny.optimizer.name, tiny.optimizer.clip_norm = "sgd", 0.0
    tiny.training.skip_nonfinite = 2
    console = quiet()
    with pytest.raises(NonFiniteLoss, match=r"It is the last of 2 skipped in a row"):
        train(tiny, tmp_path / "stopped", console=console)
    assert console.file.getvalue().count("The step was skipped.") == 1
    tiny.training.skip_nonfinite = 9
    scores = train(tiny, tmp_path / "skipped", console=quiet())
    assert 0 < scores["skipped_steps"] <= 4
