import numpy as np
import pytest
from scipy.special import entr, softmax

from segjax.inference import Moments, packed, uncertainty_of, unpacked

# Samples of the logits, [N, B, H, W, C].
Z = np.random.default_rng(0).normal(size=(4, 2, 3, 5, 3), scale=3)


def moments_of(z):
    p = softmax(z, axis=-1)
    fields = p.mean(axis=0), entr(p).sum(axis=-1).mean(axis=0), z.mean(axis=0), z.var(axis=0).mean(axis=-1)
    return Moments(*(np.asarray(field, np.float32) for field in fields))


def as_moments(maps):
    return unpacked(np.asarray(maps, np.float32))


def test_they_are_the_uncertainty_of_their_samples():
    found, p = uncertainty_of(as_moments(packed(moments_of(Z))), len(Z)), softmax(Z, axis=-1)
    entropy = entr(p.mean(axis=0)).sum(axis=-1)
    np.testing.assert_allclose(found.probabilities, p.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.predictive_entropy, entropy, atol=1e-6)
    np.testing.assert_allclose(found.mutual_information, entropy - entr(p).sum(axis=-1).mean(axis=0), atol=3e-6)
    np.testing.assert_allclose(found.variance, Z.var(axis=0, ddof=1).mean(axis=-1), rtol=1e-4)


def test_packing_is_undone():
    kept = moments_of(Z)
    for name, again in as_moments(packed(kept))._asdict().items():
        np.testing.assert_allclose(again, getattr(kept, name), rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_blend_of_maps_is_the_moments_of_all_samples():
    # The first sample alone weighs a quarter, the other three the rest.
    blend = 0.25 * packed(moments_of(Z[:1])) + 0.75 * packed(moments_of(Z[1:]))
    for name, found in as_moments(blend)._asdict().items():
        np.testing.assert_allclose(found, getattr(moments_of(Z), name), rtol=1e-4, atol=1e-5, err_msg=name)


def test_rounding_is_no_variance_below_0():
    alike = np.broadcast_to(Z[:1] + 100, Z.shape)
    found = uncertainty_of(as_moments(packed(moments_of(alike))), len(Z))
    assert (found.variance >= 0).all()
    np.testing.assert_allclose(found.variance, 0, atol=1e-2)  # 1e-6 of the logits' squares


def test_one_sample_has_no_variance():
    with pytest.raises(ValueError, match=r"samples must be at least 2, since .* got 1"):
        uncertainty_of(as_moments(packed(moments_of(Z))), 1)


def test_maps_of_another_number_are_named():
    with pytest.raises(ValueError, match=r"maps must be 2C \+ 2 of at least 2 classes; got 7 of shape \(4, 7\)"):
        unpacked(np.ones((4, 7)))
