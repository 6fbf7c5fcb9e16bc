"""The mappings over devices: the numbers of one device, donation, cells, and errors of the batch size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.training import ConfigError, parallel
from segjax.training.network import make_model
from segjax.training.objective import hparams_from_config
from segjax.training.segmentation import make_eval_step
from segjax.training.train_step import init_state, make_train_step

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, (4, 40, 56)).astype(np.uint8)
LABELS[0] = 255  # the first device's shard is all void
LABELS[1, :20] = 255
IMAGES = RNG.integers(0, 256, (4, 40, 56, 3)).astype(np.uint8)
BATCH = {"image": IMAGES, "label": LABELS, "index": np.arange(4, dtype=np.int32)}
SIZES = np.tile(np.int32([40, 56]), (4, 1))
EVAL_BATCH = {"image": IMAGES, "label": LABELS, "size": SIZES, "where": np.array([True, True, True, False])}


def run(config, mode, devices):
    """Returns losses, state and counts of three training steps and an evaluation step."""
    config = config.copy_and_resolve_references()
    config.parallel = mode
    config.optimizer.name, config.model.depth = "sgd", 1
    config.augment.scale, config.augment.copy_paste = (0.8, 1.2), 0.6
    # Every reduction over the pixels, every use of random numbers, and pixels of another example.
    config.objective.loss, config.objective.void = "softmax_cross_entropy", "class"
    config.objective.boundary_factor, config.objective.hard_fraction = 2.0, 0.9
    config.objective.uncertainty_weight, config.objective.region = 1.0, "dice"
    config.model.dropout, config.model.num_samples, config.model.deep_dropout = "sampled", 2, 1
    config.training.ema_decay, config.training.gradient_budget = 0.9, True
    mapping, axis_name = parallel.device_mapping(config, jax.devices()[:devices]), parallel.axis_name(config)
    model = make_model(config, 2, axis_name)
    state = mapping.replicate(init_state(config, model))
    train = mapping.map_step(make_train_step(config, model, 2, axis_name), arguments=3, donate=True)
    score = mapping.map_step(make_eval_step(config, model, 2, axis_name), arguments=3)
    losses = []
    for _ in range(3):
        state, measured = train(state, mapping.shard(BATCH), hparams_from_config(config))
        measured = mapping.unreplicate(measured)
        # The budget's scale depends on the reduction, its fractions do not.
        fractions = measured["budget"].gradient / measured["budget"].gradient.sum()
        losses.append([float(measured[k]) for k in ("loss", "penalty", "region_loss")] + fractions.ravel().tolist())
    counts = mapping.unreplicate(score(state, mapping.shard(EVAL_BATCH), hparams_from_config(config)))
    return losses, jax.device_get(mapping.unreplicate(state)), jax.device_get(counts)


@pytest.fixture(scope="module")
def one_device(config):
    """Returns the run on one device under plain jit, which every mapping has to equal."""
    return run(config, "jit", 1)


@pytest.mark.parametrize(
    ("mode", "devices"),
    [
        ("pmap", 4),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("jit", 4), ("shard_map", 1), ("shard_map", 4))),
    ],
)
def test_map_step_equals_one_device(config, one_device, mode, devices):
    losses, state, counts = run(config, mode, devices)
    expected_losses, expected_state, expected_counts = one_device
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    for leaf, expected in zip(
        jax.tree.leaves((state.params, state.batch_stats, state.ema)),
        jax.tree.leaves((expected_state.params, expected_state.batch_stats, expected_state.ema)),
        strict=True,
    ):
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-5)
    assert counts["confusion"].sum() == expected_counts["confusion"].sum() == (LABELS[:3] != 255).sum()
    if mode == "jit":
        np.testing.assert_array_equal(counts["confusion"], expected_counts["confusion"])


@pytest.mark.parametrize("donate", [True, False])
def test_map_step_deletes_a_donated_state_only(tiny, donate):
    mapping = parallel.device_mapping(tiny, jax.devices()[:1])
    step = mapping.map_step(lambda state, batch: state + batch["x"].sum(), arguments=2, donate=donate)
    state = mapping.replicate(jnp.zeros(3))
    assert step(state, mapping.shard({"x": np.arange(4.0)})).tolist() == [6, 6, 6]
    assert state.is_deleted() == donate


@pytest.mark.parametrize(
    ("accumulate", "message"),
    [
        (1, r"global_batch = 6 does not divide evenly over 4 devices; choose a multiple of 4"),
        (3, r"global_batch = 6 does not .* over 4 devices with 3 microbatches each; choose a multiple of 12"),
    ],
)
def test_device_mapping_names_a_multiple(tiny, accumulate, message):
    tiny.training.global_batch, tiny.training.accumulate = 6, accumulate
    with pytest.raises(ConfigError, match=message):
        parallel.device_mapping(tiny)
