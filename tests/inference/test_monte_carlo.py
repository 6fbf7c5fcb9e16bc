import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import entr, rel_entr, softmax

from segjax import losses, metrics
from segjax.inference import (
    SampleStatistics,
    Uncertainty,
    analytic_uncertainty,
    head_uncertainty,
    head_uncertainty_maps,
    maps_to_statistics,
    monte_carlo,
    predict_with_uncertainty,
    statistics_to_maps,
    uncertainty_of,
    whole_passes,
)
from segjax.models import UNet, example_dropout_keys, head_samples, logit_variance

CLASSES, FEATURES, KEY, RATE = 5, 7, jax.random.key(3), 0.3
X = jax.nn.relu(jax.random.normal(jax.random.key(0), (2, 13, 45, FEATURES)))  # 585 pixels
KERNEL = jax.random.normal(jax.random.key(1), (FEATURES, CLASSES))
BIAS = jnp.linspace(-1, 1, CLASSES)
EXAMPLES = jnp.array([4, 9])
IMAGES = jax.random.normal(jax.random.key(4), (2, 16, 24, 3))
MODEL = UNet(CLASSES, width=4, depth=1)
VARIABLES = jax.jit(partial(MODEL.init, train=False))(jax.random.key(5), IMAGES)
both_masks = pytest.mark.parametrize("mask", ["channel", "element"])


@partial(jax.jit, static_argnames=("samples", "mask"))
def unsure_of(x, rate=RATE, examples=EXAMPLES, *, samples=3, mask="channel"):
    return head_uncertainty(x, KERNEL, BIAS, KEY, samples=samples, rate=rate, mask=mask, examples=examples)


def stacked(x, rate=RATE, *, samples=3, mask="channel"):
    return head_samples(x, KERNEL, BIAS, example_dropout_keys(KEY, EXAMPLES), heads=samples, rate=rate, mask=mask)


@pytest.mark.parametrize(("mask", "samples"), [("channel", 7), ("element", 2)])
def test_head_uncertainty_equals_the_metrics_of_stacked_samples(mask, samples):
    found, mc_logits = unsure_of(X, samples=samples, mask=mask), stacked(X, samples=samples, mask=mask)
    np.testing.assert_allclose(found.probabilities, jnp.exp(metrics.log_mean_softmax(mc_logits)), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.predictive_entropy, metrics.predictive_entropy(mc_logits), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.mutual_information, metrics.mutual_information(mc_logits), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(found.variance, losses.mc_variance(mc_logits), rtol=1e-4, atol=1e-6)


@both_masks
@pytest.mark.parametrize("scale", [0.01, 1, 10])
def test_mutual_information_equals_float64_oracle(mask, scale):
    p = softmax(np.asarray(stacked(X * scale, samples=7, mask=mask), np.float64), axis=-1)
    mean = p.mean(axis=0)
    found = unsure_of(X * scale, samples=7, mask=mask)
    expected = rel_entr(p, mean[None]).sum(axis=-1).mean(axis=0)
    np.testing.assert_allclose(found.mutual_information, expected, atol=3e-6)
    np.testing.assert_allclose(found.predictive_entropy, entr(mean).sum(axis=-1), atol=3e-6)


@both_masks
def test_head_uncertainty_of_logits_beyond_the_range_of_exp(mask):
    found = unsure_of(X * 1000, mask=mask)
    mc_logits = stacked(X * 1000, mask=mask)
    assert jnp.abs(mc_logits).max() > 2000
    np.testing.assert_allclose(found.probabilities, jnp.exp(metrics.log_mean_softmax(mc_logits)), atol=2e-3)
    np.testing.assert_allclose(found.mutual_information, metrics.mutual_information(mc_logits), atol=2e-3)


@both_masks
def test_equal_samples_have_zero_information_and_variance(mask):
    found = unsure_of(X, 0.0, mask=mask)
    np.testing.assert_array_equal(found.mutual_information, 0)
    np.testing.assert_array_equal(found.variance, 0)
    np.testing.assert_allclose(found.probabilities, jax.nn.softmax(X @ KERNEL + BIAS), rtol=1e-5, atol=1e-7)


@both_masks
def test_mutual_information_is_never_negative(mask):
    found = unsure_of(X * jnp.logspace(-6, 3, 45)[:, None], 0.01, mask=mask)
    assert (found.mutual_information >= 0).all()
    assert (found.predictive_entropy >= found.mutual_information).all()


@both_masks
def test_masks_depend_on_the_example_and_not_on_its_position_or_device(mask):
    both = unsure_of(X, mask=mask)
    swapped = unsure_of(X[::-1], RATE, EXAMPLES[::-1], mask=mask)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), both, jax.tree.map(lambda y: y[::-1], swapped)
    )
    assert not np.allclose(both.variance, unsure_of(X, RATE, jnp.array([5, 10]), mask=mask).variance)

    mesh, by_image = jax.sharding.Mesh(jax.devices()[:2], ("devices",)), jax.P("devices")
    mapped = jax.shard_map(
        lambda x, examples: unsure_of(x, RATE, examples, mask=mask), mesh=mesh, in_specs=by_image, out_specs=by_image
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), both, mapped(X, EXAMPLES))


