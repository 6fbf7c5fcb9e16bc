import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax import losses, metrics

CLASSES = 4
RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(3, 4, 5, CLASSES)) * 2).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, size=(3, 4, 5)).astype(np.int32)
LABELS[0] = np.where(LABELS[0] == 2, 1, LABELS[0])  # class 2 is absent from the first image
TARGETS = RNG.integers(0, 2, size=LABELS.shape).astype(np.int32)
TARGETS[1] = 0  # an image without positives
KEEP = RNG.uniform(size=LABELS.shape) < 0.7
NONE = np.zeros_like(KEEP)
EVERY = np.ones_like(KEEP)


def jaccard_differences(errors, positive):
    """Returns the loss of Algorithm 1 of the paper in float64: differences of the Jaccard losses of sorted errors."""
    order = np.argsort(-errors, kind="stable")
    positive = positive[order].astype(np.float64)
    intersection = positive.sum() - positive.cumsum()
    union = positive.sum() + (1 - positive).cumsum()
    return errors[order] @ np.diff(1 - intersection / union, prepend=0.0)


def softmax_reference(logits, labels, where, over_batch, absent, class_weights=None):
    logits = np.asarray(logits, np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    images = [slice(None)] if over_batch else list(range(len(labels)))
    losses = []
    for image in images:
        keep = where[image]
        of_class, weights = [], []
        for c in range(logits.shape[-1]):
            positive = labels[image][keep] == c
            if positive.any():
                of_class.append(jaccard_differences(np.abs(positive - p[image][keep][:, c]), positive))
            elif absent != "exclude":
                of_class.append({"zero": 0.0, "one": 1.0}[absent])
            if len(of_class) > len(weights):
                weights.append(1.0 if class_weights is None else class_weights[c])
        if keep.any() and sum(weights) > 0:
            losses.append(np.average(of_class, weights=weights))
    return np.mean(losses) if losses else 0.0


def hinge_reference(logits, targets, where, over_batch):
    errors = np.maximum(0, 1 - np.asarray(logits, np.float64) * (2 * targets - 1))
    images = [slice(None)] if over_batch else list(range(len(targets)))
    losses = [jaccard_differences(errors[i][where[i]], targets[i][where[i]] == 1) for i in images if where[i].any()]
    return np.mean(losses) if losses else 0.0


# Compiled once each.
SOFTMAX = {
    (over_batch, absent): jax.jit(
        lambda z, y, k, o=over_batch, a=absent: losses.lovasz_softmax_loss(z, y, where=k, over_batch=o, absent=a)
    )
    for over_batch in (True, False)
    for absent in ("exclude", "zero", "one")
}
HINGE = {
    over_batch: jax.jit(lambda z, t, k, o=over_batch: losses.lovasz_hinge_loss(z, t, where=k, over_batch=o))
    for over_batch in (True, False)
}
SOFTMAX_GRADIENT = {o: jax.jit(jax.value_and_grad(SOFTMAX[o, "exclude"])) for o in (True, False)}
HINGE_GRADIENT = {o: jax.jit(jax.value_and_grad(HINGE[o])) for o in (True, False)}
BOTH = pytest.mark.parametrize("over_batch", [True, False], ids=["batch", "images"])


# Against Algorithm 1


@BOTH
@pytest.mark.parametrize("absent", ["exclude", "zero", "one"])
@pytest.mark.parametrize("where", [EVERY, KEEP, KEEP & (np.arange(3) > 0).reshape(3, 1, 1)], ids=["all", "some", "two"])
def test_softmax_equals_the_papers_algorithm(over_batch, absent, where):
    ours = SOFTMAX[over_batch, absent](LOGITS, np.where(where, LABELS, 255), where)
    np.testing.assert_allclose(ours, softmax_reference(LOGITS, LABELS, where, over_batch, absent), rtol=1e-5)


@BOTH
@pytest.mark.parametrize("absent", ["exclude", "zero", "one"])
@pytest.mark.parametrize("weights", [(0.2, 3.0, 0.0, 1.5), (0.0, 0.0, 0.0, 2.0), (3.0,) * 4])
def test_softmax_class_weights_give_the_weighted_mean_over_counted_classes(over_batch, absent, weights):
    labels = np.where(np.arange(3).reshape(3, 1, 1) == 1, np.minimum(LABELS, CLASSES - 2), LABELS)
    loss = losses.lovasz_softmax_loss(
        LOGITS, labels, where=KEEP, over_batch=over_batch, absent=absent, class_weights=np.array(weights)
    )
    expected = softmax_reference(LOGITS, labels, KEEP, over_batch, absent, weights)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    if len(set(weights)) == 1:
        np.testing.assert_allclose(loss, SOFTMAX[over_batch, absent](LOGITS, labels, KEEP), rtol=1e-6)


def test_softmax_class_weights_of_zero_give_zero_but_an_invalid_label_nan():
    loss = jax.jit(jax.value_and_grad(losses.lovasz_softmax_loss), static_argnames="over_batch")
    for over_batch in (True, False):
        options = {"class_weights": np.zeros(CLASSES), "over_batch": over_batch}
        value, gradient = loss(LOGITS, LABELS, **options)
        assert value == 0
        assert not np.any(np.asarray(gradient))
        value, gradient = loss(LOGITS, np.full_like(LABELS, 255), **options)
        assert np.isnan(value)
        assert np.isnan(gradient).all()


@BOTH
@pytest.mark.parametrize("absent", ["exclude", "zero", "one"])
def test_a_class_absent_from_every_image_follows_the_policy(over_batch, absent):
    labels = np.minimum(LABELS, CLASSES - 2)
    ours = SOFTMAX[over_batch, absent](LOGITS, labels, KEEP)
    np.testing.assert_allclose(ours, softmax_reference(LOGITS, labels, KEEP, over_batch, absent), rtol=1e-5)


@BOTH
@pytest.mark.parametrize("where", [EVERY, KEEP, KEEP & (np.arange(3) > 0).reshape(3, 1, 1)], ids=["all", "some", "two"])
def test_hinge_equals_the_papers_algorithm(over_batch, where):
    ours = HINGE[over_batch](LOGITS[..., 0], np.where(where, TARGETS, 255), where)
    np.testing.assert_allclose(ours, hinge_reference(LOGITS[..., 0], TARGETS, where, over_batch), rtol=1e-5)


@pytest.mark.parametrize("over_batch", [False, True])
@pytest.mark.parametrize("of_channels", [False, True])
def test_hinge_of_multi_label_channels_is_their_mean(over_batch, of_channels):
    targets, keep = RNG.uniform(size=LOGITS.shape) < 0.3, KEEP[..., None] & np.ones(CLASSES, bool)
    if of_channels:
        keep = keep & (RNG.uniform(size=LOGITS.shape) < 0.5)
        keep[1, ..., 2] = False  # no pixel of one channel of an image

    def loss(z, t, k, **options):
        return losses.lovasz_hinge_loss(z, t, where=k, over_batch=over_batch, **options)

    whole = jax.jit(lambda: loss(LOGITS, targets, keep if of_channels else KEEP, multi_label=True))()
    alone = jax.jit(jax.vmap(loss, in_axes=-1))
    if over_batch:
        expected = alone(LOGITS, targets, keep).mean()
    else:  # each image and channel alone
        each = [alone(LOGITS[i : i + 1], targets[i : i + 1], keep[i : i + 1]) for i in range(len(LOGITS))]
        expected = np.stack(each)[keep.any(axis=(1, 2))].mean()
    np.testing.assert_allclose(whole, expected, rtol=1e-6)


def test_float32_keeps_its_digits_at_many_pixels_and_a_rare_class():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(1 << 17, 2)).astype(np.float32)
    rare = (rng.uniform(size=len(logits)) < 1e-3).astype(np.int32)
    everything = np.ones(len(logits), bool)
    softmax = jax.jit(losses.lovasz_softmax_loss)(logits, rare)
    np.testing.assert_allclose(softmax, softmax_reference(logits, rare, everything, True, "exclude"), rtol=1e-5)
    hinge = jax.jit(losses.lovasz_hinge_loss)(logits[:, 0], rare)
    np.testing.assert_allclose(hinge, hinge_reference(logits[:, 0], rare, everything, True), rtol=1e-5)


