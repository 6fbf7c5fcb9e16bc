"""Average precision and recall of boxes: equal to pycocotools', and additive."""

import contextlib
import io

import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

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


def test_detection_records_area_limits():
    records = metrics.detection_records(HIT, BOX, ZERO, 1, area_limits=(4.0, 9.0))
    assert records.num_true[0, 0].tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": ZERO + 1}, r"classes must be in \[0, 1\)"),
        ({"boxes": BOX[..., ::-1]}, "add x to width"),
        ({"boxes": BOX * np.nan}, "boxes must be"),
        ({"boxes": np.concatenate([BOX, BOX])}, "detections are of 1 images, boxes of 2"),
        ({"detections": HIT._replace(scores=np.array([[np.nan]]))}, "detections.scores must be numbers"),
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
