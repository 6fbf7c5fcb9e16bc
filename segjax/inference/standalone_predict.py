"""Predicts images with an exported network, without segjax: `python run.py IMAGE…` writes NAME_mask.png beside each.

This file is run.py of an export, beside model.stablehlo and card.json. `load` and `predict` need jax and flatbuffers;
image files also need Pillow, and TIFF files of more than 8 bits or 3 channels tifffile. The masks are those of
segjax.predict without flags, or with --guarantee and --values=dataset if the card has a guarantee and file_values.
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
    """Predicts images `[b, H, W, channels]`, uint8 or as the card's "input" states; each size is compiled once.

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
    mark, values = PngImagePlugin.PngInfo(), card.get("file_values")
    mark.add_text(*_MARK)
    if values:  # ids or colours of the classes, which segjax evaluate then expects
        mark.add_text("segjax_values", "dataset")
        values = np.array(values, np.uint8 if np.max(values) < 256 else np.uint16)
    for target, name in targets.items():
        pixels = _read(name, card["input"]["channels"], card["input"].get("range"), card["input"].get("dtype"))
        size = card["input"]["size"]
        if size and list(pixels.shape[:2]) != size:
            _stop(f"{name}: {pixels.shape[:2]} pixels; this network was exported for images of {size} only")
        mask = predict(network, pixels[None])["mask"][0]
        partial = target.with_name(f".{uuid.uuid4().hex}.partial")  # a kill leaves no half of a mask
        Image.fromarray(values[mask] if values is not None else mask).save(partial, "PNG", pnginfo=mark)
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


def _read(file: Path, channels: int, value_range: list[float] | None, dtype: str | None) -> np.ndarray:
    """Returns the pixels of an image, `[H, W, channels]`; ends the program if the file is not such an image."""
    from PIL import Image

    try:
        is_tiff = file.suffix.lower() in (".tif", ".tiff")
        deep_tiff = is_tiff and (value_range is not None or channels not in (1, 3))
        pixels = _tiff_samples(file) if deep_tiff else _pixels(file)
    except (OSError, SyntaxError, ValueError, ImportError) as error:
        _stop(f"{file}: cannot be read as an image ({error})")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if (pixels.shape[-1], channels) == (1, 3):
        pixels = np.repeat(pixels, 3, axis=-1)
    elif (pixels.shape[-1], channels, pixels.dtype) == (3, 1, np.uint8):
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    if pixels.shape[-1] != channels:
        _stop(f"{file}: an image of {pixels.shape[-1]} channels; expected {channels}")
    if value_range is not None:
        found = pixels.dtype.name if pixels.dtype in (np.uint8, np.uint16) else "float32"
        if dtype and found != dtype:
            _stop(f"{file}: an image of {found}; expected {dtype}")
        if pixels.dtype == np.uint8 and value_range[1] > 255:
            _stop(f"{file}: an image of 8 bits per channel; expected values from {value_range[0]} to {value_range[1]}")
        return pixels.astype(np.float32)
    if pixels.dtype == np.uint16:
        return np.round(pixels / np.float32(257)).astype(np.uint8)
    if pixels.dtype != np.uint8:
        _stop(f"{file}: an image of {pixels.dtype}; expected 8 bits per channel")
    return pixels


def _pixels(file: Path) -> np.ndarray:
    from PIL import Image, ImageOps

    if file.suffix.lower() == ".npy":
        return np.load(file, allow_pickle=False)
    with Image.open(file) as picture:
        picture.load()
        mode = picture.mode
        if picture.format == "PNG" and file.read_bytes()[24] == 16 and not mode.startswith("I"):
            raise ValueError("16 bits in colour, of which Pillow reads 8; save it as TIFF")
        turned = ImageOps.exif_transpose(picture)
    if mode.startswith(("I", "F")):  # more than 8 bits
        return np.asarray(turned).astype(np.uint16 if mode.startswith("I") else np.float32)
    return np.asarray(turned.convert("L" if mode in ("1", "L", "LA") else "RGB"))


def _tiff_samples(file: Path) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(file) as opened:
        samples, axes = opened.series[0].asarray(), opened.series[0].axes
    if axes not in ("YX", "YXS", "SYX"):
        raise ValueError(f"a TIFF of several pages, with the axes {axes}")
    return np.moveaxis(samples, 0, -1) if axes == "SYX" else samples


if __name__ == "__main__":
    main(sys.argv[1:])
