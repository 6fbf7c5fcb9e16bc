"""Predicts images with an exported network, without segjax: `python run.py IMAGE…` writes NAME_mask.png beside each.

Where classes overlap, it writes NAME_CLASS_mask.png for each class, 255 in the class and 0 elsewhere. A detector writes
NAME_boxes.png beside each, the image with its boxes, and detections.json of all in this folder.

This file is run.py of an export, beside model.stablehlo and card.json. `load` and `predict` need jax and flatbuffers;
image files also need Pillow, and TIFF files of more than 8 bits or 3 channels tifffile. The masks are those of
segjax.predict without flags, or with --guarantee and --values=dataset if the card has a guarantee and file_values. The
detections are those of segjax.predict too, in COCO's form, also those below the card's min_score, which are not drawn.
"""

import hashlib
import io
import json
import sys
import uuid
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax import export

_MARK = ("made_by", "run.py")  # text in each file that this program writes, which it may then overwrite
_DETECTIONS = Path("detections.json")


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

    Returns "mask" `[b, H, W]`, where classes overlap bool `[b, H, W, C]`, "probabilities" `[b, H, W, C]`, and, if they
    were exported, the uncertainty `[b, H, W]` and "sets" `[b, H, W, C]`; of a detector "count" `[b]`, "boxes"
    `[b, D, 4]`, "scores" and "classes" `[b, D]`.
    """
    return {name: np.asarray(found) for name, found in network(images).items()}


def main(names: list[str]) -> None:
    """Predicts image files at their own size."""
    if not names:
        sys.exit(__doc__)
    try:
        network, card = load(Path(__file__).parent)
    except ValueError as error:
        _stop(str(error))
    detects, suffixes = "boxes" in card.get("output", ()), ["_mask.png"]
    if card.get("classes_overlap"):
        suffixes = [f"_{one['name']}_mask.png" for one in card["classes"]]
    targets = _targets([Path(name) for name in names], ["_boxes.png"] if detects else suffixes)
    (_write_detections if detects else _write_masks)(network, card, targets)


def _write_masks(network: Any, card: dict[str, Any], targets: dict[Path, list[Path]]) -> None:
    """Writes the mask, or the masks of classes that overlap, of each image."""
    from PIL import Image

    texts, values = [_MARK], card.get("file_values")
    if values:  # ids or colours of the classes, which segjax evaluate then expects
        texts.append(("segjax_values", "dataset"))
        values = np.array(values, np.uint8 if np.max(values) < 256 else np.uint16)
    for name, files in targets.items():
        mask = predict(network, _read(name, card["input"])[None])["mask"][0]
        if mask.ndim == 3:
            masks = list(np.moveaxis(np.uint8(255) * mask, -1, 0))
        else:
            masks = [values[mask] if values is not None else mask]
        for target, pixels in zip(files, masks, strict=True):
            _write(target, _png(Image.fromarray(pixels), texts))
        print(_line(f"{name} -> {', '.join(map(str, files))}"))


def _write_detections(network: Any, card: dict[str, Any], targets: dict[Path, list[Path]]) -> None:
    """Writes a picture with the boxes of each image, and the detections of all in the form of COCO."""
    if _DETECTIONS.exists() and not _is_our_json(_DETECTIONS):
        _stop(f"{_DETECTIONS.absolute()}: exists, and run.py did not write it; move it away")
    images, annotations = [], []
    for name, (target,) in targets.items():
        pixels = _read(name, card["input"])
        found = {key: values[0] for key, values in predict(network, pixels[None]).items()}
        boxes, scores, classes = (found[key][: found["count"]] for key in ("boxes", "scores", "classes"))
        drawn = scores >= card["min_score"]
        picture = _draw(pixels, card, boxes[drawn], scores[drawn], classes[drawn])
        _write(target, _png(picture, [_MARK]))
        height, width = pixels.shape[:2]
        images.append({"id": len(images) + 1, "file_name": name.as_posix(), "height": height, "width": width})
        for (left, top, right, bottom), score, index in zip(boxes, scores, classes, strict=True):
            box = (left, top, right - left, bottom - top)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": int(index) + 1,
                    "iscrowd": 0,
                    "bbox": [round(float(x), 3) for x in box],
                    "area": round(float(box[2] * box[3]), 3),
                    "score": float(score),
                }
            )
        print(_line(f"{name} -> {target}: {drawn.sum()} of {len(drawn)} detections drawn"))
    categories = [{"id": i, "name": one["name"]} for i, one in enumerate(card["classes"], 1)]
    info = {_MARK[0]: _MARK[1], "min_score": card["min_score"], "network": card["network"]}
    content = {"info": info, "images": images, "categories": categories, "annotations": annotations}
    _write(_DETECTIONS, json.dumps(content, indent=1).encode())
    print(_line(f"{len(annotations)} detections -> {_DETECTIONS.absolute()}"))


def _draw(pixels: np.ndarray, card: dict[str, Any], boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> Any:
    """Returns a Pillow image with the boxes and their classes and scores, the most likely one over the others."""
    from PIL import Image, ImageDraw, ImageFont

    if pixels.dtype != np.uint8:
        low, high = card["input"]["range"]
        pixels = np.clip(np.round((pixels - low) * (255 / (high - low))), 0, 255).astype(np.uint8)
    picture = Image.fromarray(pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1))
    draw, side = ImageDraw.Draw(picture), min(picture.size)
    line, font = max(1, round(side / 200)), ImageFont.load_default(max(9, round(side / 40)))
    labels = []
    for box, score, index in list(zip(np.round(boxes).astype(int).tolist(), scores, classes, strict=True))[::-1]:
        colour = tuple(card["classes"][index]["colour"])
        edges = (box[0] - line, box[1] - line, box[2] + line - 1, box[3] + line - 1)
        draw.rectangle(edges, outline=colour, width=line)
        labels.append((box, colour, f"{card['classes'][index]['name']} {score:.2f}"))
    for (left, top, _, bottom), colour, text in labels:
        text = text.encode("latin-1", "replace").decode("latin-1")  # the letters of Pillow's font
        _, _, width, height = draw.textbbox((0, 0), text, font=font)
        x, y = max(0, min(left, picture.width - width - 2)), top - height - 2 if top >= height + 2 else bottom
        ink = (32, 32, 32) if np.dot(colour, (0.299, 0.587, 0.114)) > 110 else (255, 255, 255)
        draw.rectangle((x, y, x + width + 1, y + height + 1), fill=colour)
        draw.text((x + 1, y), text, fill=ink, font=font)
    return picture


def _png(picture: Any, texts: list[tuple[str, str]]) -> bytes:
    from PIL import PngImagePlugin

    buffer, mark = io.BytesIO(), PngImagePlugin.PngInfo()
    for text in texts:
        mark.add_text(*text)
    picture.save(buffer, "PNG", pnginfo=mark)
    return buffer.getvalue()


def _write(target: Path, data: bytes) -> None:
    partial = target.with_name(f".{uuid.uuid4().hex}.partial")  # a kill leaves no half of a file
    partial.write_bytes(data)
    partial.replace(target)


def _stop(problem: str) -> NoReturn:
    sys.exit(_line(f"error: {problem}"))


def _line(text: str) -> str:
    """Returns a line that any terminal can print: other characters, such as control characters, are escaped."""
    encoding = sys.stdout.encoding or "ascii"
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def _targets(names: list[Path], suffixes: list[str]) -> dict[Path, list[Path]]:
    """Returns the images to write for each file; ends the program if it would overwrite another file."""
    targets: dict[Path, list[Path]] = {}
    sources: dict[Path, Path] = {}
    for name in names:
        if not name.is_file():
            _stop(f"{name}: expected an image file; {'it is a folder' if name.is_dir() else 'nothing there'}")
        targets[name] = [name.with_name(f"{name.stem}{suffix}") for suffix in suffixes]
        for target in targets[name]:
            if target in sources:
                _stop(f"{sources[target]} and {name} would both be written as {target}")
            if target.exists() and not _is_marked(target):
                _stop(f"{target}: exists, and run.py did not write it; move it away")
            sources[target] = name
    return targets


def _is_marked(file: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return picture.info.get(_MARK[0]) == _MARK[1]
    except (OSError, SyntaxError, ValueError):
        return False


def _is_our_json(file: Path) -> bool:
    try:
        return json.loads(file.read_bytes())["info"][_MARK[0]] == _MARK[1]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _read(file: Path, expected: dict[str, Any]) -> np.ndarray:
    """Returns the pixels of an image, `[H, W, channels]`; ends the program unless they are as the card's "input"."""
    from PIL import Image

    channels, size = expected["channels"], expected["size"]
    value_range, dtype = expected.get("range"), expected.get("dtype")
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
    if size and list(pixels.shape[:2]) != size:
        _stop(f"{file}: {pixels.shape[:2]} pixels; this network was exported for images of {size} only")
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
