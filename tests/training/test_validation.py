"""Everything that can be wrong with a config is named before anything is read."""

import pytest

from segjax.training import ConfigError, defaults, validate
from segjax.training.config import RENAMED, check_known, from_leaves, leaves


def test_the_defaults_are_valid_but_for_the_pair_of_loss_and_data():
    validate(defaults())


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
        ("training.steps", 0, r"config.training.steps must be in \(0, inf\); got 0"),
        ("optimizer.learning_rate", -1.0, r"config.optimizer.learning_rate must be in \(0, inf\); got -1.0"),
        ("objective.gamma", -1.0, r"config.objective.gamma must be in \[0, inf\); got -1.0"),
        ("objective.hard_fraction", 1.5, r"config.objective.hard_fraction must be in \(0, 1\] or None; got 1.5"),
        ("objective.hard_fraction", 0.0, r"config.objective.hard_fraction must be in \(0, 1\] or None; got 0.0"),
        ("augment.crop_fraction", 3.0, r"config.augment.crop_fraction must be in \(0, 1\]; got 3.0"),
        ("model.head_stddev", -1.0, r"config.model.head_stddev must be in \(0, inf\) or None; got -1.0"),
        ("model.dropout_rate", 1.0, r"config.model.dropout_rate must be in \[0, 1\); got 1.0"),
        ("model.dropout", "monte-carlo", r"config.model.dropout must be one of none, sampled, analytic; got"),
        ("objective.region", "iou", r"config.objective.region must be one of none, dice, .*lovasz; got 'iou'"),
        ("objective.uncertainty_weight", 1.0, r"needs a variance: set config.model.dropout"),
        ("training.phases", ((0.6, 500, 1e-3),), r"phases add up to 500; config.training.steps is 1000"),
        ("training.phases", ((0.6, 1000),), r"must be \(crop fraction in \(0, 1\], steps, learning rate\)"),
        ("training.ema_decay", 1.0, r"config.training.ema_decay must be in \[0, 1\) or None; got 1.0"),
        ("objective.alpha", 0.5, r"config.objective.alpha belongs to sigmoid losses"),
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


@pytest.mark.parametrize("key", ["optimizer.learning_rate", "augment.crop_fraction"])
def test_a_field_that_the_phases_replace_is_refused(key):
    config = from_leaves(leaves(defaults()) | {"training.phases": ((0.6, 500, 2e-3), (1.0, 500, 1e-3))})
    validate(config)
    with pytest.raises(ConfigError, match=rf"config.{key} = 0.5 has no effect with config.training.phases"):
        validate(from_leaves(leaves(config) | {key: 0.5}))


def test_a_variance_needs_two_heads():
    config = defaults()
    config.model.dropout, config.model.num_samples, config.objective.uncertainty_weight = "sampled", 1, 1.0
    with pytest.raises(ConfigError, match=r"config.model.num_samples must be at least 2 for a variance; got 1"):
        validate(config)


def test_void_as_a_class_is_the_background_and_belongs_to_softmax_losses():
    config = defaults()
    config.objective.void, config.objective.background = "class", 0
    with pytest.raises(ConfigError, match=r"config.objective.background must be None if void is a class"):
        validate(config)
    config.objective.background, config.objective.loss = None, "sigmoid_focal"
    with pytest.raises(ConfigError, match=r"void = 'class' belongs to softmax losses; got sigmoid_focal"):
        validate(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "hinge", "alpha": 0.5}, r"alpha belongs to sigmoid losses, hinge does not take it; got 0.5"),
        ({"loss": "sigmoid_focal_star", "gamma": 0.0}, r"gamma must be above 0 for sigmoid_focal_star.*got 0.0"),
        ({"loss": "sigmoid_focal", "background": 1}, r"background of sigmoid_focal must be class 0.*got 1"),
        (
            {"hard_fraction": 0.5, "hard_threshold": 1.0},
            r"config.objective.hard_fraction and .*hard_threshold cannot be combined",
        ),
        ({"normalizer": "positives"}, r"normalizer = 'positives' counts the pixels that are not background: set"),
        ({"negatives_per_positive": 3.0}, r"negatives_per_positive = 3.0 counts the pixels that are not background"),
    ],
)
def test_objectives_that_contradict_themselves_are_refused(fields, message):
    wrong = leaves(defaults()) | {f"objective.{key}": value for key, value in fields.items()}
    with pytest.raises(ConfigError, match=message):
        validate(from_leaves(wrong))


@pytest.mark.parametrize("field", [{"normalizer": "positives"}, {"negatives_per_positive": 3.0}])
@pytest.mark.parametrize("known", [{"background": 0}, {"void": "class"}, {"loss": "hinge"}])
def test_positives_are_known_where_the_background_is(field, known):
    validate(from_leaves(leaves(defaults()) | {f"objective.{key}": value for key, value in (field | known).items()}))


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_check_known_old_name_names_the_new_one(old, new):
    for check in (lambda: check_known(old, 3), lambda: from_leaves({old: 3})):
        with pytest.raises(ConfigError, match=rf"config.{old} was renamed; use config.{new}"):
            check()
