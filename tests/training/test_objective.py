import jax.numpy as jnp
import numpy as np
import pytest

from segjax import losses
from segjax.training.objective import PIXEL_LOSSES, Hyper, is_sigmoid, make_objective

RNG = np.random.default_rng(0)
LABELS = jnp.asarray(RNG.integers(0, 2, (2, 6, 8)))
WHERE = jnp.asarray(RNG.random((2, 6, 8)) < 0.8)
LOGITS = jnp.asarray(RNG.normal(size=(2, 6, 8, 2)), jnp.float32)


def hyper(**changes):
    values = {"learning_rate": 1.0, "crop_fraction": 1.0, "gamma": 2.0, "alpha": None, "class_weights": None, **changes}
    return Hyper(**{k: None if v is None else jnp.asarray(v, jnp.float32) for k, v in values.items()})


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_void_pixels_do_not_count(name):
    logits = LOGITS[..., :1] if is_sigmoid(name) else LOGITS
    objective = make_objective(name, "valid")
    spoilt = jnp.where(WHERE[..., None], logits, jnp.nan)
    kept = objective(logits, LABELS, WHERE, hyper())
    assert float(kept) > 0
    np.testing.assert_array_equal(objective(spoilt, jnp.where(WHERE, LABELS, 255), WHERE, hyper()), kept)


def test_gamma_zero_is_cross_entropy_to_the_last_bit():
    for family, logits in (("softmax", LOGITS), ("sigmoid", LOGITS[..., :1])):
        focal = make_objective(f"{family}_focal", "valid")(logits, LABELS, WHERE, hyper(gamma=0.0))
        entropy = make_objective(f"{family}_cross_entropy", "valid")(logits, LABELS, WHERE, hyper())
        np.testing.assert_array_equal(focal, entropy)


def test_the_papers_normalizer_divides_by_the_kept_positives():
    per_pixel = losses.sigmoid_focal_loss(
        LOGITS[..., 0], (LABELS == 1).astype(jnp.float32), gamma=2.0, alpha=0.25, where=WHERE
    )
    expected = float(per_pixel.sum()) / int(((LABELS == 1) & WHERE).sum())
    actual = make_objective("sigmoid_focal", "positives")(LOGITS[..., :1], LABELS, WHERE, hyper(alpha=0.25))
    assert float(actual) == pytest.approx(expected, rel=1e-6)


def test_class_weights_reach_both_softmax_losses():
    weights = [1.0, 5.0]
    for name in ("softmax_cross_entropy", "softmax_focal"):
        objective = make_objective(name, "valid")
        rare = objective(LOGITS, jnp.ones_like(LABELS), WHERE, hyper())
        weighted = objective(LOGITS, jnp.ones_like(LABELS), WHERE, hyper(class_weights=weights))
        assert float(weighted) == pytest.approx(5 * float(rare), rel=1e-6)
