import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import entr, softmax

from segjax.inference import (
    SYMMETRIES,
    augmented_statistics,
    dropout_head,
    head_uncertainty,
    maps_to_statistics,
    predict_tiled,
    sample_statistics,
    statistics_to_maps,
    uncertainty_of,
)
from segjax.inference.augmentation import restored, transformed
from segjax.inference.predictor import tiles_along
from segjax.models import UNet, example_dropout_keys, head_samples
from segjax.models.network import dropout

FEATURES, CLASSES, KEY = 4, 3, jax.random.key(7)
IMAGES = jax.random.normal(jax.random.key(0), (2, 6, 9, 3))
SQUARES = jax.random.normal(jax.random.key(1), (2, 6, 6, 3))
FILTERS = jax.random.normal(jax.random.key(2), (3, 3, 3, FEATURES))  # no symmetry
KERNEL = jax.random.normal(jax.random.key(3), (FEATURES, CLASSES))
D4 = SYMMETRIES["d4"]


@jax.jit
def encode(images, a):
    features = jax.lax.conv_general_dilated(images, FILTERS, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(features)


@jax.jit
def sample(features, n):
    keys = jax.vmap(jax.random.fold_in, (0, None))(example_dropout_keys(KEY, jnp.zeros(len(features), int)), n)
    return dropout(features, 0.4, keys, mask="channel") @ KERNEL


def head(features, numbers):
    return sample_statistics(lambda n: sample(features, n), numbers)


def clean(images, a):
    return encode(images, a) @ KERNEL


@partial(jax.jit, static_argnames=("samples", "symmetries", "scales"))
def statistics_of(images, *, samples=2, symmetries=D4, scales=(1.0,)):
    return augmented_statistics(images, encode, head, samples=samples, symmetries=symmetries, scales=scales)


def turned(x, symmetry):
    """Applies a symmetry with NumPy."""
    x = np.asarray(x)
    x = x[:, ::-1] if symmetry.rows else x
    x = x[:, :, ::-1] if symmetry.columns else x
    return x.transpose(0, 2, 1, 3) if symmetry.transpose else x


def turned_back(y, symmetry):
    y = y.transpose(0, 2, 1, 3) if symmetry.transpose else y
    return turned(y, symmetry._replace(transpose=False))


@partial(jax.jit, static_argnames="size")
def resized(x, size):
    return jax.image.resize(x, (len(x), *size, x.shape[-1]), "linear", antialias=True)


def samples_one_by_one(images, *, samples, symmetries, scales=(1.0,)):
    """Returns the logits of all pairs of an augmentation and a sample, `[N, B, H, W, C]`."""
    size, found = images.shape[1:3], []
    for scale in scales:
        for symmetry in symmetries:
            seen = turned(resized(images, tuple(round(side * scale) for side in size)), symmetry)
            features = resized(turned_back(np.asarray(encode(seen, 0)), symmetry), size)
            found += [np.asarray(sample(features, len(found) + k)) for k in range(samples)]
    return np.stack(found).astype(np.float64)


@pytest.mark.parametrize("symmetry", D4, ids=str)
@pytest.mark.parametrize("size", [(5, 7), (4, 4)], ids=str)
def test_transformed_equals_numpy_and_restored_inverts_it(symmetry, size):
    x = jnp.arange(2 * size[0] * size[1]).reshape(2, *size, 1)
    np.testing.assert_array_equal(transformed(x, symmetry), turned(x, symmetry))
    np.testing.assert_array_equal(restored(transformed(x, symmetry), symmetry), x)


def test_d4_contains_all_rotations_and_reflections():
    x = np.arange(9).reshape(1, 3, 3, 1)
    turns = {np.rot90(y, k, (1, 2)).tobytes() for y in (x, x[:, ::-1]) for k in range(4)}
    assert {np.asarray(transformed(jnp.asarray(x), s), np.int64).tobytes() for s in D4} == turns
    assert len(turns) == len(D4) == 8


def test_symmetries_of_a_pointwise_network_all_agree():
    # A pointwise network, so that all eight agree.
    found = jax.jit(lambda x: augmented_statistics(x, lambda x, a: 5 * x, symmetries=D4))(IMAGES)
    np.testing.assert_allclose(found.logits, 5 * IMAGES, rtol=1e-5)
    np.testing.assert_allclose(found.probabilities, jax.nn.softmax(5 * IMAGES), rtol=1e-5, atol=1e-7)
    unsure = uncertainty_of(found, 8)
    np.testing.assert_array_equal(unsure.mutual_information, 0)
    np.testing.assert_allclose(unsure.variance, 0, atol=1e-10)


def test_mean_over_d4_is_equivariant():
    mean = jax.jit(lambda x: augmented_statistics(x, clean, symmetries=D4).probabilities)
    expected = mean(SQUARES)
    assert np.abs(transformed(jax.nn.softmax(clean(SQUARES, 0)), D4[5]) - expected).max() > 0.01
    for symmetry in D4:
        np.testing.assert_allclose(restored(mean(transformed(SQUARES, symmetry)), symmetry), expected, atol=1e-6)


def test_a_constant_stays_constant_at_any_scale():
    def constant(images, a):
        return jnp.broadcast_to(jnp.arange(3.0), (*images.shape[:3], 3))

    found = jax.jit(lambda x: augmented_statistics(x, constant, symmetries=SYMMETRIES["mirror"], scales=(0.1, 1.7)))(
        IMAGES
    )
    np.testing.assert_allclose(found.probabilities, np.broadcast_to(softmax(np.arange(3.0)), IMAGES.shape), rtol=1e-5)
    np.testing.assert_allclose(found.variance, 0, atol=1e-10)


@pytest.mark.parametrize(
    ("images", "symmetries", "scales"), [(IMAGES, D4[3:5], (1.0, 1.5)), (SQUARES, D4, (1.0,))], ids=["oblong", "square"]
)
def test_augmented_statistics_equals_a_loop_over_augmentations_and_samples(images, symmetries, scales):
    kinds = {"samples": 3, "symmetries": symmetries, "scales": scales}
    z = samples_one_by_one(images, **kinds)
    p = softmax(z, axis=-1)
    found = uncertainty_of(statistics_of(images, **kinds), len(z))
    entropy = entr(p.mean(axis=0)).sum(axis=-1)
    assert len(z) == 3 * len(symmetries) * len(scales)
    np.testing.assert_allclose(found.probabilities, p.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.predictive_entropy, entropy, atol=3e-6)
    np.testing.assert_allclose(found.mutual_information, entropy - entr(p).sum(axis=-1).mean(axis=0), atol=3e-6)
    np.testing.assert_allclose(found.variance, z.var(axis=0, ddof=1).mean(axis=-1), rtol=1e-4)


def test_logits_far_from_zero_keep_their_variance():
    offset = jnp.arange(2) * 0.01 + 1000

    def far(images, a):
        return jnp.stack([offset[a], -offset[a]]) * jnp.ones((*images.shape[:3], 1))

    found = uncertainty_of(jax.jit(lambda x: augmented_statistics(x, far, symmetries=SYMMETRIES["mirror"]))(IMAGES), 2)
    np.testing.assert_allclose(found.variance, np.var(np.asarray(offset, np.float64), ddof=1), rtol=1e-3)
    assert jnp.isfinite(found.predictive_entropy).all()


def test_without_augmentation_dropout_head_equals_head_uncertainty():
    model = UNet(CLASSES, width=4, depth=1, rate=0.3, mask="channel")
    # Positive numbers for all variables, variances among them: compiling `init` would take longer than the test.
    shapes = jax.eval_shape(partial(model.init, train=False), KEY, IMAGES)
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda one: jnp.asarray(random.uniform(0.1, 0.2, one.shape), jnp.float32), shapes)
    output = jax.jit(partial(model.apply, train=False))(variables, IMAGES)
    linear, examples = variables["params"]["head"]["linear"], jnp.array([4, 9])
    expected = jax.jit(partial(head_uncertainty, samples=3, rate=0.3, examples=examples))(
        output.features, linear["kernel"], linear["bias"], KEY
    )
    assert expected.variance.mean() > 1e-4
    parts = dropout_head(model, variables, KEY, examples=examples)
    found = uncertainty_of(jax.jit(lambda x: augmented_statistics(x, *parts, samples=3))(IMAGES), 3)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=3e-6), found, expected)


