"""Results of the metrics of other libraries on stored inputs: `peers.npz`, read by `test_peers.py`.

    pip download --no-deps mmsegmentation==1.2.2 && unzip mmsegmentation-1.2.2-*.whl
    python tests/metrics/golden/make.py --mmseg mmseg/evaluation/metrics/iou_metric.py

These commands need PyTorch, torchmetrics, segmentation-models-pytorch, MONAI and SciPy; segjax itself depends on SciPy
only. `versions.json`, also written here, lists the versions. mmsegmentation is not installed, because it needs a build
of mmcv: the two functions of its `IoUMetric` that do the arithmetic need only torch and NumPy and are run from the
file. The same versions write the same bytes.

Each case is a name, `LIBRARY/METRIC, OPTIONS`, and the array that the library returned.
"""

import argparse
import ast
import collections
import hashlib
import importlib.metadata
import json
import platform
import typing
from pathlib import Path

import monai.metrics
import numpy as np
import torch
import torchmetrics.functional.segmentation
from segmentation_models_pytorch import metrics as smp
from torch.nn import functional
from torchmetrics import classification, segmentation

HERE = Path(__file__).parent
VOID, CLASSES = 255, 5
PACKAGES = ("monai", "numpy", "scipy", "segmentation-models-pytorch", "torch", "torchmetrics")
MMSEG_FUNCTIONS = ("intersect_and_union", "total_area_to_metrics")


