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


def pictures(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(7).standard_normal(shape), jnp.float32)


def shapes(model: PatchClassifier):
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), pictures(1, 4, 5, 3))


@cache
def start(model: PatchClassifier):
    """Running statistics that are not those of a new network."""
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), pictures(1, 4, 5, 3))
    statistics = jax.tree.map(lambda x: x + 0.5 * jnp.abs(pictures(*x.shape)), variables.get("batch_stats", {}))
    return {**variables, "batch_stats": statistics}


@partial(jax.jit, static_argnums=0)
def evaluate(model: PatchClassifier, variables, images):
    return model.apply(variables, images, train=False, rngs={"dropout": jax.random.key(4)})


@partial(jax.jit, static_argnums=0)
def train(model: PatchClassifier, variables, images):
    return model.apply(
        variables, images, train=True, mutable=["batch_stats", "intermediates"], capture_intermediates=True
    )


@pytest.mark.parametrize(("size", "norm"), [((7, 29), "batch"), ((3, 1), "none")])
def test_patches_one_by_one_and_all_in_one_pass_give_the_same_of_every_pixel(size, norm):
    model, images = SMALL.clone(norm=norm, dropout="sampled", heads=2), pictures(2, *size, 3)
    dense, slow = (evaluate(model.clone(sliding=sliding), start(model), images) for sliding in (False, True))
    assert dense.logits.shape == (2, *size, 3)
    assert np.ptp(dense.logits) > 0.01
    for name in ("features", "logits", "mc_logits"):
        np.testing.assert_allclose(getattr(slow, name), getattr(dense, name), atol=1e-5, err_msg=name)


def of_one_patch(params, patches):
    """The classifier as its docstring has it, with Linen's functions: `[N, 10, 10, 3]` to logits `[N, 3]`."""

    def convolution(x, layer):
        y = jax.lax.conv_general_dilated(
            x, layer["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return nn.relu(y + layer["bias"])

    x = convolution(convolution(patches, params["level0"]["conv1"]), params["level0"]["conv2"])
    x = convolution(nn.max_pool(x, (2, 2), (2, 2)), params["fully_connected"]["conv1"])
    return x[:, 0, 0] @ params["head"]["linear"]["kernel"] + params["head"]["linear"]["bias"]


def test_a_pixels_logits_are_those_of_the_patch_around_it():
    image, variables = pictures(1, 6, 13, 3), start(TINY)
    logits = evaluate(TINY, variables, image).logits[0]
    reflected = np.pad(image[0], ((5, 4), (5, 4), (0, 0)), mode="reflect")
    pixels = [(0, 0), (5, 12), (2, 7)]
    patches = jnp.stack([reflected[i : i + 10, j : j + 10] for i, j in pixels])
    expected = jax.jit(of_one_patch)(variables["params"], patches)
    np.testing.assert_allclose(jnp.stack([logits[pixel] for pixel in pixels]), expected, atol=1e-5)


def test_a_pixel_is_seen_by_the_patches_that_hold_it_and_no_others():
    # Where all parameters are positive what grows somewhere grows all that sees it.
    image = jnp.abs(pictures(1, 24, 25, 3))
    variables = jax.tree.map(lambda x: jnp.abs(x) + 0.01, start(TINY))
    before, after = (evaluate(TINY, variables, x).logits for x in (image, image.at[0, 12, 13].add(9.0)))
    seen = np.argwhere(np.any(after - before > 1e-3, axis=(0, 3)))
    # A patch begins 5 pixels before its centre and ends 4 behind it.
    assert {tuple(pixel) for pixel in seen.tolist()} == {(i, j) for i in range(8, 18) for j in range(9, 19)}


@pytest.mark.parametrize(("depth", "patch_size", "patch", "left"), [(2, None, 24, 3), (2, 16, 16, 1), (3, 60, 60, 4)])
def test_the_fully_connected_layer_sees_what_the_poolings_leave_of_a_patch(depth, patch_size, patch, left):
    model = PatchClassifier(3, width=4, depth=depth, patch_size=patch_size)
    kernel = shapes(model)["params"]["fully_connected"]["conv1"]["kernel"]
    assert model.patch == patch
    assert kernel.shape == (left, left, 4 * 2 ** (depth - 1), 4 * 2**depth)


def test_parameter_count_is_the_formulas():
    widths = [3, 32, 64, 128]
    levels = sum(9 * i * o + 9 * o * o + 4 * o for i, o in pairwise(widths))
    top = 9 * 128 * 256 + 2 * 256
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes(PatchClassifier(5))["params"]))
    assert count == levels + top + 256 * 5 + 5
    assert round(count / 1e6, 2) == 0.58


def test_parameters_do_not_depend_on_the_way():
    slow = SMALL.clone(sliding=True)
    assert shapes(slow) == shapes(SMALL)
    assert set(shapes(slow)["params"]) == {"level0", "level1", "fully_connected", "head"}


def test_training_takes_one_pass_and_counts_every_position_once():
    model, images = TINY.clone(norm="batch", sliding=True), pictures(2, 5, 7, 3)
    output, updated = train(model, start(model), images)
    seen = updated["intermediates"]["level0"]["conv1"]["__call__"][0]
    # The padded image is 14×16, and no patch is 10 wide of its own.
    assert seen.shape == (2, 12, 14, 4)
    before, after = (
        x["level0"]["norm1"]["batch"]["mean"] for x in (start(model)["batch_stats"], updated["batch_stats"])
    )
    np.testing.assert_allclose(after, 0.9 * before + 0.1 * seen.mean((0, 1, 2)), atol=1e-5)
    # In the batch of all patches a position counts once for each of the 8×8 outputs that it may be.
    patches = np.lib.stride_tricks.sliding_window_view(seen, (8, 8), axis=(1, 2))
    assert np.abs(seen.mean((0, 1, 2)) - patches.mean((0, 1, 2, 4, 5))).max() > 0.01
    # The last layer has one vector a patch.
    assert updated["intermediates"]["fully_connected"]["conv1"]["__call__"][0].shape == (2, 5, 7, 8)
    assert output.logits.shape == (2, 5, 7, 3)


def test_one_by_one_needs_the_memory_of_a_row_of_patches():
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
        ({"sliding": True, "norm": "group"}, "sliding=True with norm='group' would be another network"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        shapes(SMALL.clone(**fields))