@pytest.mark.parametrize("mask", ["channel", "element"])
def test_dropout_head_draws_the_samples_with_the_given_indices(mask):
    features, numbers, rate = jax.random.normal(KEY, (2, 5, 7, 4)), jnp.array([4, 2, 9]), 0.3
    kernel = jax.random.normal(jax.random.key(3), (4, CLASSES))
    variables = {"params": {"head": {"linear": {"kernel": kernel, "bias": jnp.arange(3.0)}}}}
    kinds = {"rate": rate, "mask": mask, "class_logits": lambda outputs: outputs[..., :2]}
    found = jax.jit(dropout_head(UNet(CLASSES), variables, KEY, **kinds)[1])(features, numbers)
    keys = example_dropout_keys(KEY, jnp.arange(2))
    z = np.asarray(head_samples(features, kernel, jnp.arange(3.0), keys, heads=10, rate=rate, mask=mask))
    z = z[np.asarray(numbers), ..., :2].astype(np.float64)
    p = softmax(z, axis=-1)
    np.testing.assert_allclose(found.probabilities, p.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.entropy, entr(p).sum(axis=-1).mean(axis=0), atol=3e-6)
    np.testing.assert_allclose(found.logits, z.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.variance, z.var(axis=0).mean(axis=-1), rtol=1e-4, atol=1e-6)


