"""Every count is the same to the bit, however its pixels lie on devices. A new metric is a new line of COUNTS.

Each entry is `counts(logits, labels, where, axis_name) -> global integers`. Counts have no gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from segjax import metrics

CLASSES = 3
COUNTS = {
    "confusion_matrix": lambda z, y, k, axis: metrics.confusion_matrix(
        y, jnp.argmax(z, axis=-1), CLASSES, where=k, axis_name=axis
    ),
    "confusion_matrix, no mask": lambda z, y, k, axis: metrics.confusion_matrix(
        jnp.where(k, y, 0), jnp.argmax(z, axis=-1), CLASSES, axis_name=axis
    ),
    "confusion_matrix, a label that is no class on one device": lambda z, y, k, axis: metrics.confusion_matrix(
        jnp.where(z[..., 0] == 0, 9, y), jnp.argmax(z, axis=-1), CLASSES, where=k | (z[..., 0] == 0), axis_name=axis
    ),
    "confusion_matrix of logits": lambda z, y, k, axis: metrics.confusion_matrix(
        y, z, CLASSES, where=k, axis_name=axis
    ),
    "boundary_counts": lambda z, y, k, axis: metrics.boundary_counts(
        y, jnp.argmax(z, axis=-1), CLASSES, tolerance=1.5, where=k, axis_name=axis
    ),
    "boundary_iou_counts": lambda z, y, k, axis: metrics.boundary_iou_counts(
        y, jnp.argmax(z, axis=-1), CLASSES, distance=1, where=k, axis_name=axis
    ),
    "score_histogram": lambda z, y, k, axis: metrics.score_histogram(z[..., 0], y == 1, where=k, axis_name=axis),
}


def _batch():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 3, 5, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, size=(8, 3, 5)).astype(np.int32)
    # Two images a device: one with few pixels, and the last device with none at all.
    share = np.repeat([1.0, 0.7, 0.1, 0.0], 2).reshape(8, 1, 1)
    where = rng.uniform(size=labels.shape) < share
    logits[0, 0, 0, 0] = 0.0
    return logits, np.where(where, labels, 255).astype(np.int32), where


BATCH = _batch()


def _mesh():
    return jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))


def _jit(counts):
    batch = jax.device_put(BATCH, NamedSharding(_mesh(), PartitionSpec("devices")))
    return jax.jit(lambda *batch: counts(*batch, None))(*batch)


def _pmap(counts):
    batch = [x.reshape(4, 2, *x.shape[1:]) for x in BATCH]
    result = np.asarray(jax.pmap(lambda *batch: counts(*batch, "devices"), axis_name="devices")(*batch))
    np.testing.assert_array_equal(result, np.repeat(result[:1], 4, axis=0))
    return result[0]


def _shard_map(check_vma):
    def run(counts):
        mapped = jax.shard_map(
            lambda *batch: counts(*batch, "devices"),
            mesh=_mesh(),
            in_specs=PartitionSpec("devices"),
            out_specs=PartitionSpec(),
            check_vma=check_vma,
        )
        return jax.jit(mapped)(*BATCH)

    return run


MAPPINGS = {
    "jit": _jit,
    "pmap": _pmap,
    "shard_map": _shard_map(check_vma=True),
    "shard_map unchecked": _shard_map(check_vma=False),
}


@pytest.fixture(scope="module")
def expected():
    return {name: np.asarray(counts(*BATCH, None)) for name, counts in COUNTS.items()}


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_the_same_in_every_mapping(name, mapping, expected):
    assert expected[name].any()
    np.testing.assert_array_equal(MAPPINGS[mapping](COUNTS[name]), expected[name])
