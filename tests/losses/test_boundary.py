import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.segmentation import find_boundaries

from segjax import losses

MODES = ("thick", "inner", "outer")
VALUES = (-7, 0, 1, 2, 255)


@functools.cache
def compiled(mode, connectivity=1, background=0):
    arguments = {"mode": mode, "connectivity": connectivity, "background": background}
    return jax.jit(functools.partial(losses.boundary_mask, **arguments))


def blobs(shape, values=VALUES, dtype=np.int32, seed=0):
    """Returns random labels with regions of one pixel and of many."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(values, size=tuple(-(-size // 3) for size in shape))
    labels = coarse.repeat(3, 0).repeat(3, 1)[: shape[0], : shape[1]]
    return np.where(rng.uniform(size=shape) < 0.1, rng.choice(values, size=shape), labels).astype(dtype)


def by_definition(labels, where, mode, connectivity):
    """Returns the mask by the definition of the modes, pixel by pixel; 0 is the background and the smallest label."""
    marked = np.zeros(labels.shape, bool)
    for i, j in zip(*np.nonzero(where), strict=True):
        around = {
            (i + a, j + b): abs(a) + abs(b)
            for a, b in itertools.product((-1, 0, 1), repeat=2)
            if 0 <= i + a < labels.shape[0] and 0 <= j + b < labels.shape[1] and where[i + a, j + b]
        }
        differs = any(labels[p] != labels[i, j] for p, steps in around.items() if steps <= connectivity)
        objects = {labels[p] for p in around} - {0}
        side = {"thick": True, "inner": labels[i, j] != 0, "outer": labels[i, j] == 0 or len(objects) > 1}
        marked[i, j] = differs and side[mode]
    return marked


@pytest.mark.parametrize("background", [0, 2, 255, -7, 1000])
@pytest.mark.parametrize("connectivity", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_equals_scikit_image(mode, connectivity, background):
    for seed in range(10):
        labels = blobs((11, 14), seed=seed)
        expected = find_boundaries(labels, connectivity, mode, background)
        np.testing.assert_array_equal(compiled(mode, connectivity, background)(labels), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (2, 5)])
@pytest.mark.parametrize("mode", MODES)
def test_equals_scikit_image_on_images_without_an_inside(mode, shape):
    for connectivity, seed in itertools.product((1, 2), range(5)):
        labels = blobs(shape, seed=seed)
        expected = find_boundaries(labels, connectivity, mode)
        np.testing.assert_array_equal(compiled(mode, connectivity)(labels), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32])
@pytest.mark.parametrize("mode", MODES)
def test_every_integer_type_is_compared_to_its_ends(mode, dtype):
    limits = np.iinfo(dtype)
    values = np.array([limits.min, 0, 1, limits.max - 1, limits.max], dtype)
    labels = blobs((11, 14), values, dtype)
    for background in (0, int(limits.max), -1):
        expected = find_boundaries(labels, mode=mode, background=background)
        np.testing.assert_array_equal(compiled(mode, 1, background)(labels), expected)


@pytest.mark.parametrize("mode", MODES)
def test_64_bit_labels_are_compared_in_full(mode):
    with jax.enable_x64(True):
        labels = blobs((11, 14), (0, 1, 2**32, 2**32 + 1, -(2**40)), np.int64)
        np.testing.assert_array_equal(losses.boundary_mask(labels, mode=mode), find_boundaries(labels, mode=mode))


@pytest.mark.parametrize("mode", MODES)
def test_each_image_is_marked_by_itself(mode):
    labels = np.stack([blobs((8, 9), seed=seed) for seed in range(6)]).reshape(2, 3, 8, 9)
    expected = np.stack([find_boundaries(image, mode=mode) for image in labels.reshape(6, 8, 9)]).reshape(2, 3, 8, 9)
    np.testing.assert_array_equal(compiled(mode)(labels), expected)
    np.testing.assert_array_equal(jax.vmap(compiled(mode))(labels), expected)


@pytest.mark.parametrize("connectivity", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_boundary_mask_treats_parts_cut_by_where_as_separate_images(mode, connectivity):
    labels = blobs((13, 16))
    where = np.ones(labels.shape, bool)
    where[6] = where[:, 9:11] = False
    expected = np.zeros(labels.shape, bool)
    for rows, columns in itertools.product((slice(0, 6), slice(7, 13)), (slice(0, 9), slice(11, 16))):
        expected[rows, columns] = find_boundaries(labels[rows, columns], connectivity, mode)
    np.testing.assert_array_equal(compiled(mode, connectivity)(labels, where=where), expected)


@pytest.mark.parametrize("connectivity", [1, 2])
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25)
@given(
    labels=arrays(np.int32, (5, 6), elements=st.sampled_from([0, 1, 2])),
    where=arrays(bool, (5, 6)),
    void=arrays(np.int32, (5, 6), elements=st.sampled_from([-(2**31), -1, 0, 1, 255, 2**31 - 1])),
)
def test_boundary_mask_ignores_masked_pixels_of_any_shape_and_label(mode, connectivity, labels, where, void):
    marked = compiled(mode, connectivity)(np.where(where, labels, void), where=where)
    np.testing.assert_array_equal(marked, by_definition(labels, where, mode, connectivity))


def test_a_mask_may_be_the_same_for_all_images_or_rows():
    labels = np.stack([blobs((6, 7), seed=seed) for seed in range(3)])
    where = np.arange(7) < 4
    full = compiled("outer")(labels, where=np.broadcast_to(where, labels.shape))
    for mask in (where, where[None], np.broadcast_to(where, (6, 7)), where[None, None]):
        np.testing.assert_array_equal(losses.boundary_mask(labels, mode="outer", where=mask), full)


def test_without_a_mask_void_is_a_label_like_any_other():
    labels = np.array([[3, 3, 255, 255]])
    np.testing.assert_array_equal(losses.boundary_mask(labels), [[False, True, True, False]])
    assert not losses.boundary_mask(labels, where=labels != 255).any()


def test_boundary_mask_of_an_empty_mask_is_false():
    labels = blobs((4, 5))
    assert not compiled("thick")(labels, where=np.zeros((4, 5), bool)).any()


def test_weights_are_the_factor_on_boundaries_and_one_elsewhere():
    labels = blobs((11, 14))
    weights = losses.boundary_weights(labels, 2.0)
    assert weights.dtype == jnp.float32
    np.testing.assert_array_equal(weights, np.where(find_boundaries(labels, mode="outer"), 2, 1))
    arguments = {"mode": "inner", "connectivity": 2, "background": 255, "where": labels != 1}
    inner = losses.boundary_mask(labels, **arguments)
    np.testing.assert_array_equal(losses.boundary_weights(labels, 3, **arguments), np.where(inner, 3, 1))


def test_a_sweep_over_the_factor_compiles_once_and_has_a_gradient():
    labels = blobs((6, 7))
    marked = find_boundaries(labels, mode="outer")
    traces = []

    @jax.jit
    def total(factor):
        traces.append(factor)
        return losses.boundary_weights(labels, factor).sum()

    for factor in (0.0, 1.0, 2.5):
        assert float(total(factor)) == marked.sum() * factor + (~marked).sum()
    assert len(traces) == 1
    assert float(jax.grad(total)(2.0)) == marked.sum()
    weights = jax.vmap(lambda factor: losses.boundary_weights(labels, factor))(jnp.array([0.0, 2.0]))
    np.testing.assert_array_equal(weights, [np.where(marked, 0, 1), np.where(marked, 2, 1)])


def test_a_factor_of_one_is_the_plain_mean():
    labels = blobs((6, 7), (0, 1, 2))
    loss = losses.softmax_cross_entropy(np.random.default_rng(0).normal(size=(6, 7, 3)).astype(np.float32), labels)
    assert losses.mean(loss, weights=losses.boundary_weights(labels, 1.0)) == losses.mean(loss)


LABELS = np.zeros((2, 3), np.int32)
BROKEN = {
    "float labels": (
        lambda f: f.boundary_mask(np.zeros((2, 3), np.float32)),
        TypeError,
        r"labels must be integers; got float32 of shape \(2, 3\)",
    ),
    "one axis": (
        lambda f: f.boundary_mask(LABELS[0]),
        ValueError,
        r"labels must be \[..., height, width\]; got shape \(3,\)",
    ),
    "mode": (
        lambda f: f.boundary_mask(LABELS, mode="subpixel"),
        ValueError,
        r"mode must be one of 'thick', 'inner', 'outer'; got 'subpixel'",
    ),
    "connectivity": (
        lambda f: f.boundary_mask(LABELS, connectivity=8),
        ValueError,
        r"connectivity must be 1 \(4 neighbours\) or 2 \(8 neighbours\); got 8",
    ),
    "float background": (
        lambda f: f.boundary_mask(LABELS, mode="outer", background=0.0),
        TypeError,
        r"background must be one integer; got 0.0",
    ),
    "many backgrounds": (
        lambda f: f.boundary_mask(LABELS, mode="outer", background=(0, 1)),
        TypeError,
        r"background must be one integer; got \(0, 1\)",
    ),
    "traced background": (
        lambda f: jax.jit(lambda b: f.boundary_mask(LABELS, mode="outer", background=b))(0),
        TypeError,
        r"background must be known on the host; got a traced array",
    ),
    "float mask": (
        lambda f: f.boundary_mask(LABELS, where=np.ones((2, 3), np.float32)),
        TypeError,
        r"where must be boolean; got float32",
    ),
    "mask of another shape": (
        lambda f: f.boundary_mask(LABELS, where=np.ones((3, 2), bool)),
        ValueError,
        r"where must have shape \(2, 3\) or one that broadcasts to it; got \(3, 2\)",
    ),
    "negative factor": (lambda f: f.boundary_weights(LABELS, -1.0), ValueError, r"factor must be at least 0; got -1"),
    "many factors": (
        lambda f: f.boundary_weights(LABELS, np.ones(2, np.float32)),
        ValueError,
        r"factor must be a scalar; got shape \(2,\)",
    ),
}


class Raw:
    """The functions without the import hook of the tests, as a user calls them."""

    boundary_mask = staticmethod(inspect.unwrap(losses.boundary_mask))
    boundary_weights = staticmethod(inspect.unwrap(losses.boundary_weights))


@pytest.mark.parametrize("case", BROKEN)
def test_invalid_arguments_are_named(case):
    call, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        call(Raw)
