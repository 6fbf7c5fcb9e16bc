import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segjax import losses

LOSS = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, jnp.nan]])
WHERE = jnp.array([[True, True, True], [True, True, False]])


def test_valid_divides_by_the_kept_pixels():
    assert losses.mean(LOSS, where=WHERE) == 3.0
    assert losses.mean(LOSS[:1]) == 2.0


def test_weights_multiply_and_only_their_normalizer_divides_by_them():
    weights = jnp.array([[1.0, 0.0, 2.0], [1.0, 1.0, jnp.nan]])
    assert losses.mean(LOSS, where=WHERE, weights=weights) == (1 + 6 + 4 + 5) / 5
    assert losses.mean(LOSS, where=WHERE, weights=weights, normalizer="weights") == (1 + 6 + 4 + 5) / 5.0


def test_positives_counts_kept_positives_and_at_least_one():
    positives = jnp.array([[False, True, True], [False, False, True]])
    assert losses.mean(LOSS, where=WHERE, positives=positives, normalizer="positives") == 7.5
    none = jnp.zeros_like(positives)
    assert losses.mean(LOSS, where=WHERE, positives=none, normalizer="positives") == 15.0


def test_a_weight_or_mask_may_be_the_same_along_an_axis_and_counts_each_time():
    weights = jnp.array([[3.0], [1.0]])
    rows = jnp.array([[True], [False]])
    assert losses.mean(jnp.ones((2, 3)), weights=weights, normalizer="weights") == 1.0
    assert losses.mean(LOSS, where=rows) == 2.0


@pytest.mark.parametrize("normalizer", ["valid", "weights", "positives"])
def test_an_empty_mask_gives_zero_and_a_zero_gradient(normalizer):
    def loss(x, w):
        return losses.mean(
            x,
            where=jnp.zeros_like(WHERE),
            weights=w,
            positives=WHERE,
            normalizer=normalizer,
        )

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(LOSS, LOSS)
    assert value == 0
    assert not any(np.any(np.asarray(g)) for g in gradients)


def test_zero_total_weight_gives_zero():
    assert losses.mean(LOSS[:1], weights=jnp.zeros((1, 3)), normalizer="weights") == 0


def test_a_masked_nan_stays_out_of_every_gradient():
    value, gradients = jax.value_and_grad(
        lambda x, w: losses.mean(x, where=WHERE, weights=w, normalizer="weights"), argnums=(0, 1)
    )(LOSS, jnp.ones_like(LOSS))
    assert value == 3.0
    np.testing.assert_allclose(gradients[0], np.where(WHERE, 0.2, 0.0), rtol=1e-6)
    np.testing.assert_allclose(gradients[1], np.where(WHERE, (np.nan_to_num(LOSS) - 3) / 5, 0.0), atol=1e-6)


def test_an_unmasked_nan_gives_nan():
    assert jnp.isnan(losses.mean(LOSS))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats_are_summed_in_float32(dtype):
    # 4096 ones: bfloat16 would stop counting at 256, float16 at 2048.
    total = losses.mean(jnp.ones(4096, dtype), positives=jnp.zeros(4096, bool), normalizer="positives")
    assert total.dtype == jnp.float32
    assert total == 4096


def test_float64_stays():
    with jax.enable_x64(True):
        assert losses.mean(jnp.ones(3, jnp.float64), weights=jnp.ones(3, jnp.float32)).dtype == jnp.float64


def test_mean_of_a_scalar_loss():
    assert losses.mean(jnp.float32(2.0), where=jnp.array(True)) == 2.0


@settings(max_examples=25)
@given(st.permutations(range(12)), st.lists(st.booleans(), min_size=12, max_size=12))
def test_mean_is_independent_of_pixel_order_and_masked_values(order, kept):
    rng = np.random.default_rng(0)
    loss, kept, order = rng.uniform(size=12).astype(np.float32), np.array(kept), np.array(order)
    noise = np.where(kept, loss, rng.normal(size=12).astype(np.float32) * 1e6)
    expected = loss[kept].mean() if kept.any() else 0.0
    np.testing.assert_allclose(losses.mean(noise[order], where=kept[order]), expected, rtol=1e-6)


BROKEN = {
    "unknown normalizer": (
        {"normalizer": "batch"},
        ValueError,
        r"normalizer must be one of 'valid', 'weights', 'positives'; got 'batch'",
    ),
    "nothing to divide by": ({"normalizer": "weights"}, ValueError, r'normalizer="weights" .*got weights=None'),
    "no positives": ({"normalizer": "positives"}, ValueError, r'normalizer="positives" .*got positives=None'),
    "float mask": ({"where": jnp.ones((2, 3))}, TypeError, r"where must be boolean; got float32 of shape \(2, 3\)"),
    "float positives": (
        {"normalizer": "positives", "positives": jnp.ones((2, 3))},
        TypeError,
        r"positives must be boolean; got float32",
    ),
    "mask of another shape": (
        {"where": jnp.ones(2, bool)},
        ValueError,
        r"where must have shape \(2, 3\) or one that broadcasts to it; got \(2,\)",
    ),
    "weights of another shape": (
        {"weights": jnp.ones((2, 2))},
        ValueError,
        r"weights must have shape \(2, 3\) or one that broadcasts to it; got \(2, 2\)",
    ),
    "integer loss": (
        {"per_pixel": jnp.ones((2, 3), jnp.int32)},
        TypeError,
        r"per_pixel must be floating point; got int32",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_invalid_arguments_are_named(case):
    # The undecorated function: a user has no import hook.
    arguments, error, message = BROKEN[case]
    mean = inspect.unwrap(losses.mean)
    with pytest.raises(error, match=message):
        mean(**({"per_pixel": jnp.ones((2, 3))} | arguments))
