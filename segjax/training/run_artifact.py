"""Runs an exported network where there is no segjax: `python run.py IMAGE…` writes NAME_mask.png beside each image.

It lies as run.py beside model.stablehlo and card.json. `load` and `predict` need jax and flatbuffers; images, Pillow.
Images are rounded to whole numbers after resizing and probabilities, not logits, are resized back: at the borders of
classes a mask may differ from that of segjax.predict.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

_MARK = ("made_by", "run.py")  # of a mask's PNG file, which may be written over


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
    from PIL import Image, PngImagePlugin

    if not names:
        sys.exit(__doc__)
    targets = _targets([Path(name) for name in names])
    network, card = load(Path(__file__).parent)
    height, width = card["input"]["size"] or card["input"]["trained_size"]
    mark = PngImagePlugin.PngInfo()
    mark.add_text(*_MARK)
    for target, name in targets.items():
        picture = _read(name).convert("L" if card["input"]["channels"] == 1 else "RGB")
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.uint8)
        found = predict(network, card, pixels.reshape(1, height, width, -1))["probabilities"][0]
        classes = [
            Image.fromarray(p).resize(picture.size, Image.Resampling.BILINEAR) for p in np.moveaxis(found, -1, 0)
        ]
        mask = np.argmax(np.stack([np.asarray(c) for c in classes]), axis=0).astype(np.uint8)
        Image.fromarray(mask).save(target, pnginfo=mark)
        print(f"{name} -> {target}")


def _targets(names: list[Path]) -> dict[Path, Path]:
    """Each mask's file with its image's; ends the program where one would be written over what is not its own."""
    targets: dict[Path, Path] = {}
    for name in names:
        target = name.with_name(f"{name.stem}_mask.png")
        if not name.is_file():
            sys.exit(f"error: {name}: expected an image file; there is {'a folder' if name.is_dir() else 'nothing'}")
        if target in targets:
            sys.exit(f"error: {targets[target]} and {name} would both be written as {target}")
        if target.exists() and not _is_marked(target):
            sys.exit(f"error: {target}: exists, and run.py did not write it; move it away")
        targets[target] = name
    return targets


def _is_marked(file: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return picture.info.get(_MARK[0]) == _MARK[1]
    except (OSError, SyntaxError):
        return False


def _read(file: Path) -> Any:
    """An image of 8 bits; ends the program where it is none."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            picture.load()
    except (OSError, SyntaxError) as error:
        sys.exit(f"error: {file}: cannot be read as an image ({error})")
    if picture.mode.startswith("I"):  # 16 bits, of which Pillow would make white all that is more than 255
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture


if __name__ == "__main__":
    main(sys.argv[1:])
