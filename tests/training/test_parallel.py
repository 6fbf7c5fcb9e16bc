import jax
import numpy as np
import pytest

from segjax.training import ConfigError, parallel
from segjax.training.objective import hyper_from_config
from segjax.training.step import init_state, make_eval_step, make_model, make_train_step

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
    mesh = parallel.make_mesh(jax.devices()[:devices])
    axis_name = parallel.axis_name(config)
    model = make_model(config, 2, axis_name)
    state = parallel.replicate(init_state(config, model), config, mesh)
    train = parallel.map_step(make_train_step(config, model, axis_name), config, mesh, arguments=3, donate=True)
    score = parallel.map_step(make_eval_step(config, model, 2, axis_name), config, mesh, arguments=2)
    losses = []
    for _ in range(3):
        state, measured = train(state, parallel.shard(BATCH, config, mesh), hyper_from_config(config))
        losses.append(float(parallel.unreplicate(measured, config)["loss"]))
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
        jax.tree.leaves((state.params, state.batch_stats)),
        jax.tree.leaves((expected_state.params, expected_state.batch_stats)),
        strict=True,
    ):
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-5)


def test_a_batch_that_does_not_divide_is_refused(tiny):
    tiny.training.global_batch = 6
    with pytest.raises(ConfigError, match=r"global_batch = 6 does not divide evenly over 4 devices"):
        parallel.check_batch(tiny, parallel.make_mesh())


def test_counts_are_those_of_one_device_bit_for_bit(tiny):
    one, four = (run(tiny.copy_and_resolve_references(), "jit", devices)[2]["confusion"] for devices in (1, 4))
    assert one.sum() == four.sum() == (LABELS[:3] != 255).sum()
