"""Configs at the size of tests: the recipe's on a few tiny pictures in CamVid's layout, the sweeps' on tiny scenes."""

import cv2
import numpy as np
import pytest

from configs import camvid_unet_recipe, rare_class

SIZE = (24, 32)


@pytest.fixture
def tiny_recipe(tmp_path, monkeypatch):
    """`camvid_unet_recipe.get_config` for a width-4 net on four training and three validation images; the config."""
    rng, root = np.random.default_rng(0), tmp_path / "raw"
    for split, count in (("train", 4), ("val", 3)):
        for folder, shape, values in ((split, (*SIZE, 3), 256), (f"{split}annot", SIZE, 12)):
            (root / folder).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, values, shape).astype(np.uint8)
                assert cv2.imwrite(str(root / folder / f"{i}.png"), pixels)
    full_size = camvid_unet_recipe.get_config

    def tiny():
        config = full_size()
        config.data.data_dir, config.data.manual_dir = str(tmp_path / "prepared"), str(root)
        config.data.size, config.data.workers = SIZE, 0
        config.model.width, config.model.depth, config.model.padding = 4, 2, "zeros"
        config.training.global_batch = 4  # of the four host devices
        return config

    monkeypatch.setattr(camvid_unet_recipe, "get_config", tiny)
    return tiny()


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory):
    """The base config of the sweeps for a width-4 net on eight small scenes, four steps; locked."""
    config = rare_class.get_config("smoke")
    config.data.data_dir = str(tmp_path_factory.mktemp("prepared"))
    config.data.scene_size, config.data.size = (64, 96), (32, 48)
    config.data.train_examples, config.data.val_examples = 8, 4
    config.model.width, config.model.depth = 4, 2
    config.optimizer.learning_rate = 1e-3
    config.training.global_batch, config.training.steps = 4, 4
    config.training.evaluate_every = config.training.checkpoint_every = 2
    return config.lock()


@pytest.fixture
def tiny_study(tiny_scenes, monkeypatch):
    """`tiny_study(config)` makes a sweep's config module that small, and gives it."""

    def shrink(config):
        monkeypatch.setattr(config, "get_config", lambda preset, data: tiny_scenes.copy_and_resolve_references())
        return config

    return shrink
