"""Prepares your own data: turns annotations of COCO, labelme, CVAT and Pascal VOC into masks.

Examples:
  segjax data masks annotations.json --output=ROOT
  segjax data masks labelme/ --output=ROOT --overlap=small
"""

import io
import os
from pathlib import Path

import numpy as np
import rich.console
import rich.progress
from absl import app, flags
from PIL import Image

from segjax import cli
from segjax.data.annotations import OVERLAPS, Images, class_values, open_annotations, paint
from segjax.data.decode import image_header
from segjax.data.io import DataError, read_bytes
from segjax.data.labels import VOID, numbered_classes
from segjax.reporting import Table, show
from segjax.storage import output_folder, say, write_outputs
from segjax.training.config import POSITIVE

FLAGS = flags.FLAGS
# The options of each command beside --overwrite.
_OPTIONS = {
    "masks": ("output", "images", "split", "classes", "overlap", "crowd_is_void", "rest_is_void", "line_width"),
}


def main(argv: list[str]) -> None:
    """Does what the first argument names, with the path in the second."""
    if len(argv) != 3 or argv[1] not in _OPTIONS:
        usage = "masks SOURCE"
        raise app.UsageError(f"expected {usage}; got {' '.join(argv[1:]) or 'nothing'}")
    command, path = argv[1], Path(argv[2])
    for name in set().union(*_OPTIONS.values()) - set(_OPTIONS[command]):
        if FLAGS[name].present:
            owners = " and ".join(f"segjax data {one}" for one, options in _OPTIONS.items() if name in options)
            raise app.UsageError(f"--{name} belongs to {owners}, not to segjax data {command}")
    {"masks": write_masks}[command](path)


def write_masks(source: Path) -> None:
    """Writes the images of annotations, their index masks and the file of the classes, and prints a table of them."""
    console = rich.console.Console()
    if FLAGS.output is None:
        raise app.UsageError("segjax data masks needs a folder to write into; add --output=ROOT")
    annotations = open_annotations(source, crowd_is_void=FLAGS.crowd_is_void, line_width=FLAGS.line_width)
    names, values, rest = class_values(annotations.names, FLAGS.classes, rest_is_void=FLAGS.rest_is_void)
    found, root = Images(Path(FLAGS.images) if FLAGS.images else annotations.folder), output_folder(FLAGS.output)
    base, overwrite = root / FLAGS.split if FLAGS.split else root, FLAGS.overwrite
    objects, images, pixels = (np.zeros(len(names), np.int64) for _ in range(3))
    left_out, shared, void, written = 0, 0, 0, {}
    for one in rich.progress.track(
        annotations.images, "painting", annotations.count, console=console, disable=not console.is_terminal
    ):
        path, file = found.find(one)
        *size, _ = image_header(file)
        if tuple(size) != one.size:
            sizes = f"the image is {size[0]}×{size[1]}, its annotations are for {one.size[0]}×{one.size[1]}"
            raise DataError(f"{file.path}: {sizes} ({one.source}); expected one size")
        stem = path.rsplit(".", 1)[0]
        if other := written.get(stem):
            raise DataError(f"{file.path}: {other} has the same mask, {stem}.png; rename one")
        written[stem] = file.path
        mask, both = paint(one.regions, one.size, values, rest=rest, overlap=FLAGS.overlap)
        target = base / "images" / path
        if not (os.path.exists(target) and os.path.samefile(target, file.path)):
            write_outputs({target: read_bytes(file)}, overwrite=overwrite)
        write_outputs({base / "masks" / f"{stem}.png": _palette_png(mask, names)}, overwrite=overwrite)
        for region in one.regions:
            if region.label in values:
                objects[values[region.label]] += 1
            left_out += region.label is not None and region.label not in values
        counts = np.bincount(mask.ravel(), minlength=256)
        pixels += counts[: len(names)]
        images += counts[: len(names)] > 0
        void, shared = void + counts[VOID], shared + both
    total = max(1, int(pixels.sum() + void))
    rows = [
        (name, i, int(objects[i]), int(images[i]), f"{100 * pixels[i] / total:.3g} %") for i, name in enumerate(names)
    ]
    title = f"{annotations.form}: {len(written)} images, {100 * void / total:.3g} % void"
    show(Table(title, ("class", "value", "objects", "images", "pixels"), rows), console)
    if shared:
        winners = {"listed": "the last one listed", "first": "the first one listed", "small": "the smallest one"}
        share, winner = f"{100 * shared / total:.2g} %", winners.get(FLAGS.overlap, "none of them")
        say(f"{shared} pixels ({share}) are of objects of several classes; {winner} has them (--overlap)")
    if left_out:
        say(f"{left_out} objects are of classes that --classes leaves out")
    if others := len(found.files) - len(written):
        say(f"{others} images of {found.folder} have no annotations and were left out")
    say(f"wrote {base / 'images'} and {base / 'masks'}. Next: segjax data check {root}")


def _palette_png(mask: np.ndarray, names: tuple[str, ...]) -> bytes:
    """Returns a mask as a PNG of indices, with the colours of the classes as its palette."""
    image, data = Image.fromarray(mask, "P"), io.BytesIO()
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(names)], palette[VOID] = numbered_classes(names).palette, (224, 224, 192)
    image.putpalette(palette.tobytes())
    image.save(data, "PNG")
    return data.getvalue()


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "masks: folder for images, masks and the names of the classes.")
    flags.DEFINE_string("images", None, "masks: folder of the images; default: that of the annotations.")
    flags.DEFINE_string("split", None, "masks: write into ROOT/SPLIT, such as train or val, one command for each.")
    flags.DEFINE_list("classes", [], "masks: classes to paint, in the order of their values; default: all.")
    flags.DEFINE_enum(
        "overlap",
        OVERLAPS[0],
        OVERLAPS,
        "masks: which object has the pixels of several: the last one listed (of the highest z_order), the first, the "
        "one of the fewest pixels, or none, and they are void.",
    )
    flags.DEFINE_bool("crowd_is_void", False, "masks: COCO's crowds (iscrowd) are void, and not of their class.")
    flags.DEFINE_bool("rest_is_void", False, "masks: pixels without an object are void, and not background.")
    cli.define_number("line_width", float, POSITIVE, "masks: width in pixels of lines and points; default: refused.")
    cli.define_overwrite()
    cli.run(main, required=[])
