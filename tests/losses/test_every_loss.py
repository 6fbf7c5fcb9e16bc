"""Properties of every loss, tested through the public names. A new loss is a new line of LOSSES.

Each entry is `loss(logits, labels, where, axis_name) -> global scalar`. On devices the step is the one of the training
loop: per-device code, whose gradients are always averaged. All losses go into one program each time, which compiles in
a fraction of the time that they take one by one.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from segjax import losses
from segjax.collectives import pmean

CLASSES = 3
WEIGHTS = np.array([1.0, 2.0, 3.0], np.float32)
COUNTS = np.array([5, 0, 80])


def _mean(per_pixel, **options):
    """Returns the loss `per_pixel(logits, labels, where)`, reduced by `losses.mean`."""
    return lambda z, y, k, axis: losses.mean(per_pixel(z, y, k), where=k, axis_name=axis, **options)


def _mined(per_pixel, **criterion):
    """Returns the mean loss over the hard pixels of all devices."""

    def loss(z, y, k, axis):
        loss_of_each = per_pixel(z, y, k)
        hard = losses.hard_pixels(loss_of_each, where=k, axis_name=axis, **criterion)
        return losses.mean(loss_of_each, where=hard, axis_name=axis)

    return loss


def _ohem_one_to_three(z, y, k, axis):
    loss_of_each = losses.sigmoid_cross_entropy(z[..., 0], y == 1, where=k)
    hard = losses.hard_pixels(
        loss_of_each, where=k, positives=y == 1, negatives_per_positive=3.0, min_kept=4, axis_name=axis
    )
    return losses.mean(loss_of_each, where=hard, positives=y == 1, normalizer="positives", axis_name=axis)


def _cross_entropy(z, y, k):
    return losses.softmax_cross_entropy(z, y, where=k)


def _penalty(z, y, k):
    heads = jnp.stack([z, 3 * z, -z])
    return losses.uncertainty_penalty(losses.mc_variance(heads, where=k), z, 0, where=k)


def _distribution(y):
    """Returns labels smoothed to a distribution over the classes; not one for a label that is not a class."""
    return 0.9 * jax.nn.one_hot(y, CLASSES) + 0.1 / CLASSES


def _adjusted(z, y, k):
    adjustment = losses.logit_adjustment(WEIGHTS, tau=2.0).astype(z.dtype)
    return losses.softmax_cross_entropy(z + jnp.broadcast_to(adjustment, z.shape), y, where=k)


def _region(loss, **options):
    return lambda z, y, k, axis: loss(z, y, where=k, axis_name=axis, **options)


LABEL_LOSSES = {
    "softmax_cross_entropy": _mean(_cross_entropy),
    "softmax_cross_entropy, weighted and smoothed": lambda z, y, k, axis: losses.mean(
        losses.softmax_cross_entropy(z, y, where=k, class_weights=WEIGHTS, label_smoothing=0.1),
        where=k,
        weights=jnp.take(WEIGHTS, y, mode="clip"),
        normalizer="weights",
        axis_name=axis,
    ),
    "softmax_focal_loss": _mean(lambda z, y, k: losses.softmax_focal_loss(z, y, gamma=0.5, alpha=WEIGHTS, where=k)),
    "softmax_cross_entropy, distributions": _mean(
        lambda z, y, k: losses.softmax_cross_entropy(z, _distribution(y), where=k, class_weights=WEIGHTS)
    ),
    "softmax_cross_entropy, adjusted logits": _mean(_adjusted),
    "softmax_focal_loss, distributions": _mean(
        lambda z, y, k: losses.softmax_focal_loss(z, _distribution(y), gamma=0.5, alpha=WEIGHTS, where=k)
    ),
    "softmax_poly1_loss": _mean(
        lambda z, y, k: losses.softmax_poly1_loss(z, y, epsilon=-1.0, gamma=0.5, alpha=WEIGHTS, where=k)
    ),
    "ldam_loss": _mean(lambda z, y, k: losses.ldam_loss(z, y, COUNTS, scale=2.0, class_weights=WEIGHTS, where=k)),
    "seesaw_loss": _mean(lambda z, y, k: losses.seesaw_loss(z, y, COUNTS, where=k)),
    "asymmetric_focal_loss": _mean(lambda z, y, k: losses.asymmetric_focal_loss(z, y, rare=(1, 2), gamma=0.5, where=k)),
    "OHEM, a quarter": _mined(_cross_entropy, fraction=0.25),
    "OHEM, threshold": _mined(_cross_entropy, threshold=1.0, min_kept=5),
    "dice_loss": _region(losses.dice_loss),
    "dice_loss, over the batch": _region(losses.dice_loss, over_batch=True),
    "dice_loss, absent classes are wrong": _region(losses.dice_loss, absent="one", classes=(1, 2)),
    "dice_loss, weighted": _region(losses.dice_loss, class_weights=WEIGHTS),
    "generalized_dice_loss": _region(losses.generalized_dice_loss),
    "generalized_dice_loss, over the batch": _region(losses.generalized_dice_loss, over_batch=True),
    "jaccard_loss": _region(losses.jaccard_loss),
    "jaccard_loss, absent classes are right": _region(losses.jaccard_loss, absent="zero", squared=True),
    "tversky_loss": _region(losses.tversky_loss, alpha=0.3, beta=0.7, gamma=4 / 3),
    "dice_loss, distributions": lambda z, y, k, axis: losses.dice_loss(z, _distribution(y), where=k, axis_name=axis),
    "tversky_loss, distributions, squared": lambda z, y, k, axis: losses.tversky_loss(
        z, _distribution(y), alpha=0.3, beta=0.7, squared=True, where=k, over_batch=True, axis_name=axis
    ),
    "generalized_dice_loss, distributions": lambda z, y, k, axis: losses.generalized_dice_loss(
        z, _distribution(y), where=k, axis_name=axis
    ),
    "matthews_loss": _region(losses.matthews_loss),
    "matthews_loss, over the batch, weighted": _region(losses.matthews_loss, over_batch=True, class_weights=WEIGHTS),
    "lovasz_softmax_loss": _region(losses.lovasz_softmax_loss),
    "lovasz_softmax_loss, each image": _region(losses.lovasz_softmax_loss, over_batch=False),
    "lovasz_softmax_loss, each image, weighted": _region(
        losses.lovasz_softmax_loss, over_batch=False, class_weights=WEIGHTS
    ),
    "cl_dice_loss": _region(losses.cl_dice_loss, iterations=1),
    "cl_dice_loss, over the batch": _region(losses.cl_dice_loss, iterations=1, over_batch=True, class_weights=WEIGHTS),
    "boundary_loss": _region(losses.boundary_loss),
    "average_calibration_loss": _region(losses.average_calibration_loss, num_bins=5),
    "average_calibration_loss, over the batch": _region(
        losses.average_calibration_loss, over_batch=True, classes=(1, 2), class_weights=WEIGHTS
    ),
    "a sum of three": lambda z, y, k, axis: (
        _mean(_cross_entropy)(z, y, k, axis)
        + 0.5 * losses.dice_loss(z, y, where=k, axis_name=axis)
        + 0.1 * _mean(_penalty)(z, y, k, axis)
    ),
}
BINARY_LOSSES = {
    "sigmoid_cross_entropy": _mean(
        lambda z, y, k: losses.sigmoid_cross_entropy(z[..., 0], y == 1, where=k, alpha=0.75)
    ),
    "sigmoid_focal_loss, by positives": lambda z, y, k, axis: losses.mean(
        losses.sigmoid_focal_loss(z[..., 0], y == 1, gamma=2.0, where=k),
        where=k,
        positives=y == 1,
        normalizer="positives",
        axis_name=axis,
    ),
    "sigmoid_focal_loss, soft targets": _mean(
        lambda z, y, k: losses.sigmoid_focal_loss(z[..., 0], jnp.where(y == 1, 0.9, 0.2), gamma=2.0, where=k)
    ),
    "sigmoid_focal_star_loss": _mean(
        lambda z, y, k: losses.sigmoid_focal_star_loss(z[..., 0], y == 1, gamma=2.0, beta=1.0, where=k)
    ),
    "sigmoid_poly1_loss": _mean(
        lambda z, y, k: losses.sigmoid_poly1_loss(z[..., 0], y == 1, epsilon=-1.0, gamma=0.5, alpha=0.25, where=k)
    ),
    "hinge_loss": _mean(lambda z, y, k: losses.hinge_loss(z[..., 0], y == 1, where=k)),
    "huber_loss": _mean(lambda z, y, k: losses.huber_loss(z[..., 0], z[..., 1], delta=0.5, where=k)),
    "lovasz_hinge_loss": lambda z, y, k, axis: losses.lovasz_hinge_loss(z[..., 0], y == 1, where=k, axis_name=axis),
    "lovasz_hinge_loss, each image": lambda z, y, k, axis: losses.lovasz_hinge_loss(
        z[..., 0], y == 1, where=k, over_batch=False, axis_name=axis
    ),
    "lovasz_hinge_loss, multi-label": lambda z, y, k, axis: losses.lovasz_hinge_loss(
        z[..., 1:], jnp.stack([y == 1, y > 0], axis=-1), where=k, multi_label=True, axis_name=axis
    ),
    "jaccard_loss, soft sigmoid channels": lambda z, y, k, axis: losses.jaccard_loss(
        z[..., 1:],
        jnp.stack([jnp.where(y == 1, 0.9, 0.0), jnp.where(y > 0, 0.7, 0.2)], axis=-1),
        where=k,
        activation="sigmoid",
        axis_name=axis,
    ),
    "average_calibration_loss, sigmoid channels": lambda z, y, k, axis: losses.average_calibration_loss(
        z[..., 1:], jnp.stack([y == 1, y > 0], axis=-1), where=k, activation="sigmoid", axis_name=axis
    ),
    "tversky_loss, sigmoid channels": lambda z, y, k, axis: losses.tversky_loss(
        z[..., 1:],
        jnp.stack([y == 1, y > 0], axis=-1),
        alpha=0.3,
        beta=0.7,
        where=k,
        over_batch=True,
        activation="sigmoid",
        axis_name=axis,
    ),
    "OHEM 1:3": _ohem_one_to_three,
    "uncertainty_penalty": _mean(_penalty),
    "logit_margin_penalty": _mean(lambda z, y, k: losses.logit_margin_penalty(z, margin=1.0, where=k)),
    "uniform_cross_entropy": _mean(lambda z, y, k: losses.uniform_cross_entropy(z, where=k)),
}
LOSSES = LABEL_LOSSES | BINARY_LOSSES


def _batch():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(8, 3, 5, 4)).astype(np.float32)
    labels = rng.integers(0, CLASSES, size=(8, 3, 5)).astype(np.int32)
    labels[0] = 0  # an image of one class
    # Two images a device: one with few pixels, and the last device with none at all.
    share = np.repeat([1.0, 0.7, 0.1, 0.0], 2).reshape(8, 1, 1)
    where = rng.uniform(size=labels.shape) < share
    features = np.where(where[..., None], features, np.nan).astype(np.float32)
    return features, np.where(where, labels, 255).astype(np.int32), where


FEATURES, LABELS, WHERE = BATCH = _batch()
PARAMETERS = np.random.default_rng(1).normal(size=(4, CLASSES)).astype(np.float32)
LOGITS = np.where(WHERE[..., None], FEATURES, 0) @ PARAMETERS


# Devices


def _values_and_gradients(axis_name):
    """Returns the step of all losses: `{name: (global loss, global gradient)}`."""

    def step(parameters, features, labels, where):
        def value(parameters, loss):
            return loss(jnp.where(where[..., None], features, 0) @ parameters, labels, where, axis_name)

        both = {name: jax.value_and_grad(value)(parameters, loss) for name, loss in LOSSES.items()}
        return {name: (total, pmean(gradient, axis_name)) for name, (total, gradient) in both.items()}

    return step


def _mesh(names=("devices",), sizes=(4,)):
    return jax.make_mesh(sizes, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))


def _jit():
    batch = jax.device_put(BATCH, NamedSharding(_mesh(), PartitionSpec("devices")))
    return jax.jit(_values_and_gradients(None))(PARAMETERS, *batch)


def _pmap():
    batch = [x.reshape(4, 2, *x.shape[1:]) for x in BATCH]
    mapped = jax.pmap(_values_and_gradients("devices"), axis_name="devices", in_axes=(None, 0, 0, 0))
    on_devices = jax.device_get(mapped(PARAMETERS, *batch))
    for every in jax.tree.leaves(on_devices):
        np.testing.assert_array_equal(every, np.repeat(every[:1], 4, axis=0))
    return jax.tree.map(lambda every: every[0], on_devices)


def _shard_map(check_vma, names=("devices",), sizes=(4,)):
    specs = (PartitionSpec(), *[PartitionSpec(names)] * 3)
    step, mesh = _values_and_gradients(names), _mesh(names, sizes)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=check_vma)
    return jax.jit(mapped)(PARAMETERS, *BATCH)


MAPPINGS = {
    "jit": _jit,
    "pmap": _pmap,
    "shard_map": functools.partial(_shard_map, check_vma=True),
    "shard_map unchecked, hosts by devices": functools.partial(_shard_map, False, ("hosts", "devices"), (2, 2)),
}


def _everything(logits, labels, where):
    return {name: jax.value_and_grad(loss)(logits, labels, where, None) for name, loss in LOSSES.items()}


EVERYTHING = jax.jit(_everything)


@pytest.fixture(scope="module")
def clean():
    return EVERYTHING(LOGITS, np.where(WHERE, LABELS, 0), WHERE)


@pytest.fixture(scope="module")
def expected(clean):
    """Returns the values and gradients of one device; the sum over the pixels is NumPy's, and compiles nothing."""
    features = np.where(WHERE[..., None], FEATURES, 0)
    return {
        name: (value, np.tensordot(features, gradient, ((0, 1, 2),) * 2)) for name, (value, gradient) in clean.items()
    }


