"""`train`: its files, how it carries on, and its failures. A fake step stands in where training is not the subject."""

import contextlib
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from segjax import metrics
from segjax.data import DataError, open_split
from segjax.storage import StorageError, reserve
from segjax.trained_run import load_run, score_run
from segjax.training import CheckpointError, ConfigError, NonFiniteLoss, Terminated, loop, segmentation, train
from segjax.training.checkpoint import Checkpoints
from segjax.training.network import make_model
from segjax.training.provenance import run_record
from segjax.training.train_step import init_state, learning_rate_at

VITAL = ("loss", "grad_norm", "param_norm")


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def final_state(config, workdir):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore(init_state(config, make_model(config, 2)), config.training.steps)


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


@pytest.fixture
def full(run_config):
    """Returns a copy of the config of `trained`."""
    return run_config.copy_and_resolve_references()


@pytest.fixture
def fake(tiny, monkeypatch):
    """Returns `fake(**bad)`: the tiny config, for a loop whose step counts and whose evaluation is a constant.

    `bad` has the steps at which a vital number is NaN; such a step is counted as skipped if steps may be skipped.
    """
    scores = {"classes": ["background", "debris"], "images": 6}
    scores |= {k: np.asarray(v).tolist() for k, v in metrics.segmentation_scores(np.array([[5, 1], [1, 2]])).items()}
    monkeypatch.setattr(loop, "evaluate", lambda *arguments: dict(scores))
    monkeypatch.setattr(segmentation, "example_sheet", lambda *arguments: np.zeros((2, 2, 3), np.uint8))
    tiny.model.width, tiny.model.depth = 2, 1

    def make(**bad):
        def make_train_step(*arguments):
            def step(state, batch, hparams):
                now = state.step + 1
                measured = {
                    name: jnp.where(jnp.isin(now, jnp.array(bad.get(name, ()))), jnp.nan, now) for name in VITAL
                }
                if state.skipped is not None:
                    state = state.replace(skipped=state.skipped + jnp.isnan(sum(measured.values())))
                return state.replace(step=now), measured

            return step

        monkeypatch.setattr(loop, "make_train_step", make_train_step)
        return tiny

    return make


# One real run.


def test_train_leaves_config_metrics_events_checkpoints_and_scores(trained, full):
    names = {path.name for path in trained.workdir.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "tensorboard", "run.html", "checkpoints", "scores.json"}
    lines = lines_of(trained.workdir)
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]
    evaluated = [line for line in lines if "eval/mean_iou" in line]
    assert [line["step"] for line in evaluated] == [2, 4]
    assert {"eval/iou/debris", "eval/recall/debris", "eval/pixel_loss"} <= set(evaluated[0])
    assert {"train/pixel_loss", "train/penalty"} <= set(lines[0])
    scores = json.loads((trained.workdir / "scores.json").read_text())
    assert scores["images"] == full.data.val_examples
    assert scores["provenance"]["versions"]["jax"] == jax.__version__


def test_train_warns_if_the_scored_split_is_the_training_split(full, tmp_path, monkeypatch, quiet):
    def stop(*unused):
        raise InterruptedError

    monkeypatch.setattr("segjax.training.loop.make_train_step", stop)
    full.data.eval_split, console = full.data.train_split, quiet()
    with pytest.raises(InterruptedError):
        train(full, tmp_path / "run", console=console)
    assert "is the training split" in console.file.getvalue()
    assert not (tmp_path / "run").exists()


def test_train_phases_share_one_compilation(trained):
    assert len({line["train/learning_rate"] for line in lines_of(trained.workdir) if "train/loss" in line}) > 1
    assert len(trained.traces) == 1


def test_train_logs_the_gradient_budget_by_class(trained):
    shares = {key: value for key, value in lines_of(trained.workdir)[0].items() if key.startswith("budget/")}
    assert set(shares) == {f"budget/{name}/{kind}" for name in ("background", "debris") for kind in ("easy", "hard")}
    assert sum(shares.values()) == pytest.approx(1.0)


