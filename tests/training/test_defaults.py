import json

import pytest

from segjax.training import ConfigError, defaults, validate
from segjax.training.defaults import from_leaves, leaves


def test_the_defaults_are_valid_but_for_the_pair_of_loss_and_data():
    validate(defaults())


def test_leaves_survive_json():
    config = defaults()
    config.objective.alpha = 0.25
    config.model.prior = (0.01,)
    assert leaves(from_leaves(json.loads(json.dumps(leaves(config))))) == leaves(config)


def test_an_unknown_key_is_named_with_the_nearest_known_one():
    config = defaults()
    with config.unlocked():
        config.objective.gama = 2.0
    with pytest.raises(ConfigError, match=r"unknown config key config.objective.gama = 2.0; did you mean .*gamma"):
        validate(config)


def test_a_missing_key_is_named():
    config = defaults()
    with config.unlocked():
        del config.optimizer.momentum
    with pytest.raises(ConfigError, match=r"config.optimizer.momentum is missing"):
        validate(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("parallel", "pmpa", r"config.parallel must be one of jit, pmap, shard_map; got 'pmpa'"),
        ("data.name", "camvit", r"config.data.name must be one of .*camvid.*; got 'camvit'"),
        ("objective.loss", "focal", r"config.objective.loss must be one of .*sigmoid_focal.*; got 'focal'"),
        ("training.steps", 0, r"config.training.steps must be positive; got 0"),
        ("optimizer.learning_rate", -1.0, r"config.optimizer.learning_rate must be positive; got -1.0"),
        ("objective.gamma", -1.0, r"config.objective.gamma must be at least 0; got -1.0"),
        ("objective.alpha", 0.5, r"config.objective.alpha belongs to sigmoid losses"),
        ("objective.normalizer", "positives", r"\"positives\" belongs to sigmoid losses"),
        ("data.mean", (0.5, 0.5), r"config.data.mean needs 1 or config.data.channels = 3 values; got \(0.5, 0.5\)"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(key, value, message):
    config = from_leaves(leaves(defaults()) | {key: value})
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_sigmoid_losses_take_alpha_and_no_class_weights():
    config = defaults()
    config.objective.loss = "sigmoid_focal"
    config.objective.alpha = 0.25
    validate(config)
    config.objective.class_weights = (1.0, 2.0)
    with pytest.raises(ConfigError, match=r"class_weights belongs to softmax losses; sigmoid_focal takes .*alpha"):
        validate(config)
    config.objective.class_weights = ()
    config.objective.alpha = 1.5
    with pytest.raises(ConfigError, match=r"alpha must lie in \[0, 1\]; got 1.5"):
        validate(config)