def test_tiles_augmentations_and_samples_form_one_weighted_mean():
    image, tile, overlap = np.asarray(IMAGES[0]), (6, 6), 3
    tile_maps = jax.jit(lambda tiles: statistics_to_maps(statistics_of(tiles)))
    maps = predict_tiled(image, tile_maps, tile=tile, overlap=overlap, batch=1)
    found = uncertainty_of(maps_to_statistics(maps[None]), 16)

    axis = tiles_along(9, 6, overlap)  # the columns; one tile holds all rows
    p, h, m, s = np.zeros((6, 9, CLASSES)), np.zeros((6, 9)), np.zeros((6, 9, CLASSES)), np.zeros((6, 9, CLASSES))
    for left, weights in zip(*axis, strict=True):
        here = slice(left, left + 6)
        for z in samples_one_by_one(image[None, :, here], samples=2, symmetries=D4)[:, 0]:
            part = weights[:, None] / 16
            p[:, here] += part * softmax(z, axis=-1)
            h[:, here] += part[:, 0] * entr(softmax(z, axis=-1)).sum(axis=-1)
            m[:, here] += part * z
            s[:, here] += part * z**2
    np.testing.assert_allclose(found.probabilities[0], p, atol=1e-6)
    np.testing.assert_allclose(found.mutual_information[0], entr(p).sum(axis=-1) - h, atol=3e-6)
    np.testing.assert_allclose(found.variance[0], 16 / 15 * (s - m**2).mean(axis=-1), rtol=1e-4, atol=1e-4)


def test_all_symmetries_of_a_square_share_one_network_in_the_program():
    seen = []

    def counted(images, a):
        seen.append(images.shape)
        return clean(images, a)

    jax.make_jaxpr(lambda x: augmented_statistics(x, counted, symmetries=D4))(SQUARES)
    assert len(seen) == 2  # one of them is the evaluation of shapes


def test_memory_is_independent_of_the_number_of_samples():
    def bytes_of(samples):
        compiled = (
            jax.jit(partial(augmented_statistics, encode=encode, head=head, samples=samples)).lower(IMAGES).compile()
        )
        return compiled.memory_analysis().temp_size_in_bytes

    stack = 4 * 64 * np.prod(IMAGES.shape[:3]) * CLASSES
    assert bytes_of(64) - bytes_of(3) < stack / 4


def test_augmentations_are_numbered_scale_by_scale():
    def numbered(images, a):
        return jnp.ones((*images.shape[:3], 2)) * jnp.where(a == jnp.array([3, 4]), 12.0, 0)

    # Of six, one votes for class 0 and one for class 1; the others are undecided.
    kinds = {"symmetries": SYMMETRIES["mirror"], "scales": (1.0, 0.5, 2.0)}
    found = jax.jit(lambda x: augmented_statistics(x, numbered, **kinds))(IMAGES)
    np.testing.assert_allclose(found.logits, 2.0, rtol=1e-6)


def test_augmented_statistics_under_shard_map():
    mesh, by_image = jax.sharding.Mesh(jax.devices()[:2], ("devices",)), jax.P("devices")
    mapped = jax.jit(jax.shard_map(statistics_of, mesh=mesh, in_specs=by_image, out_specs=by_image))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), mapped(IMAGES), statistics_of(IMAGES))


# Unwrapped from the tests' type checks.
MOMENTS = partial(inspect.unwrap(augmented_statistics), IMAGES)
BROKEN = {
    "no symmetry": (lambda: MOMENTS(clean, symmetries=()), r"at least one symmetry.*got 0 symmetries"),
    "scale": (lambda: MOMENTS(clean, scales=(1.0, 0.0)), r"positive scales; got 1 symmetries and scales \(1.0, 0.0\)"),
    "samples": (lambda: MOMENTS(encode, head, samples=0), r"samples must be 1 without a head, .*got 0"),
    "no head": (lambda: MOMENTS(clean, samples=3), r"samples must be 1 without a head, .*got 3"),
    "one class": (lambda: MOMENTS(lambda x, a: x[..., :1]), r"at least 2 classes; got 1: turn a single logit z"),
    "size": (
        lambda: MOMENTS(lambda x, a: x[:, 1:]),
        r"encode must return maps of its images, \(2, 6, 9\); got shape \(2, 5, 9, 3\)",
    ),
    "no linear head": (lambda: dropout_head(UNet(2), {"params": {}}, KEY), r"variables must hold a linear head"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_augmented_statistics_invalid_arguments(case):
    call, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        call()
