"""Runs an exported network where there is no segjax: `python run.py IMAGE…` writes NAME_mask.png beside each image.

It lies as run.py beside model.stablehlo and card.json. `load` and `predict` need jax and flatbuffers; images, Pillow.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export


def load(folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """The compiled-on-demand network of a folder, for `predict`, and its card; ValueError: the file is damaged."""
    data, card = Path(folder, "model.stablehlo").read_bytes(), json.loads(Path(folder, "card.json").read_text("utf-8"))
    expected, found = card["files"]["model.stablehlo"]["sha256"], hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ValueError(f"{folder}/model.stablehlo: damaged; the card says SHA-256 {expected}, got {found}")
    return jax.jit(export.deserialize(bytearray(data)).call), card


def predict(network: Any, card: dict[str, Any], images: np.ndarray) -> dict[str, np.ndarray]:
    """uint8 images `[b, H, W, channels]` to "probabilities" `[b, H, W, C]`, and "variance" `[b, H, W]` if exported."""
    height, width = images.shape[1:3]
    multiple, minimum = card["input"]["multiple"], card["input"]["minimum"]
    missing = [max(n, minimum) + -max(n, minimum) % multiple - n for n in (height, width)]
    padded = np.pad(images, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)), mode="reflect")
    return {name: np.asarray(found)[:, :height, :width] for name, found in network(padded).items()}


def main(names: list[str]) -> None:
    """Predicts image files at the size that the network was trained at; the masks are of the images' own size."""
    from PIL import Image

    network, card = load(Path(__file__).parent)
    height, width = card["input"]["size"] or card["input"]["trained_size"]
    for name in map(Path, names):
        picture = Image.open(name).convert("L" if card["input"]["channels"] == 1 else "RGB")
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.uint8)
        found = predict(network, card, pixels.reshape(1, height, width, -1))["probabilities"][0]
        classes = [
            Image.fromarray(p).resize(picture.size, Image.Resampling.BILINEAR) for p in np.moveaxis(found, -1, 0)
        ]
        target = name.with_name(f"{name.stem}_mask.png")
        Image.fromarray(np.argmax(np.stack([np.asarray(c) for c in classes]), axis=0).astype(np.uint8)).save(target)
        print(f"{name} -> {target}")


if __name__ == "__main__":
    main(sys.argv[1:])
