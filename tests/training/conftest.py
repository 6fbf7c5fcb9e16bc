"""One tiny prepared data set and the config that trains on it, for every test of this folder."""

import pytest

from segjax.training import defaults


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def tiny(data_dir):
    """A width-4 net on 32×48 pixels, four steps; each test gets its own copy to change."""
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
