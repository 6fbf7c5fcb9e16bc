import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import example_dropout_keys
from segjax.models.network import dropout

KEY, EXAMPLES = jax.random.key(5), jnp.array([11, 3, 7])
KEYS = example_dropout_keys(KEY, EXAMPLES)
X = jnp.asarray(np.random.default_rng(1).standard_normal((3, 40, 30, 5)), jnp.float32)  # an odd number of channels
MASKS = ("element", "channel")


@pytest.mark.parametrize(("rate", "tolerance"), [(0.2, 0.01), (0.5, 0.01), (0.999, 0.25)])
def test_the_share_that_is_dropped_is_the_rate_and_the_mean_stays(rate, tolerance):
    keys = example_dropout_keys(KEY, jnp.arange(4))
    dropped = np.asarray(dropout(jnp.ones((4, 100, 100, 5)), rate, keys))
    np.testing.assert_allclose((dropped == 0).mean(), rate, rtol=0.01)
    np.testing.assert_allclose(dropped.mean(), 1, atol=tolerance)
    np.testing.assert_allclose(dropped.max(), 1 / (1 - rate), rtol=1e-4 if rate < 0.9 else 0.01)


def test_neighbours_are_dropped_independently():
    kept = np.asarray(dropout(jnp.ones((1, 128, 128, 6)), 0.5, KEYS[:1])[0]) > 0
    for pair in ((kept[1:], kept[:-1]), (kept[:, 1:], kept[:, :-1]), *((kept[..., :1], kept[..., i:]) for i in (1, 3))):
        np.testing.assert_allclose((pair[0] == pair[1]).mean(), 0.5, atol=0.02)


def test_a_channel_mask_drops_whole_channels_of_an_image():
    kept = np.asarray(dropout(jnp.ones((3, 4, 5, 64)), 0.5, KEYS, mask="channel")) > 0
    assert (kept == kept[:, :1, :1]).all()
    assert (kept[0] != kept[1]).any()
    np.testing.assert_allclose(kept.mean(), 0.5, atol=0.1)


@pytest.mark.parametrize("mask", MASKS)
def test_rate_0_changes_nothing(mask):
    np.testing.assert_array_equal(dropout(X, 0, KEYS, mask=mask), X)


def test_the_gradient_is_the_mask():
    dropped, gradient = dropout(X, 0.25, KEYS), jax.grad(lambda x: dropout(x, 0.25, KEYS).sum())(X)
    np.testing.assert_allclose(gradient, np.where(np.asarray(dropped) == 0, 0, 4 / 3), rtol=1e-5)


def test_what_is_dropped_is_gone_whatever_it_was():
    dropped = dropout(jnp.full((1, 8, 8, 4), jnp.inf), 0.5, KEYS[:1])
    assert set(np.unique(dropped)) == {0, np.inf}


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_depends_on_key_and_example_index_only(mask):
    whole = dropout(X, 0.5, KEYS, mask=mask)
    order = jnp.array([2, 0, 1])
    permuted = dropout(X[order], 0.5, example_dropout_keys(KEY, EXAMPLES[order]), mask=mask)
    np.testing.assert_array_equal(permuted, whole[order])
    alone = dropout(X[1:2], 0.5, example_dropout_keys(KEY, EXAMPLES[1:2]), mask=mask)
    np.testing.assert_array_equal(alone, whole[1:2])

    def one(x, example):
        return dropout(x[None], 0.5, example_dropout_keys(KEY, example[None]), mask=mask)[0]

    np.testing.assert_array_equal(jax.jit(jax.vmap(one))(X, EXAMPLES), whole)
    other = dropout(X, 0.5, example_dropout_keys(jax.random.key(6), EXAMPLES), mask=mask)
    assert (np.asarray(other) != np.asarray(whole)).any()


def test_one_compilation_serves_every_rate():
    traces = []

    @jax.jit
    def zeros(rate):
        traces.append(rate)
        return (dropout(X, rate, KEYS) == 0).mean()

    rates = (0.0, 0.3, 0.999)
    np.testing.assert_allclose([zeros(rate) for rate in rates], rates, atol=0.02)
    assert len(traces) == 1


def test_bfloat16_stays_and_is_scaled_in_float32():
    dropped = dropout(X.astype(jnp.bfloat16), 0.3, KEYS)
    assert dropped.dtype == jnp.bfloat16
    exact = dropout(X.astype(jnp.bfloat16).astype(jnp.float32), 0.3, KEYS)
    np.testing.assert_array_equal(dropped, exact.astype(jnp.bfloat16))


def test_a_raw_key_is_as_good_as_a_typed_one():
    np.testing.assert_array_equal(
        jax.random.key_data(example_dropout_keys(jax.random.PRNGKey(5), EXAMPLES)), jax.random.key_data(KEYS)
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rate": 1.0}, "rate must be at least 0 and less than 1; got 1"),
        ({"rate": -0.1}, "rate must be at least 0 and less than 1; got -0.1"),
        ({"rate": jnp.nan}, "rate must be finite; got nan"),
        ({"mask": "pixel"}, "mask must be one of 'element', 'channel'; got 'pixel'"),
        ({"keys": KEYS[:2]}, r"one PRNG key per image, shape \(3,\); got \(2,\)"),
    ],
)
def test_broken_arguments_are_named(changed, message):
    arguments = {"x": X, "rate": 0.5, "keys": KEYS, "mask": "element"} | changed
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(dropout)(**arguments)


def test_a_known_rate_is_checked_under_jit_too():
    with pytest.raises(ValueError, match=r"less than 1; got 1\.5"):
        jax.jit(lambda x: dropout(x, 1.5, KEYS))(X)


def test_examples_are_one_index_an_image():
    with pytest.raises(ValueError, match=r"one index per image; got shape \(1, 3\)"):
        inspect.unwrap(example_dropout_keys)(KEY, EXAMPLES[None])
