"""The linear head, dropout, and the upsampling of coarse features in `Network`."""

import inspect
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from segjax.models import LinearHead, Network, Segmentation, example_dropout_keys, head_samples, logit_variance
from segjax.models.layers import upsample_bilinear
from segjax.models.network import dropout

MASKS = ("element", "channel")
RNG = np.random.default_rng(3)
FEATURES = jnp.asarray(np.maximum(RNG.standard_normal((8, 2, 3, 5)), 0), jnp.float32)
KERNEL = jnp.asarray(RNG.standard_normal((5, 3)), jnp.float32)
BIAS = jnp.array([-1.0, 0.0, 2.0])
EXAMPLES = jnp.arange(8)
KEYS = example_dropout_keys(jax.random.key(2), EXAMPLES)
CLEAN = FEATURES @ KERNEL + BIAS


@partial(jax.jit, static_argnames=("heads", "mask"))
def samples_of(features, kernel, bias, keys, rate, heads=3, mask="element"):
    return head_samples(features, kernel, bias, keys, heads=heads, rate=rate, mask=mask)


def test_linear_head_initial_bias_and_kernel_stddev():
    features = jnp.ones((1, 4, 4, 64))
    params = LinearHead(64, bias_init=tuple(map(float, range(64))), kernel_stddev=0.01).init(
        jax.random.key(1), features
    )
    linear = params["params"]["linear"]
    np.testing.assert_array_equal(linear["bias"], np.arange(64))
    np.testing.assert_allclose(linear["kernel"].std(), 0.01, rtol=0.1)


def test_linear_head_of_bfloat16_features_returns_float32():
    logits, variables = LinearHead(3).init_with_output(jax.random.key(0), jnp.ones((1, 2, 2, 4), jnp.bfloat16))
    assert logits.dtype == jnp.float32
    assert variables["params"]["linear"]["kernel"].dtype == jnp.float32


def test_linear_head_rejects_bias_of_wrong_length():
    with pytest.raises(ValueError, match=r"one value per class, 3; got \(1.0, 2.0\)"):
        LinearHead(3, bias_init=(1.0, 2.0)).init(jax.random.key(0), jnp.ones((1, 2, 2, 4)))


def test_segmentation_is_a_pytree():
    output = Segmentation(jnp.ones((1, 2, 2, 3)), None, None, jnp.ones((1, 2, 2, 4)))
    doubled = jax.tree.map(lambda x: 2 * x, output)
    assert isinstance(doubled, Segmentation)
    assert doubled.mc_logits is None
    assert len(jax.tree.leaves(output)) == 2


@cache
def many(mask):
    return np.asarray(samples_of(FEATURES, KERNEL, BIAS, KEYS, 0.3, heads=8192, mask=mask))


@pytest.mark.parametrize("mask", MASKS)
def test_sampled_variance_converges_to_logit_variance_as_one_over_root_k(mask):
    exact = np.asarray(logit_variance(FEATURES, KERNEL, 0.3))
    sizes, errors = (32, 128, 512, 2048), []
    for size in sizes:
        sampled = many(mask).reshape(-1, size, *exact.shape).var(axis=1, ddof=1)
        errors.append(np.sqrt(((sampled - exact) ** 2).mean()))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -0.6 < slope < -0.4, errors
    assert errors[-1] < 0.05 * exact.mean()


@pytest.mark.parametrize("mask", MASKS)
def test_head_samples_mean_is_head_without_dropout(mask):
    np.testing.assert_allclose(many(mask).mean(0), CLEAN, atol=0.12)


@pytest.mark.parametrize("mask", MASKS)
def test_only_channel_masks_are_the_same_for_all_pixels(mask):
    alike = jnp.broadcast_to(FEATURES[:, :1, :1], FEATURES.shape)
    spread = np.ptp(samples_of(alike, KERNEL, BIAS, KEYS, 0.3, mask=mask), axis=(2, 3)).max()
    assert (spread > 0.1) == (mask == "element")