def test_head_uncertainty_vmaps_over_the_rate():
    rates = jnp.array([0.1, RATE])
    found = jax.vmap(lambda rate: unsure_of(X, rate))(rates)
    np.testing.assert_allclose(found.mutual_information[1], unsure_of(X).mutual_information, rtol=1e-4, atol=2e-6)


def test_head_uncertainty_is_independent_of_the_block_size(monkeypatch):
    whole = unsure_of(X)
    monkeypatch.setattr(monte_carlo, "_BLOCK_CPU", 200)  # of 585 pixels per image
    blocks = jax.jit(lambda x: head_uncertainty(x, KERNEL, BIAS, KEY, samples=3, rate=RATE, examples=EXAMPLES))(X)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), whole, blocks)


def test_bfloat16_features_are_computed_in_float32_and_float64_stays():
    narrow = X.astype(jnp.bfloat16)
    assert unsure_of(narrow).probabilities.dtype == jnp.float32
    np.testing.assert_array_equal(unsure_of(narrow).variance, unsure_of(narrow.astype(jnp.float32)).variance)
    with jax.enable_x64(True):
        wide = unsure_of(X.astype(jnp.float64), samples=2)
    assert {y.dtype for y in wide} == {np.dtype(np.float64)}
    np.testing.assert_allclose(wide.variance, unsure_of(X, samples=2).variance, rtol=1e-4, atol=1e-6)


def test_a_nan_feature_gives_nan_at_its_pixel_only():
    found = unsure_of(X.at[0, 2, 3, 1].set(jnp.nan))
    for values in (found.predictive_entropy, found.mutual_information, found.variance):
        assert np.argwhere(np.isnan(values)).tolist() == [[0, 2, 3]]


@both_masks
def test_sampled_variance_converges_to_the_analytic_one(mask):
    exact = analytic_uncertainty(X, KERNEL, BIAS, rate=RATE).variance
    found = unsure_of(X, samples=2000, mask=mask).variance
    np.testing.assert_allclose(found, exact, rtol=0.25, atol=1e-3)
    np.testing.assert_allclose(found.mean(), exact.mean(), rtol=0.03)


def test_analytic_uncertainty_is_the_clean_softmax_without_information():
    found = analytic_uncertainty(X, KERNEL, BIAS, rate=RATE)
    p = softmax(np.asarray(X @ KERNEL + BIAS, np.float64), axis=-1)
    np.testing.assert_allclose(found.probabilities, p, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.predictive_entropy, entr(p).sum(axis=-1), rtol=1e-5, atol=1e-6)
    assert found.mutual_information is None


def test_predict_with_uncertainty_equals_clean_pass_and_head_uncertainty():
    @partial(jax.jit, static_argnames="mask")
    def predict(mask):
        return predict_with_uncertainty(MODEL, VARIABLES, IMAGES, KEY, samples=3, rate=0.1, mask=mask)

    output, found = predict("channel")
    expected = jax.jit(partial(MODEL.apply, train=False))(VARIABLES, IMAGES)
    np.testing.assert_allclose(output.logits, expected.logits, rtol=1e-5, atol=1e-5)
    head = VARIABLES["params"]["head"]["linear"]
    again = head_uncertainty(expected.features, head["kernel"], head["bias"], KEY, samples=3, rate=0.1)
    np.testing.assert_allclose(found.variance, again.variance, rtol=1e-3, atol=1e-6)
    assert not np.allclose(found.variance, predict("element")[1].variance)


def test_rate_and_mask_default_to_those_of_the_model():
    model = MODEL.clone(rate=0.1, mask="channel")
    _, by_field = jax.jit(lambda: predict_with_uncertainty(model, VARIABLES, IMAGES, KEY, samples=2))()
    _, given = jax.jit(
        lambda: predict_with_uncertainty(MODEL, VARIABLES, IMAGES, KEY, samples=2, rate=0.1, mask="channel")
    )()
    np.testing.assert_array_equal(by_field.variance, given.variance)


