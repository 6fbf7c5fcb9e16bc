from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.training import ConfigError
from segjax.training.objective import hparams_from_config
from segjax.training.train_step import init_state, make_model, make_train_step, moving_average


def test_a_step_learns_and_counts(parts, batch):
    config, model, state = parts
    step = jax.jit(make_train_step(config, model, 2, None))
    hparams, data = hparams_from_config(config)._replace(learning_rate=jnp.float32(0.02)), batch()
    first = None
    for _ in range(4):
        state, measured = step(state, data, hparams)
        first = first or measured
    assert int(state.step) == 4
    assert float(measured["loss"]) < float(first["loss"])
    assert float(measured["grad_norm"]) > 0


def test_rematerialisation_gives_the_same_step(parts, batch):
    config, _, state = parts
    config.model.dropout, config.objective.uncertainty_weight, config.model.deep_dropout = "sampled", 1.0, 1
    steps = []
    for config.model.remat in (False, True):
        step = jax.jit(make_train_step(config, make_model(config, 2), 2, None))
        steps.append(step(state, batch(), hparams_from_config(config)))
    # Adam's moments are the gradients; the parameters would show the sign of those that are nothing but rounding.
    plain, remat = (jax.tree.leaves((after.opt_state, after.batch_stats, measured)) for after, measured in steps)
    for one, other in zip(plain, remat, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_batch_that_is_all_void_changes_no_parameter_but_the_decayed(parts, batch):
    config, model, state = parts
    config.optimizer.weight_decay = 0.0
    void = batch()
    void["label"][:] = 255
    after, measured = jax.jit(make_train_step(config, model, 2, None))(state, void, hparams_from_config(config))
    assert float(measured["loss"]) == 0.0
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


def test_the_state_is_a_pure_function_of_the_seed(parts):
    config, model, state = parts
    again = init_state(config, model)
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)
    config.seed = 1
    kernels = [jax.tree.leaves(s.params)[-1] for s in (state, init_state(config, model))]
    assert not np.array_equal(*kernels)


def test_a_sigmoid_loss_needs_two_classes(tiny):
    with pytest.raises(ConfigError, match=r"sigmoid_focal.* needs a data set of 2 classes; road_debris has 5"):
        make_model(tiny, 5)


def test_a_prior_starts_every_pixel_at_its_probability(tiny):
    tiny.model.prior, tiny.model.head_stddev = (0.01,), 0.01
    model = make_model(tiny, 2)
    state = init_state(tiny, model)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 48, 3)), jnp.float32)
    output = model.apply({"params": state.params, "batch_stats": state.batch_stats}, images, train=False)
    assert float(jax.nn.sigmoid(output.logits).mean()) == pytest.approx(0.01, rel=0.1)


def test_a_prior_of_the_wrong_length_is_refused(tiny):
    tiny.model.prior = (0.9, 0.1)
    with pytest.raises(ConfigError, match=r"config.model.prior needs 1 value\(s\) for sigmoid_focal; got \(0.9, 0.1\)"):
        make_model(tiny, 2)


def test_class_weights_are_one_an_output(tiny):
    tiny.objective.loss, tiny.objective.void, tiny.objective.class_weights = (
        "softmax_cross_entropy",
        "class",
        (1.0, 2.0),
    )
    with pytest.raises(ConfigError, match=r"class_weights needs 3 values, one per output of road_debris, void last"):
        make_model(tiny, 2)


def test_a_background_that_is_no_class_is_refused(tiny):
    tiny.objective.background = 2
    with pytest.raises(ConfigError, match=r"config.objective.background must be a class of road_debris, 0 to 1; got 2"):
        make_model(tiny, 2)


def test_the_running_mean_follows_with_its_decay_and_forgets_the_start(tiny):
    state = init_state(tiny, make_model(tiny, 2))
    mean = {"params": {"w": jnp.float32(1.0)}, "batch_stats": {"m": jnp.float32(0.0)}}
    state = state.replace(params={"w": jnp.float32(3.0)}, batch_stats={"m": jnp.float32(2.0)}, ema=mean)
    young = moving_average(state.replace(step=jnp.int32(1)), jnp.float32(0.99))  # decay 2 / 11
    old = moving_average(state.replace(step=jnp.int32(10**6)), jnp.float32(0.99))
    assert float(young["params"]["w"]) == pytest.approx(1 + 2 * 9 / 11)
    assert float(old["params"]["w"]) == pytest.approx(1.02)
    assert float(old["batch_stats"]["m"]) == pytest.approx(0.02)


def not_finite(parts, batch):
    """A step whose images are NaN, with leave to skip it: states before and after, and what was measured."""
    config, model, _ = parts
    config.training.skip_nonfinite, config.training.ema_decay = 3, 0.9
    config.data.mean = (float("nan"),)
    before = init_state(config, model)
    after, measured = jax.jit(make_train_step(config, model, 2, None))(before, batch(), hparams_from_config(config))
    return before, after, measured


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(parts, batch):
    before, after, measured = not_finite(parts, batch)
    assert not np.isfinite(measured["loss"])
    for field in ("params", "batch_stats", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, field), getattr(before, field))
    assert (int(after.step), int(after.skipped), int(measured["skipped"])) == (1, 1, 1)


def test_a_sound_step_is_taken_as_if_none_might_be_skipped(parts, batch):
    config, model, state = parts
    plain, _ = jax.jit(make_train_step(config, model, 2, None))(state, batch(), hparams_from_config(config))
    config.training.skip_nonfinite = 3
    careful, measured = jax.jit(make_train_step(config, model, 2, None))(
        init_state(config, model), batch(), hparams_from_config(config)
    )
    assert int(measured["skipped"]) == 0
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), careful.params, plain.params)


def test_an_update_that_overflows_is_seen_before_it_is_saved(parts, batch):
    config, model, state = parts
    config.optimizer.learning_rate = 3e38
    _, measured = jax.jit(make_train_step(config, model, 2, None))(state, batch(), hparams_from_config(config))
    assert np.isfinite(measured["loss"])
    assert not np.isfinite(measured["param_norm"])
