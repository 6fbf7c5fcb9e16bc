"""Boxes, equal to pycocotools', and obstacles."""

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage
from sklearn import metrics as sklearn_metrics

from segjax import metrics
from segjax.boxes import Detections
from segjax.metrics import DetectionRecords

STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
STATS += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
SCORES = np.array([0.1, 0.3, 0.3, 0.5, 0.7, 0.9])


def data_set(seed):
    """Draws (num_classes, detections, objects) of a few images, padded, with NaN in unused places.

    Coordinates are whole, so that overlaps are often equal or exactly at a threshold; half of the detections are an
    object, shifted. Areas of masks are those of sizes at the bounds of COCO's sizes. Some images and classes are empty.
    Every sixteenth set has one class and 130 detections per image.
    """
    rng = np.random.default_rng(seed)
    crowded = seed % 16 == 0
    num_images, num_classes = (2, 1) if crowded else rng.integers(1, [5, 3])
    num_objects, num_detections = rng.integers(1, 7), 130 if crowded else rng.integers(1, 9)
    side = rng.choice([20, 60, 200])

    def drawn(count):
        low = rng.integers(0, side, (num_images, count, 2))
        return np.concatenate([low, low + rng.integers(1, side, low.shape)], axis=-1).astype(float)

    def exists(count):
        image_has = rng.uniform(size=(num_images, 1)) < 0.8
        return image_has & (rng.uniform(size=(num_images, count)) < 0.8)

    objects = {"boxes": drawn(num_objects), "classes": rng.integers(0, num_classes, (num_images, num_objects))}
    objects["where"] = exists(num_objects)
    objects["crowd"] = rng.uniform(size=(num_images, num_objects)) < 0.2
    width, height = np.moveaxis(objects["boxes"][..., 2:] - objects["boxes"][..., :2], -1, 0)
    bounds = rng.choice([32**2, 96**2], width.shape)
    objects["areas"] = np.where(rng.uniform(size=width.shape) < 0.1, bounds, width * height * rng.choice([0.5, 1.0]))

    source = rng.integers(0, num_objects, (num_images, num_detections, 1))
    shift = rng.integers(-2, 3, (num_images, num_detections, 4)) * rng.integers(0, 2, (num_images, num_detections, 1))
    near = np.take_along_axis(objects["boxes"], source, axis=1) + shift
    near[..., 2:] = np.maximum(near[..., 2:], near[..., :2] + 1)
    is_near = rng.uniform(size=(num_images, num_detections)) < 0.6
    classes = np.where(
        is_near & (rng.uniform(size=is_near.shape) < 0.8),
        np.take_along_axis(objects["classes"], source[..., 0], axis=1),
        rng.integers(0, num_classes, is_near.shape),
    )
    boxes, scores = np.where(is_near[..., None], near, drawn(num_detections)), rng.choice(SCORES, is_near.shape)
    found = Detections(boxes, scores, classes, exists(num_detections))
    for array, where in ((found.boxes, found.where), (found.scores, found.where), (objects["boxes"], objects["where"])):
        array[~where] = np.nan
    return int(num_classes), found, objects


def ours(num_classes, found, objects):
    boxes, classes, *rest = objects.values()
    where, crowd, areas = rest
    return metrics.detection_records(found, boxes, classes, num_classes, where=where, crowd=crowd, areas=areas)


