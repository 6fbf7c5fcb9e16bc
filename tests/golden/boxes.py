"""Anchors, matches, coded boxes and detections of torchvision's RetinaNet: `boxes.npz`, read by `test_boxes.py`.

    python tests/golden/boxes.py

needs PyTorch 2.14.1, torchvision 0.29.1 and NumPy 2.4.6, with which the file was made; the same versions write the same
bytes. Integer coordinates make equal overlaps and overlaps of exactly one half; scores of two digits are often equal.
"""

from pathlib import Path

import numpy as np
import torch
from torchvision.models.detection import _utils, image_list, retinanet
from torchvision.ops import boxes as ops

IMAGE = (128, 256)
STRIDES = (8, 16, 32, 64, 128)
CLASSES = 3


def boxes(rng: np.random.Generator, count: int, largest: int, *, whole: bool) -> np.ndarray:
    """Draws boxes `[count, 4]` inside the image, of whole or of fractional coordinates."""
    size = rng.uniform(4, largest, (count, 2))
    low = rng.uniform(0, 1, (count, 2)) * (np.array(IMAGE[::-1]) - size)
    drawn = np.concatenate([low, low + size], axis=1)
    return (np.round(drawn) if whole else drawn).astype(np.float32)


def anchors() -> torch.Tensor:
    """Returns the default anchors of torchvision's RetinaNet for the image."""
    images = image_list.ImageList(torch.zeros(1, 3, *IMAGE), [IMAGE])
    features = [torch.zeros(1, 1, IMAGE[0] // stride, IMAGE[1] // stride) for stride in STRIDES]
    return retinanet._default_anchorgen()(images, features)[0]


def matches(rng: np.random.Generator, grid: torch.Tensor) -> dict[str, np.ndarray]:
    """Returns boxes and what torchvision's Matcher makes of them."""
    whole, fractional = (boxes(rng, 12, 100, whole=one) for one in (True, False))
    # Two equal boxes, an anchor itself, and a box between four anchors.
    special = np.array([[40, 40, 72, 72], [40, 40, 72, 72], [48, 48, 80, 80], [4, 4, 36, 36]], np.float32)
    arrays = {}
    for name, truth in {"whole": np.concatenate([whole, special]), "fractional": fractional}.items():
        overlap = ops.box_iou(torch.from_numpy(truth), grid)
        arrays[f"match/{name}/boxes"] = truth
        for low_quality in (False, True):
            match = _utils.Matcher(0.5, 0.4, low_quality)(overlap)
            arrays[f"match/{name}/low_quality={low_quality}"] = match.numpy().astype(np.int8)
    return arrays


def coded(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns boxes, anchors, and what torchvision's BoxCoder makes of them with and without weights."""
    truth, origin = (boxes(rng, 30, 90, whole=False) for _ in range(2))
    offsets = rng.normal(0, 2, (30, 4)).astype(np.float32)
    arrays = {"code/boxes": truth, "code/anchors": origin, "code/offsets": offsets}
    truth, origin, offsets = map(torch.from_numpy, (truth, origin, offsets))
    arrays["code/iou"] = ops.box_iou(truth, origin).numpy()
    for weights in ((1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)):
        coder = _utils.BoxCoder(weights)
        arrays[f"code/encoded/{weights[0]:g}"] = coder.encode_single(truth, origin).numpy()
        arrays[f"code/decoded/{weights[0]:g}"] = coder.decode_single(offsets, origin).numpy()
    return arrays


def suppressed(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns crowded boxes and the indices that torchvision's class-wise NMS keeps."""
    crowded = boxes(rng, 200, 60, whole=True) * np.float32(0.5)
    scores = np.round(rng.uniform(0, 1, 200), 2).astype(np.float32)
    classes = rng.integers(0, CLASSES, 200)
    kept = ops.batched_nms(*map(torch.from_numpy, (crowded, scores, classes)), 0.5)
    named = {"boxes": crowded, "scores": scores, "classes": classes.astype(np.int8), "kept": kept.numpy()}
    return {f"nms/{name}": array.astype(np.int16) if name == "kept" else array for name, array in named.items()}


def detected(rng: np.random.Generator, grid: torch.Tensor) -> dict[str, np.ndarray]:
    """Returns outputs of a detector and what torchvision's RetinaNet selects: 60 detections of 200 per level."""
    # Small integers, because the file is small then: no two logits are equal, and a delta has few digits.
    ranks = rng.permutation(len(grid) * CLASSES).reshape(-1, CLASSES).astype(np.int16)
    steps = np.round(rng.normal(0, 10, (len(grid), 4))).astype(np.int8)
    backbone = torch.nn.Identity()
    backbone.out_channels = 8
    model = retinanet.RetinaNet(backbone, CLASSES, topk_candidates=200, detections_per_img=60)
    counts = [9 * IMAGE[0] * IMAGE[1] // stride**2 for stride in STRIDES]
    outputs = {"cls_logits": ranks / np.float32(2500) - 8, "bbox_regression": steps / np.float32(32)}
    split = {name: list(torch.from_numpy(x)[None].split(counts, 1)) for name, x in outputs.items()}
    # An image that does not fill its padded batch.
    found = model.postprocess_detections(split, [list(grid.split(counts))], [(IMAGE[0] - 8, IMAGE[1] - 16)])[0]
    arrays = {"detect/ranks": ranks, "detect/steps": steps}
    return arrays | {f"detect/{name}": value.numpy() for name, value in found.items()}


def main() -> None:
    """Writes `boxes.npz`."""
    rng, grid = np.random.default_rng(0), anchors()
    assert (grid == grid.round()).all()
    arrays = {"anchors": grid.numpy().astype(np.int16), **matches(rng, grid), **coded(rng), **suppressed(rng)}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays, **detected(rng, grid))


if __name__ == "__main__":
    main()
