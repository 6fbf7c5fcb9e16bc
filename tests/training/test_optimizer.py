import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.training.objective import Phase, hparams_at, hparams_from_config, phases
from segjax.training.train_step import make_optimizer
from segjax.training.train_step import schedule as learning_rate_at

RNG = np.random.default_rng(0)


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


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("cosine", 0.5, 0.0), ("polynomial", 0.5**0.9, 0.0), ("constant", 1.0, 1.0)]
)
def test_a_schedule_has_its_shape_after_the_warm_up(tiny, schedule, middle, end):
    tiny.training.steps, tiny.optimizer.warmup_fraction, tiny.optimizer.schedule = 110, 10 / 110, schedule
    rate = learning_rate_at(tiny)
    found = [float(rate(jnp.float32(1.0), jnp.int32(step))) for step in (10, 60, 110)]
    np.testing.assert_allclose(found, [1.0, middle, end], atol=1e-6)


def test_a_run_without_phases_is_one_phase(tiny):
    tiny.augment.crop_fraction = 0.75
    assert phases(tiny) == (Phase(tiny.training.steps, 0.75, tiny.optimizer.learning_rate),)


def test_phases_follow_each_other_and_change_values_only(tiny):
    tiny.training.steps, tiny.training.phases = 6, ((0.6, 3, 1e-3), (0.75, 2, 5e-4), (1.0, 1, 1e-4))
    plan, hparams = phases(tiny), hparams_from_config(tiny)
    seen = [hparams_at(step, hparams, plan) for step in range(1, 7)]
    np.testing.assert_allclose([h.crop_fraction for h in seen], [0.6, 0.6, 0.6, 0.75, 0.75, 1.0], rtol=1e-6)
    np.testing.assert_allclose([h.learning_rate for h in seen], [1e-3] * 3 + [5e-4] * 2 + [1e-4], rtol=1e-6)
    assert {jax.tree.structure(h) for h in seen} == {jax.tree.structure(hparams)}
    assert {leaf.dtype for h in seen for leaf in jax.tree.leaves(h)} == {jnp.dtype("float32")}
