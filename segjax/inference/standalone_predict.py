"""Predicts images with an exported network, without segjax: `python run.py IMAGE…` writes NAME_mask.png beside each.

This file is run.py of an export, beside model.stablehlo and card.json. `load` and `predict` need jax and flatbuffers;
image files also need Pillow. The masks are those of segjax.predict without flags, or, if the
card has a guarantee, with --guarantee.
"""

import hashlib
import json
import sys
import uuid
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax import export

_MARK = ("made_by", "run.py")  # text in the PNG of a mask, which may then be overwritten


def load(folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """Returns the network of a folder, for `predict`, and its card; raises ValueError if a file is damaged."""
    files = [Path(folder, name) for name in ("model.stablehlo", "card.json")]
    if missing := [file for file in files if not file.is_file()]:  # a pipe would be read forever
        raise ValueError(f"{missing[0]}: not found; expected model.stablehlo and card.json of an export")
    try:
        data, card = files[0].read_bytes(), json.loads(files[1].read_bytes())
        expected, found = card["files"]["model.stablehlo"]["sha256"], hashlib.sha256(data).hexdigest()
        card["input"]["channels"], card["input"]["size"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        problem = " ".join(str(error).split())[:100]
        raise ValueError(f"{files[1]}: expected the card of an export; it is damaged ({problem})") from error
    if found != expected:
        problem = f"damaged; expected SHA-256 {expected} of card.json, got {found}"
        raise ValueError(f"{folder}/model.stablehlo: {problem}. Copy the export again")
    return jax.jit(export.deserialize(bytearray(data)).call), card


def predict(network: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """Predicts uint8 images `[b, H, W, channels]`; each size is compiled once.

    Returns "mask" `[b, H, W]`, "probabilities" `[b, H, W, C]`, and, if they were exported, the uncertainty `[b, H, W]`
    and "sets" `[b, H, W, C]`.
    """
    return {name: np.asarray(found) for name, found in network(images).items()}


def main(names: list[str]) -> None:
    """Predicts image files at their own size."""
    from PIL import Image, PngImagePlugin

    if not names:
        sys.exit(__doc__)
    targets = _targets([Path(name) for name in names])
    try:
        network, card = load(Path(__file__).parent)
    except ValueError as error:
        _stop(str(error))
    mark = PngImagePlugin.PngInfo()
    mark.add_text(*_MARK)
    for target, name in targets.items():
        pixels = np.asarray(_read(name).convert("L" if card["input"]["channels"] == 1 else "RGB"))
        size = card["input"]["size"]
        if size and list(pixels.shape[:2]) != size:
            _stop(f"{name}: {pixels.shape[:2]} pixels; this network was exported for images of {size} only")
        mask = predict(network, pixels.reshape(1, *pixels.shape[:2], -1))["mask"][0]
        partial = target.with_name(f".{uuid.uuid4().hex}.partial")  # a kill leaves no half of a mask
        Image.fromarray(mask).save(partial, "PNG", pnginfo=mark)
        partial.replace(target)
        print(_line(f"{name} -> {target}"))


def _stop(problem: str) -> NoReturn:
    sys.exit(_line(f"error: {problem}"))


def _line(text: str) -> str:
    """Returns a line that any terminal can print: other characters, such as control characters, are escaped."""
    encoding = sys.stdout.encoding or "ascii"
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def _targets(names: list[Path]) -> dict[Path, Path]:
    """Returns the image of each mask file; ends the program if a mask would overwrite another file."""
    targets: dict[Path, Path] = {}
    for name in names:
        target = name.with_name(f"{name.stem}_mask.png")
        if not name.is_file():
            _stop(f"{name}: expected an image file; {'it is a folder' if name.is_dir() else 'nothing there'}")
        if target in targets:
            _stop(f"{targets[target]} and {name} would both be written as {target}")
        if target.exists() and not _is_marked(target):
            _stop(f"{target}: exists, and run.py did not write it; move it away")
        targets[target] = name
    return targets


def _is_marked(file: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return picture.info.get(_MARK[0]) == _MARK[1]
    except (OSError, SyntaxError, ValueError):
        return False


def _read(file: Path) -> Any:
    """Returns an image of 8 bits per channel; ends the program if the file is not an image."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            picture.load()
    except (OSError, SyntaxError) as error:
        _stop(f"{file}: cannot be read as an image ({error})")
    if picture.mode.startswith("I"):  # 16 bits: Pillow would make every value above 255 white
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture


if __name__ == "__main__":
    main(sys.argv[1:])
