"""What GPUs and TPUs compile, where it is not what CPUs do: the same values and derivatives, run here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import losses

CLASSES = 4
PER_PIXEL = {
    "softmax_cross_entropy": lambda z, y, k: losses.softmax_cross_entropy(z, y, where=k, label_smoothing=0.1),
    "softmax_focal_loss": lambda z, y, k: losses.softmax_focal_loss(z, y, gamma=2.0, where=k),
}
REGION = {
    "dice_loss": losses.dice_loss,
    "jaccard_loss, squared": lambda z, y, where: losses.jaccard_loss(z, y, where=where, squared=True),
    "generalized_dice_loss": losses.generalized_dice_loss,
}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, (2, 6, 8)).astype(np.int32)
    labels[0, :2] = 255
    return (
        jnp.asarray(rng.normal(0, 3, (2, 6, 8, CLASSES)), jnp.float32),
        jnp.asarray(labels),
        jnp.asarray(labels < 255),
    )


def derivatives(loss, logits):
    """Its value, its gradient, and a product with its Hessian: what a custom rule can get wrong."""
    slope, curvature = jax.jvp(jax.grad(loss), (logits,), (jnp.cos(logits),))
    return jax.device_get((loss(logits), slope, curvature))


@pytest.mark.parametrize("name", [*PER_PIXEL, *REGION])
def test_other_platforms_compute_what_a_cpu_does(name, batch, monkeypatch):
    _, labels, where = batch

    def loss(logits):
        if name in REGION:
            return REGION[name](logits, labels, where=where)
        return losses.mean(PER_PIXEL[name](logits, labels, where), where=where)

    chosen, here = [], derivatives(loss, batch[0])

    def of_others(*operands, default, **platforms):
        chosen.append(sorted(platforms))
        return default(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", of_others)
    jax.clear_caches()
    for there, expected in zip(derivatives(loss, batch[0]), here, strict=True):
        np.testing.assert_allclose(there, expected, rtol=2e-5, atol=1e-7)
    assert ["cpu"] in chosen
