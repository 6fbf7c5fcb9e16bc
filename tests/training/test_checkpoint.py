"""Checkpoints: what they restore, which are kept, and damage to any file."""

import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from segjax.training.checkpoint import CheckpointError, Checkpoints, restore_newest
from segjax.training.network import make_model
from segjax.training.train_step import init_state


@pytest.fixture(scope="module")
def state(config):
    return init_state(config, make_model(config, 2))


def at(state, step):
    return state.replace(step=state.step + step)


def test_restore_gives_the_saved_state_bit_for_bit(tmp_path, state, tiny):
    tiny.seed = 1
    like = init_state(tiny, make_model(tiny, 2))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(state, 3), {"position": 17})
    with Checkpoints(tmp_path) as checkpoints:
        restored, position = checkpoints.restore(like, checkpoints.latest_step())
    assert position == {"position": 17}
    assert int(restored.step) == 3
    jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, restored.opt_state, state.opt_state)
    np.testing.assert_array_equal(jax.random.key_data(restored.key), jax.random.key_data(state.key))


def test_save_keeps_the_last_two_and_the_best(tmp_path, state):
    with Checkpoints(tmp_path) as checkpoints:
        for step, score in [(1, 0.2), (2, 0.9), (3, None), (4, 0.5), (5, None)]:
            checkpoints.save(at(state, step), {}, score)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.step_named("best") == 2
        assert checkpoints.step_named("latest") == 5
        assert checkpoints.step_named("2") == 2
        with pytest.raises(FileNotFoundError, match=r"no checkpoint '3'; expected best, latest or one of 2, 4, 5"):
            checkpoints.step_named("3")


def test_step_named_best_without_a_score_is_the_latest(tmp_path, state):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(state, 1), {})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.step_named("best") == 1