@pytest.mark.parametrize("mask", MASKS)
def test_head_samples_equal_dropout_followed_by_the_head(mask):
    actual = samples_of(FEATURES, KERNEL, BIAS, KEYS, 0.3, mask=mask)
    for k in range(3):
        keys = jax.vmap(lambda key, k=k: jax.random.fold_in(key, k))(KEYS)
        np.testing.assert_allclose(actual[k], dropout(FEATURES, 0.3, keys, mask=mask) @ KERNEL + BIAS, atol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_head_samples_depend_on_the_example_and_not_on_batch_heads_or_mapping(mask):
    whole = np.asarray(samples_of(FEATURES, KERNEL, BIAS, KEYS, 0.3, mask=mask))
    order = jnp.array([3, 0, 7])
    some = samples_of(FEATURES[order], KERNEL, BIAS, KEYS[order], 0.3, mask=mask)
    np.testing.assert_allclose(some, whole[:, order], atol=1e-6)

    def one(x, key):
        return head_samples(x[None], KERNEL, BIAS, key[None], heads=1, rate=0.3, mask=mask)[0, 0]

    np.testing.assert_allclose(jax.vmap(one)(FEATURES, KEYS), whole[0], atol=1e-6)


@partial(jax.jit, static_argnames="mask")
def variance_and_gradients(features, kernel, keys, rate, mask):
    def loss(features, kernel):
        z = head_samples(features, kernel, BIAS, keys, heads=3, rate=rate, mask=mask)
        analytic = logit_variance(features, kernel, rate)
        return z.var(axis=0, ddof=1).sum() + (jax.nn.softmax(z).mean(0) ** 2).sum() + analytic.sum()

    return jax.value_and_grad(loss, (0, 1))(features, kernel)


@pytest.mark.parametrize("mask", MASKS)
def test_head_samples_gradients_in_shard_map_equal_those_of_one_device(mask):
    def step(features, keys):
        value, (to_features, to_kernel) = variance_and_gradients(features, KERNEL, keys, 0.3, mask)
        return jax.lax.psum(value, "devices"), to_features, to_kernel

    split = P("devices")
    mesh = Mesh(np.array(jax.devices()[:4]), ("devices",))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(split, split), out_specs=(P(), split, P()))
    value, to_features, to_kernel = jax.jit(mapped)(FEATURES, KEYS)
    # The kernel is the same on every device, so a checked shard_map has added up its gradient already.
    actual, expected = (value, (to_features, to_kernel)), variance_and_gradients(FEATURES, KERNEL, KEYS, 0.3, mask)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), actual, expected)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("mask", MASKS)
def test_head_samples_gradients_are_finite_and_not_zero(rate, mask):
    value, (to_features, to_kernel) = variance_and_gradients(FEATURES, KERNEL, KEYS, rate, mask)
    assert np.isfinite(value)
    assert np.isfinite(to_features).all()
    assert np.isfinite(to_kernel).all()
    assert np.any(to_features)
    assert np.any(to_kernel)


@pytest.mark.parametrize("mask", MASKS)
def test_head_samples_and_logit_variance_at_rate_0(mask):
    samples = samples_of(FEATURES, KERNEL, BIAS, KEYS, 0.0, mask=mask)
    np.testing.assert_array_equal(samples, jnp.broadcast_to(samples[0], samples.shape))
    np.testing.assert_allclose(samples[0], CLEAN, atol=1e-6)
    np.testing.assert_array_equal(logit_variance(FEATURES, KERNEL, 0), 0)


def test_logit_variance_gradient_equals_its_formula():
    p, x, w = 0.25, np.asarray(FEATURES), np.asarray(KERNEL)
    to_x, to_w, to_p = jax.grad(lambda x, w, p: logit_variance(x, w, p).sum(), (0, 1, 2))(FEATURES, KERNEL, p)
    np.testing.assert_allclose(to_x, 2 / 3 * x * (w**2).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(to_w, 2 / 3 * w * (x**2).sum((0, 1, 2))[:, None], rtol=1e-5)
    np.testing.assert_allclose(to_p, ((x**2) @ (w**2)).sum() / (1 - p) ** 2, rtol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_head_samples_keeps_no_copy_of_the_features_per_head(mask):
    heads = 7
    _, backward = jax.vjp(
        lambda x, w: head_samples(x, w, BIAS, KEYS, heads=heads, rate=0.3, mask=mask), FEATURES, KERNEL
    )
    kept = [leaf for leaf in jax.tree.leaves(backward) if getattr(leaf, "dtype", None) == jnp.float32]
    assert kept
    assert sum(leaf.size for leaf in kept) < 3 * FEATURES.size


def test_head_samples_and_logit_variance_compile_once_for_all_rates():
    traces = []

    @jax.jit
    def both(rate):
        traces.append(rate)
        samples = head_samples(FEATURES, KERNEL, BIAS, KEYS, heads=2, rate=rate)
        return samples.var(axis=0, ddof=1).sum(), logit_variance(FEATURES, KERNEL, rate).sum()

    outcomes = np.array([both(rate) for rate in (0.0, 0.2, 0.5)])
    assert (np.diff(outcomes, axis=0) > 0).all()
    assert len(traces) == 1


def test_head_samples_and_logit_variance_compute_in_float32():
    narrow = FEATURES.astype(jnp.bfloat16)
    samples, variance = samples_of(narrow, KERNEL, BIAS, KEYS, 0.3), logit_variance(narrow, KERNEL, 0.3)
    assert (samples.dtype, variance.dtype) == (jnp.float32, jnp.float32)
    wide = narrow.astype(jnp.float32)
    np.testing.assert_allclose(samples, samples_of(wide, KERNEL, BIAS, KEYS, 0.3), atol=1e-6)
    np.testing.assert_allclose(variance, logit_variance(wide, KERNEL, 0.3), rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"heads": 0}, "heads must be at least 1; got 0"),
        ({"rate": 1.0}, "rate must be at least 0 and less than 1; got 1"),
        ({"mask": "row"}, "mask must be one of 'element', 'channel'; got 'row'"),
        ({"keys": KEYS[:2]}, r"one PRNG key per image, shape \(8,\); got \(2,\)"),
    ],
)
def test_head_samples_rejects_invalid_arguments(changed, message):
    arguments = {"features": FEATURES, "kernel": KERNEL, "bias": BIAS, "keys": KEYS, "heads": 2, "rate": 0.5}
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(head_samples)(**arguments | changed)


