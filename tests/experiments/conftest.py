"""CamVid's layout with a few tiny pictures, and the recipe's config at their size."""

import cv2
import numpy as np
import pytest

from configs import camvid_unet_recipe

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