# Each mapping compiles all losses; the last one combines what the others test and is left to the slow tier.
@pytest.fixture(
    scope="module",
    params=[name if "unchecked" not in name else pytest.param(name, marks=pytest.mark.slow) for name in MAPPINGS],
)
def mapped(request):
    return MAPPINGS[request.param]()


# Eager programs compile each operation alone: all but one loss are left to the slow tier.
@pytest.mark.parametrize(
    "name", [name if name == "softmax_focal_loss" else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES]
)
def test_compiled_equals_eager_under_debug_nans(name, expected):
    def value(parameters):
        return LOSSES[name](np.where(WHERE[..., None], FEATURES, 0) @ parameters, LABELS, WHERE, None)

    with jax.debug_nans(True):
        total, gradient = jax.value_and_grad(value)(jnp.asarray(PARAMETERS))
    assert total > 0
    np.testing.assert_allclose(expected[name][0], total, rtol=1e-5)
    np.testing.assert_allclose(expected[name][1], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_the_same_in_every_mapping(name, mapped, expected):
    value, gradient = mapped[name]
    np.testing.assert_allclose(value, expected[name][0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[name][1], rtol=1e-4, atol=1e-6)


# Masks and invalid labels


@pytest.mark.parametrize("void", [255, -1, 2])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e4])
def test_masked_labels_and_logits_change_no_bit(clean, void, garbage):
    logits = np.where(WHERE[..., None], LOGITS, garbage).astype(np.float32)
    for name, (value, gradient) in EVERYTHING(logits, np.where(WHERE, LABELS, void).astype(np.int32), WHERE).items():
        np.testing.assert_array_equal(value, clean[name][0], err_msg=name)
        np.testing.assert_array_equal(gradient, clean[name][1], err_msg=name)
        assert not np.any(np.asarray(gradient)[~WHERE]), name