def test_a_confident_pixels_tiny_error_keeps_its_digits():
    # 1 - p is 3.8e-9, which float32 cannot see as 1 minus something.
    loss = jax.jit(losses.lovasz_softmax_loss)(jnp.array([[19.4, 0.0]]), jnp.array([0]))
    np.testing.assert_allclose(loss, 1 / (1 + np.exp(19.4)), rtol=1e-5)


# The plain form in jax.numpy, as in the paper, with JAX's own derivatives


def plain_set_loss(errors, positive):
    """Returns the loss of one set: sorted errors times the differences of the Jaccard losses (Algorithm 1)."""
    order = jnp.argsort(-errors, stable=True)
    errors, positive = errors[order], positive[order].astype(errors.dtype)
    intersection = positive.sum() - jnp.cumsum(positive)
    union = positive.sum() + jnp.cumsum(1 - positive)
    return errors @ jnp.diff(1 - intersection / union, prepend=jnp.zeros(1, errors.dtype))


def plain_softmax(logits, labels):
    """Returns the mean over the classes in the labels, without a mask, over the batch."""
    p = jax.nn.softmax(logits).reshape(-1, CLASSES)
    own = jnp.asarray(np.eye(CLASSES, dtype=bool)[labels.ravel()])
    return (
        sum(plain_set_loss(jnp.abs(own[:, c].astype(p.dtype) - p[:, c]), own[:, c]) for c in range(CLASSES)) / CLASSES
    )