@pytest.mark.parametrize(
    "fields", [{"deep_dropout": 1}, pytest.param({"dropout": "sampled"}, marks=pytest.mark.slow)], ids=str
)
def test_whole_passes_equal_single_passes_with_folded_keys(fields):
    model, samples = MODEL.clone(**fields), 3
    output, found = jax.jit(lambda: whole_passes(model, VARIABLES, IMAGES, KEY, samples=samples, examples=EXAMPLES))()

    @jax.jit
    def one(k):
        rngs = {"dropout": jax.random.fold_in(KEY, k)}
        given = model.clone(heads=1).apply(VARIABLES, IMAGES, train=False, examples=EXAMPLES, rngs=rngs)
        return given.logits if given.mc_logits is None else given.mc_logits[0]

    mc_logits = jnp.stack([one(k) for k in range(samples)])
    assert isinstance(found, Uncertainty)
    assert found.mutual_information.max() > 1e-4
    np.testing.assert_allclose(found.mutual_information, metrics.mutual_information(mc_logits), rtol=1e-3, atol=3e-6)
    np.testing.assert_allclose(found.variance, losses.mc_variance(mc_logits), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.probabilities, jnp.exp(metrics.log_mean_softmax(mc_logits)), atol=1e-5)
    clean = jax.jit(partial(MODEL.apply, train=False))(VARIABLES, IMAGES)
    np.testing.assert_allclose(output.logits, clean.logits, rtol=1e-4, atol=1e-5)


