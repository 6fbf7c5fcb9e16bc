"""The network of a config."""

import pytest

from segjax.training import ConfigError, defaults
from segjax.training.network import make_model, num_outputs


@pytest.mark.parametrize(
    ("fields", "classes", "message"),
    [
        ({}, 5, r"sigmoid_focal.* needs a data set of 2 classes; road_debris has 5"),
        ({"model.prior": (0.9, 0.1)}, 2, r"config.model.prior needs 1 value\(s\) for sigmoid_focal; got \(0.9, 0.1\)"),
        (
            {
                "objective.loss": "softmax_cross_entropy",
                "objective.void": "class",
                "objective.class_weights": (1.0, 2.0),
            },
            2,
            r"class_weights needs 3 values, one per output of road_debris, void last",
        ),
        (
            {"objective.region_class_weights": (1.0, 2.0, 3.0)},
            2,
            r"region_class_weights needs 2 values, one per class of road_debris; got",
        ),
        ({"objective.background": 2}, 2, r"config.objective.background must be a class of road_debris, 0 to 1; got 2"),
    ],
)
def test_make_model_refuses_what_does_not_fit_the_classes(tiny, fields, classes, message):
    tiny.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=message):
        make_model(tiny, classes)


def test_num_outputs_of_void():
    config = defaults()
    config.objective.loss, found = "softmax_cross_entropy", []
    for config.objective.void in ("ignore", "class"):
        found.append(num_outputs(config, 3))
    assert found == [3, 4]
    config.objective.loss = "sigmoid_focal"
    assert num_outputs(config, 2) == 1
