"""Other libraries' losses against ours: values and gradients, equal or different as their conventions say.

The results of PyTorch, torchvision, segmentation-models-pytorch (smp), MONAI, fvcore and the Lovász authors' file are
stored; `golden/make.py` made them with `golden/versions.json`. Everything is compared in float64 to
nine digits, unless the peer supports only float32 (the case's name ends so): then to five. Ours have no smoothing
constant, and neither have the peers where they can do without.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax import losses

with np.load(Path(__file__).parent / "golden" / "peers.npz") as _stored:
    GOLDEN = dict(_stored)

VOID = 255
LOGITS, LABELS, SPARSE, KEEP = GOLDEN["logits"], GOLDEN["labels"], GOLDEN["sparse"], ~GOLDEN["void"]
SCORES, TARGETS, SOFT, WEIGHTS = (GOLDEN[name] for name in ("scores", "targets", "soft", "weights"))
CLASSES = LOGITS.shape[-1]
ONE_HOT = (LABELS[..., None] == np.arange(CLASSES)).astype(np.int32)
LABELS_VOID, SPARSE_VOID, TARGETS_VOID = (np.where(KEEP, x, VOID) for x in (LABELS, SPARSE, TARGETS))
POISONED = np.where(KEEP[..., None], LOGITS, np.nan)
FAR, FAR_LABELS = GOLDEN["extreme"], GOLDEN["extreme labels"]
FAR_SCORES, FAR_TARGETS = GOLDEN["extreme scores"], GOLDEN["extreme targets"]
FAR_MARGIN = np.where(FAR_TARGETS == 1, FAR_SCORES, -FAR_SCORES)


def peer(name):
    """Returns the value of the peer, and the gradient of its sum by the logits, class last."""
    return GOLDEN[name], GOLDEN[f"{name}/gradient"]


def with_gradient(loss):
    """Returns a function of the logits that returns the loss and the gradient of its sum."""

    def total(z):
        value = loss(z)
        return jnp.sum(value), value

    return lambda z: jax.grad(total, has_aux=True)(z)[::-1]


def ours(loss, logits, *, x64=True):
    """Returns our loss and the gradient of its sum by the logits."""
    with jax.enable_x64(x64):
        return jax.device_get(jax.jit(with_gradient(loss))(logits.astype(np.float64 if x64 else np.float32)))


def assert_close(actual, expected, rtol):
    """Asserts every element to `rtol`; one that cancelled to almost nothing, to a tenth of `rtol` of the largest."""
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * 0.1 * np.abs(expected).max())


def is_exact(name):
    return not name.endswith("float32")


def assert_equals_peer(result, name):
    for actual, expected in zip(result, peer(name), strict=True):
        assert actual.dtype == expected.dtype
        assert_close(actual, expected, 1e-9 if is_exact(name) else 1e-5)


def assert_equal(name, loss, logits):
    """Asserts that value and gradient are the peer's."""
    assert_equals_peer(ours(loss, logits, x64=is_exact(name)), name)


def focal_truth(margin, gamma):
    """Returns the focal loss of p_t = σ(margin) in float64, by a form without cancellation."""
    return np.exp(-gamma * np.logaddexp(0, margin)) * np.logaddexp(0, -margin)


def sums():
    """Returns soft true positives, false positives and false negatives per image and class, in float64."""
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=-1, keepdims=True)
    return tuple(x.sum(axis=(1, 2)) for x in (p * ONE_HOT, p * (1 - ONE_HOT), (1 - p) * ONE_HOT))


# PyTorch, smp, MONAI, fvcore and the authors where they are equal: peer -> (our loss, the logits' name).

