"""Every count is the same to the bit, however its pixels lie on devices, and by what a TPU compiles.

A new metric is a new line of COUNTS.

Each entry is `counts(logits, labels, where, axis_name) -> global integers`. Counts have no gradient.
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
    "calibration_bins": lambda z, y, k, axis: metrics.calibration_bins(z, y, where=k, axis_name=axis).correct,
    "classwise_calibration_bins": lambda z, y, k, axis: (
        metrics.classwise_calibration_bins(z, y, where=k, axis_name=axis).count
    ),
    "proper_score_sums": lambda z, y, k, axis: metrics.proper_score_sums(z, y, where=k, axis_name=axis).count,
    "checkerboard_sums": lambda z, y, k, axis: (
        metrics.checkerboard_sums(
            jnp.pad(z, [(0, 0), (1, 1), (0, 0), (0, 0)]),
            where=jnp.pad(k, [(0, 0), (1, 1), (0, 0)], "edge"),
            axis_name=axis,
        ).windows
    ),
    "uncertainty_histogram": lambda z, y, k, axis: metrics.uncertainty_histogram(
        metrics.max_probability(z, where=k), jnp.argmax(z, axis=-1) == y, maximum=1.0, where=k, axis_name=axis
    ),
}
# Of which parts of images do not add up to the whole: boundaries and windows are a matter of neighbours.
WHOLE = ("boundary", "checkerboard", "no mask", "one device")
OF_PIXELS = [name for name in COUNTS if not any(part in name for part in WHOLE)]
SUMS = {
    "calibration_bins": lambda z, y, k, axis: metrics.calibration_bins(z, y, where=k, axis_name=axis).confidence,
    "proper_score_sums": lambda z, y, k, axis: jnp.stack(metrics.proper_score_sums(z, y, where=k, axis_name=axis)[1:]),
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


def _mesh(devices=4):
    axis_types = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), ("devices",), axis_types=axis_types, devices=jax.devices()[:devices])


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
def test_counts_every_mapping(name, mapping, expected):
    assert expected[name].any()
    np.testing.assert_array_equal(MAPPINGS[mapping](COUNTS[name]), expected[name])


@pytest.mark.parametrize("name", COUNTS)
def test_counts_tpu_program(name, expected, monkeypatch):
    def of_tpu(*operands, default, **platforms):
        return platforms.get("tpu", default)(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", of_tpu)
    jax.clear_caches()
    np.testing.assert_array_equal(COUNTS[name](*BATCH, None), expected[name])


def test_sums_tpu_program(monkeypatch):
    here = {name: np.asarray(sums(*BATCH, None)) for name, sums in SUMS.items()}
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *operands, default, tpu=None, **_: (tpu or default)(*operands)
    )
    jax.clear_caches()
    for name, sums in SUMS.items():
        np.testing.assert_array_equal(sums(*BATCH, None), here[name], name)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_tpu_program_has_no_scatter(name):
    counts = jax.jit(lambda *batch: COUNTS[name](*batch, None))
    program = str(jax.export.export(counts, platforms=["tpu"])(*BATCH).mlir_module())
    assert "stablehlo.add" in program
    assert not {"stablehlo.gather", "stablehlo.scatter"} & set(program.replace('"', " ").split())


@functools.cache
def _all_of_them(devices):
    """Every count and every sum of a batch on so many devices, compiled once."""

    def all_of_them(*batch):
        counts = {name: COUNTS[name](*batch, "devices") for name in OF_PIXELS}
        return counts, {name: function(*batch, "devices") for name, function in SUMS.items()}

    spec = PartitionSpec("devices")
    return jax.jit(jax.shard_map(all_of_them, mesh=_mesh(devices), in_specs=spec, out_specs=PartitionSpec()))


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 4]), st.integers(1, 3))
def test_counts_any_split_adds_up(seed, devices, batches):
    logits, labels, where = BATCH
    part = np.random.default_rng(seed).integers(batches, size=where.shape)
    counts, sums = _all_of_them(1)(*BATCH)
    parts = [_all_of_them(devices)(logits, labels, where & (part == i)) for i in range(batches)]
    for name in counts:
        np.testing.assert_array_equal(sum(np.asarray(c[name], np.int64) for c, _ in parts), counts[name], name)
    for name in sums:
        np.testing.assert_allclose(sum(np.asarray(s[name], np.float64) for _, s in parts), sums[name], rtol=1e-5)
