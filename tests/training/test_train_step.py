"""The network, the initial state, the training step, its optimizer and its microbatches."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.data.augment import augment, example_keys, paste_outliers
from segjax.models import Segmentation
from segjax.training import ConfigError, parallel
from segjax.training.network import make_model
from segjax.training.objective import hparams_at, hparams_from_config, phases
from segjax.training.segmentation import make_objective
from segjax.training.train_step import init_state, make_optimizer, make_train_step, rare_train_ids, schedule, split

RNG = np.random.default_rng(0)
FIELDS_OF_MEMBERS = ("params", "batch_stats", "opt_state", "ema", "key")


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
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 48, 3)), jnp.float32)
    output = model.apply({"params": state.params, "batch_stats": state.batch_stats}, images, train=False)
    assert float(jax.nn.sigmoid(output.logits).mean()) == pytest.approx(0.01, rel=0.1)


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
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(3, 3))), "bias": jnp.ones(3)}
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


# The step.


def compiled(config, axis_name=None):
    """Returns a compiled step on one device, a fresh state and the hyperparameters."""
    model = make_model(config, 2, axis_name)
    return jax.jit(make_train_step(config, model, 2, axis_name)), init_state(config, model), hparams_from_config(config)


@pytest.fixture(scope="module")
def full_config(config):
    """Returns a config with dropout, a penalty, a moving average and skipped steps in one program."""
    config = config.copy_and_resolve_references()
    config.model.depth, config.optimizer.weight_decay = 1, 0.0
    config.model.dropout, config.objective.uncertainty_weight, config.model.deep_dropout = "sampled", 1.0, 1
    config.training.skip_nonfinite, config.training.ema_decay = 3, 0.99
    return config


@pytest.fixture(scope="module")
def full(full_config):
    return compiled(full_config)


def test_step_learns_and_counts(full, batch):
    step, state, hparams = full
    hparams, losses = hparams._replace(learning_rate=jnp.float32(0.02)), []
    for _ in range(4):
        state, measured = step(state, batch(), hparams)
        losses.append(float(measured["loss"]))
    assert int(state.step) == 4
    assert losses[-1] < losses[0]
    assert float(measured["grad_norm"]) > 0
    assert int(measured["skipped"]) == 0


def test_step_all_void_changes_no_parameter(full, batch):
    step, state, hparams = full
    void = batch()
    void["label"][:] = 255
    after, measured = step(state, void, hparams)
    assert float(measured["loss"]) == 0.0
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


@pytest.mark.parametrize(("steps", "decay"), [(0, 2 / 11), (10**6, 0.99)])
def test_step_moving_average_decay_forgets_the_start(full, batch, steps, decay):
    step, state, hparams = full
    averaged = jax.tree.map(lambda x: x + 1, state.ema)
    after, _ = step(state.replace(step=jnp.int32(steps), ema=averaged), batch(), hparams)
    for name in ("params", "batch_stats"):
        expected = jax.tree.map(lambda new, old: decay * old + (1 - decay) * new, getattr(after, name), averaged[name])
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), after.ema[name], expected)


@pytest.mark.parametrize(
    ("field", "value", "number"), [("gamma", np.nan, "loss"), ("learning_rate", 3e38, "param_norm")]
)
def test_step_not_finite_changes_nothing_and_is_counted(full, batch, field, value, number):
    step, before, hparams = full
    after, measured = step(before, batch(), hparams._replace(**{field: jnp.float32(value)}))
    assert not np.isfinite(measured[number])
    for name in ("params", "batch_stats", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    assert (int(after.step), int(after.skipped), int(measured["skipped"])) == (1, 1, 1)
    assert jax.random.key_data(after.key).tolist() == jax.random.key_data(before.key).tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {"model.remat": True},
        pytest.param({"training.skip_nonfinite": 0, "training.ema_decay": None}, marks=pytest.mark.slow),
    ],
)
def test_step_remat_and_plain_give_the_same_update(full, full_config, batch, changes):
    other = full_config.copy_and_resolve_references()
    other.update_from_flattened_dict(changes)
    runs = [step(state, batch(), hparams) for step, state, hparams in (full, compiled(other))]
    # Adam's moments are the gradients; the parameters would show the sign of gradients that are rounding errors.
    first, second = (
        jax.tree.leaves((after.opt_state, after.batch_stats, measured["loss"], measured["penalty"]))
        for after, measured in runs
    )
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_step_with_rare_crops_sees_the_rare_pixel_in_every_image(tiny, batch):
    tiny.model.width, tiny.model.depth, tiny.training.gradient_budget = 2, 1, True
    tiny.augment.crop_fraction, tiny.augment.rare_crops = 0.5, 1.0
    examples = batch()
    examples["label"][:] = 0
    examples["label"][:, -1, -1] = 1
    step, state, hparams = compiled(tiny)
    pixels = step(state, examples, hparams)[1]["budget"].pixels[1].sum()
    assert int(pixels) >= len(examples["label"])


def test_step_with_copy_paste_sees_the_rare_pixels_of_the_next_image(tiny, batch):
    tiny.model.width, tiny.model.depth, tiny.training.gradient_budget = 2, 1, True
    examples = batch()
    examples["label"][:] = 0
    examples["label"][0, :2] = 1
    seen = []
    for share in (None, 1.0):
        tiny.augment.copy_paste = share
        step, state, hparams = compiled(tiny)
        seen.append(int(step(state, examples, hparams)[1]["budget"].pixels[1].sum()))
    assert seen[1] == 2 * seen[0] > 0


# Ensembles.


def member(tree, index):
    """Returns the part of one member of a stacked tree."""
    return jax.tree.map(lambda x: x[index], tree)


@pytest.mark.slow
def test_make_train_step_member_not_finite_is_skipped_alone(tiny, batch):
    tiny.model.members, tiny.model.depth, tiny.training.skip_nonfinite = 2, 1, 3
    step, before, hparams = compiled(tiny)
    kernels = before.params["head"]["linear"]["kernel"]
    spoilt = jax.tree.map(lambda x: x, before.params)
    spoilt["head"]["linear"]["kernel"] = kernels.at[1].set(np.nan)
    after, measured = step(before.replace(params=spoilt), batch(), hparams)
    assert not np.isfinite(measured["loss"])
    assert np.isfinite(measured["member_loss/0"])
    assert (int(after.skipped), int(measured["skipped"]), int(after.step)) == (1, 1, 1)
    assert not np.array_equal(after.params["head"]["linear"]["kernel"][0], kernels[0])
    jax.tree.map(np.testing.assert_array_equal, member(after.opt_state, 1), member(before.opt_state, 1))


# Microbatches.


@pytest.fixture
def careful(tiny):
    """Returns a config with all that microbatches have to share, but no batch norm, which has other statistics."""
    tiny.model.norm, tiny.model.dtype, tiny.model.depth = "group", "float64", 1
    tiny.model.dropout, tiny.model.num_samples, tiny.model.dropout_mask = "sampled", 2, "channel"
    tiny.objective.uncertainty_weight, tiny.objective.boundary_factor = 1.0, 3.0
    tiny.augment.scale, tiny.augment.outliers, tiny.objective.outlier_weight = (0.8, 1.2), 2, 0.5
    return tiny


@pytest.fixture
def uneven(batch):
    """Returns eight examples: the first is all void, the second half void, and the last has no rare pixel."""
    data = batch(8, size=(24, 32))
    data["label"][0], data["label"][1, :20], data["label"][-1] = 255, 255, 0
    return data


def step_in_float64(config, data, devices=1, only=None):
    """Returns the measured values and the new parameters of a step of all members, or of `only` one as a network."""
    with jax.enable_x64(True):
        mapping, axis_name = parallel.device_mapping(config, jax.devices()[:devices]), parallel.axis_name(config)
        model = make_model(config, 2, axis_name)
        fresh = jax.tree.map(lambda x: x.astype("float64") if x.dtype == np.float32 else x, init_state(config, model))
        if only is not None:
            model, own = model.network, {name: member(getattr(fresh, name), only) for name in FIELDS_OF_MEMBERS}
            fresh = fresh.replace(**own)
        step = mapping.map_step(make_train_step(config, model, 2, axis_name), arguments=3)
        state = mapping.replicate(fresh)
        state, measured = step(state, mapping.shard(data), hparams_from_config(config))
        return jax.device_get(measured), jax.device_get(state.params)


@pytest.mark.parametrize(
    ("loss", "normalizer", "mode", "devices"),
    [
        pytest.param("softmax_cross_entropy", "valid", "jit", 1, marks=pytest.mark.slow),
        # The shares of the penalty are those of "valid".
        pytest.param("sigmoid_focal", "positives", "shard_map", 4, marks=pytest.mark.slow),
        pytest.param("sigmoid_focal", "valid", "jit", 4, marks=pytest.mark.slow),
    ],
)
def test_microbatches_give_the_step_of_the_whole_batch(careful, uneven, loss, normalizer, mode, devices):
    careful.objective.loss, careful.objective.normalizer = loss, normalizer
    careful.objective.background, careful.training.global_batch = 0, 8
    whole = step_in_float64(careful, uneven)
    careful.training.accumulate, careful.parallel = 8 // max(devices, 2), mode
    microbatches = step_in_float64(careful, uneven, devices)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), microbatches, whole)


@pytest.mark.slow
def test_members_on_four_devices_equal_networks_in_turn_on_one(careful, uneven):
    careful.model.members, careful.training.global_batch = 2, 8
    # Less to compile; augmentation and deep dropout remain, whose keys are the member's own.
    careful.objective.uncertainty_weight = careful.objective.boundary_factor = None
    careful.model.dropout, careful.model.deep_dropout = "none", 1
    networks = [step_in_float64(careful, uneven, only=m) for m in range(2)]
    careful.parallel = "shard_map"
    measured, params = step_in_float64(careful, uneven, devices=4)
    for m, (alone, expected) in enumerate(networks):
        close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9)
        jax.tree.map(close, member(params, m), expected)
        close(measured[f"member_loss/{m}"], alone["loss"])
    for name in alone:
        close(measured[name], np.mean([one[name] for one, _ in networks]))


def test_split_keeps_examples_on_their_device():
    np.testing.assert_array_equal(split({"x": np.arange(8)}, 2)["x"], [[0, 2, 4, 6], [1, 3, 5, 7]])


@pytest.mark.slow
def test_microbatches_need_less_memory(careful, uneven):
    def temporary_bytes():
        step, state, hparams = compiled(careful)
        return step.lower(state, uneven, hparams).compile().memory_analysis().temp_size_in_bytes

    careful.model.dtype = "float32"
    whole, careful.training.accumulate = temporary_bytes(), 8
    assert temporary_bytes() < 0.6 * whole


# Strict flags of JAX, the dtype flag limited to our own code.


@pytest.mark.parametrize("accumulate", [1, 2])
def test_make_train_step_rank_promotion_raise(parts, batch, accumulate):
    config, model, _ = parts
    config.training.accumulate, config.training.ema_decay, config.training.skip_nonfinite = accumulate, 0.9, 2
    config.training.gradient_budget = accumulate == 1
    config.augment.outliers, config.objective.outlier_weight = 2, 0.5
    with jax.numpy_rank_promotion("raise"):
        hparams = hparams_at(1, hparams_from_config(config), phases(config))
        arguments = init_state(config, model), jax.tree.map(jnp.asarray, batch()), hparams
        jax.eval_shape(make_train_step(config, model, 2, None), *arguments)


@pytest.mark.parametrize("loss", ["sigmoid_focal", "softmax_focal"])
def test_augmentation_and_objective_dtype_promotion_strict(tiny, batch, loss):
    tiny.objective.loss, tiny.objective.region, tiny.objective.boundary_factor = loss, "dice", 2.0
    tiny.objective.outlier_weight = 0.5
    objective, hparams = make_objective(tiny, 2), hparams_from_config(tiny)
    options = {"rotation": 10.0, "brightness": 0.1, "contrast": 0.1, "scale": (0.8, 1.2), "flip": True}
    options |= {"size": (32, 48), "mean": (0.45,), "std": (0.25,)}

    def gradient(examples):
        keys = example_keys(jax.random.key(0), jnp.int32(0), examples["index"])
        images, labels = augment(examples["image"], examples["label"], keys, crop_fraction=jnp.float32(0.5), **options)
        images, labels, outliers = paste_outliers(images, labels, keys, 2)
        logits = images[..., : 1 if loss == "sigmoid_focal" else 2]

        def value(logits):
            return objective(Segmentation(logits, None, None, logits), labels, hparams, outliers=outliers)[0]

        return jax.grad(value)(logits), split(images, 2)

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        logits, microbatches = jax.eval_shape(gradient, batch())
    assert (logits.dtype, microbatches.shape) == (jnp.float32, (2, 2, 32, 48, 3))
