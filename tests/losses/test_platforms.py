"""What GPUs and TPUs compile, where it is not what CPUs do: the same values and derivatives, run here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import losses

CLASSES = 4
WEIGHTS = np.array([0.5, 0.0, 2.0, 1.5], np.float32)
PER_PIXEL = {
    "softmax_cross_entropy": lambda z, y, k: losses.softmax_cross_entropy(z, y, where=k, label_smoothing=0.1),
    "softmax_focal_loss": lambda z, y, k: losses.softmax_focal_loss(z, y, gamma=2.0, alpha=WEIGHTS, where=k),
}
REGION = {
    "dice_loss": losses.dice_loss,
    "jaccard_loss, squared": lambda z, y, where: losses.jaccard_loss(z, y, where=where, squared=True),
    "generalized_dice_loss": losses.generalized_dice_loss,
    "lovasz_softmax_loss": losses.lovasz_softmax_loss,
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


def loss_of(name, labels, where):
    if name in REGION:
        return lambda logits: REGION[name](logits, labels, where=where)
    return lambda logits: losses.mean(PER_PIXEL[name](logits, labels, where), where=where)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", [*PER_PIXEL, *REGION])
def test_other_platforms_compute_what_a_cpu_does(name, platform, batch, monkeypatch):
    loss = loss_of(name, *batch[1:])
    chosen, here = [], derivatives(loss, batch[0])

    def of_others(*operands, default, **platforms):
        chosen.extend(platforms)
        return platforms.get(platform, default)(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", of_others)
    jax.clear_caches()
    for there, expected in zip(derivatives(loss, batch[0]), here, strict=True):
        np.testing.assert_allclose(there, expected, rtol=2e-5, atol=1e-7)
    assert {"cpu", "tpu"} & set(chosen)


@pytest.mark.parametrize("name", [*PER_PIXEL, *REGION])
def test_a_tpu_scatters_and_gathers_nothing(name, batch):
    step = jax.jit(jax.value_and_grad(loss_of(name, *batch[1:])))
    program = str(jax.export.export(step, platforms=["tpu"])(batch[0]).mlir_module())
    assert "stablehlo.add" in program
    assert not {"stablehlo.gather", "stablehlo.scatter"} & set(program.replace('"', " ").split())