EQUAL = {
    "torch/cross_entropy": (lambda z: losses.softmax_cross_entropy(z, LABELS), "logits"),
    "torch/cross_entropy, weighted and smoothed": (
        lambda z: losses.softmax_cross_entropy(z, LABELS, class_weights=WEIGHTS, label_smoothing=0.1),
        "logits",
    ),
    "torch/cross_entropy, mean": (
        lambda z: losses.mean(losses.softmax_cross_entropy(z, LABELS_VOID, where=KEEP), where=KEEP),
        "logits",
    ),
    # PyTorch divides a weighted mean by the weights of the labels; ours does so when told, with the weights once.
    "torch/cross_entropy, weighted mean": (
        lambda z: losses.mean(
            losses.softmax_cross_entropy(z, LABELS_VOID, where=KEEP),
            where=KEEP,
            weights=WEIGHTS[LABELS],
            normalizer="weights",
        ),
        "logits",
    ),
    "torch/binary_cross_entropy, soft": (lambda z: losses.sigmoid_cross_entropy(z, SOFT), "scores"),
    "torch/huber": (lambda z: losses.huber_loss(z, SOFT, delta=0.5), "scores"),
    # Smooth L1 with β is Huber's loss of δ = β over β.
    "torch/smooth_l1": (lambda z: losses.huber_loss(z, SOFT, delta=0.5) / 0.5, "scores"),
    # The hinge is the ranking of a logit against 0.
    "torch/margin_ranking": (lambda z: losses.hinge_loss(z, TARGETS), "scores"),
    # One sum over the batch is all smp has.
    "smp/dice": (lambda z: losses.dice_loss(z, LABELS, over_batch=True), "logits"),
    "smp/dice, classes": (lambda z: losses.dice_loss(z, LABELS, over_batch=True, classes=(1, 3)), "logits"),
    "smp/dice, binary": (
        lambda z: losses.dice_loss(jnp.stack([jnp.zeros_like(z), z], -1), TARGETS, over_batch=True, classes=(1,)),
        "scores",
    ),
    "smp/jaccard": (lambda z: losses.jaccard_loss(z, LABELS, over_batch=True), "logits"),
    "smp/jaccard, classes": (lambda z: losses.jaccard_loss(z, LABELS, over_batch=True, classes=(1, 3)), "logits"),
    "smp/tversky, γ 1.0": (lambda z: losses.tversky_loss(z, LABELS, alpha=0.3, beta=0.7, over_batch=True), "logits"),
    # smp's loss of an absent class is zero, and counts in the mean.
    "smp/dice, sparse": (
        lambda z: losses.dice_loss(z, SPARSE_VOID, where=KEEP, over_batch=True, absent="zero"),
        "logits",
    ),
    "smp/jaccard, sparse": (
        lambda z: losses.jaccard_loss(z, SPARSE_VOID, where=KEEP, over_batch=True, absent="zero"),
        "logits",
    ),
    "monai/dice, no background": (lambda z: losses.dice_loss(z, LABELS, classes=(1, 2, 3)), "logits"),
    "fvcore/focal star, float32": (
        lambda z: losses.sigmoid_focal_star_loss(z, TARGETS, gamma=2.0, beta=0.0, alpha=0.25),
        "scores",
    ),
    "authors/lovasz hinge, no positive, float32": (lambda z: losses.lovasz_hinge_loss(z, 0 * TARGETS), "scores"),
}
for _batch in (False, True):
    for _squared in (False, True):
        for _jaccard, _loss in ((False, losses.dice_loss), (True, losses.jaccard_loss)):
            EQUAL[f"monai/dice, batch {_batch}, squared {_squared}, jaccard {_jaccard}"] = (
                lambda z, f=_loss, b=_batch, s=_squared: f(z, LABELS, over_batch=b, squared=s),
                "logits",
            )
    # Without smoothing, an absent class has the formula's loss in MONAI: 1.
    EQUAL[f"monai/dice, sparse, batch {_batch}"] = (
        lambda z, b=_batch: losses.dice_loss(z, SPARSE_VOID, where=KEEP, over_batch=b, absent="one"),
        "logits",
    )
    EQUAL[f"monai/tversky, batch {_batch}"] = (
        lambda z, b=_batch: losses.tversky_loss(z, LABELS, alpha=0.3, beta=0.7, over_batch=b),
        "logits",
    )
    # smp's is a copy of the authors', with only_present=True.
    for _name in (
        f"authors/lovasz softmax, per image {_batch}, only present True",
        f"smp/lovasz softmax, per image {_batch}",
    ):
        EQUAL[f"{_name}, float32"] = (
            lambda z, b=_batch: losses.lovasz_softmax_loss(z, SPARSE_VOID, where=KEEP, over_batch=not b),
            "logits",
        )
    for _name in ("authors", "smp"):
        EQUAL[f"{_name}/lovasz hinge, per image {_batch}, float32"] = (
            lambda z, b=_batch: losses.lovasz_hinge_loss(z, TARGETS_VOID, where=KEEP, over_batch=not b),
            "scores",
        )