def test_masked_nan_logits_raise_nothing_under_debug_nans(clean):
    """Compiled: eager operations raise on the NaN of the argument itself, whatever they do with it."""
    batch = jax.device_put((np.where(WHERE[..., None], LOGITS, np.nan).astype(np.float32), LABELS, WHERE))
    with jax.debug_nans(True):
        results = EVERYTHING(*batch)
    for name, (value, gradient) in results.items():
        np.testing.assert_array_equal(value, clean[name][0], err_msg=name)
        np.testing.assert_array_equal(gradient, clean[name][1], err_msg=name)


def test_an_empty_mask_gives_zero_and_a_zero_gradient():
    for name, (value, gradient) in EVERYTHING(np.full_like(LOGITS, np.nan), LABELS, np.zeros_like(WHERE)).items():
        assert value == 0, name
        assert not np.any(np.asarray(gradient)), name


@pytest.mark.parametrize("label", [-1, CLASSES, 255])
def test_unmasked_invalid_labels_give_nan(label):
    labels = np.where(WHERE, LABELS, 0).astype(np.int32)
    labels[1, 2, 3] = label
    results = EVERYTHING(LOGITS, labels, WHERE)
    for name in LABEL_LOSSES:
        assert np.isnan(results[name][0]), name
        assert np.isnan(results[name][1]).any(), name


