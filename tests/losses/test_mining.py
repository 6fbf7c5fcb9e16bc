import inspect
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from segjax import losses
from segjax.losses import reduction

SIZE = 12
LOSS = jnp.array([[0.5, 3.0, 1.0, 2.0], [2.0, 0.0, 7.0, 2.5]])
ALL = np.ones(LOSS.shape, bool)


def hardest(loss, among, k):
    """Returns the k largest of `among` and those equal to the last, by a plain sort; NaN is larger than infinity."""
    levels = np.clip(np.asarray(loss, np.float64), -1e300, 1e300)
    levels = np.where(np.isnan(levels), np.inf, levels)
    if k == 0 or not among.any():
        return np.zeros_like(among)
    cut = np.sort(levels[among])[::-1][min(k, among.sum()) - 1]
    return among & (levels >= cut)


# Compiled once each: all numbers are traced.
BY_FRACTION = jax.jit(lambda x, k, f, m: losses.hard_pixels(x, where=k, fraction=f, min_kept=m))
BY_COUNT = jax.jit(lambda x, k, m: losses.hard_pixels(x, where=k, min_kept=m))
BY_THRESHOLD = jax.jit(lambda x, k, t, m: losses.hard_pixels(x, where=k, threshold=t, min_kept=m))
BY_RATIO = jax.jit(
    lambda x, k, p, r, m: losses.hard_pixels(x, where=k, positives=p, negatives_per_positive=r, min_kept=m)
)

# Few values, so that many are equal; and any float at all.
VALUES = st.sampled_from([0.0, -0.0, 1.0, 1.5, -2.0, 1e-45, -1e-45, np.inf, -np.inf, np.nan]) | st.floats(width=32)
BATCHES = st.tuples(
    st.lists(VALUES, min_size=SIZE, max_size=SIZE).map(lambda x: np.array(x, np.float32)),
    st.lists(st.booleans(), min_size=SIZE, max_size=SIZE).map(np.array),
)
COUNTS = st.integers(0, SIZE + 2)


# Against a plain sort


@settings(max_examples=150)
@given(BATCHES, COUNTS)
def test_the_k_hardest_pixels_are_those_of_a_sort(batch, k):
    np.testing.assert_array_equal(BY_COUNT(*batch, k), hardest(*batch, k))


@settings(max_examples=60)
@given(BATCHES, st.fractions(0, 1, max_denominator=40), COUNTS)
def test_a_fraction_is_that_share_of_the_kept_pixels_rounded_up(batch, fraction, min_kept):
    k = max(math.ceil(fraction * int(batch[1].sum())), min_kept)
    np.testing.assert_array_equal(BY_FRACTION(*batch, float(fraction), min_kept), hardest(*batch, k))


@settings(max_examples=60)
@given(BATCHES, st.floats(allow_nan=False, width=32), COUNTS)
@example((np.linspace(0, 1, SIZE, dtype=np.float32), np.ones(SIZE, bool)), 0.5, 8)
def test_a_threshold_is_a_value_of_the_loss(batch, threshold, min_kept):
    loss, where = batch
    expected = where & ~(loss < np.float32(threshold)) | hardest(loss, where, min_kept)
    np.testing.assert_array_equal(BY_THRESHOLD(loss, where, threshold, min_kept), expected)


@settings(max_examples=60)
@given(BATCHES, st.lists(st.booleans(), min_size=SIZE, max_size=SIZE), st.fractions(0, 5, max_denominator=20), COUNTS)
def test_a_ratio_takes_all_positives_and_the_hardest_negatives(batch, positives, ratio, min_kept):
    loss, where = batch
    taken = np.array(positives) & where
    k = max(math.ceil(ratio * int(taken.sum())), min_kept - taken.sum(), 0)
    expected = taken | hardest(loss, where & ~taken, k)
    np.testing.assert_array_equal(BY_RATIO(loss, where, np.array(positives), float(ratio), min_kept), expected)


# What the criteria mean, by hand


@pytest.mark.parametrize(("fraction", "size", "k"), [(0.25, 8, 2), (0.1, 10, 1), (0.1, 11, 2), (1.0, 9, 9), (0, 9, 0)])
@pytest.mark.parametrize("traced", [False, True])
def test_the_share_of_distinct_losses_is_exact(fraction, size, k, traced):
    loss = jnp.arange(size, dtype=jnp.float32)
    if traced:
        mask = jax.jit(lambda f: losses.hard_pixels(loss, fraction=f))(fraction)
    else:
        mask = losses.hard_pixels(loss, fraction=fraction)
    np.testing.assert_array_equal(mask, np.arange(size) >= size - k)


