"""Features of an image by torchvision's ResNets: `resnets.npz`, read by `test_pretrained.py` and `test_deeplab.py`.

    python tests/models/golden/resnets.py

needs PyTorch 2.14.1, torchvision 0.29.1, segmentation-models-pytorch 0.6.0 and NumPy 2.4.6, with which the file was
made; the same versions write the same bytes. Weights, images and mixtures are drawn by `drawn.py`, here and in the
tests, and not stored. For every depth the file contains the names and shapes of the state dict; for every depth and
output stride the mixed features of the stem and of the four stages, without those that equal the features of stride 32;
and the output of the ASPP of segmentation-models-pytorch for six channels of noise.

With segjax in the same environment it also checks that `load_torch_state` reads a `.pth` file, and rejects one that
would run code when unpickled: the tests do not install PyTorch.
"""

import importlib.util
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
import torchvision
from drawn import drawn, image, projected
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP

HERE = Path(__file__).parent
DILATED = {32: (False, False, False), 16: (False, False, True), 8: (False, True, True)}
CASES = ((18, 32), (18, 16), (50, 32), (50, 16))


def resnet(depth: int, output_stride: int) -> torch.nn.Module:
    """Returns torchvision's ResNet with drawn weights, in float64."""
    build = getattr(torchvision.models, f"resnet{depth}")
    model = build(replace_stride_with_dilation=DILATED[output_stride] if depth >= 50 else None)
    if depth < 50 and output_stride == 16:
        _dilate_last_stage(model)
    model.load_state_dict({k: torch.from_numpy(drawn(k, tuple(v.shape))) for k, v in model.state_dict().items()})
    return model.double().eval()


def _dilate_last_stage(model: torch.nn.Module) -> None:
    """Replaces the stride of the last stage by dilation, which torchvision supports only for bottlenecks."""
    first, *rest = model.layer4
    first.conv1.stride = first.downsample[0].stride = (1, 1)
    for conv in (first.conv2, *(conv for block in rest for conv in (block.conv1, block.conv2))):
        conv.dilation = conv.padding = (2, 2)


def features(model: torch.nn.Module, x: np.ndarray) -> list[np.ndarray]:
    """Returns the features `[B, H, W, C]` of the stem and the four stages."""
    with torch.no_grad():
        y = model.relu(model.bn1(model.conv1(torch.from_numpy(x).double().permute(0, 3, 1, 2))))
        found, y = [y], model.maxpool(y)
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
            y = layer(y)
            found.append(y)
    return [feature.permute(0, 2, 3, 1).numpy() for feature in found]


def aspp() -> np.ndarray:
    """Returns the output `[2, 9, 11, 4]` of an ASPP of rates 2, 3 and 5 for a corner of both images as channels."""
    model = ASPP(6, 4, (2, 3, 5), separable=True, dropout=0.5)
    model.load_state_dict({k: torch.from_numpy(drawn(k, tuple(v.shape))) for k, v in model.state_dict().items()})
    x = np.concatenate([image(), image()[::-1]], axis=-1)[:, :9, :11]
    with torch.no_grad():
        return model.double().eval()(torch.from_numpy(x).double().permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


class Evil:
    def __reduce__(self):
        return os.system, ("touch unpickled",)


def check_pth(model: torch.nn.Module) -> None:
    """Checks that segjax reads a `.pth` file of weights, and rejects other content without running it."""
    from segjax.models import load_torch_state

    state = model.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        good, evil = Path(folder, "resnet.pth"), Path(folder, "evil.pth")
        torch.save(state, good)
        read = load_torch_state(good)
        assert read.keys() == state.keys()
        assert all(np.array_equal(read[k], state[k].numpy()) for k in state)
        torch.save({"conv1.weight": Evil()}, evil)
        os.chdir(folder)
        try:
            load_torch_state(evil)
        except ValueError as error:
            print(f"refused: {error}")
        else:
            raise AssertionError("a file that runs code was read")
        assert not Path("unpickled").exists()
    print("a .pth file was read")


def main() -> None:
    """Writes `resnets.npz`."""
    arrays = {"aspp": aspp().astype(np.float32)}
    for depth, output_stride in CASES:
        model = resnet(depth, output_stride)
        if output_stride == 32:
            state = model.state_dict()
            lines = [f"{name} {' '.join(map(str, value.shape))}".strip() for name, value in state.items()]
            arrays[f"{depth}/state"] = np.array("\n".join(lines))
        for i, feature in enumerate(features(model, image())):
            if output_stride == 32 or i == 4:
                arrays[f"{depth}/{output_stride}/{i}"] = projected(feature).astype(np.float32)
    np.savez_compressed(HERE / "resnets.npz", **arrays)
    if importlib.util.find_spec("segjax"):
        check_pth(torchvision.models.resnet18())
    else:
        print("segjax is not installed: no .pth file was read")


if __name__ == "__main__":
    main()