def pycocotools(num_classes, found, objects):
    """Returns COCO's twelve numbers, and the precision `[classes, thresholds, 101]`; NaN where there is no object."""
    images = len(found.boxes)
    truth = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": c} for c in range(num_classes)],
        "annotations": [
            {
                "id": n + 1,
                "image_id": int(i),
                "category_id": int(objects["classes"][i, j]),
                "bbox": xywh(objects["boxes"][i, j]),
                "area": float(objects["areas"][i, j]),
                "iscrowd": int(objects["crowd"][i, j]),
            }
            for n, (i, j) in enumerate(np.argwhere(objects["where"]))
        ],
    }
    results = [
        {"image_id": int(i), "category_id": int(found.classes[i, j]), "score": float(found.scores[i, j])}
        | {"bbox": xywh(found.boxes[i, j])}
        for i, j in np.argwhere(found.where)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        # It cannot load an empty list of detections.
        no_result = {"image_id": 0, "category_id": num_classes, "score": 0.0, "bbox": [0, 0, 1, 1]}
        evaluation = COCOeval(coco, coco.loadRes([*results, no_result]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = np.moveaxis(evaluation.eval["precision"][..., 0, -1], -1, 0)
    return [np.where(np.asarray(x) == -1, np.nan, x) for x in (evaluation.stats, precision)]


def xywh(box):
    return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]


def assert_equal_to_pycocotools(seeds):
    for seed in seeds:
        case = data_set(seed)
        stats, precision = pycocotools(*case)
        scores = metrics.detection_scores(ours(*case))
        np.testing.assert_allclose([scores[name] for name in STATS], stats, rtol=0, atol=1e-9, err_msg=str(seed))
        np.testing.assert_allclose(scores["precision_at_recall"], precision, rtol=0, atol=1e-9, err_msg=str(seed))


BOX = np.array([[[0.0, 0.0, 4.0, 4.0]]])
ZERO = np.zeros((1, 1), int)
HIT = Detections(BOX, np.array([[0.9]]), ZERO, ZERO == 0)
MISS = Detections(BOX + 9, np.array([[0.9]]), ZERO, ZERO == 0)


def test_detection_scores_pycocotools():
    assert_equal_to_pycocotools(range(20))


@pytest.mark.slow
def test_detection_scores_pycocotools_1000_sets():
    assert_equal_to_pycocotools(range(1000))


def test_detection_records_of_parts_add_up():
    num_classes, found, objects = data_set(5)
    assert len(found.boxes) > 2
    parts = [
        ours(num_classes, Detections(*(x[part] for x in found)), {name: x[part] for name, x in objects.items()})
        for part in (slice(0, 1), slice(1, None))
    ]
    whole = ours(num_classes, found, objects)
    for name in DetectionRecords._fields:
        np.testing.assert_array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(whole, name))
    np.testing.assert_equal(metrics.detection_scores(*parts), metrics.detection_scores(whole))


def test_detection_records_device_arrays():
    found = Detections(*map(jnp.asarray, HIT))
    records = metrics.detection_records(found, jnp.asarray(BOX), jnp.asarray(ZERO), 1)
    assert metrics.detection_scores(records)["ap"] == pytest.approx(1)


def test_detection_records_more_padding_changes_nothing():
    num_classes, found, objects = data_set(5)
    sides = [(0, 0), (0, 3)]
    padded = {
        name: np.pad(x, [*sides, (0, 0)][: x.ndim], constant_values=name != "where") for name, x in objects.items()
    }
    for one, other in zip(ours(num_classes, found, objects), ours(num_classes, found, padded), strict=True):
        np.testing.assert_array_equal(one, other)


def test_detection_scores_without_objects():
    nothing = metrics.detection_records(MISS, np.zeros((1, 0, 4)), np.zeros((1, 0), int), 2)
    scores = metrics.detection_scores(nothing)
    assert np.isnan(scores["ap"])
    assert np.isnan(scores["ar100_per_class"]).all()


def test_detection_scores_without_detections():
    nothing = Detections(np.zeros((1, 0, 4)), np.zeros((1, 0)), np.zeros((1, 0), int), np.zeros((1, 0), bool))
    scores = metrics.detection_scores(metrics.detection_records(nothing, BOX, ZERO, 2))
    assert (scores["ap"], scores["ar100"], scores["ap_small"]) == (0, 0, 0)
    np.testing.assert_array_equal(scores["ap_per_class"], [0, np.nan])


def test_detection_curve_of_the_detections_of_at_least_each_score():
    for seed in range(1, 12):
        num_classes, found, objects = data_set(seed)
        curve = metrics.detection_curve(ours(num_classes, found, objects), iou_threshold=0.6)
        assert (np.diff(curve["threshold"]) < 0).all()
        for i, threshold in enumerate(curve["threshold"]):
            likely = found._replace(where=found.where & (found.scores >= threshold))
            records = ours(num_classes, likely, objects)
            right = int(records.correct[..., 0, 2].sum())
            false = int((records.where & ~records.correct[..., 0, 2] & ~records.ignored[..., 0, 2]).sum())
            total = int(records.num_true[..., 0].sum())
            assert curve["precision"][i] == right / (right + false)
            if total:
                assert curve["recall"][i] == right / total
                assert curve["f1"][i] == 2 * right / (right + false + total)


def test_detection_curve_without_detections_or_objects():
    box, one = np.array([[[0.0, 0.0, 4.0, 4.0]]]), np.array([[0]])
    none = metrics.detection_records((box, np.array([[0.9]]), one, one == 1), box, one, 1)
    assert [values.shape for values in metrics.detection_curve(none).values()] == [(0,)] * 4
    false = metrics.detection_records((box, np.array([[0.9]]), one, one == 0), box, one, 1, where=one == 1)
    curve = metrics.detection_curve(false)
    assert (curve["precision"].tolist(), curve["f1"].tolist()) == ([0], [0])
    assert np.isnan(curve["recall"]).all()
    with pytest.raises(ValueError, match=r"iou_threshold must be one of 0.5, 0.55, ..., 0.95; got 0.52"):
        metrics.detection_curve(none, iou_threshold=0.52)


def test_detection_records_area_limits():
    records = metrics.detection_records(HIT, BOX, ZERO, 1, area_limits=(4.0, 9.0))
    assert records.num_true[0, 0].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": ZERO + 1}, r"classes must be in \[0, 1\)"),
        ({"boxes": BOX[..., ::-1]}, "add x to width"),
        ({"boxes": BOX * np.nan}, "boxes must be"),
        ({"boxes": np.concatenate([BOX, BOX])}, "the same number of images; got 1 and 2"),
        (
            {"detections": HIT._replace(scores=np.array([[np.nan]]))},
            "must not be NaN where detections.where",
        ),
        ({"detections": HIT._replace(scores=np.ones((1, 2)))}, "detections.scores must have the shape"),
        ({"crowd": np.array([[True, False]])}, "crowd must have the shape"),
        ({"area_limits": (9.0, 4.0)}, "area_limits must be"),
    ],
)
def test_detection_records_invalid(changed, message, raw):
    arguments = {"detections": HIT, "boxes": BOX, "classes": ZERO, "num_classes": 1} | changed
    if len(arguments["boxes"]) == 2:
        arguments["classes"] = np.zeros((2, 1), int)
    with pytest.raises(ValueError, match=message):
        raw.detection_records(**arguments)


def test_detection_scores_other_classes():
    parts = [metrics.detection_records(HIT, BOX, ZERO, count) for count in (1, 2)]
    with pytest.raises(ValueError, match=r"same classes; got \[1, 2\] classes"):
        metrics.detection_scores(*parts)


# Obstacles.

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
