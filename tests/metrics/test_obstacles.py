import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn import metrics as sklearn_metrics

from segjax import metrics

F1_STAR = {"overlap": "siou", "thresholds": np.linspace(0.25, 0.75, 11)}


def picture(text):
    return np.array([list(line.strip()) for line in text.split()]) == "#"


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_obstacle_targets_region_of_interest(dtype):
    targets, where = metrics.obstacle_targets(np.array([[0, 1], [2, 1]], dtype))
    assert targets.dtype == jnp.int32
    np.testing.assert_array_equal(where, [[False, True], [True, True]])
    np.testing.assert_array_equal(np.asarray(targets)[np.asarray(where)], [0, 1, 0])


def test_obstacle_targets_average_precision_and_fpr95():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, p=[0.5, 0.48, 0.02], size=(2, 100, 200))
    logits = (rng.normal(size=labels.shape) + 3 * (labels == 2) - 4).astype(np.float32)
    logits[labels == 0] = np.where(rng.uniform(size=(labels == 0).sum()) < 0.5, np.nan, 9)  # the sky has high scores
    targets, where = jax.jit(metrics.obstacle_targets)(labels)
    histogram = metrics.score_histogram(logits, targets, where=where)
    inside = labels > 0
    exact = sklearn_metrics.average_precision_score(labels[inside] == 2, logits[inside])
    assert abs(metrics.average_precision(histogram) - exact) < 2e-3
    fpr, tpr, _ = sklearn_metrics.roc_curve(labels[inside] == 2, logits[inside], drop_intermediate=False)
    assert abs(metrics.fpr_at_tpr(histogram) - fpr[np.searchsorted(tpr, 0.95)]) < 2e-3


@pytest.mark.parametrize("strange", [-1, 3, 255])
def test_obstacle_targets_other_label(strange):
    targets, where = jax.jit(metrics.obstacle_targets)(np.array([[0, 1], [2, strange]]))
    histogram = metrics.score_histogram(jnp.zeros((2, 2)), targets, where=where)
    with pytest.raises(ValueError, match="a target other than 0 and 1 was counted"):
        metrics.average_precision(histogram)
    with pytest.raises(ValueError, match="targets must be 0 and 1 where `where` is True; got -1"):
        metrics.component_counts(targets, np.zeros((2, 2), bool), where=where)


TWO = picture("""
    ####..##
    ####..##
    ........
""")


@pytest.mark.parametrize(
    ("detected", "counts"),
    [
        ("........ ........ ........", [0, 2, 0]),
        ("##...... ##...... ........", [1, 1, 0]),  # 4 of 8 pixels are half
        ("##...... #....... ........", [0, 2, 0]),  # 3 are not, and the detection is all obstacle
        ("######## ######## ######..", [2, 0, 0]),  # one detection, 12 of 22 of its pixels obstacle
        ("######## ######## ########", [2, 0, 0]),  # 12 of 24: still half
        ("####.... ####..#. .....###", [1, 1, 1]),  # 1 of 4
        ("........ ........ #.#.#.#.", [0, 2, 4]),
    ],
)
def test_component_counts_coverage(detected, counts):
    np.testing.assert_array_equal(metrics.component_counts(TWO, picture(detected)), [counts])


def test_component_counts_several_thresholds():
    counts = metrics.component_counts(TWO, picture("##...... ##...... #......."), thresholds=[0.25, 0.5, 0.81, 1.0])
    np.testing.assert_array_equal(counts, [[1, 1, 0], [1, 1, 0], [0, 2, 1], [0, 2, 1]])


def test_component_counts_siou():
    both = picture("######## ######## ........")  # 4 pixels beside the two obstacles: 8/12 and 4/8
    levels = {"overlap": "siou", "thresholds": [0.5, 0.51, 0.66, 0.67]}
    np.testing.assert_array_equal(metrics.component_counts(TWO, both, **levels)[:, 0], [2, 1, 1, 0])
    everything = np.ones_like(TWO)  # 8/20 and 4/16
    assert metrics.component_counts(TWO, everything, **levels)[:, 0].sum() == 0
    assert metrics.component_counts(TWO, everything)[0, 0] == 2


def test_component_counts_connectivity():
    diagonal = np.eye(4, dtype=bool)
    nothing = np.zeros_like(diagonal)
    assert metrics.component_counts(diagonal, nothing).tolist() == [[0, 1, 0]]
    assert metrics.component_counts(diagonal, nothing, connectivity=1).tolist() == [[0, 4, 0]]


def test_component_counts_minimum_sizes():
    targets = picture("##...... ##....#. ........")
    on_the_small_one = picture("........ ......#. ........")
    assert metrics.component_counts(targets, on_the_small_one, min_size=2).tolist() == [[0, 1, 0]]
    # Two of its pixels are on the road, and one is on the target that is too small to count.
    around = picture("........ .....### ........")
    assert metrics.component_counts(targets, around, min_size=2).tolist() == [[0, 1, 1]]
    assert metrics.component_counts(targets, around, min_size=2, min_detection_size=4).tolist() == [[0, 1, 0]]


