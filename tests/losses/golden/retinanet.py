"""Losses of torchvision's RetinaNet on drawn outputs: `retinanet.json`, read by `test_detection.py`.

    python tests/losses/golden/retinanet.py

needs PyTorch 2.14.1, torchvision 0.29.1 and NumPy 2.4.6; these versions write the same bytes. `drawn` gives the same
inputs here and in the tests. For each image: the number of matched and of ignored anchors, the classification loss, the
box loss (the absolute error, and smooth L1 with β = 1), and the norms of the gradients by logits and offsets.
"""

import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
IMAGE, CLASSES = (64, 64), 3
ANCHORS = 9 * (64 + 16 + 4 + 1 + 1)


def drawn() -> dict[str, np.ndarray]:
    """Draws outputs and boxes of two images: three boxes, and one box and two places that are not used."""
    rng = np.random.default_rng(3)
    boxes = [[[4, 6, 40, 30], [30, 28, 60, 62], [10, 40, 22, 56]], [[5, 5, 58, 44], [0, 0, 9, 9], [0, 0, 0, 0]]]
    return {
        "logits": rng.normal(-2, 2, (2, ANCHORS, CLASSES)).astype(np.float32),
        "offsets": rng.normal(0, 0.5, (2, ANCHORS, 4)).astype(np.float32),
        "boxes": np.array(boxes, np.float32),
        "classes": np.array([[0, 2, 2], [1, 7, -1]], np.int32),
        "where": np.array([[True, True, True], [True, False, False]]),
    }


def main() -> None:
    """Writes `retinanet.json`."""
    import torch
    from torchvision.models.detection import _utils, image_list, retinanet
    from torchvision.ops import boxes as ops

    given, rows = drawn(), []
    images = image_list.ImageList(torch.zeros(1, 3, *IMAGE), [IMAGE])
    features = [torch.zeros(1, 1, size, size) for size in (8, 4, 2, 1, 1)]
    # The coarsest level has less than one cell: torchvision gives it the stride 64, as the level before.
    anchors = retinanet._default_anchorgen()(images, features)[0]
    head = retinanet.RetinaNetHead(8, 9, CLASSES)
    for i in range(2):
        kept = given["where"][i]
        target = {
            "boxes": torch.from_numpy(given["boxes"][i][kept]),
            "labels": torch.from_numpy(given["classes"][i][kept]).long(),
        }
        match = _utils.Matcher(0.5, 0.4, True)(ops.box_iou(target["boxes"], anchors))
        outputs = {
            "cls_logits": torch.from_numpy(given["logits"][i : i + 1]).requires_grad_(),
            "bbox_regression": torch.from_numpy(given["offsets"][i : i + 1]).requires_grad_(),
        }
        row = {"matched": int((match >= 0).sum()), "ignored": int((match == -2).sum())}
        for kind in ("l1", "smooth_l1"):
            head.regression_head._loss_type = kind
            found = head.compute_loss([target], outputs, [anchors], [match])
            row |= {"classification": found["classification"].item(), kind: found["bbox_regression"].item()}
        sum(found.values()).backward()
        row |= {f"{name} gradient": value.grad.norm().item() for name, value in outputs.items()}
        rows.append(row)
    (HERE / "retinanet.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
