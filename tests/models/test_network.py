import inspect
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from segjax.models import LinearHead, Segmentation, example_dropout_keys, head_samples, logit_variance
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


def test_bias_and_kernel_start_as_asked():
    features = jnp.ones((1, 4, 4, 64))
    params = LinearHead(64, bias_init=tuple(map(float, range(64))), kernel_stddev=0.01).init(
        jax.random.key(1), features
    )
    linear = params["params"]["linear"]
    np.testing.assert_array_equal(linear["bias"], np.arange(64))
    np.testing.assert_allclose(linear["kernel"].std(), 0.01, rtol=0.1)


def test_bfloat16_features_give_float32_logits():
    logits, variables = LinearHead(3).init_with_output(jax.random.key(0), jnp.ones((1, 2, 2, 4), jnp.bfloat16))
    assert logits.dtype == jnp.float32
    assert variables["params"]["linear"]["kernel"].dtype == jnp.float32


def test_a_bias_of_the_wrong_length_is_an_error():
    with pytest.raises(ValueError, match=r"one value per class, 3; got \(1.0, 2.0\)"):
        LinearHead(3, bias_init=(1.0, 2.0)).init(jax.random.key(0), jnp.ones((1, 2, 2, 4)))


def test_a_segmentation_is_a_pytree():
    output = Segmentation(jnp.ones((1, 2, 2, 3)), None, None, jnp.ones((1, 2, 2, 4)))
    doubled = jax.tree.map(lambda x: 2 * x, output)
    assert isinstance(doubled, Segmentation)
    assert doubled.mc_logits is None
    assert len(jax.tree.leaves(output)) == 2


@cache
def many(mask):
    return np.asarray(samples_of(FEATURES, KERNEL, BIAS, KEYS, 0.3, heads=8192, mask=mask))


@pytest.mark.parametrize("mask", MASKS)
def test_sampled_variance_tends_to_the_analytic_as_one_over_root_k(mask):
    exact = np.asarray(logit_variance(FEATURES, KERNEL, 0.3))
    sizes, errors = (32, 128, 512, 2048), []
    for size in sizes:
        sampled = many(mask).reshape(-1, size, *exact.shape).var(axis=1, ddof=1)
        errors.append(np.sqrt(((sampled - exact) ** 2).mean()))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -0.6 < slope < -0.4, errors
    assert errors[-1] < 0.05 * exact.mean()


@pytest.mark.parametrize("mask", MASKS)
def test_the_mean_of_the_samples_is_the_clean_head(mask):
    np.testing.assert_allclose(many(mask).mean(0), CLEAN, atol=0.12)


@pytest.mark.parametrize("mask", MASKS)
def test_pixels_are_thinned_alike_by_a_channel_mask_only(mask):
    alike = jnp.broadcast_to(FEATURES[:, :1, :1], FEATURES.shape)
    spread = np.ptp(samples_of(alike, KERNEL, BIAS, KEYS, 0.3, mask=mask), axis=(2, 3)).max()
    assert (spread > 0.1) == (mask == "element")