def test_component_counts_masked_pixels():
    targets = np.where(TWO, 1, 0)
    where = np.ones_like(TWO)
    where[:, 6:] = False
    targets[:, 6:] = 255
    assert metrics.component_counts(targets, np.ones_like(TWO), where=where).tolist() == [[1, 0, 1]]
    where[:, 2] = False  # cuts the other obstacle and the detection in two
    assert metrics.component_counts(targets, TWO, where=where).tolist() == [[2, 0, 0]]
    nothing = metrics.component_counts(targets, TWO, where=np.zeros((1, 1), bool))
    assert nothing.tolist() == [[0, 0, 0]]
    assert all(np.isnan(value).all() for value in metrics.component_scores(nothing).values())


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 3)])
def test_component_counts_no_pixels(shape):
    counts = metrics.component_counts(np.zeros(shape, bool), np.zeros(shape, bool))
    assert counts.tolist() == [[0, 0, 0]]


def _mean_f1_of_masks(images):
    """Returns the mean F1 by the definition of SegmentMeIfYouCan, component by component."""
    f1 = []
    for level in F1_STAR["thresholds"]:
        found = missed = false = 0
        for targets, detections in images:
            truth, of_truth = ndimage.label(targets, np.ones((3, 3)))
            found_labels, of_found = ndimage.label(detections, np.ones((3, 3)))
            for k in range(1, of_truth + 1):
                touching = np.isin(found_labels, np.unique(found_labels[(truth == k) & detections]))
                touching &= detections & ~(targets & (truth != k))
                siou = (touching & (truth == k)).sum() / (touching | (truth == k)).sum()
                found, missed = found + (siou >= level), missed + (siou < level)
            for d in range(1, of_found + 1):
                false += targets[found_labels == d].mean() < level
        f1.append(2 * found / (2 * found + missed + false))
    return np.mean(f1)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.1, 0.6))
def test_component_scores_mean_f1_definition(seed, share):
    rng = np.random.default_rng(seed)
    targets, noise = rng.uniform(size=(2, 3, 8, 9)) < share
    targets[0, 0, 0] = True
    detections = targets ^ (noise & (rng.uniform(size=noise.shape) < 0.5))
    counts = metrics.component_counts(targets, detections, **F1_STAR)
    expected = _mean_f1_of_masks(list(zip(targets, detections, strict=True)))
    assert metrics.component_scores(counts)["mean_component_f1"] == pytest.approx(expected, rel=1e-12)
    one_by_one = sum(metrics.component_counts(t, d, **F1_STAR) for t, d in zip(targets, detections, strict=True))
    np.testing.assert_array_equal(counts, one_by_one)


def test_component_scores_values():
    scores = metrics.component_scores(np.array([[3, 1, 2], [0, 4, 0]]))
    np.testing.assert_allclose(scores["component_recall"], [0.75, 0])
    np.testing.assert_allclose(scores["component_f1"], [6 / 9, 0])
    assert scores["mean_component_f1"] == pytest.approx(1 / 3)
    no_obstacle = metrics.component_scores(np.array([[0, 0, 5]]))
    assert np.isnan(no_obstacle["component_recall"]).all()
    assert no_obstacle["mean_component_f1"] == 0


BROKEN = {
    "float labels": (
        lambda f: f.obstacle_targets(np.zeros(3, np.float32)),
        TypeError,
        r"labels must be integers; got float32 of shape \(3,\)",
    ),
    "float targets": (
        lambda f: f.component_counts(TWO * 1.0, TWO),
        TypeError,
        r"targets must be boolean or integers; got float64 of shape \(3, 8\)",
    ),
    "scores": (
        lambda f: f.component_counts(TWO, TWO * 0.5),
        TypeError,
        r"detections must be boolean; got float64 of shape \(3, 8\)",
    ),
    "one axis": (
        lambda f: f.component_counts(TWO[0], TWO[0]),
        ValueError,
        r"targets must be \[..., height, width\]; got shape \(8,\)",
    ),
    "shape": (
        lambda f: f.component_counts(TWO, TWO[:2]),
        ValueError,
        r"detections must have the shape of targets, \(3, 8\); got \(2, 8\)",
    ),
    "mask": (
        lambda f: f.component_counts(TWO, TWO, where=np.ones(3, bool)),
        ValueError,
        r"where must have shape \(3, 8\).* got \(3,\)",
    ),
    "traced": (
        lambda f: jax.jit(f.component_counts)(TWO, TWO),
        TypeError,
        r"targets must be known on the host; got a traced array of shape \(3, 8\)",
    ),
    "overlap": (
        lambda f: f.component_counts(TWO, TWO, overlap="iou"),
        ValueError,
        r"overlap must be one of 'coverage', 'siou'; got 'iou'",
    ),
    "threshold": (
        lambda f: f.component_counts(TWO, TWO, thresholds=[0.5, 50.0]),
        ValueError,
        r"thresholds must be one or more numbers above 0 and at most 1; got \[0.5, 50.0\]",
    ),
    "no thresholds": (
        lambda f: f.component_counts(TWO, TWO, thresholds=[]),
        ValueError,
        r"thresholds must be one or more numbers above 0 and at most 1; got \[\]",
    ),
    "connectivity": (
        lambda f: f.component_counts(TWO, TWO, connectivity=8),
        ValueError,
        r"connectivity must be one of 1, 2; got 8",
    ),
    "size": (
        lambda f: f.component_counts(TWO, TWO, min_detection_size=0),
        ValueError,
        r"min_detection_size must be at least 1; got 0",
    ),
    "counts": (
        lambda f: f.component_scores(np.ones((2, 2), int)),
        ValueError,
        r"counts must be \[thresholds, 3\], found, missed and false; got shape \(2, 2\)",
    ),
    "float counts": (
        lambda f: f.component_scores(np.ones((1, 3))),
        TypeError,
        r"counts must be integers .*got float64",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_obstacles_broken_input(case, raw):
    call, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        call(raw)