def test_train_scores_every_labelled_pixel_of_the_split_once(trained, full):
    source = open_split(full.data, "val")
    labelled = sum(int((source[i]["label"] != 255).sum()) for i in range(len(source)))
    assert np.sum(json.loads((trained.workdir / "scores.json").read_text())["confusion"]) == labelled


def test_train_killed_and_resumed_ends_bit_for_bit_like_an_undisturbed_run(trained, full, tmp_path, quiet):
    def killed(*arguments):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", killed)  # at step 2, after the checkpoint of step 1
        with pytest.raises(KeyboardInterrupt):
            train(full, tmp_path, console=quiet())
    console = quiet()
    train(full, tmp_path, console=console)
    assert "resumed at step 1 of 4" in console.file.getvalue()
    (resumed, resumed_position), (whole, position) = (final_state(full, run) for run in (tmp_path, trained.workdir))
    assert resumed_position == position
    for name in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(resumed, name), getattr(whole, name))
    assert (tmp_path / "metrics.jsonl").read_text() == (trained.workdir / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_train_ensemble_killed_and_resumed_is_one_run(tiny, tmp_path, quiet):
    def killed(*arguments):
        raise KeyboardInterrupt

    tiny.model.members, tiny.model.depth, tiny.training.steps = 2, 1, 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", killed)  # at step 2, after the checkpoint of step 1
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path / "resumed", console=quiet())
    scores, console = train(tiny, tmp_path / "resumed", console=quiet()), quiet()
    train(tiny, tmp_path / "whole", console=console)
    assert "unet with 2 members of" in console.file.getvalue()
    (resumed, _), (whole, _) = (final_state(tiny, tmp_path / name) for name in ("resumed", "whole"))
    jax.tree.map(np.testing.assert_array_equal, resumed.replace(key=None), whole.replace(key=None))
    assert {"train/loss", "train/member_loss/1"} <= set(lines_of(tmp_path / "whole")[0])
    run = load_run(tmp_path / "whole")
    assert run.members == 2
    assert score_run(run, "val")["confusion"] == scores["confusion"]


def test_train_finished_run_is_scored_again_and_prints_what_changed(trained, full, tmp_path, quiet, monkeypatch):
    again, console = tmp_path / "again", quiet()
    monkeypatch.setattr(loop, "run_record", lambda *arguments: {**run_record(*arguments), "jax": "9.9"})
    shutil.copytree(trained.workdir, again)
    full.objective.gamma = 1.0
    scores = train(full, again, console=console)
    other_jax = f"jax is now '9.9'; step 4 was trained with '{jax.__version__}'"
    printed = [line for line in console.file.getvalue().splitlines() if " is now " in line]
    assert printed == ["config.objective.gamma is now 1.0; the run was started with 2.0", other_jax]
    assert scores["changes"] == ["config.objective.gamma is now 1.0; step 4 was trained with 2.0", other_jax]
    assert (again / "config.json").read_text() == (trained.workdir / "config.json").read_text()
    assert scores["confusion"] == json.loads((trained.workdir / "scores.json").read_text())["confusion"]
    assert (again / "metrics.jsonl").read_text() == (trained.workdir / "metrics.jsonl").read_text()


def test_train_refuses_to_resume_with_another_number_of_members(trained, full):
    full.model.members = 2
    with pytest.raises(ConfigError, match=r"^config.model.members = 2, but .* was started with 1; .*--workdir$"):
        train(full, trained.workdir)


def test_train_checkpoint_of_another_network_stops_and_keeps_the_config(trained, full, tmp_path, quiet):
    again, console = tmp_path / "again", quiet()
    shutil.copytree(trained.workdir, again)
    full.model.width = 6
    with pytest.raises(CheckpointError, match=r"is of another network or optimizer: params/down0/conv1/kernel is"):
        train(full, again, console=console)
    assert "config.model.width is now 6; the run was started with 4" in console.file.getvalue()
    assert (again / "config.json").read_text() == (trained.workdir / "config.json").read_text()