def test_logit_variance_rejects_rate_1():
    with pytest.raises(ValueError, match="rate must be at least 0 and less than 1; got 1"):
        logit_variance(FEATURES, KERNEL, 1.0)


class Coarse(Network):
    """Every fourth pixel of four channels as features, upsampled after the body or, if `early`, in it."""

    num_classes: int
    early: bool = False

    multiple = 4

    def body(self, x, ctx):
        x = x[:, ::4, ::4, :4]
        return (upsample_bilinear(x, 4), 1) if self.early else (x, 4)


IMAGES = jnp.asarray(RNG.standard_normal((2, 7, 11, 5)), jnp.float32)


@pytest.mark.parametrize(
    "fields", [{"dropout": "sampled"}, {"dropout": "sampled", "mask": "channel"}, {"dropout": "analytic"}], ids=str
)
def test_coarse_features_give_the_output_of_upsampled_features(fields):
    @partial(jax.jit, static_argnums=0)
    def output(model):
        variables = Coarse(3).init(jax.random.key(1), IMAGES, train=False)
        return model.apply(variables, IMAGES, train=False, rngs={"dropout": jax.random.key(2)})

    late, early = (output(Coarse(3, early=early, rate=0.3, **fields)) for early in (False, True))
    assert late.logits.shape == (2, 7, 11, 3)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), late, early)


def test_coarse_features_are_upsampled_only_if_they_are_used():
    def is_upsampled(select):
        program = jax.jit(lambda x: select(Coarse(3).init_with_output(KEYS[0], x, train=False)[0]))
        return "[2,8,12,4]" in program.lower(IMAGES).compile().as_text()

    assert is_upsampled(lambda output: output.features)
    assert not is_upsampled(lambda output: output.logits)


KEY, FEW_EXAMPLES = jax.random.key(5), jnp.array([11, 3, 7])
FEW_KEYS = example_dropout_keys(KEY, FEW_EXAMPLES)
X = jnp.asarray(np.random.default_rng(1).standard_normal((3, 40, 30, 5)), jnp.float32)  # an odd number of channels


@pytest.mark.parametrize(("rate", "tolerance"), [(0.2, 0.01), (0.5, 0.01), (0.999, 0.25)])
def test_dropout_drops_the_rate_and_keeps_the_mean(rate, tolerance):
    keys = example_dropout_keys(KEY, jnp.arange(4))
    dropped = np.asarray(dropout(jnp.ones((4, 100, 100, 5)), rate, keys))
    np.testing.assert_allclose((dropped == 0).mean(), rate, rtol=0.01)
    np.testing.assert_allclose(dropped.mean(), 1, atol=tolerance)
    np.testing.assert_allclose(dropped.max(), 1 / (1 - rate), rtol=1e-4 if rate < 0.9 else 0.01)


def test_dropout_masks_of_neighbours_are_independent():
    kept = np.asarray(dropout(jnp.ones((1, 128, 128, 6)), 0.5, FEW_KEYS[:1])[0]) > 0
    for pair in ((kept[1:], kept[:-1]), (kept[:, 1:], kept[:, :-1]), *((kept[..., :1], kept[..., i:]) for i in (1, 3))):
        np.testing.assert_allclose((pair[0] == pair[1]).mean(), 0.5, atol=0.02)


