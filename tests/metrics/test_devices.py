"""Every count is the same to the bit on one and on several devices, and in the program for a TPU.

A new metric is a new line of COUNTS. All counts are compiled as one program per mapping.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from segjax import metrics

CLASSES = 3
# Name -> function of (logits, labels, where, axis_name) that returns the counts and sums of all devices.
COUNTS = {
    "confusion_matrix": lambda z, y, k, axis: metrics.confusion_matrix(
        y, jnp.argmax(z, axis=-1), CLASSES, where=k, axis_name=axis
    ),
    "confusion_matrix without a mask": lambda z, y, k, axis: metrics.confusion_matrix(
        jnp.where(k, y, 0), jnp.argmax(z, axis=-1), CLASSES, axis_name=axis
    ),
    "confusion_matrix with an invalid label on one device": lambda z, y, k, axis: metrics.confusion_matrix(
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
    "calibration_bins": lambda z, y, k, axis: metrics.calibration_bins(z, y, where=k, axis_name=axis),
    "classwise_calibration_bins": lambda z, y, k, axis: metrics.classwise_calibration_bins(
        z, y, where=k, axis_name=axis
    ),
    "proper_score_sums": lambda z, y, k, axis: metrics.proper_score_sums(z, y, where=k, axis_name=axis),
    "checkerboard_sums": lambda z, y, k, axis: metrics.checkerboard_sums(
        jnp.pad(z, [(0, 0), (1, 1), (0, 0), (0, 0)]),
        where=jnp.pad(k, [(0, 0), (1, 1), (0, 0)], "edge"),
        axis_name=axis,
    ),
    "gaussian_sums": lambda z, y, k, axis: metrics.gaussian_sums(jnp.abs(z), y, CLASSES, where=k, axis_name=axis),
    "laplace_sums": lambda z, y, k, axis: metrics.laplace_sums(jnp.abs(z), z, where=k, axis_name=axis),
    "prediction_set_counts": lambda z, y, k, axis: metrics.prediction_set_counts(
        metrics.class_log_odds(z) >= -1, y, where=k, axis_name=axis
    ),
    "uncertainty_histogram": lambda z, y, k, axis: metrics.uncertainty_histogram(
        metrics.max_probability(z, where=k), jnp.argmax(z, axis=-1) == y, maximum=1.0, where=k, axis_name=axis
    ),
}
# Counts that parts of images do not add up to: they depend on neighbours, ignore the mask, or are invalid.
NOT_ADDITIVE = ("boundary", "checkerboard", "without a mask", "invalid label")


def _batch():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 3, 5, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, size=(8, 3, 5)).astype(np.int32)
    # Two images per device: one device has few pixels, and the last has none.
    share = np.repeat([1.0, 0.7, 0.1, 0.0], 2).reshape(8, 1, 1)
    where = rng.uniform(size=labels.shape) < share
    logits[0, 0, 0, 0] = 0.0
    return logits, np.where(where, labels, 255).astype(np.int32), where


BATCH = _batch()


def _mesh(devices=4):
    axis_types = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), ("devices",), axis_types=axis_types, devices=jax.devices()[:devices])


def _all_counts(axis_name):
    return lambda *batch: {name: counts(*batch, axis_name) for name, counts in COUNTS.items()}


def _jit():
    return jax.jit(_all_counts(None))(*jax.device_put(BATCH, NamedSharding(_mesh(), PartitionSpec("devices"))))


def _pmap():
    batch = [x.reshape(4, 2, *x.shape[1:]) for x in BATCH]
    result = jax.tree.map(np.asarray, jax.pmap(_all_counts("devices"), axis_name="devices")(*batch))
    for leaf in jax.tree.leaves(result):
        np.testing.assert_array_equal(leaf, np.repeat(leaf[:1], 4, axis=0))
    return jax.tree.map(lambda leaf: leaf[0], result)


@functools.cache
def _sharded(devices=4, check_vma=True):
    spec = PartitionSpec("devices")
    function, mesh = _all_counts("devices"), _mesh(devices)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=check_vma))


MAPPINGS = {
    "jit": _jit,
    "pmap": _pmap,
    "shard_map": lambda: _sharded()(*BATCH),
    "shard_map unchecked": lambda: _sharded(check_vma=False)(*BATCH),
}


@pytest.fixture(scope="module")
def expected():
    return jax.jit(_all_counts(None))(*BATCH)


def _assert_equal(result, expected, rtol):
    for name, counts in expected.items():
        for one, other in zip(jax.tree.leaves(result[name]), jax.tree.leaves(counts), strict=True):
            assert np.asarray(other).any(), name
            tolerance = 0 if np.issubdtype(np.asarray(other).dtype, np.integer) else rtol
            np.testing.assert_allclose(one, other, rtol=tolerance, err_msg=name)


# Each mapping compiles all counts; the last one combines what the others test and is left to the slow tier.
@pytest.mark.parametrize(
    "mapping", [name if "unchecked" not in name else pytest.param(name, marks=pytest.mark.slow) for name in MAPPINGS]
)
def test_counts_every_mapping(mapping, expected):
    _assert_equal(MAPPINGS[mapping](), expected, rtol=1e-6)


@pytest.mark.slow
def test_counts_tpu_program(expected, monkeypatch):
    def on_tpu(*operands, default, **platforms):
        return platforms.get("tpu", default)(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", on_tpu)
    jax.clear_caches()
    result = jax.jit(_all_counts(None))(*BATCH)
    _assert_equal(result, expected, rtol=1e-6)
    for name in ("calibration_bins", "classwise_calibration_bins"):
        np.testing.assert_array_equal(result[name].confidence, expected[name].confidence)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_tpu_program_has_no_scatter(name):
    counts = jax.jit(lambda *batch: COUNTS[name](*batch, None))
    program = str(jax.export.export(counts, platforms=["tpu"])(*BATCH).mlir_module())
    assert "stablehlo.add" in program
    assert not {"stablehlo.gather", "stablehlo.scatter"} & set(program.replace('"', " ").split())


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([1, 4]), st.integers(1, 3))
def test_counts_any_split_adds_up(seed, devices, batches):
    logits, labels, where = BATCH
    part = np.random.default_rng(seed).integers(batches, size=where.shape)
    whole = _sharded()(*BATCH)
    parts = [_sharded(devices)(logits, labels, where & (part == i)) for i in range(batches)]
    for name in (name for name in COUNTS if not any(excluded in name for excluded in NOT_ADDITIVE)):
        for leaf, *leaves in zip(*map(jax.tree.leaves, (whole[name], *(p[name] for p in parts))), strict=True):
            rtol = 0 if leaf.dtype == jnp.int32 else 1e-5
            np.testing.assert_allclose(sum(np.asarray(x, np.float64) for x in leaves), leaf, rtol=rtol, err_msg=name)