def inputs():
    """Returns the arguments of all cases.

    Class 4 is absent. Class 3 is labelled in the first image only, is a false alarm in the second, and is absent from
    the third. `unseen` are predictions that replace class 2 by class 4, which is not labelled.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (3, 8, 10))
    labels[1:] = np.where(labels[1:] == 3, 0, labels[1:])
    predictions = np.where(rng.uniform(size=labels.shape) < 0.7, labels, rng.integers(0, 3, labels.shape))
    predictions[1, 2, 3:6] = 3
    unseen = np.where(predictions == 2, 4, predictions)
    # Two images of 100 pixels: half of the first is class 1 and found; 2 pixels of the second are class 1 and missed.
    toy = np.zeros((2, 10, 10), np.int64)
    toy[0, :5] = 1
    toy_predictions = toy.copy()
    toy[1, 0, :2] = 1
    # A rare class, with scores near 0.
    targets = (np.arange(5000) < 50).astype(np.int64)
    blob, found = np.zeros((2, 2, 24, 24), np.int64)
    blob[0, 5:14, 6:17], found[0, 6:16, 5:15] = 1, 1
    blob[0, 10:14, 6:9], found[0, 18, 18:20] = 0, 1
    blob[1, :9, 6:17], found[1, :10, 5:15] = 1, 1
    return {
        "labels": labels,
        "predictions": predictions,
        "unseen": unseen,
        "void": rng.uniform(size=labels.shape) < 0.2,
        "toy": toy,
        "toy predictions": toy_predictions,
        "targets": targets,
        "scores": (rng.normal(size=targets.shape) * 1.5 - 7 + 3 * targets).astype(np.float32),
        "logits": (rng.normal(size=(400, CLASSES)) * 2).astype(np.float32),
        "classes": rng.integers(0, CLASSES, 400),
        # Confidences 1/2 (right) and 3/4 (wrong): two bins separate them only if they are closed at the right.
        "halves": np.array([[0.5, 0.5, 0.0], [0.75, 0.125, 0.125]], np.float32),
        # Confidences 1 (wrong) and 0.6 (right).
        "certain": np.array([[1.0, 0.0, 0.0], [0.6, 0.2, 0.2]], np.float32),
        # An object inside the first image, and one at the edge of the second.
        "blob": blob,
        "found": found,
    }


def torchmetrics_confusion(x):
    """Computes the scores of the confusion matrix: with void, over two updates."""
    labels = x["labels"].masked_fill(x["void"], VOID)

    def over_updates(metric, predictions=x["predictions"]):
        metric.update(predictions[:1], labels[:1])
        metric.update(predictions[1:], labels[1:])
        return metric.compute()

    void = {"num_classes": CLASSES, "ignore_index": VOID}
    yield "torchmetrics/confusion", over_updates(classification.MulticlassConfusionMatrix(**void))
    for average in ("macro", "micro", "none"):
        metric = classification.MulticlassJaccardIndex(**void, average=average)
        yield f"torchmetrics/jaccard, {average}", over_updates(metric)
    yield "torchmetrics/matthews", over_updates(classification.MulticlassMatthewsCorrCoef(**void))
    for name, metric in (
        ("precision", classification.MulticlassPrecision),
        ("recall", classification.MulticlassRecall),
        ("f1", classification.MulticlassF1Score),
        ("accuracy", classification.MulticlassAccuracy),
    ):
        yield f"torchmetrics/{name}, none", over_updates(metric(**void, average="none"))
        yield f"torchmetrics/{name}, macro", over_updates(metric(**void, average="macro"))
        yield f"torchmetrics/{name}, macro, unseen", over_updates(metric(**void, average="macro"), x["unseen"])
    yield "torchmetrics/accuracy, micro", over_updates(classification.MulticlassAccuracy(**void, average="micro"))
    ones, three = torch.ones(4, dtype=torch.int64), torch.tensor([1, 1, 1, 0])
    for name, truth in (("all of one class and right", ones), ("always the same, three of four right", three)):
        yield f"torchmetrics/matthews, two classes, {name}", classification.BinaryMatthewsCorrCoef()(ones, truth)
        yield f"torchmetrics/matthews, {name}", classification.MulticlassMatthewsCorrCoef(3)(ones, truth)


def torchmetrics_segmentation(x):
    """Calls `torchmetrics.segmentation`, which does not support void."""
    pairs = {"": (x["predictions"], x["labels"]), ", toy": (x["toy predictions"], x["toy"])}
    for name, (predictions, labels) in pairs.items():
        options = {"num_classes": int(labels.max()) + 1 if name else CLASSES, "input_format": "index"}
        yield f"torchmetrics/mean_iou{name}", segmentation.MeanIoU(**options)(predictions, labels)
        yield (
            f"torchmetrics/jaccard, macro{name}, no void",
            classification.MulticlassJaccardIndex(options["num_classes"])(predictions, labels),
        )
        mean_iou = torchmetrics.functional.segmentation.mean_iou
        yield f"torchmetrics/mean_iou, functional{name}", mean_iou(predictions, labels, **options)
    options = {"num_classes": CLASSES, "input_format": "index"}
    arguments = pairs[""]
    yield "torchmetrics/mean_iou, per class", segmentation.MeanIoU(**options, per_class=True)(*arguments)
    for level in ("samplewise", "global"):
        for average in ("macro", "none"):
            metric = segmentation.DiceScore(**options, average=average, aggregation_level=level)
            yield f"torchmetrics/dice, {average}, {level}", metric(*arguments)
    yield "torchmetrics/dice, default", segmentation.DiceScore(**options)(*arguments)


def torchmetrics_ranking(x):
    """Computes average precision, AUROC and the specificity at a sensitivity of 95 %."""
    probabilities, targets = x["scores"].sigmoid(), x["targets"]
    yield "torchmetrics/average_precision", classification.BinaryAveragePrecision()(probabilities, targets)
    yield (
        "torchmetrics/average_precision, 200 thresholds",
        classification.BinaryAveragePrecision(thresholds=200)(probabilities, targets),
    )
    yield "torchmetrics/auroc", classification.BinaryAUROC()(probabilities, targets)
    specificity, _ = classification.BinarySpecificityAtSensitivity(min_sensitivity=0.95)(probabilities, targets)
    yield "torchmetrics/specificity_at_sensitivity", specificity


def torchmetrics_calibration(x):
    """Computes the calibration error, also with a confidence on the edge of a bin."""
    first = torch.zeros(2, dtype=torch.int64)
    second = torch.ones(2, dtype=torch.int64)
    for norm in ("l1", "max"):
        metric = classification.MulticlassCalibrationError(CLASSES, n_bins=15, norm=norm)
        yield f"torchmetrics/calibration_error, {norm}", metric(x["logits"].softmax(-1), x["classes"])
    labels = torch.stack([first[0], second[0]])
    metric = classification.MulticlassCalibrationError(3, n_bins=2)
    yield "torchmetrics/calibration_error, halves", metric(x["halves"], labels)
    metric = classification.MulticlassCalibrationError(3, n_bins=1)
    yield "torchmetrics/calibration_error, certain", metric(x["certain"], labels.flip(0))


def monai_cases(x):
    """Calls MONAI's IoU, Dice, accuracy and surface Dice of one-hot masks, per image and class and reduced."""
    predictions, labels = (first(functional.one_hot(x[name], CLASSES)) for name in ("predictions", "labels"))
    for ignore_empty in (True, False):
        name = "" if ignore_empty else ", empty kept"
        for reduction in ("none", "mean", "mean_batch"):
            for metric_name, metric in (("iou", monai.metrics.MeanIoU), ("dice", monai.metrics.DiceMetric)):
                made = metric(reduction=reduction, ignore_empty=ignore_empty)
                made(predictions, labels)
                yield f"monai/{metric_name}, {reduction}{name}", made.aggregate()
    metric = monai.metrics.ConfusionMatrixMetric(metric_name="accuracy", reduction="none", compute_sample=True)
    metric(predictions[:1], labels[:1])
    yield "monai/accuracy", metric.aggregate()[0]
    blob, found = (first(functional.one_hot(x[name], 2)) for name in ("blob", "found"))
    yield "monai/surface_dice", monai.metrics.compute_surface_dice(found, blob, [1.5])