@functools.cache
def equal_group(logits, exact):
    """Ours of all cases of the same logits, compiled together: most of their work is the same too."""
    names = [name for name, (_, of) in EQUAL.items() if of == logits and is_exact(name) == exact]
    together = jax.jit(lambda z: {name: with_gradient(EQUAL[name][0])(z) for name in names})
    with jax.enable_x64(exact):
        return jax.device_get(together(GOLDEN[logits].astype(np.float64 if exact else np.float32)))


@pytest.mark.parametrize("name", EQUAL)
def test_equal(name):
    assert_equals_peer(equal_group(EQUAL[name][1], is_exact(name))[name], name)


# Focal losses. γ is traced: one compilation for all.


@jax.jit
def softmax_focal(logits, labels, gamma, alpha):
    return with_gradient(lambda z: losses.softmax_focal_loss(z, labels, gamma=gamma, alpha=alpha))(logits)


@jax.jit
def sigmoid_focal(logits, targets, gamma, alpha):
    return with_gradient(lambda z: losses.sigmoid_focal_loss(z, targets, gamma=gamma, alpha=alpha))(logits)


def compiled(focal, *arguments, x64=True):
    with jax.enable_x64(x64):
        return jax.device_get(focal(*arguments))


GAMMAS = (0.0, 0.5, 2.0, 5.0)
NOTHING = np.ones(CLASSES)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_torchvisions_focal_loss_equals_ours_away_from_the_extremes(gamma):
    assert_equals_peer(compiled(sigmoid_focal, SCORES, TARGETS, gamma, 0.25), f"torchvision/focal, γ {gamma}")
    # Its alpha=-1 is our None.
    assert_equals_peer(compiled(sigmoid_focal, SCORES, SOFT, gamma, None), f"torchvision/focal, soft, γ {gamma}")


@pytest.mark.parametrize("gamma", GAMMAS)
def test_smps_focal_losses_equal_ours_away_from_the_extremes(gamma):
    value, gradient = peer(f"smp/focal, binary, γ {gamma}")
    our_value, our_gradient = compiled(sigmoid_focal, SCORES, TARGETS, gamma, 0.25)
    # It comes back flat.
    assert_close(our_value.ravel(), value, 1e-9)
    assert_close(our_gradient, gradient, 1e-9)
    # The function that its FocalLoss does not use: see the multiclass test.
    assert_equals_peer(compiled(softmax_focal, LOGITS, LABELS, gamma, NOTHING), f"smp/softmax focal, γ {gamma}")