@pytest.mark.parametrize("mask", MASKS)
def test_heads_are_explicit_dropout_passes_through_the_shared_head(mask):
    actual = samples_of(FEATURES, KERNEL, BIAS, KEYS, 0.3, mask=mask)
    for k in range(3):
        keys = jax.vmap(lambda key, k=k: jax.random.fold_in(key, k))(KEYS)
        np.testing.assert_allclose(actual[k], dropout(FEATURES, 0.3, keys, mask=mask) @ KERNEL + BIAS, atol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_masks_depend_on_the_example_and_not_on_batch_heads_or_mapping(mask):
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
def test_devices_of_a_checked_shard_map_compute_what_one_device_computes(mask):
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
def test_gradients_are_finite_and_reach_features_and_kernel(rate, mask):
    value, (to_features, to_kernel) = variance_and_gradients(FEATURES, KERNEL, KEYS, rate, mask)
    assert np.isfinite(value)
    assert np.isfinite(to_features).all()
    assert np.isfinite(to_kernel).all()
    assert np.any(to_features)
    assert np.any(to_kernel)


@pytest.mark.parametrize("mask", MASKS)
def test_without_dropout_every_sample_is_the_clean_head_and_the_variance_0(mask):
    samples = samples_of(FEATURES, KERNEL, BIAS, KEYS, 0.0, mask=mask)
    np.testing.assert_array_equal(samples, jnp.broadcast_to(samples[0], samples.shape))
    np.testing.assert_allclose(samples[0], CLEAN, atol=1e-6)
    np.testing.assert_array_equal(logit_variance(FEATURES, KERNEL, 0), 0)


def test_the_analytic_variance_has_the_gradient_of_its_formula():
    p, x, w = 0.25, np.asarray(FEATURES), np.asarray(KERNEL)
    to_x, to_w, to_p = jax.grad(lambda x, w, p: logit_variance(x, w, p).sum(), (0, 1, 2))(FEATURES, KERNEL, p)
    np.testing.assert_allclose(to_x, 2 / 3 * x * (w**2).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(to_w, 2 / 3 * w * (x**2).sum((0, 1, 2))[:, None], rtol=1e-5)
    np.testing.assert_allclose(to_p, ((x**2) @ (w**2)).sum() / (1 - p) ** 2, rtol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_no_copy_of_the_features_a_head_is_kept_for_the_backward_pass(mask):
    heads = 7
    _, backward = jax.vjp(
        lambda x, w: head_samples(x, w, BIAS, KEYS, heads=heads, rate=0.3, mask=mask), FEATURES, KERNEL
    )
    kept = [leaf for leaf in jax.tree.leaves(backward) if getattr(leaf, "dtype", None) == jnp.float32]
    assert kept
    assert sum(leaf.size for leaf in kept) < 3 * FEATURES.size


def test_one_compilation_serves_every_rate():
    traces = []

    @jax.jit
    def both(rate):
        traces.append(rate)
        samples = head_samples(FEATURES, KERNEL, BIAS, KEYS, heads=2, rate=rate)
        return samples.var(axis=0, ddof=1).sum(), logit_variance(FEATURES, KERNEL, rate).sum()

    outcomes = np.array([both(rate) for rate in (0.0, 0.2, 0.5)])
    assert (np.diff(outcomes, axis=0) > 0).all()
    assert len(traces) == 1


def test_bfloat16_features_are_computed_in_float32():
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
def test_broken_arguments_are_named(changed, message):
    arguments = {"features": FEATURES, "kernel": KERNEL, "bias": BIAS, "keys": KEYS, "heads": 2, "rate": 0.5}
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(head_samples)(**arguments | changed)


def test_the_rate_of_the_analytic_variance_is_checked():
    with pytest.raises(ValueError, match="rate must be at least 0 and less than 1; got 1"):
        logit_variance(FEATURES, KERNEL, 1.0)


def test_segment_uses_the_heads_own_parameters():
    head = LinearHead(3, bias_init=(1.0, 2.0, 3.0))
    variables = head.init(jax.random.key(0), FEATURES)
    linear = variables["params"]["linear"]
    segment = partial(head.apply, variables, FEATURES, rate=0.3, method="segment")
    sampled, analytic = segment(dropout="sampled", keys=KEYS), segment(dropout="analytic")
    expected = samples_of(FEATURES, linear["kernel"], linear["bias"], KEYS, 0.3)
    np.testing.assert_allclose(sampled.mc_logits, expected, atol=1e-6)
    np.testing.assert_allclose(analytic.logit_variance, logit_variance(FEATURES, linear["kernel"], 0.3), rtol=1e-6)
    np.testing.assert_array_equal(sampled.logits, head.apply(variables, FEATURES))
    assert (sampled.logit_variance, analytic.mc_logits) == (None, None)


@pytest.mark.parametrize(
    "fields", [{"dropout": "sampled"}, {"dropout": "sampled", "mask": "channel"}, {"dropout": "analytic"}]
)
def test_coarse_features_give_what_the_head_says_of_upsampled_ones(fields):
    head, size = LinearHead(3, bias_init=(-1.0, 0.0, 2.0)), (7, 11)
    variables = head.init(jax.random.key(1), FEATURES)
    segment = partial(
        jax.jit(head.apply, static_argnames=("method", "scale", "size", *fields)), variables, method="segment"
    )
    coarse = segment(FEATURES, scale=4, size=size, rate=0.3, keys=KEYS, **fields)
    fine = segment(upsample_bilinear(FEATURES, 4)[:, :7, :11], rate=0.3, keys=KEYS, **fields)
    assert coarse.logits.shape == (8, *size, 3)
    for actual, expected in zip(jax.tree.leaves(coarse), jax.tree.leaves(fine), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_the_features_of_a_coarse_head_are_made_only_where_somebody_wants_them():
    head = LinearHead(3)
    variables = head.init(jax.random.key(1), FEATURES)

    def made(wanted):
        program = jax.jit(lambda x: wanted(head.apply(variables, x, scale=4, method="segment")))
        return "[8,8,12,5]" in program.lower(FEATURES).compile().as_text()

    assert made(lambda output: output.features)
    assert not made(lambda output: output.logits)