def plain_hinge(logits, targets):
    """Returns the loss of one logit per pixel, without a mask, over the batch."""
    signs = (2 * targets - 1).astype(logits.dtype)
    return plain_set_loss(jax.nn.relu(1 - logits * signs).ravel(), jnp.asarray(targets.ravel() == 1))


@pytest.mark.parametrize("x64", [False, True], ids=["keys of 32 bits", "keys of 64 bits"])
def test_the_sort_of_packed_keys_equals_the_plain_form_in_value_and_gradient(x64):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 31, 17, CLASSES)) * 3
    labels = rng.integers(0, CLASSES, size=(2, 31, 17)).astype(np.int32)
    with jax.enable_x64(x64):
        logits = logits.astype(np.float64 if x64 else np.float32)
        softmax = jax.jit(
            lambda z: [jax.value_and_grad(f)(z, labels) for f in (losses.lovasz_softmax_loss, plain_softmax)]
        )
        hinge = jax.jit(
            lambda z: [jax.value_and_grad(f)(z, labels % 2) for f in (losses.lovasz_hinge_loss, plain_hinge)]
        )
        for ours, plain in (softmax(logits), hinge(logits[..., 0])):
            chex.assert_trees_all_close(ours, plain, rtol=1e-10 if x64 else 2e-5, atol=1e-12 if x64 else 1e-7)