def test_train_in_a_workdir_in_use_stops_before_anything_is_changed(fake, tmp_path, quiet):
    with reserve(epath.Path(tmp_path)):
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(StorageError, match=f"{tmp_path}: in use by process {os.getpid()}"):
            train(fake(), tmp_path, console=quiet())
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_train_resume_with_fewer_steps_than_done_is_refused(trained, full, tmp_path, quiet):
    again = tmp_path / "again"
    shutil.copytree(trained.workdir, again)
    full.training.steps, full.training.phases = 3, ()
    with pytest.raises(ConfigError, match=r"config.training.steps = 3, but .* for 4 steps already; expected at lea"):
        train(full, again, console=quiet())
    for name in ("config.json", "scores.json"):
        assert (again / name).read_bytes() == (trained.workdir / name).read_bytes()


def test_train_resume_with_more_steps_gives_both_learning_rates_and_the_way_back(fake, tmp_path, quiet):
    config, console = fake(), quiet()
    train(config, tmp_path, console=quiet())
    old = f"{learning_rate_at(4, config):.3g}"
    config.training.steps = 8
    train(config, tmp_path, console=console)
    new = f"{learning_rate_at(4, config):.3g}"
    printed = console.file.getvalue()
    assert f"warning: the learning rate of step 4 was {old}, and is {new} under the changed config" in printed
    assert f"--config.optimizer.learning_rate={old}" in printed
    assert json.loads((tmp_path / "scores.json").read_text())["changes"] == [
        "config.training.steps is now 8; step 4 was trained with 4"
    ]
    train(config, tmp_path, console=quiet())
    assert len(json.loads((tmp_path / "scores.json").read_text())["changes"]) == 1  # kept with the checkpoint


# Early stopping, and evaluations of a part.


@pytest.fixture
def evaluated(fake, monkeypatch):
    """Returns a config of 8 steps, each evaluated, and a list of the (step, images) of the evaluations.

    The mean IoU does not improve after step 2.
    """
    config, calls = fake(), []
    constant, ious = loop.evaluate(), (0.3, 0.6, 0.5, 0.5, 0.4, 0.4, 0.4, 0.4)

    def evaluate(eval_step, state, source, *unused):
        calls.append((int(state.step), len(source)))
        return constant | {"mean_iou": ious[int(state.step) - 1], "images": len(source)}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    config.training.steps, config.training.evaluate_every, config.training.patience = 8, 1, 3
    return config, calls


def test_train_patience_ends_the_run(evaluated, tmp_path, quiet):
    config, calls = evaluated
    console = quiet()
    scores = train(config, tmp_path, console=console)
    assert [step for step, _ in calls] == [1, 2, 3, 4, 5]
    assert scores["steps"] == 5
    reason = "stopped early after step 5 of 8: the score, 0.6000 at step 2, did not improve in 3 evaluations"
    assert scores["stopped_early"].startswith(reason)
    assert reason in console.file.getvalue()
    assert json.loads((tmp_path / "scores.json").read_text())["stopped_early"] == scores["stopped_early"]
    waited = [line["eval/evaluations_since_best"] for line in lines_of(tmp_path) if "eval/mean_iou" in line]
    assert waited == [0, 0, 1, 2, 3]
    assert saved_steps(tmp_path) == [2, 4, 5]  # the best, and the last two


