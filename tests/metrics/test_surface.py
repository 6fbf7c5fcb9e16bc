import jax
import numpy as np
import pytest
from scipy import ndimage

from segjax import metrics

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.repeat(RNG.integers(0, 3, (3, 6, 5)), 3, axis=1), 3, axis=2).astype(np.int32)
LABELS[1][LABELS[1] == 2] = 0  # class 2 is predicted only
LABELS[2][LABELS[2] == 1] = 0
PREDICTIONS = np.where(RNG.uniform(size=LABELS.shape) < 0.9, LABELS, RNG.integers(0, 3, LABELS.shape)).astype(np.int32)
PREDICTIONS[2][PREDICTIONS[2] == 1] = 0  # class 1 is on neither side
WHERE = RNG.uniform(size=LABELS.shape) < 0.95


def monai(labels, predictions, c, spacing, percentile):
    """Ports MONAI's `compute_hausdorff_distance` (max and percentile) and `compute_average_surface_distance`."""

    def edges(classes):
        return ndimage.binary_erosion(classes == c) ^ (classes == c)

    def distances(of, to):
        if not to.any():
            return np.full(of.sum(), np.inf)
        return ndimage.distance_transform_edt(~to, sampling=spacing)[of]

    predicted, true = edges(predictions), edges(labels)
    both = [distances(predicted, true), distances(true, predicted)]
    together = np.concatenate(both)
    if together.size == 0:
        return np.nan, np.nan, np.nan
    if not (predicted.any() and true.any()):
        return np.inf, np.inf, np.inf
    return max(d.max() for d in both), max(np.percentile(d, percentile) for d in both), together.mean()


NAMES = ("hausdorff_distance", "hausdorff_percentile", "mean_surface_distance")


@pytest.mark.parametrize("where", [None, WHERE], ids=["all", "masked"])
def test_surface_scores_equal_monai(where):
    keep = np.ones(LABELS.shape, bool) if where is None else where
    run = jax.jit(
        lambda spacing, q: metrics.surface_distances(
            LABELS, PREDICTIONS, 4, spacing=(spacing, 1.5), percentile=q, where=where
        )
    )
    for spacing, percentile in ((1.0, 95.0), (0.4, 50.0)):
        scores = metrics.surface_scores(run(spacing, percentile))
        # Void is the end of the image: of no class on either side.
        pairs = [
            [monai(y, p, c, (spacing, 1.5), percentile) for c in range(4)]
            for y, p in zip(np.where(keep, LABELS, -1), np.where(keep, PREDICTIONS, -1), strict=True)
        ]
        for name, expected in zip(NAMES, np.moveaxis(pairs, -1, 0), strict=True):
            np.testing.assert_allclose(scores[f"{name}_per_image"], expected, rtol=1e-5, err_msg=name)
            per_class = [np.mean(d[np.isfinite(d)]) if np.isfinite(d).any() else np.nan for d in expected.T]
            np.testing.assert_allclose(scores[f"{name}_per_class"], per_class, rtol=1e-5, err_msg=name)
            np.testing.assert_allclose(scores[name], np.nanmean(per_class), rtol=1e-5, err_msg=name)
        assert scores["unmatched_images_per_class"].tolist() == [0, 0, 1, 0]


def test_surface_distances_of_two_points_and_of_a_missing_class():
    labels = np.zeros((2, 5, 7), np.int32)
    labels[0, 1, 1], labels[1, 3, 3] = 1, 1
    predictions = np.zeros_like(labels)
    predictions[0, 4, 5] = 1
    distances = metrics.surface_distances(labels, predictions, 2)
    np.testing.assert_array_equal(distances.count[:, 1], [[1, 1], [0, 1]])
    np.testing.assert_array_equal(distances.maximum[:, 1], [[5, 5], [np.nan, np.inf]])
    np.testing.assert_array_equal(distances.total[:, 1], [[5, 5], [0, np.inf]])
    scores = metrics.surface_scores(distances)
    assert scores["hausdorff_distance_per_image"][:, 1].tolist() == [5, np.inf]
    assert scores["hausdorff_distance_per_class"][1] == 5
    assert scores["unmatched_images_per_class"].tolist() == [0, 1]


def test_surface_distances_leading_axes():
    together = metrics.surface_distances(LABELS, PREDICTIONS, 3)
    apart = metrics.surface_distances(LABELS[:, None], PREDICTIONS[:, None], 3)
    for one, other in zip(apart, together, strict=True):
        np.testing.assert_array_equal(one[:, 0], other)
    one = metrics.surface_distances(LABELS[0], PREDICTIONS[0], 3)
    np.testing.assert_array_equal(one.total, together.total[0])


@pytest.mark.parametrize("wrong", [-1, 3, 255])
def test_surface_scores_refuse_an_unmasked_invalid_class(wrong):
    labels = LABELS.copy()
    labels[1, 2, 2] = wrong
    distances = metrics.surface_distances(labels, PREDICTIONS, 3)
    assert (np.asarray(distances.count[1]) == -(2**31)).all()
    assert (np.asarray(distances.count[0]) >= 0).all()
    with pytest.raises(ValueError, match=r"distances\.count has a negative count"):
        metrics.surface_scores(distances)
    masked = metrics.surface_distances(labels, PREDICTIONS, 3, where=labels == LABELS)
    assert metrics.surface_scores(masked)["hausdorff_distance"] > 0


def test_surface_distances_tpu_program_has_no_scatter():
    run = jax.jit(lambda y, p: metrics.surface_distances(y, p, 3))
    program = run.trace(LABELS, PREDICTIONS).lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.sort" in program
    assert not {"stablehlo.gather", "stablehlo.scatter"} & set(program.replace('"', " ").split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"labels": LABELS[0, 0], "predictions": LABELS[0, 0]},
            r"labels must be \[..., height, width\]; got .*\(15,\)",
        ),
        ({"predictions": LABELS[:2]}, r"predictions must have the shape of labels, \(3, 18, 15\); got \(2, 18, 15\)"),
        ({"num_classes": 0}, r"num_classes must be at least 1; got 0"),
        ({"percentile": 101}, r"percentile must be between 0 and 100; got 101"),
        ({"spacing": (0.0, 1.0)}, r"spacing must be finite and more than 0; got 0"),
    ],
)
def test_surface_distances_invalid_arguments_are_named(raw, options, message):
    with pytest.raises(ValueError, match=message):
        raw.surface_distances(**({"labels": LABELS, "predictions": PREDICTIONS, "num_classes": 3} | options))


def test_surface_scores_names_a_wrong_shape(raw):
    distances = metrics.surface_distances(LABELS[0], PREDICTIONS[0], 3)
    with pytest.raises(ValueError, match=r"distances must have arrays \[images, classes, 2\]; got a count of shape"):
        raw.surface_scores(distances)