def test_equal_losses_at_the_cut_are_all_in():
    np.testing.assert_array_equal(losses.hard_pixels(LOSS, min_kept=4), LOSS >= 2.0)
    np.testing.assert_array_equal(losses.hard_pixels(jnp.zeros(5), min_kept=1), np.ones(5, bool))


def test_zero_and_minus_zero_are_equal():
    np.testing.assert_array_equal(losses.hard_pixels(jnp.array([0.0, -0.0]), min_kept=1), [True, True])


def test_without_positives_only_min_kept_selects_pixels():
    none = np.zeros_like(ALL)
    alone = losses.hard_pixels(LOSS, positives=none, negatives_per_positive=3.0)
    assert not alone.any()
    some = losses.hard_pixels(LOSS, positives=none, negatives_per_positive=3.0, min_kept=2)
    np.testing.assert_array_equal(some, LOSS >= 3.0)


def test_min_kept_counts_the_positives_too():
    positives = LOSS <= 0.5
    mask = losses.hard_pixels(LOSS, positives=positives, negatives_per_positive=0, min_kept=4)
    np.testing.assert_array_equal(mask, positives | (LOSS >= 3.0))


@pytest.mark.parametrize("ratio", [1e12, np.inf])
def test_a_ratio_beyond_all_pixels_takes_all_if_there_is_a_positive(ratio):
    assert losses.hard_pixels(LOSS, positives=LOSS == 7.0, negatives_per_positive=ratio).all()
    assert not losses.hard_pixels(LOSS, positives=LOSS == 8.0, negatives_per_positive=ratio).any()


@settings(max_examples=200)
@given(st.integers(0, 4096), st.integers(0, 2**31 - 1))
@example(4096, 2**31 - 1)
@example(1, 2**31 - 1)
def test_ceil_product_of_twelve_binary_digits_is_exact_at_any_count(numerator, count):
    share = reduction._ceil_product(jnp.float32(numerator / 4096), jnp.int32(count))
    assert share == math.ceil(Fraction(numerator, 4096) * count)


@settings(max_examples=200)
@given(st.fractions(0, 100, max_denominator=1000), st.integers(0, 2**24))
@example(Fraction(11, 10), 10)
@example(Fraction(2, 3), 3 << 20)
@example(Fraction(64), 1 << 24)
@example(Fraction(999, 10), 1 << 24)
def test_ceil_product_is_never_too_large_and_short_by_rounding_alone(ratio, count):
    # The product is of the float32 nearest to the ratio, but must not exceed the exact ceiling.
    multiple = int(reduction._ceil_product(jnp.float32(float(ratio)), jnp.int32(count)))
    product = ratio * count
    assert multiple <= math.ceil(product)
    assert multiple >= product * (1 - Fraction(1, 2**22))
    if product.denominator == 1 and product < 2**22:
        assert multiple == product


# Masks


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_masked_pixels_are_never_selected_and_not_counted(garbage):
    where = np.array([[True, False, True, True], [True, True, False, True]])
    dirty = np.where(where, LOSS, garbage).astype(np.float32)
    positives = np.asarray(LOSS) == 7.0  # a positive that is masked
    for mask, expected in (
        (losses.hard_pixels(dirty, where=where, fraction=0.5), where & (LOSS >= 2.0)),
        (losses.hard_pixels(dirty, where=where, min_kept=1), LOSS == 2.5),
        (losses.hard_pixels(dirty, where=where, threshold=2.2), LOSS == 2.5),
        (losses.hard_pixels(dirty, where=where, min_kept=100), where),
        (losses.hard_pixels(dirty, where=where, positives=positives, negatives_per_positive=1), np.zeros_like(where)),
    ):
        np.testing.assert_array_equal(mask, expected)


def test_an_empty_mask_selects_nothing():
    mask = losses.hard_pixels(LOSS, where=jnp.array(False), fraction=1.0, min_kept=3)
    assert not mask.any()
    assert losses.mean(LOSS, where=mask) == 0