def test_checkpoints_folder_without_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoints: expected a folder .*checkpoints"):
        Checkpoints(tmp_path, read_only=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
    with (
        Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(FileNotFoundError, match="holds no finished checkpoint"),
    ):
        checkpoints.step_named("best")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state):
    """Returns a workdir with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(at(state, step), {"position": step}, 0.5)
    return folder


def data_files(checkpoint):
    """Returns the files that a restore reads."""
    late = ("commit_success.txt", "_CHECKPOINT_METADATA")
    return sorted(p.relative_to(checkpoint) for p in checkpoint.rglob("*") if p.is_file() and p.name not in late)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate, os.remove], ids=["flipped", "cut", "missing"])
def test_checkpoints_name_any_damage_to_any_file_and_use_the_one_before(saved, tmp_path, damage):
    files = data_files(saved / "checkpoints" / "2")
    assert len(files) > 8
    for i, file in enumerate(files):
        copy = tmp_path / str(i)
        shutil.copytree(saved, copy)
        damage(copy / "checkpoints" / "2" / file)
        with Checkpoints(copy, read_only=True) as checkpoints:
            assert checkpoints.latest_step() == checkpoints.step_named("best") == 1
        (line,) = checkpoints.damaged
        named = file if file.name in line else "sha256.json"  # a damaged list of checksums can name any file
        assert line.startswith("checkpoint 2 is damaged: ")
        assert str(named) in line or damage is flip


def test_save_after_damage_sets_the_checkpoint_aside(saved, tmp_path, state):
    shutil.copytree(saved, tmp_path / "run")
    flip(tmp_path / "run" / "checkpoints" / "2" / "state" / "_METADATA")
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(at(state, 2), {"position": 17})
    names = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"1", "2", "2.damaged"}
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        assert checkpoints.restore(state, 2)[1] == {"position": 17}


def test_checkpoints_all_damaged_changes_nothing(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    for step in "12":
        (tmp_path / "run" / "checkpoints" / step / "sha256.json").unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        CheckpointError, match=r"all checkpoints in .* are damaged: checkpoint 1 is damaged: .*1/sha256.json: expected"
    ):
        Checkpoints(tmp_path / "run")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.width", 8, r"params/down0/conv1/kernel is float32\[3,3,3,4\]; this config expects float32\[3,3,3,8\]"),
        ("model.depth", 1, r"params/down2/conv1/kernel is float32\[3,3,8,16\]; this config expects no such array"),
        ("training.ema_decay", 0.9, r"ema/batch_stats/down0/.* is not there; this config expects float32\[4\]"),
        ("optimizer.name", "sgd", r"opt_state/.* is .*; this config expects no such array"),
    ],
)
def test_restore_of_another_network_names_the_first_difference(saved, tiny, field, value, message):
    tiny.update_from_flattened_dict({field: value})
    with (
        Checkpoints(saved, read_only=True) as checkpoints,
        pytest.raises(CheckpointError, match=rf"checkpoints/2 is of another network or optimizer: {message}"),
    ):
        checkpoints.restore(init_state(tiny, make_model(tiny, 2)), 2)


def test_restore_of_another_number_of_classes(saved, tiny):
    tiny.objective.loss = "softmax_focal"
    with (
        Checkpoints(saved, read_only=True) as checkpoints,
        pytest.raises(
            CheckpointError, match=r"params/head/linear/bias is float32\[1\]; this config expects float32\[3\]"
        ),
    ):
        checkpoints.restore(init_state(tiny, make_model(tiny, 3)), 2)


def test_save_of_the_same_step_replaces_it(tmp_path, state):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(state, 1), {"unscored": True})
        checkpoints.save(at(state, 1), {"unscored": False}, 0.5)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.restore(state, 1)[1] == {"unscored": False}


def test_old_checkpoint_that_a_kill_left_half_removed_is_not_damaged(saved, tmp_path, state, monkeypatch):
    shutil.copytree(saved, tmp_path / "run")

    def kill(folder, *unused, **options):
        file = next(path for path in sorted(Path(folder).rglob("*")) if path.is_file())
        file.unlink()
        raise KeyboardInterrupt  # nothing after this point runs, as after a kill

    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(at(state, 3), {})
    checkpoints.wait()
    with monkeypatch.context() as patch:
        patch.setattr("segjax.training.checkpoint.shutil.rmtree", kill)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(at(state, 4), {})
    with Checkpoints(tmp_path / "run") as again:
        assert again.damaged == []
        assert again.all_steps() == [2, 3]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["2", "3"]


def test_plain_file_named_like_a_checkpoint_is_set_aside(saved, tmp_path, state):
    shutil.copytree(saved, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "7").write_text("mine")
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.damaged[0].startswith("checkpoint 7 is damaged: ")
        checkpoints.save(at(state, 7), {})
    assert (tmp_path / "run" / "checkpoints" / "7.damaged").read_text() == "mine"
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 7


@pytest.mark.parametrize("content", [b"[]", b"null", b"{}", b'[["a", "b"]]', b"[" * 10**5, b'{"state/_METADATA": 1}'])
def test_checksums_of_another_form_are_damage(saved, tmp_path, content):
    shutil.copytree(saved, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "2" / "sha256.json").write_bytes(content)
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        assert checkpoints.all_steps() == [1]


def remove_while_read(monkeypatch, folder, steps):
    """Lets a training remove each of `steps`, as it does, when its files are about to be read."""
    restore = Checkpoints.restore

    def removed_first(self, like, step):
        if step in steps:
            (folder / str(step)).rename(folder / f"removed-{step}")
        return restore(self, like, step)

    monkeypatch.setattr(Checkpoints, "restore", removed_first)


def test_restore_newest_reads_the_next_checkpoint_if_training_removes_one(saved, tmp_path, state, monkeypatch):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    newest, *_ = sorted((int(path.name) for path in (tmp_path / "checkpoints").iterdir()), reverse=True)
    remove_while_read(monkeypatch, tmp_path / "checkpoints", [newest])
    assert int(restore_newest(epath.Path(tmp_path), "latest", state).step) < newest


def test_restore_newest_of_a_step_that_training_removes_lists_the_others(saved, tmp_path, state, monkeypatch):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    first, *others = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    remove_while_read(monkeypatch, tmp_path / "checkpoints", [first])
    with pytest.raises(FileNotFoundError, match=f"no checkpoint '{first}'; expected .*{others[-1]}"):
        restore_newest(epath.Path(tmp_path), str(first), state)


def test_restore_newest_warns_of_a_damaged_checkpoint(saved, tmp_path, state, capfd):
    shutil.copytree(saved, tmp_path / "run")
    truncate(tmp_path / "run" / "checkpoints" / "2" / "sha256.json")
    assert int(restore_newest(epath.Path(tmp_path / "run"), "latest", state).step) == 1
    assert "checkpoint 2 is damaged" in capfd.readouterr().err
