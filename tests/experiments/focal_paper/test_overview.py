"""The picture at the top of README, of networks before training."""

import numpy as np
import pytest

from experiments.focal_paper import overview
from segjax.data import label_set
from segjax.trained_run import TrainedRun
from segjax.training.network import make_model
from segjax.training.train_step import init_state


@pytest.fixture
def runs(tmp_path):
    """Returns the two runs, untrained, with a score each."""
    found = {}
    for number, (name, config) in enumerate(overview.configs().items()):
        config.data.data_dir, config.data.scene_size, config.data.size = str(tmp_path), (64, 96), (32, 48)
        config.data.train_examples, config.data.val_examples = 2, 4
        config.model.width, config.model.depth, config.model.padding = 2, 1, "zeros"
        model = make_model(config, 2)
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(f'{{"average_precision": 0.{number}}}')
        found[name] = TrainedRun(tmp_path / name, config, model, init_state(config, model), label_set(config.data))
    return found


def test_configs_differ_in_the_prior_only():
    plain, prior = overview.configs().values()
    assert prior.model.prior
    assert not plain.model.prior
    plain.model.prior, plain.model.head_stddev = prior.model.prior, prior.model.head_stddev
    assert plain == prior


def test_overview_has_a_row_per_image_and_debris_in_the_truth(runs):
    picture = overview.overview(runs)
    assert picture.shape[1] == 5 * (overview.WIDTH + 4) + 4
    rows = (picture.shape[0] - 40) // overview.IMAGES
    assert rows == 20 + overview.WIDTH * 64 // 96
    image, truth = (picture[40:200, left : left + overview.WIDTH].astype(int) for left in (4, 248))
    tinted = np.abs(truth - image).sum(-1) > 100
    assert 0 < tinted.mean() < 0.1