def test_an_unmasked_nan_is_the_hardest_pixel():
    loss = LOSS.at[0, 0].set(-jnp.nan)
    np.testing.assert_array_equal(losses.hard_pixels(loss, min_kept=1), jnp.isnan(loss))
    assert losses.hard_pixels(loss, threshold=100.0)[0, 0]
    assert jnp.isnan(losses.mean(loss, where=losses.hard_pixels(loss, fraction=0.1)))


def test_masks_broadcast():
    rows = jnp.array([[True], [False]])
    np.testing.assert_array_equal(losses.hard_pixels(LOSS, where=rows, min_kept=1), LOSS == 3.0)
    mask = losses.hard_pixels(LOSS, positives=rows, negatives_per_positive=0.25)
    np.testing.assert_array_equal(mask, rows | (LOSS == 7.0))


# Types and transforms


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_losses(dtype):
    np.testing.assert_array_equal(losses.hard_pixels(LOSS.astype(dtype), fraction=0.5), LOSS >= 2.0)


def test_float64_losses_are_compared_to_the_last_bit():
    with jax.enable_x64(True):
        loss = np.array([1.0, np.nextafter(1.0, 2.0), -np.inf, np.nan, -1.0])
        for k, expected in ((1, [3]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 3, 4])):
            assert np.flatnonzero(losses.hard_pixels(loss, min_kept=k)).tolist() == expected
        assert np.flatnonzero(losses.hard_pixels(loss, fraction=0.4, threshold=None)).tolist() == [1, 3]


def test_works_on_a_scalar_loss():
    assert losses.hard_pixels(jnp.float32(2.0), fraction=0.5)


def test_the_mask_has_no_gradient():
    def hard_loss(loss):
        return losses.mean(loss, where=losses.hard_pixels(loss, fraction=0.25))

    value, gradient = jax.value_and_grad(hard_loss)(LOSS)
    assert value == 5.0
    np.testing.assert_array_equal(gradient, np.where(LOSS >= 3.0, 0.5, 0.0))


def test_vmap_over_the_numbers_and_over_batches():
    fractions = np.array([0.0, 0.3, 0.5, 1.0], np.float32)
    masks = jax.vmap(lambda f: losses.hard_pixels(LOSS, fraction=f, min_kept=1))(fractions)
    for mask, fraction in zip(masks, fractions, strict=True):
        np.testing.assert_array_equal(mask, losses.hard_pixels(LOSS, fraction=fraction, min_kept=1))
    each = jax.vmap(lambda loss: losses.hard_pixels(loss, min_kept=2))(LOSS)
    np.testing.assert_array_equal(each, [LOSS[0] >= 2.0, LOSS[1] >= 2.5])


def test_scan():
    _, masks = jax.lax.scan(lambda carry, loss: (carry, losses.hard_pixels(loss, min_kept=2)), None, LOSS)
    np.testing.assert_array_equal(masks, [LOSS[0] >= 2.0, LOSS[1] >= 2.5])


# Devices: two images each, uneven masks, the last device all void, and many equal losses

RNG = np.random.default_rng(0)
MANY_KEEP = RNG.uniform(size=(8, 3, 5)) < np.repeat([1.0, 0.7, 0.1, 0.0], 2).reshape(8, 1, 1)
MANY_LOSS = np.where(MANY_KEEP, RNG.integers(0, 20, size=(8, 3, 5)) / 4, np.nan).astype(np.float32)
MANY_POSITIVES = RNG.uniform(size=(8, 3, 5)) < 0.1
MANY = (MANY_LOSS, MANY_KEEP, MANY_POSITIVES)


def masks(loss, where, positives, axis_name=None):
    criteria = [
        {"fraction": 0.3},
        {"min_kept": 17},
        {"threshold": 4.5, "min_kept": 20},
        {"positives": positives, "negatives_per_positive": 1.5},
        {"positives": positives, "negatives_per_positive": 0, "min_kept": 30},
    ]
    return [losses.hard_pixels(loss, where=where, axis_name=axis_name, **criterion) for criterion in criteria]


def mesh():
    return jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))


def on_jit():
    return jax.jit(masks)(*jax.device_put(MANY, NamedSharding(mesh(), PartitionSpec("devices"))))


def on_pmap():
    batch = [x.reshape(4, 2, *x.shape[1:]) for x in MANY]
    mapped = jax.pmap(lambda *batch: masks(*batch, "devices"), axis_name="devices")(*batch)
    return [np.asarray(mask).reshape(MANY_LOSS.shape) for mask in mapped]


