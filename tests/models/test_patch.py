from functools import cache, partial
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import PatchClassifier

SMALL = PatchClassifier(num_classes=3, width=4, depth=2)
# 10 → 8, 6 → 3 → 1
TINY = SMALL.clone(depth=1, norm="none")


def random_images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(7).standard_normal(shape), jnp.float32)


def shapes(model: PatchClassifier):
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), random_images(1, 4, 5, 3))


@cache
def start(model: PatchClassifier):
    """Returns initial variables with other running statistics."""
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), random_images(1, 4, 5, 3))
    statistics = jax.tree.map(lambda x: x + 0.5 * jnp.abs(random_images(*x.shape)), variables.get("batch_stats", {}))
    return {**variables, "batch_stats": statistics}


@partial(jax.jit, static_argnums=0)
def evaluate(model: PatchClassifier, variables, images):
    return model.apply(variables, images, train=False, rngs={"dropout": jax.random.key(4)})


@partial(jax.jit, static_argnums=0)
def train(model: PatchClassifier, variables, images):
    return model.apply(
        variables, images, train=True, mutable=["batch_stats", "intermediates"], capture_intermediates=True
    )


def test_sliding_equals_one_pass():
    model, size = SMALL.clone(dropout="sampled", heads=2), (3, 29)
    images = random_images(2, *size, 3)
    dense, slow = (evaluate(model.clone(sliding=sliding), start(model), images) for sliding in (False, True))
    assert dense.logits.shape == (2, *size, 3)
    assert np.ptp(dense.logits) > 0.01
    for name in ("features", "logits", "mc_logits"):
        np.testing.assert_allclose(getattr(slow, name), getattr(dense, name), atol=1e-5, err_msg=name)


def of_one_patch(params, patches):
    """Maps patches `[N, 10, 10, 3]` to logits `[N, 3]` as in the docstring of `PatchClassifier`."""

    def convolution(x, layer):
        y = jax.lax.conv_general_dilated(
            x, layer["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return nn.relu(y + layer["bias"])

    x = convolution(convolution(patches, params["level0"]["conv1"]), params["level0"]["conv2"])
    x = convolution(nn.max_pool(x, (2, 2), (2, 2)), params["fully_connected"]["conv1"])
    return x[:, 0, 0] @ params["head"]["linear"]["kernel"] + params["head"]["linear"]["bias"]


def test_logits_of_a_pixel_are_those_of_its_patch():
    image, variables = random_images(1, 6, 13, 3), start(TINY)
    logits = evaluate(TINY, variables, image).logits[0]
    reflected = np.pad(image[0], ((5, 4), (5, 4), (0, 0)), mode="reflect")
    pixels = [(0, 0), (5, 12), (2, 7)]
    patches = jnp.stack([reflected[i : i + 10, j : j + 10] for i, j in pixels])
    expected = jax.jit(of_one_patch)(variables["params"], patches)
    np.testing.assert_allclose(jnp.stack([logits[pixel] for pixel in pixels]), expected, atol=1e-5)


def test_only_patches_that_contain_a_pixel_depend_on_it():
    # With positive parameters, a larger pixel increases the logits of all patches that contain it.
    image = jnp.abs(random_images(1, 24, 25, 3))
    variables = jax.tree.map(lambda x: jnp.abs(x) + 0.01, start(TINY))
    before, after = (evaluate(TINY, variables, x).logits for x in (image, image.at[0, 12, 13].add(9.0)))
    seen = np.argwhere(np.any(after - before > 1e-3, axis=(0, 3)))
    # A patch begins 5 pixels before its centre and ends 4 behind it.
    assert {tuple(pixel) for pixel in seen.tolist()} == {(i, j) for i in range(8, 18) for j in range(9, 19)}


@pytest.mark.parametrize(("depth", "patch_size", "patch", "left"), [(2, None, 24, 3), (2, 16, 16, 1), (3, 60, 60, 4)])
def test_fully_connected_kernel_has_the_size_after_the_poolings(depth, patch_size, patch, left):
    model = PatchClassifier(3, width=4, depth=depth, patch_size=patch_size)
    kernel = shapes(model)["params"]["fully_connected"]["conv1"]["kernel"]
    assert model.patch == patch
    assert kernel.shape == (left, left, 4 * 2 ** (depth - 1), 4 * 2**depth)


def test_parameter_count():
    widths = [3, 32, 64, 128]
    levels = sum(9 * i * o + 9 * o * o + 4 * o for i, o in pairwise(widths))
    top = 9 * 128 * 256 + 2 * 256
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes(PatchClassifier(5))["params"]))
    assert count == levels + top + 256 * 5 + 5
    assert round(count / 1e6, 2) == 0.58


def test_parameters_do_not_depend_on_sliding():
    slow = SMALL.clone(sliding=True)
    assert shapes(slow) == shapes(SMALL)
    assert set(shapes(slow)["params"]) == {"level0", "level1", "fully_connected", "head"}


def test_training_takes_one_pass_and_counts_every_pixel_once():
    model, images = TINY.clone(norm="batch", sliding=True), random_images(2, 5, 7, 3)
    output, updated = train(model, start(model), images)
    seen = updated["intermediates"]["level0"]["conv1"]["__call__"][0]
    # The padded image is 14×16; separate patches would be 10×10.
    assert seen.shape == (2, 12, 14, 4)
    before, after = (
        x["level0"]["norm1"]["batch"]["mean"] for x in (start(model)["batch_stats"], updated["batch_stats"])
    )
    np.testing.assert_allclose(after, 0.9 * before + 0.1 * seen.mean((0, 1, 2)), atol=1e-5)
    # A batch of all patches would count a pixel once for each of the 8×8 outputs that contain it.
    patches = np.lib.stride_tricks.sliding_window_view(seen, (8, 8), axis=(1, 2))
    assert np.abs(seen.mean((0, 1, 2)) - patches.mean((0, 1, 2, 4, 5))).max() > 0.01
    # The last layer has one vector per patch.
    assert updated["intermediates"]["fully_connected"]["conv1"]["__call__"][0].shape == (2, 5, 7, 8)
    assert output.logits.shape == (2, 5, 7, 3)


def test_sliding_needs_the_memory_of_one_row_of_patches():
    def temporary(height: int) -> int:
        images = jax.ShapeDtypeStruct((1, height, 32, 3), jnp.float32)
        slow = jax.jit(partial(TINY.clone(sliding=True).apply, train=False))
        return slow.lower(shapes(TINY), images).compile().memory_analysis().temp_size_in_bytes

    patches_of_a_row = 32 * 10 * 10 * 3 * 4
    low, high = temporary(8), temporary(64)
    assert high - low < 2 * patches_of_a_row
    assert high < 64 * patches_of_a_row


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 8}, "with 2 poolings must be 16, 20, 24, …, which .* k = 1, 2, 3, … whole pixels; got 8"),
        ({"patch_size": 25}, "must be 16, 20, 24, …, .*; got 25"),
        ({"depth": 4, "patch_size": 48}, "with 4 poolings must be 76, 92, 108, …, .*; got 48"),
        ({"sliding": True, "norm": "group"}, "sliding=True with norm='group' would change the output"),
    ],
)
def test_invalid_fields_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        shapes(SMALL.clone(**fields))
