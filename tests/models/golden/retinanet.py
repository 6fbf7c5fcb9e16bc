"""Outputs of torchvision's RetinaNet: `retinanet.npz`, read by `test_retinanet.py`.

    python tests/models/golden/retinanet.py

needs PyTorch 2.14.1, torchvision 0.29.1 and NumPy 2.4.6; these versions write the same bytes. Weights and images are
drawn by `drawn.py`, here and in the tests, and not stored. "narrow" is torchvision's pyramid and heads on its ResNet-18
with 4 channels in place of 64; "whole" is `retinanet_resnet50_fpn`. For both the file contains the names and shapes of
the state dict, and every `STEP`-th row of logits, offsets and decoded boxes for an image of 128×128 pixels; for
"narrow" also all rows for images of odd size, which torchvision pads to a multiple of 32.
"""

from pathlib import Path

import numpy as np
import torch
import torchvision
from drawn import drawn, image
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet, retinanet_resnet50_fpn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

HERE = Path(__file__).parent
CLASSES, CHANNELS, STEP = 3, 8, 7


class NarrowResNet(ResNet):
    """torchvision's ResNet-18 with a sixteenth of the channels."""

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        if planes == 64:
            self.inplanes = 4
            self.conv1 = torch.nn.Conv2d(3, 4, 7, 2, 3, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(4)
        return super()._make_layer(block, planes // 16, blocks, stride, dilate)


def narrow() -> RetinaNet:
    """Returns a RetinaNet of 8 channels on the narrow ResNet-18."""
    stages = {"layer2": "0", "layer3": "1", "layer4": "2"}
    extra = LastLevelP6P7(CHANNELS, CHANNELS)
    backbone = BackboneWithFPN(NarrowResNet(BasicBlock, [2, 2, 2, 2]), stages, [8, 16, 32], CHANNELS, extra)
    return RetinaNet(backbone, CLASSES)


def outputs(model: RetinaNet, x: np.ndarray) -> dict[str, np.ndarray]:
    """Returns logits, offsets and decoded boxes of all anchors of normalised images, in float64."""
    x = torch.from_numpy(x).double().permute(0, 3, 1, 2)
    height, width = x.shape[2:]
    x = torch.nn.functional.pad(x, (0, -width % 32, 0, -height % 32))
    with torch.no_grad():
        features = list(model.backbone(x).values())
        found = model.head(features)
        anchors = model.anchor_generator(ImageList(x, [tuple(x.shape[2:])] * len(x)), features)
        coder = model.head.regression_head.box_coder
        boxes = [coder.decode_single(*pair) for pair in zip(found["bbox_regression"], anchors, strict=True)]
    return {"logits": found["cls_logits"], "offsets": found["bbox_regression"], "boxes": torch.stack(boxes)}


def main() -> None:
    """Writes `retinanet.npz`."""
    arrays = {}
    whole = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES)
    for name, model in (("narrow", narrow()), ("whole", whole)):
        state = model.state_dict()
        lines = [f"{key} {' '.join(map(str, value.shape))}".strip() for key, value in state.items()]
        arrays[f"{name}/state"] = np.array("\n".join(lines))
        model.load_state_dict({key: torch.from_numpy(drawn(key, tuple(value.shape))) for key, value in state.items()})
        model = model.double().eval()
        for key, value in outputs(model, image((1, 128, 128, 3))).items():
            arrays[f"{name}/{key}"] = value[:, ::STEP].numpy().astype(np.float32)
        if name == "narrow":
            arrays[f"{name}/odd_logits"] = outputs(model, image())["logits"].numpy().astype(np.float32)
    np.savez_compressed(HERE / "retinanet.npz", **arrays)
    print(torch.__version__, torchvision.__version__, np.__version__)


if __name__ == "__main__":
    main()