def on_shard_map(check_vma, axis_name="devices"):
    spec = PartitionSpec("devices")
    mapped = jax.shard_map(
        lambda *batch: masks(*batch, axis_name), mesh=mesh(), in_specs=spec, out_specs=spec, check_vma=check_vma
    )
    return jax.jit(mapped)(*MANY)


MAPPINGS = {
    "jit": on_jit,
    "pmap": on_pmap,
    "shard_map": lambda: on_shard_map(check_vma=True),
    "shard_map unchecked": lambda: on_shard_map(check_vma=False),
}


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_masks_are_the_same_in_every_mapping(mapping):
    for mask, expected in zip(MAPPINGS[mapping](), jax.jit(masks)(*MANY), strict=True):
        assert expected.any()
        np.testing.assert_array_equal(mask, expected)


def test_without_an_axis_name_each_device_mines_for_itself():
    alone = jax.jit(masks)
    parts = [alone(*(x[2 * i : 2 * i + 2] for x in MANY)) for i in range(4)]
    for mask, *expected in zip(on_shard_map(check_vma=True, axis_name=None), *parts, strict=True):
        np.testing.assert_array_equal(mask, np.concatenate(expected))


# Errors of the undecorated function: a user has no import hook

BROKEN = {
    "no criterion": (
        {},
        ValueError,
        r"needs one criterion, fraction, threshold, negatives_per_positive, or min_kept alone; got none",
    ),
    "two criteria": (
        {"fraction": 0.5, "threshold": 1.0},
        ValueError,
        r"needs one criterion, .*; got fraction and threshold",
    ),
    "no positives": (
        {"negatives_per_positive": 3.0},
        ValueError,
        r"positives and negatives_per_positive go together; got positives=None",
    ),
    "no ratio": (
        {"positives": ALL, "fraction": 0.5},
        ValueError,
        r"positives and negatives_per_positive go together; got negatives_per_positive=None",
    ),
    "fraction": ({"fraction": 1.5}, ValueError, r"fraction must be between 0 and 1; got 1.5"),
    "nan fraction": ({"fraction": np.nan}, ValueError, r"fraction must be between 0 and 1; got nan"),
    "a fraction a row": ({"fraction": np.ones(2)}, ValueError, r"fraction must be a scalar; got shape \(2,\)"),
    "negative ratio": (
        {"positives": ALL, "negatives_per_positive": -1},
        ValueError,
        r"negatives_per_positive must be at least 0; got -1",
    ),
    "negative min_kept": ({"min_kept": -1}, ValueError, r"min_kept must be at least 0; got -1"),
    "float min_kept": ({"min_kept": 0.5}, TypeError, r"min_kept must be integers; got float32"),
    "nan threshold": ({"threshold": np.nan}, ValueError, r"threshold must be a number; got nan"),
    "float positives": (
        {"positives": ALL * 1.0, "negatives_per_positive": 3.0},
        TypeError,
        r"positives must be boolean; got float32 of shape \(2, 4\)",
    ),
    "float mask": ({"fraction": 0.5, "where": ALL * 1.0}, TypeError, r"where must be boolean; got float32"),
    "mask of another shape": (
        {"fraction": 0.5, "where": ALL[:, :3]},
        ValueError,
        r"where must have shape \(2, 4\) or one that broadcasts to it; got \(2, 3\)",
    ),
    "positives of another shape": (
        {"positives": ALL[:, :3], "negatives_per_positive": 3.0},
        ValueError,
        r"positives must have shape \(2, 4\) or one that broadcasts to it; got \(2, 3\)",
    ),
    "integer loss": (
        {"per_pixel": ALL.astype(int), "fraction": 0.5},
        TypeError,
        r"per_pixel must be floating point; got int",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_invalid_arguments_are_named(case):
    arguments, error, message = BROKEN[case]
    hard_pixels = inspect.unwrap(losses.hard_pixels)
    with pytest.raises(error, match=message):
        hard_pixels(**({"per_pixel": LOSS} | arguments))


@pytest.mark.parametrize("many", [2**31, np.int64(2**32)])
def test_more_than_an_int32_holds_is_all_of_them(many):
    assert losses.hard_pixels(np.arange(4, dtype=np.float32), min_kept=many).all()