# Hard predictions: the surrogate is the score itself


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_hard_softmax_is_one_minus_the_mean_iou_of_the_classes_in_the_labels(seed, share):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, rng.integers(1, CLASSES + 1), size=LABELS.shape).astype(np.int32)
    predictions = np.where(rng.uniform(size=labels.shape) < share, labels, rng.integers(0, CLASSES, labels.shape))
    where = rng.uniform(size=labels.shape) < 0.8
    where[:, 0, 0] = True
    hard = np.where(np.eye(CLASSES, dtype=bool)[predictions], 1e4, -1e4).astype(np.float32)

    def iou_of_present(image):
        keep = where[image]
        matrix = metrics.confusion_matrix(labels[image], predictions[image].astype(np.int32), CLASSES, where=keep)
        iou = metrics.segmentation_scores(matrix)["iou_per_class"]
        return iou[np.isin(np.arange(CLASSES), labels[image][keep])].mean()

    over_batch = SOFTMAX[True, "exclude"](hard, labels, where)
    np.testing.assert_allclose(over_batch, 1 - iou_of_present(slice(None)), rtol=1e-5, atol=1e-6)
    each = SOFTMAX[False, "exclude"](hard, labels, where)
    np.testing.assert_allclose(each, 1 - np.mean([iou_of_present(i) for i in range(3)]), rtol=1e-5, atol=1e-6)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_hinge_at_plus_and_minus_one_is_twice_the_jaccard_loss(seed, frequency, share):
    rng = np.random.default_rng(seed)
    targets = (rng.uniform(size=LABELS.shape) < frequency).astype(np.int32)
    predictions = np.where(rng.uniform(size=targets.shape) < share, targets, 1 - targets)
    where = rng.uniform(size=targets.shape) < 0.8
    where[0, 0, 0] = True
    union = (where & ((targets == 1) | (predictions == 1))).sum()
    jaccard = 1 - (where & (targets == 1) & (predictions == 1)).sum() / union if union else 0.0
    loss = HINGE[True]((2 * predictions - 1).astype(np.float32), targets, where)
    np.testing.assert_allclose(loss, 2 * jaccard, rtol=1e-5, atol=1e-6)


def test_a_perfect_prediction_costs_nothing():
    own = np.eye(CLASSES, dtype=bool)[LABELS]
    value, gradient = SOFTMAX_GRADIENT[True](np.where(own, 1e4, -1e4).astype(np.float32), LABELS, EVERY)
    assert value == 0
    assert not np.any(np.asarray(gradient))
    value, gradient = HINGE_GRADIENT[True](np.where(TARGETS == 1, 2, -2).astype(np.float32), TARGETS, EVERY)
    assert value == 0
    assert not np.any(np.asarray(gradient))


def test_an_image_without_positives_costs_its_largest_hinge_error():
    logits = jnp.array([-3.0, 0.5, 0.25])
    value, gradient = jax.jit(jax.value_and_grad(losses.lovasz_hinge_loss))(logits, jnp.zeros(3, jnp.int32))
    assert value == 1.5
    np.testing.assert_array_equal(gradient, [0, 1, 0])


# Gradients


def central_differences(loss, logits, step=1e-6):
    flat = logits.ravel()
    slopes = [
        (loss((flat + step * one).reshape(logits.shape)) - loss((flat - step * one).reshape(logits.shape))) / (2 * step)
        for one in np.eye(flat.size)
    ]
    return np.reshape(slopes, logits.shape)


@BOTH
def test_gradients_agree_with_central_differences(over_batch):
    with jax.enable_x64(True):
        logits = LOGITS.astype(np.float64)
        value, gradient = SOFTMAX_GRADIENT[over_batch](logits, LABELS, KEEP)
        hinge_value, hinge_gradient = HINGE_GRADIENT[over_batch](logits[..., 0], TARGETS, KEEP)
        assert {value.dtype, hinge_value.dtype} == {jnp.dtype("float64")}
    expected = central_differences(lambda z: softmax_reference(z, LABELS, KEEP, over_batch, "exclude"), logits)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)
    expected = central_differences(lambda z: hinge_reference(z, TARGETS, KEEP, over_batch), logits[..., 0])
    np.testing.assert_allclose(hinge_gradient, expected, rtol=1e-6, atol=1e-8)


def test_where_errors_are_equal_the_gradient_is_a_subgradient():
    # A fresh head: all logits 0. The surrogate is convex in the hinge's logits, so it lies above its tangent.
    fresh = np.zeros(TARGETS.shape, np.float32)
    value, gradient = HINGE_GRADIENT[True](fresh, TARGETS, KEEP)
    for seed in range(20):
        logits = np.random.default_rng(seed).normal(size=fresh.shape).astype(np.float32)
        assert HINGE[True](logits, TARGETS, KEEP) >= value + np.sum(gradient * logits) - 1e-5


# Masks and invalid labels


