"""Logits of FCN-8s by torchvision's VGG16 and PyTorch: `fcn.npz`, read by `test_fcn.py`.

    python tests/models/golden/fcn.py

needs PyTorch and torchvision, which segjax does not depend on; last used: torch 2.14.1, torchvision 0.29.1, NumPy
2.4.6. Both sides draw the weights by `drawn`: the path of an array in segjax's tree is the seed.
"""

import zlib
from pathlib import Path

import numpy as np

WIDTH, HIDDEN, CLASSES = 2, 8, 3


def drawn(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws the array of this path, with segjax's axes: He's scale for kernels, small biases."""
    scale = np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0.1
    return (np.random.default_rng(zlib.crc32(path.encode())).standard_normal(shape) * scale).astype(np.float32)


def main() -> None:
    """Writes an image and its logits, NHWC, beside this file."""
    import torch
    from torch.nn import functional
    from torchvision.models.vgg import make_layers

    def weights(path: str, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        kernel = torch.from_numpy(drawn(f"{path}/kernel", shape)).reshape(-1, *shape[-2:])
        side = int(kernel.shape[0] ** 0.5)
        kernel = kernel.reshape(side, side, *shape[-2:]).permute(3, 2, 0, 1)
        return kernel, torch.from_numpy(drawn(f"{path}/bias", shape[-1:]))

    def score(x: torch.Tensor, path: str) -> torch.Tensor:
        return functional.conv2d(x, *weights(path, x.shape[1], CLASSES))

    def up(x: torch.Tensor, path: str) -> torch.Tensor:
        kernel = torch.from_numpy(drawn(f"{path}/kernel", (4, 4, 1, CLASSES))).permute(3, 2, 0, 1)
        # x is continued by its edge pixels; the outputs beyond it are cropped.
        around = functional.pad(x, (1, 1, 1, 1), mode="replicate")
        return functional.conv_transpose2d(around, kernel, stride=2, padding=1, groups=CLASSES)[..., 2:-2, 2:-2]

    blocks = [(2, 1), (2, 2), (3, 4), (3, 8), (3, 8)]
    vgg16 = make_layers([step for count, widths in blocks for step in [*[widths * WIDTH] * count, "M"]])
    names = [f"block{i}/conv{j}" for i, (count, _) in enumerate(blocks, 1) for j in range(1, count + 1)]
    x = np.random.default_rng(1411).standard_normal((1, 64, 32, 3)).astype(np.float32)
    pools, y = [], torch.from_numpy(x).permute(0, 3, 1, 2)
    with torch.no_grad():
        for layer in vgg16:
            if isinstance(layer, torch.nn.Conv2d):
                kernel, bias = weights(names.pop(0), 3, 3, layer.in_channels, layer.out_channels)
                layer.weight.copy_(kernel)
                layer.bias.copy_(bias)
            y = layer(y)
            if isinstance(layer, torch.nn.MaxPool2d):
                pools.append(y)
        y = functional.relu(functional.conv2d(y, *weights("fc6/conv", 7, 7, y.shape[1], HIDDEN), padding=3))
        y = functional.relu(functional.conv2d(y, *weights("fc7/conv", 1, 1, HIDDEN, HIDDEN)))
        y = up(score(y, "score_fr"), "upscore2") + score(pools[3], "score_pool4")
        y = up(y, "upscore_pool4") + score(pools[2], "score_pool3")
        y = functional.interpolate(score(y, "head/linear"), scale_factor=8, mode="bilinear", align_corners=False)
    np.savez_compressed(Path(__file__).with_suffix(".npz"), images=x, logits=y.permute(0, 2, 3, 1).numpy())


if __name__ == "__main__":
    main()