def test_the_order_of_an_images_pixels_does_not_matter_but_to_losses_of_shape(clean):
    order = np.random.default_rng(2).permutation(15)
    logits, labels, where = (
        x.reshape(8, 15, *x.shape[3:])[:, order].reshape(x.shape) for x in (LOGITS, np.where(WHERE, LABELS, 0), WHERE)
    )
    for name, (value, gradient) in EVERYTHING(logits, labels, where).items():
        if name.startswith(("cl_dice_loss", "boundary_loss")):
            assert abs(value / clean[name][0] - 1) > 1e-3, name
            continue
        np.testing.assert_allclose(value, clean[name][0], rtol=1e-5, err_msg=name)
        moved = clean[name][1].reshape(8, 15, CLASSES)[:, order].reshape(gradient.shape)
        np.testing.assert_allclose(gradient, moved, rtol=1e-4, atol=1e-7, err_msg=name)


# Numerics and transforms


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_logits_are_finite(dtype):
    extreme = np.random.default_rng(3).choice([-1e4, -100.0, -17.0, 0.0, 1.0, 90.0, 1e4], size=LOGITS.shape)
    for name, (value, gradient) in EVERYTHING(jnp.asarray(extreme, dtype), LABELS, WHERE).items():
        assert value.dtype == jnp.float32, name
        assert gradient.dtype == dtype, name
        assert np.isfinite(value), name
        assert np.isfinite(np.asarray(gradient, np.float32)).all(), name