# Unwrapped from the tests' type checks.
RAW = {f.__name__: inspect.unwrap(f) for f in (head_uncertainty, predict_with_uncertainty, whole_passes)}
HEAD = partial(RAW["head_uncertainty"], key=KEY)
BROKEN = {
    "one sample": (
        lambda: HEAD(X, KERNEL, BIAS, samples=1, rate=RATE),
        ValueError,
        r"samples must be at least 2, since the unbiased variance divides by K - 1; got 1",
    ),
    "one whole pass": (
        lambda: RAW["whole_passes"](MODEL.clone(deep_dropout=1), VARIABLES, IMAGES, KEY, samples=1),
        ValueError,
        r"samples must be at least 2.*got 1",
    ),
    "a model that draws nothing": (
        lambda: RAW["whole_passes"](MODEL, VARIABLES, IMAGES, KEY, samples=2),
        ValueError,
        r'need a model with deep_dropout > 0 or dropout="sampled"; got deep_dropout=0 and dropout=\'none\'',
    ),
    "no linear head": (
        lambda: RAW["predict_with_uncertainty"](MODEL, {"params": {}}, IMAGES, KEY),
        ValueError,
        r'variables must hold a linear head, \["params"\]\["head"\]\["linear"\] with kernel and bias',
    ),
    "rate": (
        lambda: HEAD(X, KERNEL, BIAS, samples=2, rate=1.0),
        ValueError,
        r"rate must be at least 0 and less than 1; got 1",
    ),
    "mask": (
        lambda: HEAD(X, KERNEL, BIAS, samples=2, rate=RATE, mask="row"),
        ValueError,
        r"mask must be one of 'element', 'channel'; got 'row'",
    ),
    "integer features": (
        lambda: HEAD(X.astype(int), KERNEL, BIAS, samples=2, rate=RATE),
        TypeError,
        r"features must be floating point; got int32 of shape \(2, 13, 45, 7\)",
    ),
    "kernel": (
        lambda: HEAD(X, KERNEL.T, BIAS, samples=2, rate=RATE),
        ValueError,
        r"need a kernel \[F, C\] of at least 2 classes; got shapes \(2, 13, 45, 7\) and \(5, 7\)",
    ),
    "one class": (
        lambda: HEAD(X, KERNEL[:, :1], BIAS[:1], samples=2, rate=RATE),
        ValueError,
        r"at least 2 classes; got shapes .* and \(7, 1\)",
    ),
    "bias": (
        lambda: HEAD(X, KERNEL, BIAS[:2], samples=2, rate=RATE),
        ValueError,
        r"bias must have one value per class, shape \(5,\); got \(2,\)",
    ),
    "examples": (
        lambda: HEAD(X, KERNEL, BIAS, samples=2, rate=RATE, examples=jnp.arange(3)),
        ValueError,
        r"examples must hold one index per image, shape \(2,\); got \(3,\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_invalid_arguments(case):
    call, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        call()


maps_of = jax.jit(head_uncertainty_maps, static_argnames="num_classes")
sampled_of = jax.jit(head_uncertainty, static_argnames="samples")


def linear_head(outputs):
    kernel, bias = jax.random.normal(jax.random.key(1), (5, outputs)), jnp.arange(float(outputs))
    return {"params": {"head": {"linear": {"kernel": kernel, "bias": bias}}}}, kernel, bias


@pytest.fixture(scope="module")
def features():
    return jax.random.normal(jax.random.key(0), (2, 3, 4, 5))


def test_head_uncertainty_maps_exact_variance_and_sampled_information(features):
    variables, kernel, bias = linear_head(3)
    found = maps_of(variables, features, jnp.arange(2), num_classes=3, rate=0.2)
    np.testing.assert_allclose(found["variance"], logit_variance(features, kernel, 0.2).mean(-1), rtol=1e-6)
    sampled = sampled_of(features, kernel, bias, jax.random.key(0), samples=30, rate=0.2)
    np.testing.assert_allclose(found["mutual information"], sampled.mutual_information, rtol=1e-6)


def test_head_uncertainty_maps_depend_on_the_example_and_not_on_its_position(features):
    variables, *_ = linear_head(3)
    both = maps_of(variables, features, jnp.array([7, 8]), num_classes=3, rate=0.2)
    second = maps_of(variables, features[1:], jnp.array([8]), num_classes=3, rate=0.2)
    for name, values in both.items():
        np.testing.assert_allclose(values[1:], second[name], rtol=1e-4, atol=1e-6)


def test_head_uncertainty_maps_of_one_logit_equal_those_of_two_classes(features):
    variables, kernel, bias = linear_head(1)
    found = maps_of(variables, features, jnp.arange(2), num_classes=2, rate=0.2)
    two = jnp.pad(kernel, ((0, 0), (1, 0))), jnp.pad(bias, (1, 0))
    sampled = sampled_of(features, *two, jax.random.key(0), samples=30, rate=0.2)
    np.testing.assert_allclose(found["mutual information"], sampled.mutual_information, rtol=1e-6)
    np.testing.assert_allclose(found["variance"], logit_variance(features, kernel, 0.2)[..., 0], rtol=1e-6)


def test_head_uncertainty_maps_leave_out_the_void_output(features):
    variables, kernel, _ = linear_head(4)
    found = maps_of(variables, features, jnp.arange(2), num_classes=3, rate=0.2)
    np.testing.assert_allclose(found["variance"], logit_variance(features, kernel[:, :3], 0.2).mean(-1), rtol=1e-6)


# Samples of the logits, [N, B, H, W, C].
Z = np.random.default_rng(0).normal(size=(4, 2, 3, 5, 3), scale=3)


def statistics_of(z):
    p = softmax(z, axis=-1)
    fields = p.mean(axis=0), entr(p).sum(axis=-1).mean(axis=0), z.mean(axis=0), z.var(axis=0).mean(axis=-1)
    return SampleStatistics(*(np.asarray(field, np.float32) for field in fields))


def from_maps(maps):
    return maps_to_statistics(np.asarray(maps, np.float32))


def test_uncertainty_of_maps_equals_that_of_the_samples():
    found, p = uncertainty_of(from_maps(statistics_to_maps(statistics_of(Z))), len(Z)), softmax(Z, axis=-1)
    entropy = entr(p.mean(axis=0)).sum(axis=-1)
    np.testing.assert_allclose(found.probabilities, p.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.predictive_entropy, entropy, atol=1e-6)
    np.testing.assert_allclose(found.mutual_information, entropy - entr(p).sum(axis=-1).mean(axis=0), atol=3e-6)
    np.testing.assert_allclose(found.variance, Z.var(axis=0, ddof=1).mean(axis=-1), rtol=1e-4)


def test_maps_to_statistics_inverts_statistics_to_maps():
    kept = statistics_of(Z)
    for name, again in from_maps(statistics_to_maps(kept))._asdict().items():
        np.testing.assert_allclose(again, getattr(kept, name), rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_blend_of_maps_has_the_statistics_of_all_samples():
    # The first sample has a weight of a quarter, the other three of the rest.
    blend = 0.25 * statistics_to_maps(statistics_of(Z[:1])) + 0.75 * statistics_to_maps(statistics_of(Z[1:]))
    for name, found in from_maps(blend)._asdict().items():
        np.testing.assert_allclose(found, getattr(statistics_of(Z), name), rtol=1e-4, atol=1e-5, err_msg=name)


def test_rounding_never_makes_the_variance_negative():
    alike = np.broadcast_to(Z[:1] + 100, Z.shape)
    found = uncertainty_of(from_maps(statistics_to_maps(statistics_of(alike))), len(Z))
    assert (found.variance >= 0).all()
    np.testing.assert_allclose(found.variance, 0, atol=1e-2)  # 1e-6 of the logits' squares


def test_uncertainty_of_one_sample_is_refused():
    with pytest.raises(ValueError, match=r"samples must be at least 2, since .* got 1"):
        uncertainty_of(from_maps(statistics_to_maps(statistics_of(Z))), 1)


def test_maps_to_statistics_refuses_an_odd_number_of_maps():
    with pytest.raises(ValueError, match=r"maps must be 2C \+ 2 of at least 2 classes; got 7 of shape \(4, 7\)"):
        maps_to_statistics(np.ones((4, 7)))
