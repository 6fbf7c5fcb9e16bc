import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.inference import head_measures, head_uncertainty
from segjax.models import logit_variance


def head(outputs):
    kernel, bias = jax.random.normal(jax.random.key(1), (5, outputs)), jnp.arange(float(outputs))
    return {"params": {"head": {"linear": {"kernel": kernel, "bias": bias}}}}, kernel, bias


@pytest.fixture(scope="module")
def features():
    return jax.random.normal(jax.random.key(0), (2, 3, 4, 5))


def test_the_variance_is_exact_and_the_information_that_of_the_heads(features):
    variables, kernel, bias = head(3)
    found = head_measures(variables, features, jnp.arange(2), num_classes=3, rate=0.2)
    np.testing.assert_allclose(found["variance"], logit_variance(features, kernel, 0.2).mean(-1), rtol=1e-6)
    sampled = head_uncertainty(features, kernel, bias, jax.random.key(0), samples=30, rate=0.2)
    np.testing.assert_allclose(found["mutual information"], sampled.mutual_information, rtol=1e-6)


def test_masks_belong_to_the_image_and_not_to_its_place_in_a_batch(features):
    variables, *_ = head(3)
    both = head_measures(variables, features, jnp.array([7, 8]), num_classes=3, rate=0.2)
    second = head_measures(variables, features[1:], jnp.array([8]), num_classes=3, rate=0.2)
    for name, values in both.items():
        np.testing.assert_allclose(values[1:], second[name], rtol=1e-4, atol=1e-6)


def test_one_logit_is_the_second_of_two_classes(features):
    variables, kernel, bias = head(1)
    found = head_measures(variables, features, jnp.arange(2), num_classes=2, rate=0.2)
    two = jnp.pad(kernel, ((0, 0), (1, 0))), jnp.pad(bias, (1, 0))
    sampled = head_uncertainty(features, *two, jax.random.key(0), samples=30, rate=0.2)
    np.testing.assert_allclose(found["mutual information"], sampled.mutual_information, rtol=1e-6)
    np.testing.assert_allclose(found["variance"], logit_variance(features, kernel, 0.2)[..., 0], rtol=1e-6)


def test_void_that_was_learned_as_a_class_is_left_out(features):
    variables, kernel, _ = head(4)
    found = head_measures(variables, features, jnp.arange(2), num_classes=3, rate=0.2)
    np.testing.assert_allclose(found["variance"], logit_variance(features, kernel[:, :3], 0.2).mean(-1), rtol=1e-6)
