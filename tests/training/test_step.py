import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.training import ConfigError
from segjax.training.objective import hyper_from_config
from segjax.training.step import (
    classify,
    init_state,
    learning_rate_at,
    make_eval_step,
    make_model,
    make_optimizer,
    make_train_step,
)

RNG = np.random.default_rng(0)


def batch(examples=4, size=(40, 56)):
    labels = RNG.integers(0, 2, (examples, *size)).astype(np.uint8)
    labels[:, :4] = 255
    return {
        "image": RNG.integers(0, 256, (examples, *size, 3)).astype(np.uint8),
        "label": labels,
        "index": np.arange(examples, dtype=np.int32),
    }


@pytest.fixture
def parts(tiny):
    model = make_model(tiny, 2)
    return tiny, model, init_state(tiny, model)


def test_a_step_learns_and_counts(parts):
    config, model, state = parts
    step = jax.jit(make_train_step(config, model, None))
    hyper, data = hyper_from_config(config)._replace(learning_rate=jnp.float32(0.02)), batch()
    first = None
    for _ in range(4):
        state, measured = step(state, data, hyper)
        first = first or measured
    assert int(state.step) == 4
    assert float(measured["loss"]) < float(first["loss"])
    assert float(measured["grad_norm"]) > 0


def test_a_batch_that_is_all_void_changes_no_parameter_but_the_decayed(parts):
    config, model, state = parts
    config.optimizer.weight_decay = 0.0
    void = batch()
    void["label"][:] = 255
    after, measured = jax.jit(make_train_step(config, model, None))(state, void, hyper_from_config(config))
    assert float(measured["loss"]) == 0.0
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


def test_the_state_is_a_pure_function_of_the_seed(parts):
    config, model, state = parts
    again = init_state(config, model)
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)
    config.seed = 1
    kernels = [jax.tree.leaves(s.params)[-1] for s in (state, init_state(config, model))]
    assert not np.array_equal(*kernels)


def test_weight_decay_reaches_kernels_only(tiny):
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
def test_directions_times_the_rate_are_optaxs_updates(tiny, name, peer):
    tiny.optimizer.name, tiny.optimizer.weight_decay, tiny.optimizer.clip_norm = name, 0.01, 0.0
    params = {"kernel": jnp.asarray(RNG.normal(size=(3, 3))), "bias": jnp.ones(3)}
    ours, theirs = make_optimizer(tiny), peer({"kernel": True, "bias": False})
    our_state, their_state = ours.init(params), theirs.init(params)
    for seed in range(3):
        gradients = jax.tree.map(lambda p, s=seed: jnp.sin(p + s), params)
        direction, our_state = ours.update(gradients, our_state, params)
        update, their_state = theirs.update(gradients, their_state, params)
        jax.tree.map(lambda d, u: np.testing.assert_allclose(-0.1 * d, u, rtol=1e-5, atol=1e-7), direction, update)


def test_the_rate_warms_up_and_falls_to_zero(tiny):
    tiny.training.steps, tiny.optimizer.warmup_fraction = 100, 0.1
    rate = learning_rate_at(tiny)
    values = [float(rate(jnp.float32(2.0), jnp.int32(s))) for s in range(101)]
    assert values[0] == pytest.approx(0.2)
    assert max(values) == values[10] == pytest.approx(2.0)
    assert values[100] == pytest.approx(0.0, abs=1e-6)
    assert np.all(np.diff(values[10:]) < 0)


def test_the_evaluation_step_counts_every_labelled_pixel_at_native_resolution(parts):
    config, model, state = parts
    data = batch(examples=3)
    sizes = np.array([[40, 56], [30, 56], [40, 20]], np.int32)
    for label, (height, width) in zip(data["label"], sizes, strict=True):
        label[height:], label[:, width:] = 255, 255
    shown = np.array([True, True, False])
    counts = jax.jit(make_eval_step(config, model, 2, None))(
        state, {"image": data["image"], "label": data["label"], "size": sizes, "where": shown}
    )
    labelled = int((data["label"][shown] != 255).sum())
    assert int(counts["confusion"].sum()) == labelled
    assert sum(int(c.sum()) for c in jax.tree.leaves(counts["scores"])) == labelled
    assert counts["confusion"][1].sum() == (data["label"][shown] == 1).sum()


def test_class_of_one_logit_is_its_sign_and_of_many_the_largest():
    assert classify(jnp.array([[[-1.0], [2.0]]])).tolist() == [[0, 1]]
    assert classify(jnp.array([[[0.0, 3.0, 1.0]]])).tolist() == [[1]]


def test_a_sigmoid_loss_needs_two_classes(tiny):
    with pytest.raises(ConfigError, match=r"sigmoid_focal.* needs a data set of 2 classes; road_debris has 5"):
        make_model(tiny, 5)


def test_a_prior_starts_every_pixel_at_its_probability(tiny):
    tiny.model.prior, tiny.model.head_stddev = (0.01,), 0.01
    model = make_model(tiny, 2)
    state = init_state(tiny, model)
    images = jnp.asarray(RNG.normal(size=(1, 32, 48, 3)), jnp.float32)
    output = model.apply({"params": state.params, "batch_stats": state.batch_stats}, images, train=False)
    assert float(jax.nn.sigmoid(output.logits).mean()) == pytest.approx(0.01, rel=0.1)


def test_a_prior_of_the_wrong_length_is_refused(tiny):
    tiny.model.prior = (0.9, 0.1)
    with pytest.raises(ConfigError, match=r"config.model.prior needs 1 value\(s\) for sigmoid_focal; got \(0.9, 0.1\)"):
        make_model(tiny, 2)
