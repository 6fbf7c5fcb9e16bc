"""The network of a config, the initial state and the optimizer."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.training import ConfigError
from segjax.training.state import init_state, make_model, make_optimizer, rare_train_ids, schedule

RNG = np.random.default_rng(0)


def test_init_state_is_a_pure_function_of_the_seed(parts):
    config, model, state = parts
    again = init_state(config, model)
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)
    config.seed = 1
    kernels = [jax.tree.leaves(s.params)[-1] for s in (state, init_state(config, model))]
    assert not np.array_equal(*kernels)


def test_init_state_prior_is_the_probability_of_every_pixel(tiny):
    tiny.model.prior, tiny.model.head_stddev, tiny.model.depth = (0.01,), 0.01, 1
    model = make_model(tiny, 2)
    state = init_state(tiny, model)
    images = jnp.asarray(RNG.normal(size=(1, 32, 48, 3)), jnp.float32)
    output = model.apply({"params": state.params, "batch_stats": state.batch_stats}, images, train=False)
    assert float(jax.nn.sigmoid(output.logits).mean()) == pytest.approx(0.01, rel=0.1)


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


@pytest.mark.parametrize(
    ("name", "classes", "expected"), [("road_debris", (), (1,)), ("camvid", ("pole", "bicyclist"), (2, 10))]
)
def test_rare_train_ids(tiny, name, classes, expected):
    assert rare_train_ids(tiny) == ()
    tiny.data.name, tiny.augment.rare_crops, tiny.augment.rare_classes = name, 0.3, classes
    assert rare_train_ids(tiny) == expected


@pytest.mark.parametrize(("name", "classes"), [("camvid", ()), ("camvid", ("poles",)), ("road_debris", ("crack",))])
def test_rare_train_ids_unknown(tiny, name, classes):
    tiny.data.name, tiny.augment.rare_crops, tiny.augment.rare_classes = name, 0.3, classes
    expected = f"config.augment.rare_classes must name classes of {name}, .*; got {re.escape(str(classes))}"
    with pytest.raises(ConfigError, match=expected):
        rare_train_ids(tiny)


# Optimizer and learning rate.


def test_weight_decay_applies_to_kernels_only(tiny):
    tiny.optimizer.name, tiny.optimizer.weight_decay = "sgd", 0.5
    optimizer = make_optimizer(tiny)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    direction, _ = optimizer.update(zero, optimizer.init(params), params)
    assert jax.tree.map(lambda d: float(d.max()), direction) == {"kernel": 0.5, "bias": 0.0, "scale": 0.0}


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("adamw", lambda mask: optax.adamw(0.1, weight_decay=0.01, mask=mask)),
        ("adam", lambda mask: optax.chain(optax.add_decayed_weights(0.01, mask=mask), optax.adam(0.1))),
        ("sgd", lambda mask: optax.chain(optax.add_decayed_weights(0.01, mask=mask), optax.sgd(0.1, momentum=0.9))),
    ],
)
def test_directions_times_the_rate_equal_optax(tiny, name, peer):
    tiny.optimizer.name, tiny.optimizer.weight_decay, tiny.optimizer.clip_norm = name, 0.01, 0.0
    params = {"kernel": jnp.asarray(RNG.normal(size=(3, 3))), "bias": jnp.ones(3)}
    ours, theirs = make_optimizer(tiny), peer({"kernel": True, "bias": False})
    our_state, their_state = ours.init(params), theirs.init(params)
    for seed in range(3):
        gradients = jax.tree.map(lambda p, s=seed: jnp.sin(p + s), params)
        direction, our_state = ours.update(gradients, our_state, params)
        update, their_state = theirs.update(gradients, their_state, params)
        jax.tree.map(lambda d, u: np.testing.assert_allclose(-0.1 * d, u, rtol=1e-5, atol=1e-7), direction, update)


@pytest.mark.parametrize(
    ("name", "middle", "end"), [("cosine", 0.5, 0.0), ("polynomial", 0.5**0.9, 0.0), ("constant", 1.0, 1.0)]
)
def test_schedule_warms_up_and_has_its_shape(tiny, name, middle, end):
    tiny.training.steps, tiny.optimizer.warmup_fraction, tiny.optimizer.schedule = 110, 10 / 110, name
    rate = schedule(tiny)
    found = [float(rate(jnp.float32(2.0), jnp.int32(step))) for step in (0, 10, 60, 110)]
    np.testing.assert_allclose(found, [0.2, 2.0, 2 * middle, 2 * end], atol=1e-6)


def test_init_state_first_member_is_the_single_network(parts):
    config, _, state = parts
    config.model.members = 3
    stacked = init_state(config, make_model(config, 2))
    first = jax.tree.map(lambda x: x[0], stacked.params)
    jax.tree.map(np.testing.assert_array_equal, first, state.params)
    kernels, keys = stacked.params["head"]["linear"]["kernel"], jax.random.key_data(stacked.key)
    assert len(np.unique(kernels, axis=0)) == len(np.unique(keys, axis=0)) == 3
    np.testing.assert_array_equal(keys[0], jax.random.key_data(state.key))
    assert stacked.step.shape == ()
