"""One tiny prepared data set and the config that trains on it, for every test of this folder."""

import numpy as np
import pytest

from segjax.training import defaults
from segjax.training.train_step import init_state, make_model


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def config(data_dir):
    """A width-4 net on 32×48 pixels, four steps. Not to be changed: `tiny` is."""
    config = defaults()
    config.data.data_dir = str(data_dir)
    config.data.scene_size = (64, 96)
    config.data.train_examples, config.data.val_examples = 12, 6
    config.data.size = (32, 48)
    config.data.workers = 0
    config.model.width, config.model.depth = 4, 2
    config.model.padding = "zeros"  # compiles three times as fast as reflection, which the model's own tests cover
    config.objective.loss = "sigmoid_focal"
    config.training.steps = 4
    config.training.global_batch = 4
    config.training.log_every = 1
    config.training.evaluate_every = 2
    config.training.checkpoint_every = 1
    return config


@pytest.fixture
def tiny(config):
    """`config`, a copy for each test to change."""
    return config.copy_and_resolve_references()


@pytest.fixture(scope="session")
def tiny_flags():
    """`tiny_flags(**changes)`: what makes `segjax.train` tiny, as its command line takes it."""

    def flags(**changes):
        fields = {
            "data.scene_size": (64, 96),
            "data.train_examples": 8,
            "data.val_examples": 4,
            "data.size": (32, 48),
            "model.depth": 1,
            "training.global_batch": 4,
            "training.log_every": 1,
        }
        fields |= {key.replace("__", "."): value for key, value in changes.items()}
        return [f"--config.{key}={value}" for key, value in fields.items()]

    return flags


@pytest.fixture
def parts(tiny):
    """The tiny config, its network and a fresh state."""
    model = make_model(tiny, 2)
    return tiny, model, init_state(tiny, model)


@pytest.fixture
def batch():
    """Makes a batch of noise as the loader gives it, with a band of void at the top."""

    def make(examples=4, size=(40, 56)):
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 2, (examples, *size)).astype(np.uint8)
        labels[:, :4] = 255
        return {
            "image": rng.integers(0, 256, (examples, *size, 3)).astype(np.uint8),
            "label": labels,
            "index": np.arange(examples, dtype=np.int32),
        }

    return make