def smp_cases(x):
    """Calls segmentation-models-pytorch: its counts with void, and their scores."""
    labels = x["labels"].masked_fill(x["void"], VOID)
    stats = smp.get_stats(x["predictions"], labels, "multiclass", ignore_index=VOID, num_classes=CLASSES)
    yield "smp/stats", torch.stack(stats)
    for name in ("iou_score", "f1_score", "accuracy", "precision", "recall"):
        for reduction in ("none", "micro", "macro", "micro-imagewise", "macro-imagewise"):
            yield f"smp/{name}, {reduction}", getattr(smp, name)(*stats, reduction=reduction)
    per_class = [count.sum(0, keepdim=True) for count in stats]
    yield "smp/accuracy, per class", smp.accuracy(*per_class, reduction="none")[0]


def mmseg_cases(x, intersect_and_union, total_area_to_metrics):
    """Calls mmsegmentation's metrics, summed over the images as in its `compute_metrics`."""
    labels = x["labels"].masked_fill(x["void"], VOID)
    names = ["mIoU", "mDice", "mFscore"]

    def of(predictions):
        pairs = zip(predictions, labels, strict=True)
        areas = [intersect_and_union(*pair, CLASSES, VOID) for pair in pairs]
        return total_area_to_metrics(*(sum(area) for area in zip(*areas, strict=True)), names)

    for suffix in ("predictions", "unseen"):
        for name, value in of(x[suffix]).items():
            yield f"mmseg/{name}, {suffix}", torch.as_tensor(value)
    zero = torch.zeros(4096, 4096, dtype=torch.uint8)
    areas = [intersect_and_union(image, image, 2, VOID)[0] for image in (zero, zero[:1, :1])]
    yield "mmseg/area, 2^24 and one pixels", sum(areas)


def first(one_hot):
    """Moves the class axis to the second place, as in PyTorch."""
    return one_hot.movedim(-1, 1).contiguous()


def mmseg_functions(path):
    """Loads the static methods of `IoUMetric` named above, without the imports of the file."""
    (metric,) = (
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef) and node.name == "IoUMetric"
    )
    methods = [node for node in metric.body if isinstance(node, ast.FunctionDef) and node.name in MMSEG_FUNCTIONS]
    for method in methods:
        method.decorator_list = []
    names = {"torch": torch, "np": np, "OrderedDict": collections.OrderedDict, **vars(typing)}
    exec(compile(ast.Module(methods, []), str(path), "exec"), names)
    return [names[name] for name in MMSEG_FUNCTIONS]


def main():
    """Writes `peers.npz` and `versions.json` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mmseg", type=Path, required=True, help="mmsegmentation's evaluation/metrics/iou_metric.py")
    mmseg_file = parser.parse_args().mmseg

    torch.set_num_threads(1)
    arrays = inputs()
    x = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for name, value in (
        *torchmetrics_confusion(x),
        *torchmetrics_segmentation(x),
        *torchmetrics_ranking(x),
        *torchmetrics_calibration(x),
        *monai_cases(x),
        *smp_cases(x),
        *mmseg_cases(x, *mmseg_functions(mmseg_file)),
    ):
        if name in arrays:
            raise ValueError(f"two cases are named {name!r}")
        arrays[name] = value.numpy()
    np.savez_compressed(HERE / "peers.npz", **arrays)

    versions = {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "mmsegmentation": {
            "version": "1.2.2",
            "path": "mmseg/evaluation/metrics/iou_metric.py",
            "sha256": hashlib.sha256(mmseg_file.read_bytes()).hexdigest(),
            "how": f"IoUMetric's {' and '.join(MMSEG_FUNCTIONS)} run from the wheel's file, without mmcv and mmengine",
        },
    }
    (HERE / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
