"""The private derivative rules against the plain `jax.numpy` forms; derivatives of every order; memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import losses
from segjax.losses._log_odds import log_probabilities

GAMMAS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
POINTS = np.array([-1e4, -300.0, -90.0, -17.0, -1.0, 0.0, 1e-3, 17.0, 90.0, 1e4], np.float32)
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (2, 6, 8, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, (2, 6, 8)).astype(np.int32)
LABELS[0, :2] = 255
WHERE = LABELS < 255
COUNTS = np.array([1, 10, 100])
ALPHA = np.array([0.5, 0.0, 2.0, 1.5], np.float32)


def plain_softmax_focal(logits, labels, where, gamma=2.0):
    own = jax.nn.one_hot(labels, 4, dtype=bool)
    x = jnp.sum(jnp.where(own, logits, 0), -1) - jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=-1)
    loss = jnp.exp(gamma * jax.nn.log_sigmoid(-x)) * -jax.nn.log_sigmoid(x)
    loss = loss * jnp.take(ALPHA, labels, mode="clip")
    return jnp.sum(jnp.where(where, loss, 0)) / jnp.sum(where)


def plain_sigmoid_focal(logits, targets, where, gamma=2.0):
    x = jnp.where(targets == 1, logits, -logits)
    loss = jnp.exp(gamma * jax.nn.log_sigmoid(-x)) * -jax.nn.log_sigmoid(x)
    return jnp.sum(jnp.where(where, loss, 0)) / jnp.sum(where)


def plain_dice(logits, labels, where, squared):
    p, t = jax.nn.softmax(logits), jax.nn.one_hot(labels, 4)
    p, t = (jnp.where(where[..., None], x, 0) for x in (p, t))
    hit = jnp.sum(p * t, axis=(1, 2))
    total = jnp.sum(p**2 + t**2 if squared else p + t, axis=(1, 2))
    present = jnp.sum(t, axis=(1, 2)) > 0
    return jnp.sum(jnp.where(present, 1 - 2 * hit / total, 0)) / jnp.sum(present)


def _dice(squared):
    ours = functools.partial(losses.dice_loss, labels=LABELS, where=WHERE, squared=squared)
    return ours, lambda z: plain_dice(z, jnp.where(WHERE, LABELS, 0), WHERE, squared)


PLAIN = {
    "softmax_focal_loss": (
        lambda z: losses.mean(losses.softmax_focal_loss(z, LABELS, alpha=ALPHA, where=WHERE), where=WHERE),
        lambda z: plain_softmax_focal(z, LABELS, WHERE),
    ),
    "sigmoid_focal_loss": (
        lambda z: losses.mean(losses.sigmoid_focal_loss(z[..., 0], LABELS == 1, where=WHERE), where=WHERE),
        lambda z: plain_sigmoid_focal(z[..., 0], LABELS == 1, WHERE),
    ),
    "dice_loss": _dice(False),
    "dice_loss squared": _dice(True),
}


@pytest.mark.parametrize("name", PLAIN)
def test_rules_equal_the_plain_forms_up_to_a_hessian_product(name):
    def derivatives(loss):
        direction = jnp.cos(LOGITS)
        slope, curvature = jax.jvp(jax.grad(loss), (LOGITS,), (direction,))
        return loss(LOGITS), slope, curvature, jax.jvp(loss, (LOGITS,), (direction,))[1]

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        ours, plain = (jax.jit(lambda f=f: derivatives(f))() for f in PLAIN[name])
    for actual, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["softmax_focal_loss", "sigmoid_focal_loss"])
def test_losses_scatter_and_gather_nothing(name):
    step = jax.jit(jax.value_and_grad(PLAIN[name][0]))
    program = str(jax.export.export(step, platforms=["tpu"])(jnp.asarray(LOGITS)).mlir_module())
    assert "stablehlo.add" in program
    assert not {"stablehlo.gather", "stablehlo.scatter"} & set(program.replace('"', " ").split())


SHAPE = (2, 64, 128, 19)
WEIGHTS = np.linspace(0.5, 2, 19, dtype=np.float32)
PER_PIXEL = {
    "cross entropy": losses.softmax_cross_entropy,
    "weighted cross entropy": functools.partial(losses.softmax_cross_entropy, class_weights=WEIGHTS),
    "focal": losses.softmax_focal_loss,
}
REGION = {
    "dice": losses.dice_loss,
    "squared dice": functools.partial(losses.dice_loss, squared=True),
    "jaccard": losses.jaccard_loss,
    "tversky": losses.tversky_loss,
    "generalized dice": losses.generalized_dice_loss,
}


@pytest.mark.parametrize("name", [*PER_PIXEL, *REGION])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_temporary_memory_of_value_and_gradient_in_units_of_the_logits(name, dtype):
    # Region losses in bfloat16: XLA's CPU compiler writes two float32 arrays of 2 units each (docs/speed.md), the
    # probabilities shared by value and gradient, and the operand of the gradient's sum over the classes.
    limit = 5 if name in REGION and dtype == jnp.bfloat16 else 1.5

    def loss(logits, labels, where):
        if name in REGION:
            return REGION[name](logits, labels, where=where)
        return losses.mean(PER_PIXEL[name](logits, labels, where=where), where=where)

    shapes = ((SHAPE, dtype), (SHAPE[:-1], jnp.int32), (SHAPE[:-1], bool))
    program = jax.jit(jax.value_and_grad(loss)).lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    needed = program.compile().memory_analysis().temp_size_in_bytes
    assert needed < limit * math.prod(SHAPE) * jnp.dtype(dtype).itemsize


ORDERS = {
    "forward over reverse": lambda f: jax.jacfwd(jax.jacrev(f)),
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f)),
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f)),
}
# In bfloat16 the fast tier has one order.
ORDERS_AND_DTYPES = [
    *((order, jnp.float32) for order in ORDERS),
    *(pytest.param(order, jnp.bfloat16, marks=pytest.mark.slow) for order in ORDERS),
]
TARGETS = {
    "integer": np.array([0, 1], np.int32),
    "boolean": np.array([False, True]),
    "float": np.array([0.0, 1.0], np.float32),
    "soft": np.array([0.3, 1e-30], np.float32),
}


def _sigmoid_losses(z, t, gamma):
    return jnp.stack(
        [
            losses.sigmoid_cross_entropy(z, t, alpha=0.25),
            losses.sigmoid_focal_loss(z, t, gamma=gamma, alpha=0.25),
            losses.sigmoid_focal_star_loss(z, t, gamma=gamma + 1),
            losses.sigmoid_poly1_loss(z, t, epsilon=-1.0, gamma=gamma, alpha=0.25),
            losses.hinge_loss(z, t > 0.5 if t.dtype == jnp.float32 else t),
            losses.huber_loss(z, t.astype(jnp.float32)),
        ]
    )


@pytest.mark.parametrize(("order", "dtype"), ORDERS_AND_DTYPES)
def test_second_derivatives_of_sigmoid_losses_are_finite(order, dtype):
    second = ORDERS[order](_sigmoid_losses)
    every = jax.vmap(jax.vmap(jax.vmap(second, (0, None, None)), (None, 0, None)), (None, None, 0))
    points, gammas = jnp.asarray(POINTS, dtype), jnp.array(GAMMAS)
    found = jax.jit(lambda z, g: {name: every(z, t, g) for name, t in TARGETS.items()})(points, gammas)
    for name, value in found.items():
        assert np.isfinite(np.asarray(value, np.float32)).all(), name


@pytest.mark.parametrize(("order", "dtype"), ORDERS_AND_DTYPES)
def test_second_derivatives_of_softmax_losses_are_finite(order, dtype):
    def value(z, label, gamma):
        logits = jnp.stack([z, z * 0, -z])
        t = 0.8 * jax.nn.one_hot(label, 3) + jnp.array([0.2, 0, 0])
        return jnp.stack(
            [
                losses.softmax_cross_entropy(logits, label, label_smoothing=0.1),
                losses.softmax_cross_entropy(logits, t),
                losses.softmax_focal_loss(logits, label, gamma=gamma),
                losses.softmax_focal_loss(logits, t, gamma=gamma),
                losses.softmax_poly1_loss(logits, label, epsilon=-1.0, gamma=gamma),
                losses.ldam_loss(logits, label, COUNTS),
                losses.seesaw_loss(logits, label, COUNTS, p=gamma, q=gamma, min_score=0.0),
                losses.asymmetric_focal_loss(logits, label, rare=(0,), gamma=gamma),
                losses.dice_loss(logits[None, None], label[None, None]),
            ]
        )

    every = jax.vmap(jax.vmap(jax.vmap(ORDERS[order](value), (0, None, None)), (None, 0, None)), (None, None, 0))
    found = jax.jit(every)(jnp.asarray(POINTS, dtype), jnp.arange(3), jnp.array(GAMMAS))
    assert np.isfinite(np.asarray(found, np.float32)).all()


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_sigmoid_focal_loss_hessian_of_float_targets(target):
    z = jnp.linspace(-5, 5, 11)
    hessian = jax.jit(jax.hessian(lambda z, t: losses.sigmoid_focal_loss(z, t).sum()))
    ours, expected = hessian(z, jnp.full(11, target)), hessian(z, jnp.full(11, int(target), jnp.int32))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_negative_weights_raise(transform):
    weights = np.array([1.0, -1.0, 1.0, 1.0], np.float32)
    with pytest.raises(ValueError, match=r"class_weights must be at least 0; got -1 at index \(1,\)"):
        transform(lambda z: losses.softmax_cross_entropy(z, LABELS, class_weights=weights))(LOGITS)
    with pytest.raises(ValueError, match=r"alpha must be at least 0; got -1 at index \(1,\)"):
        transform(lambda z: losses.softmax_focal_loss(z, LABELS, alpha=weights))(LOGITS)
    with pytest.raises(ValueError, match=r"weights must be at least 0; got -1 at index \(1,\)"):
        transform(lambda x: losses.mean(x, weights=weights))(np.ones(4, np.float32))
    # A masked weight may be negative.
    assert transform(lambda x: losses.mean(x, weights=weights, where=weights > 0))(np.ones(4, np.float32)) == 1


def test_big_endian_arrays_and_boolean_labels():
    expected = losses.softmax_focal_loss(LOGITS, LABELS, where=WHERE)
    ours = losses.softmax_focal_loss(LOGITS.astype(">f4"), LABELS.astype(">i2"), where=WHERE)
    np.testing.assert_array_equal(ours, expected)
    binary = LABELS == 1
    np.testing.assert_array_equal(
        losses.softmax_cross_entropy(LOGITS, binary), losses.softmax_cross_entropy(LOGITS, binary.astype(np.int32))
    )
    np.testing.assert_array_equal(losses.boundary_mask(binary), losses.boundary_mask(binary.astype(">i4")))


def test_log_probabilities_equals_log_sigmoid_with_two_derivatives():
    x = jnp.array([0.0, -0.0, 1e-3, -1e-3, 1.5, -1.5, 30.0, -30.0, 1e4, -1e4])
    for sign, i in ((1, 0), (-1, 1)):
        plain, ours = (lambda x, sign=sign: jax.nn.log_sigmoid(sign * x)), (lambda x, i=i: log_probabilities(x)[i])
        for _ in range(3):
            np.testing.assert_allclose(jax.vmap(ours)(x), jax.vmap(plain)(x), rtol=1e-6, atol=1e-12)
            plain, ours = jax.grad(plain), jax.grad(ours)


def test_a_repeated_call_outside_of_jit_compiles_nothing(caplog):
    labels, keep = np.zeros((2, 3), np.int32), np.array([[True, False, True], [True, True, False]])

    def call():
        per_pixel = losses.softmax_focal_loss(np.ones((2, 3, 4), np.float32), labels, gamma=2.0, where=keep)
        hard = losses.hard_pixels(per_pixel, where=keep, fraction=0.5)
        return losses.dice_loss(np.ones((2, 3, 4), np.float32), labels, where=keep), losses.mean(per_pixel, where=hard)

    call()
    with jax.log_compiles():
        call()
    assert [record.message for record in caplog.records if record.message.startswith("Compiling")] == []