@pytest.mark.parametrize("gamma", GAMMAS)
def test_monais_softmax_focal_loss_equals_ours_away_from_the_extremes(gamma):
    """It keeps the class axis, 0 for all classes but the label's."""
    value, gradient = peer(f"monai/focal, softmax, γ {gamma}, float32")
    our_value, our_gradient = compiled(softmax_focal, LOGITS, LABELS, gamma, WEIGHTS, x64=False)
    assert_close(our_value, value.sum(axis=1), 1e-5)
    assert_close(our_gradient, gradient, 1e-5)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_monais_sigmoid_focal_loss_equals_ours_away_from_the_extremes(gamma):
    """To 1e-6, absolutely: it adds z to log σ(z), and what is left of a negative has the rounding of z."""
    value, gradient = peer(f"monai/focal, sigmoid, γ {gamma}, float32")
    our_value, our_gradient = compiled(sigmoid_focal, LOGITS, ONE_HOT, gamma, 0.25)
    np.testing.assert_allclose(our_value, np.moveaxis(value, 1, -1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(our_gradient, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["torchvision/focal", "smp/focal, binary"])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_torchvision_and_smp_lose_confident_pixels_and_below_gamma_one_their_gradients(name, gamma):
    """They form 1 - p_t, which rounds to 0 in float32: (1 - p_t)^γ has an infinite slope there, and 0 · ∞ is NaN."""
    value, gradient = peer(f"{name}, extreme, γ {gamma}, float32")
    our_value, our_gradient = compiled(sigmoid_focal, FAR_SCORES, FAR_TARGETS, gamma, None, x64=False)
    # What float32 can hold at all: nothing below 1e-37.
    np.testing.assert_allclose(our_value, focal_truth(FAR_MARGIN, gamma), rtol=1e-5, atol=1e-37)
    assert np.isfinite(our_gradient).all()
    hard, confident, very = FAR_MARGIN < 0, FAR_MARGIN == 12, FAR_MARGIN > 17
    assert_close(our_value[hard], value[hard], 1e-5)
    assert_close(our_gradient[hard], gradient[hard], 1e-5)
    negative = confident & (FAR_TARGETS == 0)
    assert (np.abs(value - our_value)[negative] > 0.05 * our_value[negative]).all()
    assert (value[very] == 0).all()
    if gamma < 1:
        np.testing.assert_array_equal(np.isnan(gradient), very)
    else:
        assert (gradient[very] == 0).all()


def test_monais_sigmoid_focal_loss_loses_confident_negatives():
    """Its z - log σ(z) of a negative cancels: -12 + 12.000006 has two digits, and from -17 on nothing is left."""
    value, gradient = peer("monai/focal, sigmoid, extreme, γ 0.5, float32")
    truth = focal_truth(FAR_MARGIN, 0.5)
    positive, very = FAR_TARGETS == 1, FAR_MARGIN > 17
    np.testing.assert_allclose(value[positive], truth[positive], rtol=1e-5, atol=1e-37)
    assert (value[very & ~positive] == 0).all()
    assert truth[very & ~positive & (FAR_MARGIN < 20)].min() > 1e-13
    # And from -log σ(z)'s factor the gradient of a confident positive is lost too.
    assert (gradient[very] == 0).all()
    our_value, our_gradient = compiled(sigmoid_focal, FAR_SCORES, FAR_TARGETS, 0.5, None, x64=False)
    np.testing.assert_allclose(our_value, truth, rtol=1e-5, atol=1e-37)
    assert (our_gradient[FAR_MARGIN == 19.4] != 0).all()


def test_monais_softmax_focal_loss_below_gamma_one_has_nan_gradients_even_at_its_worst_pixels():
    """It takes (1 - p)^γ of every class and then picks the label's: one confident class is NaN, right or wrong."""
    value, gradient = peer("monai/focal, softmax, extreme, γ 0.5, float32")
    our_value, our_gradient = ours(lambda z: losses.softmax_focal_loss(z, FAR_LABELS, gamma=0.5), FAR, x64=False)
    confident = np.abs(FAR[..., 0]) > 17
    np.testing.assert_array_equal(np.isnan(gradient), np.broadcast_to(confident[..., None], FAR.shape))
    assert (our_value[confident] > 1).any()
    assert np.isfinite(our_gradient).all()
    assert_close(our_gradient[~confident & (our_value > 0.1)], gradient[~confident & (our_value > 0.1)], 1e-5)
    hard = our_value > 0.1
    assert_close(our_value[hard], value.sum(axis=1)[hard], 1e-5)


def test_smps_multiclass_focal_loss_is_one_sigmoid_against_the_rest_for_each_class():
    """Not a softmax focal loss: the mean over the classes of the sigmoid one, with α for the label's class."""
    keep = np.broadcast_to(KEEP[..., None], LOGITS.shape)
    assert_equal(
        "smp/focal, multiclass",
        lambda z: losses.mean(
            losses.sigmoid_focal_loss(z, ONE_HOT, gamma=2.0, alpha=0.25, where=keep),
            where=keep,
        ),
        LOGITS,
    )


def test_monais_scalar_alpha_of_a_softmax_weighs_class_0_against_all_others():
    """Ours refuses a scalar: of the C classes none is "the negative". As weights, it is 1 - α, α, α and so on."""
    value, gradient = peer("monai/focal, softmax, scalar α, float32")
    weights = np.array([0.75, 0.25, 0.25, 0.25])
    our_value, our_gradient = compiled(softmax_focal, LOGITS, LABELS, 2.0, weights, x64=False)
    assert_close(our_value, value.sum(axis=1), 1e-5)
    assert_close(our_gradient, gradient, 1e-5)


def test_monais_alpha_of_each_class_weighs_positives_only():
    """With a scalar its negatives have 1 - α, with a sequence 1. Ours takes the scalar; a weight each is a factor."""
    value, gradient = peer("monai/focal, sigmoid, α of each class, float32")
    factor = np.where(ONE_HOT == 1, WEIGHTS.reshape(1, 1, 1, CLASSES), 1)
    our_value, our_gradient = ours(lambda z: factor * losses.sigmoid_focal_loss(z, ONE_HOT, gamma=2.0), LOGITS)
    np.testing.assert_allclose(our_value, np.moveaxis(value, 1, -1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(our_gradient, gradient, rtol=1e-5, atol=1e-6)


def test_monais_mean_of_a_softmax_focal_loss_grows_c_times_with_an_ignore_index():
    """Without one it divides by pixels times classes, with one by pixels. Ours is always the mean over the pixels."""
    value, gradient = peer("monai/focal, softmax, mean, float32")
    our_value, our_gradient = ours(
        lambda z: losses.mean(losses.softmax_focal_loss(z, LABELS, gamma=2.0)), LOGITS, x64=False
    )
    assert_close(our_value / CLASSES, value, 1e-5)
    assert_close(our_gradient / CLASSES, gradient, 1e-5)
    assert_equal("monai/focal, softmax, mean, void, float32", kept_focal, LOGITS)


def kept_focal(z):
    return losses.mean(losses.softmax_focal_loss(z, LABELS_VOID, gamma=2.0, where=KEEP), where=KEEP)


def test_fvcores_focal_star_has_no_beta():
    """The paper's best FL* is γ = 2, β = 1. fvcore's is ours of β = 0 (above), only CE of the doubled logit, halved."""
    value, _ = peer("fvcore/focal star, float32")
    balance = np.where(TARGETS == 1, 0.25, 0.75)
    halved, _ = ours(lambda z: balance * losses.sigmoid_cross_entropy(2 * z, TARGETS) / 2, SCORES)
    np.testing.assert_allclose(value, halved, rtol=1e-5)
    papers, _ = ours(lambda z: losses.sigmoid_focal_star_loss(z, TARGETS, gamma=2.0, beta=1.0, alpha=0.25), SCORES)
    assert (papers < value).all()


# Cross entropy: PyTorch, smp.


def test_pytorchs_cross_entropy_loses_confident_pixels():
    """It subtracts a logsumexp from a logit, of one size: in float64 nothing is left from 40 on, in float32 from 17."""
    z = np.abs(FAR[..., 0])
    confident = np.argmax(FAR, axis=-1) == FAR_LABELS
    truth = np.log1p(np.exp(-z) + np.exp(-2 * z))
    for name, x64, digits in (("float64", True, 37), ("float32", False, 17)):
        value, gradient = peer("torch/cross_entropy, extreme" + ("" if x64 else ", float32"))
        our_value, our_gradient = ours(lambda z: losses.softmax_cross_entropy(z, FAR_LABELS), FAR, x64=x64)
        smallest = np.finfo(name).tiny
        rtol, rounding = (1e-9, 1e-15) if x64 else (1e-5, 1e-6)
        np.testing.assert_allclose(our_value[confident], truth[confident], rtol=rtol, atol=smallest)
        np.testing.assert_allclose(our_value, value, rtol=rtol, atol=rounding)
        np.testing.assert_allclose(our_gradient, gradient, rtol=rtol, atol=rounding)
        assert (value[confident & (z > digits)] == 0).all()
        assert (our_value[confident & (z > digits) & (z < 80)] > 0).all()


def test_pytorchs_binary_cross_entropy_loses_confident_negatives():
    """Its (1 - t) z - log σ(z) cancels for a negative, where its positives keep all digits."""
    truth = np.logaddexp(0, -FAR_MARGIN)
    positive = FAR_TARGETS == 1
    for name, x64, digits in (("float64", True, 37), ("float32", False, 17)):
        value, gradient = peer("torch/binary_cross_entropy, extreme" + ("" if x64 else ", float32"))
        our_value, our_gradient = ours(lambda z: losses.sigmoid_cross_entropy(z, FAR_TARGETS), FAR_SCORES, x64=x64)
        smallest = np.finfo(name).tiny
        rtol, rounding = (1e-9, 1e-15) if x64 else (1e-5, 1e-6)
        np.testing.assert_allclose(our_value, truth, rtol=rtol, atol=smallest)
        np.testing.assert_allclose(value[positive], truth[positive], rtol=rtol, atol=smallest)
        np.testing.assert_allclose(value, truth, rtol=rtol, atol=rounding)
        np.testing.assert_allclose(our_gradient, gradient, rtol=rtol, atol=rounding)
        assert (value[~positive & (digits < FAR_MARGIN)] == 0).all()


def test_pytorchs_ignore_index_lets_a_nan_logit_into_the_gradient():
    """The value is right, the ignored pixels' own gradients NaN: and with them the parameters'. Ours are 0."""
    value, gradient = peer("torch/cross_entropy, NaN under void")
    our_value, our_gradient = ours(EQUAL["torch/cross_entropy, mean"][0], POISONED)
    assert_close(our_value, value, 1e-9)
    np.testing.assert_array_equal(np.isnan(gradient), np.isnan(POISONED))
    assert_close(our_gradient[KEEP], gradient[KEEP], 1e-9)
    assert (our_gradient[~KEEP] == 0).all()


def test_smps_soft_cross_entropy_keeps_a_class_axis():
    value, gradient = peer("smp/soft cross entropy")
    our_value, our_gradient = ours(lambda z: losses.softmax_cross_entropy(z, LABELS, label_smoothing=0.1), LOGITS)
    assert_close(our_value, value[:, 0], 1e-9)
    assert_close(our_gradient, gradient, 1e-9)


def test_smps_soft_cross_entropy_divides_by_the_ignored_pixels_too():
    """So an image half of void counts half as much, where ours and PyTorch's divide by what is kept."""
    value, gradient = peer("smp/soft cross entropy, void")
    our_value, our_gradient = ours(
        lambda z: losses.mean(
            losses.softmax_cross_entropy(z, LABELS_VOID, where=KEEP, label_smoothing=0.1), where=KEEP
        ),
        LOGITS,
    )
    assert_close(our_value * KEEP.mean(), value, 1e-9)
    assert_close(our_gradient * KEEP.mean(), gradient, 1e-9)


# Losses of regions: smp, MONAI.


def test_smps_focal_tversky_takes_the_power_of_the_mean():
    """The paper's, and ours, is the mean of powers, in which the badly segmented class weighs more. Here none does."""
    value, gradient = peer("smp/tversky, γ 2.0")
    plain, plain_gradient = ours(EQUAL["smp/tversky, γ 1.0"][0], LOGITS)
    assert_close(plain**2, value, 1e-9)
    assert_close(2 * plain * plain_gradient, gradient, 1e-9)
    focal, _ = ours(lambda z: losses.tversky_loss(z, LABELS, alpha=0.3, beta=0.7, gamma=2.0, over_batch=True), LOGITS)
    hit, too_much, too_little = (x.sum(axis=0) for x in sums())
    assert_close(focal, np.mean((1 - hit / (hit + 0.3 * too_much + 0.7 * too_little)) ** 2), 1e-9)
    assert focal > value * 1.001


@pytest.mark.parametrize("name", ["smp/dice", "monai/dice", "monai/focal, softmax, mean"])
def test_a_nan_logit_under_void_is_a_nan_loss_in_smp_and_monai(name):
    """They multiply by the mask, and 0 · NaN is NaN. Ours selects."""
    value, gradient = peer(f"{name}, NaN under void" + (", float32" if "focal" in name else ""))
    assert np.isnan(value)
    assert np.isnan(gradient[~KEEP]).all()
    loss = {
        "smp/dice": EQUAL["smp/dice, sparse"][0],
        "monai/dice": EQUAL["monai/dice, sparse, batch False"][0],
        "monai/focal, softmax, mean": kept_focal,
    }[name]
    for poisoned, clean in zip(ours(loss, POISONED), ours(loss, LOGITS), strict=True):
        np.testing.assert_array_equal(poisoned, clean)


def test_monais_dice_of_a_void_image_is_nan_and_with_smoothing_zero():
    """Unsmoothed 0 / 0; smoothed 1 - ε / ε = 0, which halves the loss of the other image. Ours counts what exists."""
    keep = np.stack([np.ones_like(KEEP[0]), np.zeros_like(KEEP[0])])
    our_value, our_gradient = ours(lambda z: losses.dice_loss(z, LABELS, where=keep), LOGITS)
    value, gradient = peer("monai/dice, a void image")
    assert np.isnan(value)
    assert np.isnan(gradient[1]).all()
    value, gradient = peer("monai/dice, a void image, smoothed")
    # MONAI's default constants of 1e-5 move the loss itself in the sixth digit.
    np.testing.assert_allclose(our_value / 2, value, rtol=1e-5)
    np.testing.assert_allclose(our_gradient / 2, gradient, rtol=1e-5, atol=1e-8)
    assert np.abs(our_value / 2 / value - 1) > 1e-9


@pytest.mark.parametrize("batch", [False, True])
def test_monais_generalized_dice_equals_ours_but_for_float32_weights(batch):
    """Absent classes weigh there as the rarest class present: our absent="one"."""
    for case, labels in (("", LABELS), (", sparse", SPARSE)):
        value, gradient = peer(f"monai/generalized dice{case}, batch {batch}")
        our_value, our_gradient = ours(
            lambda z, y=labels: losses.generalized_dice_loss(z, y, over_batch=batch, absent="one"), LOGITS
        )
        assert_close(our_value, value, 2e-7)
        np.testing.assert_allclose(our_gradient, gradient, rtol=1e-6, atol=1e-9)


def dice_per_pair():
    """Returns the Dice loss of each image and class, and of each class over the batch, in float64."""
    hit, too_much, too_little = sums()
    batch_hit, batch_error = hit.sum(axis=0), (too_much + too_little).sum(axis=0)
    return 1 - hit / (hit + (too_much + too_little) / 2), 1 - batch_hit / (batch_hit + batch_error / 2)


def test_smps_and_kornias_class_weights_are_ours():
    """Ports of `DiceLoss.aggregate_loss` of smp (main, after 0.6) and kornia's macro `dice_loss`: Σ w l / Σ w."""
    of_image, of_batch = dice_per_pair()
    smp = (of_batch * WEIGHTS).sum() / WEIGHTS.sum()
    kornia = ((of_image * WEIGHTS).sum(-1) / WEIGHTS.sum()).mean()
    for expected, over_batch in ((smp, True), (kornia, False)):
        value, _ = ours(
            lambda z, b=over_batch: losses.dice_loss(z, LABELS, over_batch=b, class_weights=WEIGHTS), LOGITS
        )
        assert_close(value, expected, 1e-9)


def test_monais_and_mmsegs_class_weights_scale_the_loss_too():
    """Ports of MONAI's `mean(f * class_weight)` and mmseg's sum over classes / C: ours times the mean weight."""
    of_image, _ = dice_per_pair()
    monai = (of_image * WEIGHTS).mean()
    mmseg = sum(WEIGHTS[c] * of_image[:, c].mean() for c in range(CLASSES)) / CLASSES
    value, _ = ours(lambda z: losses.dice_loss(z, LABELS, class_weights=WEIGHTS), LOGITS)
    assert_close(value * WEIGHTS.mean(), monai, 1e-9)
    assert_close(value * WEIGHTS.mean(), mmseg, 1e-9)


def test_smps_multi_label_dice_is_one_of_sigmoid_channels():
    """Port of `DiceLoss("multilabel")` without smoothing: sums over the batch, 0 for a channel without labels."""
    p, t = 1 / (1 + np.exp(-LOGITS)), np.stack([TARGETS, 0 * TARGETS, 1 - TARGETS, LABELS > 1], axis=-1)
    hit, size = (p * t).sum((0, 1, 2)), (p + t).sum((0, 1, 2))
    expected = np.mean((1 - 2 * hit / size) * (t.sum((0, 1, 2)) > 0))
    options = {"over_batch": True, "absent": "zero", "activation": "sigmoid"}
    value, _ = ours(lambda z: losses.dice_loss(z, t, **options), LOGITS)
    assert_close(value, expected, 1e-9)


@pytest.mark.parametrize(("name", "epsilon", "root"), [("authors", 0.0, 1e-7), ("smp", 1e-5, 0.0)])
def test_the_authors_and_smps_matthews_loss_equal_ours_over_the_batch_but_for_their_constants(name, epsilon, root):
    """Ports of `MCCLoss(reduction="batch")` of github.com/kakumarabhishek/MCC-Loss and of smp."""
    p, t = 1 / (1 + np.exp(-SCORES)), TARGETS
    tp, tn, fp, fn = (x.sum() + epsilon for x in (p * t, (1 - p) * (1 - t), p * (1 - t), (1 - p) * t))
    port = 1 - (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn) + root)
    value, _ = ours(
        lambda z: losses.matthews_loss(z[..., None], t[..., None], over_batch=True, activation="sigmoid"), SCORES
    )
    assert_close(value, port, 1e-6)


# Lovász: the authors, smp.


def test_the_authors_loss_of_an_absent_class_is_its_largest_probability():
    """With only_present=False: what the formula gives where G = 0, its one error being the first. Ours is 0 or 1."""
    value, gradient = peer("authors/lovasz softmax, per image False, only present False, float32")

    def loss(z):
        largest = jnp.max(jnp.where(KEEP, jax.nn.softmax(z)[..., 3], 0))
        return losses.lovasz_softmax_loss(z, SPARSE_VOID, where=KEEP, absent="zero") + largest / CLASSES

    our_value, our_gradient = ours(loss, LOGITS, x64=False)
    assert_close(our_value, value, 1e-5)
    assert_close(our_gradient, gradient, 1e-5)


def test_smps_lovasz_softmax_of_a_batch_that_begins_with_a_void_image_is_an_empty_array_without_gradient():
    """The authors' mean begins with probas * 0., which has no elements, and adding to it is broadcasting to nothing."""
    value, gradient = peer("smp/lovasz softmax, a void image first, float32")
    assert value.shape == (0, CLASSES)
    assert (gradient == 0).all()
    keep = np.stack([np.zeros_like(KEEP[0]), np.ones_like(KEEP[0])])
    both = ours(lambda z: losses.lovasz_softmax_loss(z, LABELS, where=keep, over_batch=False), LOGITS)
    alone = ours(lambda z: losses.lovasz_softmax_loss(z, LABELS[1:], over_batch=False), LOGITS[1:])
    assert_close(both[0], alone[0], 1e-9)
    assert_close(both[1][1:], alone[1], 1e-9)


def test_the_authors_hinge_counts_a_void_image_as_a_perfect_one():
    """Its 0 halves the loss of the other image. Ours is the mean over the images that exist."""
    value, gradient = peer("authors/lovasz hinge, a void image first, float32")
    keep = np.stack([np.zeros_like(KEEP[0]), np.ones_like(KEEP[0])])
    our_value, our_gradient = ours(
        lambda z: losses.lovasz_hinge_loss(z, TARGETS, where=keep, over_batch=False), SCORES, x64=False
    )
    assert_close(our_value / 2, value, 1e-5)
    assert_close(our_gradient / 2, gradient, 1e-5)


# optax: the other per-pixel losses are in test_classification.py.


def test_sigmoid_cross_entropy_equals_optax():
    for actual, expected in zip(
        ours(lambda z: losses.sigmoid_cross_entropy(z, SOFT), SCORES),
        ours(lambda z: optax.sigmoid_binary_cross_entropy(z, SOFT), SCORES),
        strict=True,
    ):
        assert_close(actual, expected, 1e-9)


def optax_dice(z, loss=optax.losses.dice_loss, **options):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return jnp.mean(loss(z, ONE_HOT.astype(np.float64), smooth=0.0, **options))


def test_dice_and_tversky_equal_optax_without_its_smoothing():
    for loss, options in ((losses.dice_loss, {}), (losses.tversky_loss, {"alpha": 0.3, "beta": 0.7})):
        actual = ours(lambda z, f=loss, o=options: f(z, LABELS, **o), LOGITS)
        expected = ours(lambda z, o=options: optax_dice(z, **o), LOGITS)
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, 1e-9)


def test_optaxs_generalized_dice_is_a_weighted_mean_of_dice_losses():
    """Sudre's, and ours, is one ratio of weighted sums. optax's weighs the ratios, with weights that add up to C."""
    value, _ = ours(lambda z: optax_dice(z, optax.losses.multiclass_generalized_dice_loss), LOGITS)
    hit, too_much, too_little = sums()
    dices = 1 - hit / (hit + 0.5 * too_much + 0.5 * too_little)
    weights = 1 / ONE_HOT.sum(axis=(0, 1, 2)) ** 2.0
    # Its ε of 1e-7 moves the weights in the tenth digit.
    assert_close(value, np.mean(dices * weights / weights.mean()), 1e-8)
    sudre, _ = ours(lambda z: losses.generalized_dice_loss(z, LABELS), LOGITS)
    assert abs(sudre - value) > 1e-3