def test_float64_stays():
    with jax.enable_x64(True):
        for name, loss in LOSSES.items():
            shape = jax.eval_shape(lambda *a, loss=loss: loss(*a, None), LOGITS.astype(np.float64), LABELS, WHERE)
            assert shape.dtype == jnp.float64, name


def test_tpu_programs_neither_scatter_nor_gather():
    """A TPU scatters and gathers one element after another."""
    names = ("softmax_cross_entropy", "softmax_focal_loss", "dice_loss", "lovasz_softmax_loss", "lovasz_hinge_loss")
    for name in names:
        gradient = jax.jit(jax.value_and_grad(lambda z, name=name: LOSSES[name](z, LABELS, WHERE, None)))
        program = gradient.trace(LOGITS).lower(lowering_platforms=("tpu",)).as_text()
        assert "sort" in program or "lovasz" not in name
        assert re.findall(r"stablehlo\.(?:dynamic_)?(?:scatter|gather)", program) == [], name


@pytest.mark.slow
def test_vmap_scan_and_checkpoint_give_the_same_gradient(clean):
    labels = np.where(WHERE, LABELS, 0)
    batches = [np.stack([x, np.roll(x, 1, axis=1)]) for x in (LOGITS, labels, WHERE)]

    def both_ways(logits, labels, where):
        def scanned(logits, loss):
            def body(total, batch):
                return total + jax.checkpoint(lambda *a: loss(*a, None))(*batch), None

            return jax.lax.scan(body, jnp.zeros((), jnp.float32), (logits, labels, where))[0]

        return {
            name: (jax.grad(scanned)(logits, loss), jax.vmap(jax.grad(lambda *a, loss=loss: loss(*a, None)))(*batches))
            for name, loss in LOSSES.items()
        }

    for name, (in_scan, in_vmap) in jax.jit(both_ways)(*batches).items():
        for result in (in_scan, in_vmap):
            np.testing.assert_allclose(result[0], clean[name][1], rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_vmap_of_numpy_arrays_under_jit():
    # A custom derivative would then meet NumPy arrays, which JAX refuses: see `checks.array`.
    labels = np.where(WHERE, LABELS, 0)
    batches = [np.stack([x, np.roll(x, 1, axis=1)]) for x in (LOGITS, labels)]
    alone = jax.jit(lambda *batch: {name: loss(*batch, None, None) for name, loss in LOSSES.items()})
    mapped = jax.jit(lambda: {n: jax.vmap(lambda *b, f=f: f(*b, None, None))(*batches) for n, f in LOSSES.items()})()
    for i in range(2):
        for name, value in alone(*(batch[i] for batch in batches)).items():
            np.testing.assert_allclose(mapped[name][i], value, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5)])
def test_an_empty_batch_or_image_gives_zero(shape):
    empty = np.zeros((*shape, CLASSES), np.float32), np.zeros(shape, np.int32), np.ones(shape, bool)
    values = jax.jit(lambda *batch: {name: loss(*batch, None) for name, loss in LOSSES.items()})(*empty)
    assert values == dict.fromkeys(LOSSES, 0)