@BOTH
@pytest.mark.parametrize("void", [255, -1, 0])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e4])
def test_masked_labels_and_logits_change_no_bit(over_batch, void, garbage):
    def masked(logits, labels, gradient_of):
        dirty = np.where(np.expand_dims(KEEP, tuple(range(3, logits.ndim))), logits, garbage).astype(np.float32)
        value, gradient = gradient_of[over_batch](dirty, np.where(KEEP, labels, void), KEEP)
        clean, clean_gradient = gradient_of[over_batch](logits, labels, KEEP)
        np.testing.assert_array_equal(value, clean)
        np.testing.assert_array_equal(gradient, clean_gradient)
        assert not np.any(np.asarray(gradient)[~KEEP])

    masked(LOGITS, LABELS, SOFTMAX_GRADIENT)
    masked(LOGITS[..., 0], TARGETS, HINGE_GRADIENT)


@BOTH
@pytest.mark.parametrize("absent", ["exclude", "zero", "one"])
def test_an_empty_mask_gives_zero(over_batch, absent):
    loss = jax.value_and_grad(SOFTMAX[over_batch, absent])
    value, gradient = loss(np.full_like(LOGITS, np.nan), LABELS, NONE)
    assert value == 0
    assert not np.any(np.asarray(gradient))
    value, gradient = HINGE_GRADIENT[over_batch](np.full_like(LOGITS[..., 0], np.nan), TARGETS, NONE)
    assert value == 0
    assert not np.any(np.asarray(gradient))


@BOTH
@pytest.mark.parametrize("label", [-1, CLASSES, 255])
@pytest.mark.parametrize("only", [False, True])
def test_unmasked_invalid_labels_give_nan(over_batch, label, only):
    at = (1, 2, 3)
    keep = NONE.copy() if only else EVERY.copy()
    keep[at] = True
    labels, targets = LABELS.copy(), TARGETS.copy()
    labels[at] = targets[at] = label
    for value, gradient in (
        SOFTMAX_GRADIENT[over_batch](LOGITS, labels, keep),
        HINGE_GRADIENT[over_batch](LOGITS[..., 0], targets, keep),
    ):
        assert np.isnan(value)
        assert np.isnan(np.asarray(gradient)[at]).all()


def test_a_mask_broadcasts():
    rng = np.random.default_rng(1)
    parts = [rng.uniform(size=shape) < 0.7 for shape in [(1, 4, 5), (3, 1, 1), (5,), ()]]
    softmax = jax.jit(lambda: [losses.lovasz_softmax_loss(LOGITS, LABELS, where=part) for part in parts])()
    hinge = jax.jit(lambda: [losses.lovasz_hinge_loss(LOGITS[..., 0], TARGETS, where=part) for part in parts])()
    wholes = [np.broadcast_to(part, LABELS.shape) for part in parts]
    np.testing.assert_allclose(
        softmax, [SOFTMAX[True, "exclude"](LOGITS, LABELS, whole) for whole in wholes], rtol=1e-6
    )
    np.testing.assert_allclose(hinge, [HINGE[True](LOGITS[..., 0], TARGETS, whole) for whole in wholes], rtol=1e-6)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_hard_targets_of_every_dtype(dtype):
    expected = HINGE[True](LOGITS[..., 0], TARGETS, KEEP)
    np.testing.assert_array_equal(HINGE[True](LOGITS[..., 0], TARGETS.astype(dtype), KEEP), expected)


def test_lovasz_hinge_loss_soft_targets_give_nan():
    assert jnp.isnan(losses.lovasz_hinge_loss(jnp.zeros(2), jnp.array([1.0, 0.9])))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_logits_are_widened_first(dtype):
    narrow = jnp.asarray(LOGITS, dtype)
    for gradient_of, logits, labels in (
        (SOFTMAX_GRADIENT[True], narrow, LABELS),
        (HINGE_GRADIENT[True], narrow[..., 0], TARGETS),
    ):
        value, gradient = gradient_of(logits, labels, KEEP)
        assert value.dtype == jnp.float32
        assert gradient.dtype == dtype
        np.testing.assert_array_equal(value, gradient_of(logits.astype(jnp.float32), labels, KEEP)[0])


# Shapes, order and transforms


