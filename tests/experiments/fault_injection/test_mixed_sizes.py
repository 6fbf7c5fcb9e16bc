import cv2
import numpy as np

from experiments.fault_injection import mixed_sizes
from segjax.data import open_split
from segjax.training.config import validate


def test_write_images_of_many_sizes_whose_masks_are_where_they_are_bright(tmp_path):
    mixed_sizes.write_images(tmp_path, {"train": 6, "val": 2})
    config = mixed_sizes.config_of(tmp_path, seed=1)
    validate(config)
    source = open_split(config.data, "train")
    assert len(source) == 6
    assert source.native_size is None
    for index in range(len(source)):
        image = cv2.cvtColor(source[index]["image"], cv2.COLOR_RGB2GRAY)
        np.testing.assert_array_equal(image > 125, source[index]["label"] == 1)
