import jax
import numpy as np
import pytest

from segjax.training import ConfigError, parallel, validate
from segjax.training.objective import hparams_from_config
from segjax.training.train_step import init_state, make_model, make_train_step, split


@pytest.fixture
def careful(tiny):
    """No batch norm, whose statistics are a piece's; boundary weights, a penalty, and dropout."""
    tiny.model.norm, tiny.model.dtype, tiny.model.depth = "group", "float64", 1
    tiny.model.dropout, tiny.model.num_samples, tiny.model.dropout_mask = "sampled", 2, "channel"
    tiny.objective.uncertainty_weight, tiny.objective.boundary_factor = 1.0, 3.0
    tiny.augment.scale, tiny.training.ema_decay = (0.8, 1.2), 0.9
    return tiny


@pytest.fixture
def uneven(batch):
    """Eight examples: the first is all void, the second half, and the last has no rare pixel."""
    data = batch(8)
    data["label"][0], data["label"][1, :20], data["label"][-1] = 255, 255, 0
    return data


def stepped(config, data, devices=1):
    """A step in float64: what was measured, and the new parameters."""
    with jax.enable_x64(True):
        mesh = parallel.make_mesh(jax.devices()[:devices])
        axis_name = parallel.axis_name(config)
        model = make_model(config, 2, axis_name)
        fresh = init_state(config, model)
        state = parallel.replicate(
            jax.tree.map(lambda x: x.astype("float64") if x.dtype == np.float32 else x, fresh), config, mesh
        )
        step = parallel.map_step(make_train_step(config, model, 2, axis_name), config, mesh, arguments=3)
        state, measured = step(state, parallel.shard(data, config, mesh), hparams_from_config(config))
        return jax.device_get(measured), jax.device_get(state.params)


@pytest.mark.parametrize(
    ("loss", "normalizer"),
    [("sigmoid_focal", "valid"), ("sigmoid_focal", "positives"), ("softmax_cross_entropy", "valid")],
)
def test_pieces_make_the_step_of_the_whole_batch(careful, uneven, loss, normalizer):
    careful.objective.loss, careful.objective.normalizer = loss, normalizer
    whole = stepped(careful, uneven)
    careful.training.accumulate = 4
    pieces = stepped(careful, uneven)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), pieces, whole)


@pytest.mark.parametrize("mode", ["jit", "shard_map"])
def test_pieces_on_devices_make_it_too(careful, uneven, mode):
    whole = stepped(careful, uneven)
    careful.training.accumulate, careful.parallel = 2, mode
    pieces = stepped(careful, uneven, devices=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), pieces, whole)


def test_batch_norm_takes_its_statistics_from_the_pieces(careful, uneven):
    careful.model.norm, careful.training.accumulate = "batch", 4
    measured, _ = stepped(careful, uneven)
    assert np.isfinite(measured["loss"])


def test_pieces_are_cut_on_each_device():
    pieces = split({"x": np.arange(8)}, 2)["x"]
    np.testing.assert_array_equal(pieces, [[0, 2, 4, 6], [1, 3, 5, 7]])


def test_pieces_need_less_memory(careful, uneven):
    def temporary():
        model = make_model(careful, 2)
        step = jax.jit(make_train_step(careful, model, 2, None))
        compiled = step.lower(init_state(careful, model), uneven, hparams_from_config(careful)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    careful.model.dtype = "float32"
    whole, careful.training.accumulate = temporary(), 8
    assert temporary() < 0.6 * whole


@pytest.mark.parametrize(
    ("field", "value"),
    [("objective.hard_fraction", 0.5), ("objective.region", "dice"), ("training.gradient_budget", True)],
)
def test_what_looks_at_the_whole_batch_is_refused(tiny, field, value):
    tiny.training.accumulate = 2
    tiny.update_from_flattened_dict({field: value})
    with pytest.raises(ConfigError, match=rf"config.{field} needs the whole batch at once"):
        validate(tiny)


def test_a_batch_that_cannot_be_cut_evenly_is_refused(tiny):
    tiny.training.accumulate, tiny.training.global_batch = 3, 4
    with pytest.raises(
        ConfigError, match=r"global_batch = 4 does not .* over 4 devices with 3 microbatches each; .* multiple of 12"
    ):
        parallel.check_batch(tiny, parallel.make_mesh())