def test_one_axis_of_pixels_is_enough():
    flat = SOFTMAX[True, "exclude"](LOGITS.reshape(-1, CLASSES), LABELS.ravel(), KEEP.ravel())
    np.testing.assert_allclose(flat, SOFTMAX[True, "exclude"](LOGITS, LABELS, KEEP), rtol=1e-6)
    flat = HINGE[True](LOGITS[..., 0].ravel(), TARGETS.ravel(), KEEP.ravel())
    np.testing.assert_allclose(flat, HINGE[True](LOGITS[..., 0], TARGETS, KEEP), rtol=1e-6)


@settings(max_examples=20)
@given(st.permutations(range(LABELS.size)))
def test_the_order_of_the_pixels_does_not_matter(order):
    def shuffled(array):
        return array.reshape(LABELS.size, -1)[np.array(order)].reshape(array.shape)

    value, gradient = SOFTMAX_GRADIENT[True](LOGITS, LABELS, KEEP)
    moved, moved_gradient = SOFTMAX_GRADIENT[True](shuffled(LOGITS), shuffled(LABELS), shuffled(KEEP))
    np.testing.assert_allclose(moved, value, rtol=1e-5)
    np.testing.assert_allclose(moved_gradient, shuffled(np.asarray(gradient)), rtol=1e-4, atol=1e-7)


# Errors of the undecorated functions: a user has no import hook

BROKEN = {
    "lovasz_softmax_loss": {
        "shape": ({"labels": LABELS[:, :2]}, ValueError, r"labels must have .*\(3, 4, 5\); got \(3, 2, 5\)"),
        "float labels": ({"labels": KEEP * 1.0}, TypeError, r"labels must be integers; got float32"),
        "one class": ({"logits": LOGITS[..., :1]}, ValueError, r"at least 2 classes.*got shape \(3, 4, 5, 1\)"),
        "mask": ({"where": LABELS}, TypeError, r"where must be boolean; got int32"),
        "class weights": (
            {"class_weights": np.ones(5)},
            ValueError,
            r"class_weights must have one value per class, shape \(4,\); got shape \(5,\)",
        ),
        "absent": ({"absent": "skip"}, ValueError, r"absent must be one of 'exclude', 'zero', 'one'; got 'skip'"),
        "no pixels": (
            {"logits": LOGITS[0, 0, 0], "labels": LABELS[0, 0, 0]},
            ValueError,
            r"logits must be \[pixels, ..., classes\]; got shape \(4,\)",
        ),
        "no images": (
            {"logits": LOGITS[0, 0], "labels": LABELS[0, 0], "over_batch": False},
            ValueError,
            r"logits must be \[batch, pixels, ..., classes\] for over_batch=False; got shape \(5, 4\)",
        ),
    },
    "lovasz_hinge_loss": {
        "shape": ({"targets": TARGETS[0]}, ValueError, r"targets must have the shape of logits, .*got \(4, 5\)"),
        "integer logits": ({"logits": TARGETS}, TypeError, r"logits must be floating point; got int32"),
        "mask": ({"where": np.ones(3, bool)}, ValueError, r"where must have shape \(3, 4, 5\).*got \(3,\)"),
        "no pixels": (
            {"logits": np.float32(1), "targets": np.int32(1)},
            ValueError,
            r"logits must be \[pixels, ...\]; got shape \(\)",
        ),
        "no images": (
            {"logits": LOGITS[0, 0, :, 0], "targets": TARGETS[0, 0], "over_batch": False},
            ValueError,
            r"logits must be \[batch, pixels, ...\] for over_batch=False; got shape \(5,\)",
        ),
    },
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in BROKEN for case in BROKEN[name]])
def test_invalid_arguments_are_named(name, case):
    arguments, error, message = BROKEN[name][case]
    loss = inspect.unwrap(getattr(losses, name))
    good = {"lovasz_softmax_loss": {"logits": LOGITS, "labels": LABELS}}
    good["lovasz_hinge_loss"] = {"logits": LOGITS[..., 0], "targets": TARGETS}
    with pytest.raises(error, match=message):
        loss(**(good[name] | arguments))