def test_dropout_channel_mask_drops_whole_channels_of_an_image():
    kept = np.asarray(dropout(jnp.ones((3, 4, 5, 64)), 0.5, FEW_KEYS, mask="channel")) > 0
    assert (kept == kept[:, :1, :1]).all()
    assert (kept[0] != kept[1]).any()
    np.testing.assert_allclose(kept.mean(), 0.5, atol=0.1)


@pytest.mark.parametrize("mask", MASKS)
def test_dropout_rate_0_is_the_identity(mask):
    np.testing.assert_array_equal(dropout(X, 0, FEW_KEYS, mask=mask), X)


def test_dropout_gradient_is_the_mask():
    dropped, gradient = dropout(X, 0.25, FEW_KEYS), jax.grad(lambda x: dropout(x, 0.25, FEW_KEYS).sum())(X)
    np.testing.assert_allclose(gradient, np.where(np.asarray(dropped) == 0, 0, 4 / 3), rtol=1e-5)


def test_dropout_of_infinity_gives_zero_and_not_nan():
    dropped = dropout(jnp.full((1, 8, 8, 4), jnp.inf), 0.5, FEW_KEYS[:1])
    assert set(np.unique(dropped)) == {0, np.inf}


@pytest.mark.parametrize("mask", MASKS)
def test_dropout_mask_depends_only_on_key_and_example_index(mask):
    whole = dropout(X, 0.5, FEW_KEYS, mask=mask)
    order = jnp.array([2, 0, 1])
    permuted = dropout(X[order], 0.5, example_dropout_keys(KEY, FEW_EXAMPLES[order]), mask=mask)
    np.testing.assert_array_equal(permuted, whole[order])
    alone = dropout(X[1:2], 0.5, example_dropout_keys(KEY, FEW_EXAMPLES[1:2]), mask=mask)
    np.testing.assert_array_equal(alone, whole[1:2])

    def one(x, example):
        return dropout(x[None], 0.5, example_dropout_keys(KEY, example[None]), mask=mask)[0]

    np.testing.assert_array_equal(jax.jit(jax.vmap(one))(X, FEW_EXAMPLES), whole)
    other = dropout(X, 0.5, example_dropout_keys(jax.random.key(6), FEW_EXAMPLES), mask=mask)
    assert (np.asarray(other) != np.asarray(whole)).any()


def test_dropout_compiles_once_for_all_rates():
    traces = []

    @jax.jit
    def zeros(rate):
        traces.append(rate)
        return (dropout(X, rate, FEW_KEYS) == 0).mean()

    rates = (0.0, 0.3, 0.999)
    np.testing.assert_allclose([zeros(rate) for rate in rates], rates, atol=0.02)
    assert len(traces) == 1


def test_dropout_of_bfloat16_is_scaled_in_float32():
    dropped = dropout(X.astype(jnp.bfloat16), 0.3, FEW_KEYS)
    assert dropped.dtype == jnp.bfloat16
    exact = dropout(X.astype(jnp.bfloat16).astype(jnp.float32), 0.3, FEW_KEYS)
    np.testing.assert_array_equal(dropped, exact.astype(jnp.bfloat16))


def test_example_dropout_keys_of_raw_and_typed_keys_are_equal():
    np.testing.assert_array_equal(
        jax.random.key_data(example_dropout_keys(jax.random.PRNGKey(5), FEW_EXAMPLES)), jax.random.key_data(FEW_KEYS)
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rate": 1.0}, "rate must be at least 0 and less than 1; got 1"),
        ({"rate": -0.1}, "rate must be at least 0 and less than 1; got -0.1"),
        ({"rate": jnp.nan}, "rate must be finite; got nan"),
        ({"mask": "pixel"}, "mask must be one of 'element', 'channel'; got 'pixel'"),
        ({"keys": FEW_KEYS[:2]}, r"one PRNG key per image, shape \(3,\); got \(2,\)"),
    ],
)
def test_dropout_rejects_invalid_arguments(changed, message):
    arguments = {"x": X, "rate": 0.5, "keys": FEW_KEYS, "mask": "element"} | changed
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(dropout)(**arguments)


def test_dropout_checks_known_rate_under_jit():
    with pytest.raises(ValueError, match=r"less than 1; got 1\.5"):
        jax.jit(lambda x: dropout(x, 1.5, FEW_KEYS))(X)


def test_example_dropout_keys_rejects_rank_2():
    with pytest.raises(ValueError, match=r"one index per image; got shape \(1, 3\)"):
        inspect.unwrap(example_dropout_keys)(KEY, FEW_EXAMPLES[None])
