import jax
import numpy as np
import pytest

from segjax.training import ConfigError, parallel
from segjax.training.evaluation import make_eval_step
from segjax.training.objective import hparams_from_config
from segjax.training.train_step import init_state, make_model, make_train_step

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, (4, 40, 56)).astype(np.uint8)
LABELS[0] = 255  # the first device's shard is all void
LABELS[1, :20] = 255
BATCH = {
    "image": RNG.integers(0, 256, (4, 40, 56, 3)).astype(np.uint8),
    "label": LABELS,
    "index": np.arange(4, dtype=np.int32),
}
EVAL_BATCH = {
    "image": BATCH["image"],
    "label": LABELS,
    "size": np.tile(np.int32([40, 56]), (4, 1)),
    "where": np.array([True, True, True, False]),
}


def run(config, mode, devices):
    """Three training steps and an evaluation step; losses, parameters and counts come back to the host."""
    config.parallel = mode
    config.optimizer.name, config.augment.scale = "sgd", (0.8, 1.2)
    # All that reduces over the pixels or draws random numbers.
    config.objective.loss, config.objective.void = "softmax_cross_entropy", "class"
    config.objective.boundary_factor, config.objective.hard_fraction = 2.0, 0.9
    config.objective.uncertainty_weight, config.objective.region = 1.0, "dice"
    config.model.dropout, config.model.num_samples, config.model.deep_dropout = "sampled", 2, 1
    config.training.ema_decay, config.training.gradient_budget = 0.9, True
    mesh = parallel.make_mesh(jax.devices()[:devices])
    axis_name = parallel.axis_name(config)
    model = make_model(config, 2, axis_name)
    state = parallel.replicate(init_state(config, model), config, mesh)
    train = parallel.map_step(make_train_step(config, model, 2, axis_name), config, mesh, arguments=3, donate=True)
    score = parallel.map_step(make_eval_step(config, model, 2, axis_name), config, mesh, arguments=2)
    losses = []
    for _ in range(3):
        state, measured = train(state, parallel.shard(BATCH, config, mesh), hparams_from_config(config))
        measured = parallel.unreplicate(measured, config)
        # Its scale is the reduction's, its shares are the batch's.
        shares = measured["budget"].gradient / measured["budget"].gradient.sum()
        losses.append([float(measured[k]) for k in ("loss", "penalty", "region_loss")] + shares.ravel().tolist())
    counts = parallel.unreplicate(score(state, parallel.shard(EVAL_BATCH, config, mesh)), config)
    return losses, jax.device_get(parallel.unreplicate(state, config)), jax.device_get(counts)


@pytest.fixture(scope="module")
def alone(data_dir):
    """One device, plain jit: what every other mapping has to equal."""
    return {}


@pytest.mark.parametrize(("mode", "devices"), [("jit", 4), ("pmap", 4), ("shard_map", 4), ("shard_map", 1)])
def test_every_mapping_gives_the_run_of_one_device(tiny, alone, mode, devices):
    if not alone:
        alone["run"] = run(tiny.copy_and_resolve_references(), "jit", 1)
    losses, state, _ = run(tiny.copy_and_resolve_references(), mode, devices)
    expected_losses, expected_state, _ = alone["run"]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    for leaf, expected in zip(
        jax.tree.leaves((state.params, state.batch_stats, state.ema)),
        jax.tree.leaves((expected_state.params, expected_state.batch_stats, expected_state.ema)),
        strict=True,
    ):
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("donate", [True, False])
def test_a_donated_state_is_gone_and_another_is_not(tiny, donate):
    tiny.training.donate = donate
    mesh = parallel.make_mesh(jax.devices()[:1])
    model = make_model(tiny, 2)
    step = parallel.map_step(make_train_step(tiny, model, 2, None), tiny, mesh, arguments=3, donate=donate)
    before = parallel.replicate(init_state(tiny, model), tiny, mesh)
    step(before, parallel.shard(BATCH, tiny, mesh), hparams_from_config(tiny))
    assert all(leaf.is_deleted() == donate for leaf in jax.tree.leaves(before.params))


def test_a_batch_that_does_not_divide_is_refused(tiny):
    tiny.training.global_batch = 6
    with pytest.raises(ConfigError, match=r"global_batch = 6 does not divide evenly over 4 devices"):
        parallel.check_batch(tiny, parallel.make_mesh())


def test_counts_are_those_of_one_device_bit_for_bit(tiny):
    one, four = (run(tiny.copy_and_resolve_references(), "jit", devices)[2]["confusion"] for devices in (1, 4))
    assert one.sum() == four.sum() == (LABELS[:3] != 255).sum()


def test_half_of_what_several_hosts_need_is_refused():
    with pytest.raises(
        ConfigError, match=r"give all of --coordinator, --hosts and --host, or none .*'localhost:1', None"
    ):
        parallel.join_hosts("localhost:1")


def test_where_no_cluster_says_who_the_hosts_are_the_flags_are_named(python):
    done = python("-c", "from segjax.training import parallel; parallel.join_hosts()")
    assert "ConfigError: no cluster was found; give --coordinator, --hosts and --host" in done.stderr
