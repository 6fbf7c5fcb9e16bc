import jax
import numpy as np
import pytest

from segjax.training.checkpoint import Checkpoints
from segjax.training.step import init_state, make_model


@pytest.fixture
def state(tiny):
    return init_state(tiny, make_model(tiny, 2))


def at(state, step):
    return state.replace(step=state.step + step)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path, state, tiny):
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


def test_the_latest_and_the_best_are_kept(tmp_path, state):
    with Checkpoints(tmp_path) as checkpoints:
        for step, score in [(1, 0.2), (2, 0.9), (3, None), (4, 0.5), (5, None)]:
            checkpoints.save(at(state, step), {}, score)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.step_named("best") == 2
        assert checkpoints.step_named("latest") == 5
        assert checkpoints.step_named("2") == 2
        with pytest.raises(FileNotFoundError, match=r"no checkpoint '3'; expected best, latest or one of 2, 4, 5"):
            checkpoints.step_named("3")


def test_without_a_score_the_best_is_the_latest(tmp_path, state):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at(state, 1), {})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.step_named("best") == 1


def test_a_folder_without_checkpoints_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoints: expected a folder .*checkpoints"):
        Checkpoints(tmp_path, read_only=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
    with (
        Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(FileNotFoundError, match="holds no finished checkpoint"),
    ):
        checkpoints.step_named("best")
