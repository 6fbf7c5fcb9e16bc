"""The outputs of an ensemble, against float64."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from segjax.inference import Ensemble, mean_outputs
from segjax.models import Segmentation

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("void", [0, 1])
def test_mean_outputs_mean_probabilities(void):
    outputs = 4 * RNG.normal(size=(5, 7, 3 + void))
    found = np.asarray(mean_outputs(jnp.asarray(outputs, jnp.float32), 3), float)
    np.testing.assert_allclose(softmax(found[:, :3], -1), softmax(outputs[..., :3], -1).mean(0), rtol=1e-5)
    np.testing.assert_allclose(softmax(found, -1)[:, 3:], softmax(outputs, -1)[..., 3:].mean(0), rtol=1e-5)


def test_mean_outputs_one_logit():
    outputs = 4 * RNG.normal(size=(5, 7, 1))
    found = np.asarray(mean_outputs(jnp.asarray(outputs, jnp.float32), 2), float)
    np.testing.assert_allclose(expit(found), expit(outputs).mean(0), rtol=1e-5)


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_mean_outputs_extreme_logits_are_finite(outputs):
    logits = jnp.asarray(RNG.choice([-1e4, 1e4], (3, 50, outputs)), jnp.float32)
    assert jnp.isfinite(mean_outputs(logits, 2)).all()


def test_ensemble_apply_equals_its_members_in_turn():
    network = SimpleNamespace(apply=lambda kernel, x, train: Segmentation(x @ kernel, None, None, None))
    kernels, images = RNG.normal(size=(3, 3, 2)), RNG.normal(size=(1, 4, 5, 3))
    kernels, images = (jnp.asarray(x, jnp.float32) for x in (kernels, images))
    found = Ensemble(network, 3, 2).apply(kernels, images, train=False)
    outputs = [images @ kernel for kernel in kernels]
    np.testing.assert_allclose(found.mc_logits, outputs, rtol=1e-5)
    expected = softmax(np.asarray(outputs, float), -1).mean(0)
    np.testing.assert_allclose(softmax(np.asarray(found.logits, float), -1), expected, rtol=1e-5)
    assert jnp.array_equal(Ensemble(network, 1, 2).apply(kernels[:1], images, train=False).logits, outputs[0])
