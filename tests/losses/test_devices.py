"""Every loss has one value and one gradient, however its pixels lie on devices. A new loss is a new line of LOSSES.

Each entry is `loss(logits, labels, where, axis_name) -> global scalar`. The step is the one of the training loop:
per-device code, whose gradients are always averaged.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from segjax import losses
from segjax.collectives import pmean

CLASSES = 3
LOSSES = {
    "softmax_cross_entropy": lambda z, y, k, axis: losses.mean(
        losses.softmax_cross_entropy(z, y, where=k), where=k, axis_name=axis
    ),
    "softmax_cross_entropy, weighted and smoothed": lambda z, y, k, axis: losses.mean(
        losses.softmax_cross_entropy(z, y, where=k, class_weights=jnp.array([1.0, 2.0, 3.0]), label_smoothing=0.1),
        where=k,
        weights=jnp.array([1.0, 2.0, 3.0])[jnp.clip(y, 0, 2)],
        normalizer="weights",
        axis_name=axis,
    ),
    "softmax_cross_entropy, no mask": lambda z, y, k, axis: losses.mean(
        losses.softmax_cross_entropy(z, jnp.where(k, y, 0)), axis_name=axis
    ),
    "softmax_focal_loss": lambda z, y, k, axis: losses.mean(
        losses.softmax_focal_loss(z, y, gamma=0.5, alpha=jnp.array([1.0, 2.0, 3.0]), where=k), where=k, axis_name=axis
    ),
    "sigmoid_cross_entropy": lambda z, y, k, axis: losses.mean(
        losses.sigmoid_cross_entropy(z[..., 0], y == 1, where=k, alpha=0.75), where=k, axis_name=axis
    ),
    "sigmoid_focal_loss, by positives": lambda z, y, k, axis: losses.mean(
        losses.sigmoid_focal_loss(z[..., 0], y == 1, gamma=2.0, where=k),
        where=k,
        positives=y == 1,
        normalizer="positives",
        axis_name=axis,
    ),
    "sigmoid_focal_loss, soft targets": lambda z, y, k, axis: losses.mean(
        losses.sigmoid_focal_loss(z[..., 0], jnp.where(y == 1, 0.9, 0.2), gamma=2.0, where=k), where=k, axis_name=axis
    ),
}


def _batch():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(8, 3, 5, 4)).astype(np.float32)
    labels = rng.integers(0, CLASSES, size=(8, 3, 5)).astype(np.int32)
    # Two images a device: one with few pixels, and the last device with none at all.
    share = np.repeat([1.0, 0.7, 0.1, 0.0], 2).reshape(8, 1, 1)
    where = rng.uniform(size=labels.shape) < share
    features = np.where(where[..., None], features, np.nan).astype(np.float32)
    return features, np.where(where, labels, 255).astype(np.int32), where


BATCH = _batch()
PARAMETERS = np.random.default_rng(1).normal(size=(4, CLASSES)).astype(np.float32)


def _value_and_gradient(loss, axis_name):
    def value(parameters, features, labels, where):
        return loss(jnp.where(where[..., None], features, 0) @ parameters, labels, where, axis_name)

    def step(parameters, *batch):
        total, gradient = jax.value_and_grad(value)(parameters, *batch)
        return total, pmean(gradient, axis_name)

    return step


def _eager(loss):
    return _value_and_gradient(loss, None)(PARAMETERS, *BATCH)


def _mesh():
    return jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))


def _jit(loss):
    batch = jax.device_put(BATCH, NamedSharding(_mesh(), PartitionSpec("devices")))
    return jax.jit(_value_and_gradient(loss, None))(PARAMETERS, *batch)


def _pmap(loss):
    batch = [x.reshape(4, 2, *x.shape[1:]) for x in BATCH]
    mapped = jax.pmap(_value_and_gradient(loss, "devices"), axis_name="devices", in_axes=(None, 0, 0, 0))
    values, gradients = mapped(PARAMETERS, *batch)
    np.testing.assert_array_equal(values, np.repeat(values[:1], 4))
    return values[0], gradients[0]


def _shard_map(check_vma):
    def run(loss):
        specs = (PartitionSpec(), *[PartitionSpec("devices")] * 3)
        step = _value_and_gradient(loss, "devices")
        mapped = jax.shard_map(step, mesh=_mesh(), in_specs=specs, out_specs=PartitionSpec(), check_vma=check_vma)
        return jax.jit(mapped)(PARAMETERS, *BATCH)

    return run


MAPPINGS = {
    "jit": _jit,
    "pmap": _pmap,
    "shard_map": _shard_map(check_vma=True),
    "shard_map unchecked": _shard_map(check_vma=False),
}


@pytest.fixture(scope="module")
def expected():
    return {name: _eager(loss) for name, loss in LOSSES.items()}


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_the_same_in_every_mapping(name, mapping, expected):
    value, gradient = MAPPINGS[mapping](LOSSES[name])
    assert value > 0
    np.testing.assert_allclose(value, expected[name][0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[name][1], rtol=1e-4, atol=1e-6)