@pytest.mark.parametrize("at", [1, 3, 5])
def test_train_patience_of_a_killed_and_resumed_run(evaluated, tmp_path, monkeypatch, quiet, at):
    config, _ = evaluated
    whole, evaluate = train(config, tmp_path / "whole", console=quiet()), loop.evaluate

    def killed(eval_step, state, *arguments):
        if int(state.step) == at:
            raise KeyboardInterrupt
        return evaluate(eval_step, state, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", console=quiet())
    resumed = train(config, tmp_path / "run", console=quiet())
    assert resumed["stopped_early"] == whole["stopped_early"]
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert saved_steps(tmp_path / "run") == saved_steps(tmp_path / "whole")


def test_train_run_that_stopped_early_trains_on_with_more_patience(evaluated, tmp_path, quiet):
    config, calls = evaluated
    first = train(config, tmp_path, console=quiet())
    calls.clear()
    assert train(config, tmp_path, console=quiet())["stopped_early"] == first["stopped_early"]
    assert calls == [(5, 6)]
    config.training.patience = 5
    assert train(config, tmp_path, console=quiet())["steps"] == 7
    assert json.loads((tmp_path / "config.json").read_text())["training.patience"] == 5
    config.training.patience = None
    assert "stopped_early" not in train(config, tmp_path, console=quiet())


def test_train_evaluate_examples_scores_all_at_the_end(evaluated, tmp_path, quiet):
    config, calls = evaluated
    config.training.evaluate_examples = 4
    assert train(config, tmp_path / "early", console=quiet())["images"] == 6
    assert calls == [*((step, 4) for step in range(1, 6)), (5, 6)]
    calls.clear()
    config.training.patience = None
    assert train(config, tmp_path / "whole", console=quiet())["images"] == 6
    assert calls == [*((step, 4) for step in range(1, 9)), (8, 6)]
    config.training.evaluate_examples = 6  # all
    calls.clear()
    train(config, tmp_path / "all", console=quiet())
    assert calls == [(step, 6) for step in range(1, 9)]


def test_train_sigterm_while_the_last_state_is_scored_counts_no_evaluation_twice(
    evaluated, tmp_path, monkeypatch, quiet
):
    config, calls = evaluated
    config.training.evaluate_examples = 4
    evaluate = loop.evaluate

    def stopped(eval_step, state, source, *arguments):
        if len(source) == 6:
            return send_sigterm_and_evaluate(eval_step, state, source, *arguments)
        return evaluate(eval_step, state, source, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", stopped)
        with pytest.raises(Terminated, match="stopped after step 5 of 8"):
            train(config, tmp_path / "run", console=quiet())
    calls.clear()
    resumed = train(config, tmp_path / "run", console=quiet())
    assert calls == [(5, 4), (5, 6)]
    whole = train(config, tmp_path / "whole", console=quiet())
    assert resumed["stopped_early"] == whole["stopped_early"]
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "whole")


# The order of events in a step.


@pytest.mark.parametrize("prefetch", [0, 2])
def test_train_places_batches_ahead_and_reads_each_step_while_the_next_one_runs(
    fake, tmp_path, monkeypatch, quiet, prefetch
):
    config, events = fake(), []
    config.training.prefetch, config.training.evaluate_every, config.training.checkpoint_every = prefetch, 4, 4

    class Number:
        def __init__(self, step):
            self.step = step

        def __float__(self):
            if ("read", self.step) not in events:
                events.append(("read", self.step))
            return 1.0

    def make_train_step(*arguments):
        def step(state, batch, hparams):
            now = int(state.step) + 1
            events.append(("run", now))
            return state.replace(step=jnp.int32(now)), {name: Number(now) for name in VITAL}

        return step

    def shard(mapping, batch):
        events.append(("placed", 1 + sum(kind == "placed" for kind, _ in events)))
        return batch

    monkeypatch.setattr(loop, "make_train_step", make_train_step)
    monkeypatch.setattr(loop.parallel.DeviceMapping, "map_step", lambda mapping, step, **options: step)
    monkeypatch.setattr(loop.parallel.DeviceMapping, "shard", shard)
    train(config, tmp_path, console=quiet())
    expected = [("placed", i + 1) for i in range(prefetch)]
    for step in range(1, 5):
        expected += [("placed", step + prefetch), ("run", step)] + [("read", step - 1)] * (step > 1)
    assert events == [*expected, ("read", 4)]  # the last one before its evaluation


# Steps that are not finite.


@pytest.mark.parametrize("number", VITAL)
def test_train_nonfinite_number_stops_with_step_files_and_last_good_checkpoint(fake, tmp_path, number, quiet):
    config = fake(**{number: (3,)})
    with contextlib.closing(loop.train_batches(config, open_split(config.data, "train"))) as batches:
        files = [next(batches)["name"].tolist() for _ in range(3)][-1]
    seen = ", ".join(f"{name} {'nan' if name == number else 3.0}" for name in VITAL)
    with pytest.raises(NonFiniteLoss) as stopped:
        train(config, tmp_path, console=quiet())
    assert str(stopped.value) == (
        f"step 3: {seen}; expected finite values. The batch was {', '.join(files)}. The last good checkpoint, step 2, "
        "is kept."
    )
    assert saved_steps(tmp_path) == [1, 2]


def test_train_nonfinite_first_step_has_no_checkpoint(fake, tmp_path, quiet):
    with pytest.raises(NonFiniteLoss, match=r"step 1: loss nan, .* No checkpoint was saved yet\.$"):
        train(fake(loss=(1,)), tmp_path, console=quiet())


def test_train_skips_nonfinite_steps_and_stops_at_too_many_in_a_row(fake, tmp_path, quiet):
    config, console = fake(loss=(1, 3), grad_norm=(4,)), quiet()
    config.training.skip_nonfinite = 2
    with pytest.raises(NonFiniteLoss, match=r"step 4: .*It is the last of 2 skipped in a row\..*step 3, is kept"):
        train(config, tmp_path / "stopped", console=console)
    assert console.file.getvalue().count("The step was skipped.") == 2
    config.training.skip_nonfinite = 3
    assert train(config, tmp_path / "skipped", console=quiet())["skipped_steps"] == 3
    assert [line["step"] for line in lines_of(tmp_path / "skipped") if "train/loss" in line] == [2, 4]


# Signals.


def send_sigterm_and_evaluate(eval_step, *arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return eval_step(*arguments)


def test_train_sigterm_in_an_evaluation_is_repeated_by_the_resumed_run(fake, tmp_path, monkeypatch, quiet):
    config = fake()
    train(config, tmp_path / "whole", console=quiet())
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", send_sigterm_and_evaluate)
        with pytest.raises(
            Terminated, match=r"stopped after step 2 of 4, which is saved in .*; the same command carries on"
        ):
            train(config, tmp_path / "run", console=quiet())
    train(config, tmp_path / "run", console=quiet())
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "whole")
    assert saved_steps(tmp_path / "run") == saved_steps(tmp_path / "whole")


def test_train_sigterm_before_the_unscored_step_is_scored_does_not_save_it_again(fake, tmp_path, monkeypatch, quiet):
    config = fake()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", send_sigterm_and_evaluate)
        with pytest.raises(Terminated):
            train(config, tmp_path, console=quiet())
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
        with pytest.raises(Terminated, match=r"stopped after step 2 of 4, which is saved"):
            train(config, tmp_path, console=quiet())
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")} == before


def test_train_signal_while_a_finished_run_is_scored_ends_it(fake, tmp_path, monkeypatch, quiet):
    config = fake()
    train(config, tmp_path, console=quiet())
    monkeypatch.setattr(loop, "evaluate", send_sigterm_and_evaluate)
    with pytest.raises(Terminated, match=f"SIGTERM: the finished run in {tmp_path} was not scored again"):
        train(config, tmp_path, console=quiet())


# Input and files that are wrong.


def test_train_bad_input_stops_before_anything_is_written(tiny, tmp_path, quiet):
    tiny.data.channels, tiny.data.mean = 1, (0.5,)
    with pytest.raises(DataError, match=r"config.data.channels = 1, but the images of road_debris have 3"):
        train(tiny, tmp_path / "grey", console=quiet())
    tiny.data.channels, tiny.data.eval_split = 3, "tset"
    with pytest.raises(DataError, match="tset"):
        train(tiny, tmp_path / "split", console=quiet())
    assert not any(tmp_path.iterdir())


def test_train_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(fake, tmp_path, quiet):
    config, console = fake(), quiet()
    train(config, tmp_path, console=quiet())
    (tmp_path / "checkpoints" / "4" / "state" / "_METADATA").write_bytes(b"{}")
    train(config, tmp_path, console=console)
    assert "warning: checkpoint 4 is damaged" in console.file.getvalue()
    assert "resumed at step 3 of 4" in console.file.getvalue()
    assert final_state(config, tmp_path)[0].step == 4


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "scores.json"])
@pytest.mark.parametrize("content", ["{}", '{"step": 1, "loss": 2}\n'])
def test_train_changes_nothing_in_a_folder_with_files_of_another_program(tmp_path, tiny, quiet, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=f"{name}.*workdir"):
        train(tiny, tmp_path, console=quiet())
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, content)]
