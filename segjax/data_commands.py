"""Checks a folder of images and masks, shows it on a page, and turns annotations into masks.

The annotations are those of COCO, labelme, CVAT and Pascal VOC.

Examples:
  segjax data check ROOT --output=mine.py
  segjax data show ROOT --output=mine.html
  segjax data masks annotations.json --output=ROOT
"""

import csv
import io
import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress
from absl import app, flags
from ml_collections import ConfigDict
from PIL import Image

from segjax import cli, inference
from segjax.data import colorize
from segjax.data.annotations import (
    OVERLAP_VOID,
    OVERLAPS,
    Annotated,
    Images,
    class_values,
    open_annotations,
    paint,
    paint_classes,
)
from segjax.data.augment import augment, example_keys
from segjax.data.decode import image_header
from segjax.data.io import DataError, RawFile, read_bytes
from segjax.data.labels import VOID, numbered_classes, parse_classes
from segjax.data.loader import letterbox_pair, resize_pair
from segjax.data.pairs import make_example
from segjax.inference.visualize import overlay_palette, rare_outlines
from segjax.reporting import Picture, Report, Section, Table, html, show
from segjax.storage import check_outputs, output_folder, path_of, printable, say, write_outputs
from segjax.training.fields import COUNT, POSITIVE
from segjax.training.survey import (
    FolderSurvey,
    PairSurvey,
    count_all_values,
    format_value,
    survey_folder,
    values_of_classes,
)

FLAGS = flags.FLAGS
_KEEP = "keep"  # the --overlap of a mask per class
_SHOWN, _VALUES, _CLASSES = 5, 20, 20  # most reasons for a refusal, values of masks, classes on a page


def main(argv: list[str]) -> None:
    """Runs the command that the first argument names on the path in the second."""
    if len(argv) != 3 or argv[1] not in _COMMANDS:
        expected = "expected check ROOT, show ROOT or masks SOURCE"
        raise app.UsageError(f"{expected}; got {' '.join(argv[1:]) or 'nothing'}")
    path = Path(argv[2])
    if argv[1] != "masks":
        cli.check_image_folder("ROOT", path)
    _COMMANDS[argv[1]].function(path)


def check_folder(root: Path) -> None:
    """Checks whether segjax can train on the folder ROOT: prints problems, contents, and a suggested config."""
    console, output = rich.console.Console(), FLAGS.output and path_of(FLAGS.output)
    if output:
        check_outputs([output], overwrite=FLAGS.overwrite)
    found = survey_folder(root, FLAGS.config, cli.given_fields("config"), console)
    for line in _first("training would refuse this folder: ", found.refusals):
        say(line, console)
    for line in found.warnings:
        say(f"warning: {line}", console)
    for line in found.layout.notes():
        say(line, console)
    if file := found.layout.class_file:
        say(f"file of classes: {file}", console)
    for table in tables(found):
        show(table, console)
    if found.refusals:
        say("fix the problems above to get a suggested config", console)
        sys.exit(1)
    for line in found.lines():
        say(line, console)
    if output:
        write_outputs({output: config_file(found, root, str(output)).encode()}, overwrite=FLAGS.overwrite)
        config, workdir = shlex.quote(str(output)), shlex.quote(f"runs/{root.absolute().name}")
        say(f"wrote {output}. Next: segjax train --config={config} --workdir={workdir}", console)
    else:
        data = shlex.quote(str(root))
        say(f"Next: segjax train --data={data} trains with this config; --output=mine.py writes it to a file", console)


def _first(head: str, reasons: list[str]) -> list[str]:
    """Returns a line per reason, and the number of those beyond the first few."""
    more = [f"{head}{len(reasons) - _SHOWN} more of {len(reasons)} reasons"] * (len(reasons) > _SHOWN)
    return [f"{head}{reason}" for reason in reasons[:_SHOWN]] + more


def tables(found: FolderSurvey) -> list[Table]:
    """Returns the tables of the splits, of the classes, and of the input sizes."""
    rows = []
    for split, pairs in found.layout.splits.items():
        good = [pair for pair in found.pairs if pair.split == split]
        sizes = sorted({pair.size for pair in good}, key=math.prod)
        shown = [f"{height}×{width}" for height, width in (sizes[:1] + sizes[-1:] if len(sizes) > 1 else sizes)]
        kinds = sorted({f"{pair.image.dtype}, {pair.image.channels}" for pair in good})
        extremes = [pair.image.values for pair in good]
        low, high = (min(one[0] for one in extremes), max(one[1] for one in extremes)) if good else (0, 0)
        rows.append((split, len(pairs), " to ".join(shown), " and ".join(kinds), f"{low:g} to {high:g}"))
    rows += [(split, f"{len(files)} without masks", "", "", "") for split, files in found.layout.without_masks.items()]
    columns = ("split", "images", "height×width", "type, channels", "values")
    found_tables = [Table("Images", columns, rows, text=columns[2:])]
    if found.label_set is None:
        return [*found_tables, _value_table(found)]
    return [*found_tables, _class_table(found), _size_table(found)]


def _value_table(found: FolderSurvey) -> Table:
    """Builds the table of the most frequent values of the masks, whatever they mean."""
    values, images = count_all_values(found.pairs), Counter(value for pair in found.pairs for value in pair.values)
    total = sum(values.values())
    most = values.most_common(_VALUES)
    rows = [(format_value(value), f"{pixels / total:.3%}", images[value]) for value, pixels in most]
    more = f", the {_VALUES} most frequent of {len(values)}" * (len(values) > _VALUES)
    return Table(f"Values of the masks{more}", ("value", "pixels", "images"), rows)


def _class_table(found: FolderSurvey) -> Table:
    """Builds the table of the pixels of each class and void: all, and in each split with the images that have any."""
    values = values_of_classes(found)
    total = sum(images.sum(axis=0) for images in found.images.values())
    rows = []
    for i, name in enumerate([*found.label_set.names, "void"]):
        parts = [
            f"{images[:, i].sum() / max(1, images.sum()):.3%}, {np.count_nonzero(images[:, i])}"
            for images in found.images.values()
        ]
        shown = ", ".join(map(format_value, values[i][:4])) + ", …" * (len(values[i]) > 4)
        rows.append((name, shown, int(total[i]), *parts))
    columns = ("class", "mask values", "pixels", *(f"{split}: share, images" for split in found.images))
    return Table("Classes", columns, rows)


def _rarest_first(found: FolderSurvey) -> list[int]:
    total = sum(images.sum(axis=0) for images in found.images.values())
    return np.argsort(total[:-1], kind="stable").tolist()


def _size_table(found: FolderSurvey) -> Table:
    """Builds the table of the IoU that labels keep at each size."""
    median = np.median([pair.size for pair in found.pairs], axis=0)
    rows = []
    for scale, caps in found.caps.items():
        worst = int(np.nanargmin(caps))
        height, width = (round(float(scale * side)) for side in median)
        rows.append((f"{height}×{width}", float(np.nanmean(caps)), float(caps[worst]), found.label_set.names[worst]))
    return Table("Highest IoU at an input size", ("size", "mean", "lowest", "class"), rows)


def config_file(found: FolderSurvey, root: Path, path: str) -> str:
    """Returns the suggested config as a config file, which will have this path."""
    counts = ", ".join(f"{len(pairs)} images in {split}" for split, pairs in found.layout.splits.items())
    lines = [
        f'"""Images and masks of {printable(root.absolute().name)}, as segjax data check suggests to train on them.',
        "",
        f"DATA: folder, {counts}",
        f"COMMAND: segjax train --config={printable(path)} --workdir=runs/{printable(root.absolute().name)}",
        '"""',
        "",
        "from segjax.training import defaults",
        "",
        "",
        "def get_config():",
        '    """Returns the defaults with the fields that fit these images."""',
        "    config = defaults()",
        *(f"    {line}" for line in found.lines()),
        "    return config",
    ]
    return "\n".join(lines) + "\n"


def show_folder(root: Path) -> None:
    """Writes a page of images under their masks and as they are augmented, the rarest class first."""
    console = rich.console.Console()
    output = path_of(FLAGS.output or f"{root.absolute().name}.html")
    check_outputs([output], overwrite=FLAGS.overwrite)
    found = survey_folder(root, FLAGS.config, cli.given_fields("config"), console)
    if found.label_set is None:
        raise DataError(f"{found.refusals[0]}. Try segjax data check {root}")
    page = html(folder_report(found, root, images_per_class=FLAGS.images_per_class))
    write_outputs({output: page.encode()}, overwrite=FLAGS.overwrite)
    say(f"wrote {output}", console)


def folder_report(found: FolderSurvey, root: Path, *, images_per_class: int) -> Report:
    """Returns the page: tables, then the images of each class from its smallest share of an image to its largest.

    An image is shown once, with the first of its classes.
    """
    names, total = found.label_set.names, sum(images.sum(axis=0) for images in found.images.values())
    pairs = [(pair, split) for split in found.images for pair in found.pairs if pair.split == split]
    shares = np.concatenate([images / images.sum(axis=1, keepdims=True) for images in found.images.values()])
    augmented, sections, seen = jax.jit(_augmentation(found.config)), [], set()
    for number in _rarest_first(found)[:_CLASSES]:
        order = [at for at in np.argsort(shares[:, number]).tolist() if shares[at, number] > 0 and at not in seen]
        chosen = [order[i] for i in np.linspace(0, len(order) - 1, min(images_per_class, len(order))).astype(int)]
        seen.update(chosen)
        pictures = []
        for at in chosen:
            pair, split = pairs[at]
            tiles = _tiles(found, pair, augmented, example_keys(jax.random.key(0), at, jnp.arange(2)))
            caption = f"{split}/{pair.pair.name}: {shares[at, number]:.2%} {names[number]}"
            pictures.append(Picture(f"{number}_{at}", caption, inference.jpeg(tiles), half=True))
        count = np.count_nonzero(shares[:, number])
        text = f"{total[number] / total.sum():.3%} of the pixels, in {count} of {len(pairs)} images."
        sections.append(Section(names[number], text, (), tuple(pictures)))
    legend = Picture("legend", "Colours of the classes.", inference.png(inference.legend(found.label_set)))
    more = f" Of {len(names)} classes the {_CLASSES} rarest are shown." * (len(names) > _CLASSES)
    text = (
        f"{found.layout.description}.\n\nThe rarest classes come first.{more} Augmented images are those that a "
        "training with the suggested config would see. Rare classes are outlined; void is not tinted."
    )
    facts = {"folder": str(root.absolute()), "suggested config": ", ".join(found.lines())}
    return Report(
        root.absolute().name, text, (Section("Folder", "", tuple(tables(found)), (legend,)), *sections), facts
    )


def _augmentation(config: ConfigDict) -> Callable[..., Any]:
    """Returns `augment` with the settings of a config, as the training step calls it at its beginning."""
    options = {key: config.augment[key] for key in ("flip", "rotation", "brightness", "contrast", "crop_fraction")}
    options |= {"scale": tuple(config.augment.scale), "size": tuple(config.data.size)}
    options |= {"mean": tuple(config.data.mean), "std": tuple(config.data.std), "letterbox": config.data.letterbox}
    return partial(augment, **options)


def _tiles(found: FolderSurvey, surveyed: PairSurvey, augmented: Callable[..., Any], keys: jax.Array) -> np.ndarray:
    """Returns an image, and it under its mask: as it is, and as `augmented` by two keys."""
    data = found.config.data
    pair = surveyed.pair
    content, files = (read_bytes(pair.image), read_bytes(pair.mask)), (pair.image.path, pair.mask.path)
    options = (data.channels, found.label_set, files, found.value_range, data.orientation)
    example = make_example(*content, pair.name, *options)
    image, label = example["image"], example["label"]
    shown = {"image": inference.as_rgb(image), "mask": _tinted(image, label, found)}
    sizes = None
    if len({one.size for one in found.pairs}) > 1:  # else the device crops from the original pixels
        if data.letterbox:
            image, label, fitted = letterbox_pair(image, label, tuple(data.size))
            sizes = np.stack([fitted] * 2)
        else:
            image, label = resize_pair(image, label, tuple(data.size))
    images, labels = augmented(*(np.stack([array] * 2) for array in (image, label)), keys, sizes=sizes)
    images = 255 * (np.asarray(images) * np.array(data.std) + np.array(data.mean))
    for i in range(2):
        shown[f"augmented {i + 1}"] = _tinted(images[i], np.asarray(labels[i]).astype(np.uint8), found)
    return inference.tiles(shown)


def _tinted(image: np.ndarray, label: np.ndarray, found: FolderSurvey) -> np.ndarray:
    """Lays the colours of the classes over an image, with outlines around rare ones."""
    palette = overlay_palette(found.label_set)
    tinted = inference.overlay(image, colorize(label, palette))
    return inference.overlay(tinted, colorize(rare_outlines(label, palette), palette), opacity=1.0)


def write_masks(source: Path) -> None:
    """Writes the images of annotations, their index masks and a file of the classes; prints a table."""
    console = rich.console.Console()
    if FLAGS.output is None:
        raise app.UsageError("segjax data masks needs a folder to write into; add --output=ROOT")
    annotations = open_annotations(source, crowd_is_void=FLAGS.crowd_is_void, line_width=FLAGS.line_width)
    names, values, rest = class_values(annotations.names, FLAGS.classes, rest_is_void=FLAGS.rest_is_void)
    keeps = FLAGS.overlap == _KEEP
    if keeps and FLAGS.rest_is_void:
        raise app.UsageError(f"--rest_is_void is for one mask per image; remove it, or --overlap={_KEEP}")
    class_file, content = Path(FLAGS.output, "classes.csv"), _class_file(names)
    if not keeps and class_file.exists() and class_file.read_bytes() != content and not FLAGS.overwrite:
        remedy = (
            "repeat the classes of this file in its order with --classes=…, or add --overwrite (then write the other "
            "splits again)"
        )
        raise DataError(f"{class_file}: has other classes than {', '.join(names)}; {remedy}")
    available, root = Images(Path(FLAGS.images) if FLAGS.images else annotations.folder), output_folder(FLAGS.output)
    base, overwrite = root / FLAGS.split if FLAGS.split else root, FLAGS.overwrite
    pixels, images = np.zeros(256, np.int64), np.zeros(256, np.int64)  # by mask value
    labels, shared, total, written = Counter(), 0, 0, {}
    for one in rich.progress.track(
        annotations.images, "painting", annotations.count, console=console, disable=not console.is_terminal
    ):
        path, file = available.find(one)
        _check_size(one, file)
        path = path.removeprefix("images/")
        stem = path.rsplit(".", 1)[0]
        if other := written.get(stem):
            raise DataError(f"{file.path}: {other} has the same mask, {stem}.png; rename one")
        written[stem] = file.path
        files, counts, shared_here = _mask_files(one, stem, names, values, rest)
        target = base / "images" / path
        if os.path.realpath(target) != os.path.realpath(file.path):
            write_outputs({target: read_bytes(file)}, overwrite=overwrite)
        for name, data in files.items():
            write_outputs({base / "masks" / name: data}, overwrite=overwrite)
        total += math.prod(one.size)
        pixels, images, shared = pixels + counts, images + (counts > 0), shared + shared_here
        labels.update(region.label for region in one.regions if region.label is not None)
    if not keeps:
        write_outputs({root / class_file.name: content}, overwrite=overwrite)
    for name in ("train.txt", "val.txt") if not FLAGS.split else ():  # of Pascal VOC
        if (file := source / "ImageSets/Segmentation" / name).is_file():
            write_outputs({root / "ImageSets/Segmentation" / name: file.read_bytes()}, overwrite=overwrite)
    objects = {value: labels[label] for label, value in values.items()}
    title = f"{annotations.format}: {len(written)} images, {100 * pixels[VOID] / max(1, total):.3g} % void"
    show(_mask_table(title, names, objects, images, pixels, total), console)
    if shared:
        winners = {"listed": "the last one listed", "first": "the first one listed", "small": "the smallest one"}
        winners[_KEEP] = "all of them"
        share, winner = f"{100 * shared / total:.2g} %", winners.get(FLAGS.overlap, "void")
        say(f"{shared} pixels ({share}) belong to objects of several classes; --overlap={FLAGS.overlap}: {winner}")
    if left_out := labels.total() - sum(objects.values()):
        say(f"{left_out} objects are of classes that --classes leaves out")
    if others := {file.path for file in available.files.values()} - set(written.values()):
        say(f"{len(others)} images of {available.folder} have no annotations and were left out")
    if keeps:
        classes = repr(tuple(names[1:]))
        classes = shlex.quote(classes) if set(classes) & set('"$`\\!') else f'"{classes}"'
        fields = f"--config.data.manual_dir={shlex.quote(str(root))} --config.data.class_names={classes}"
        fields += f" --config.data.void_values={OVERLAP_VOID}" * bool(pixels[VOID])
        command = f"segjax train --config=folder_multilabel {fields} --workdir={shlex.quote(f'runs/{root.name}')}"
        say(f"wrote {base / 'images'} and {base / 'masks'}. Next: {command}")
        return
    say(f"wrote {base / 'images'}, {base / 'masks'} and {class_file}. Next: segjax data check {shlex.quote(str(root))}")


def _mask_files(
    one: Annotated, stem: str, names: tuple[str, ...], values: Mapping[str, int], rest: int
) -> tuple[dict[str, bytes], np.ndarray, int]:
    """Returns the PNGs of an image by their paths, its pixels by mask value, and the number of pixels of overlaps."""
    if FLAGS.overlap != _KEEP:
        mask, shared = paint(one.regions, one.size, values, rest=rest, overlap=FLAGS.overlap)
        return {f"{stem}.png": _palette_png(mask, names)}, np.bincount(mask.ravel(), minlength=256), shared
    painted, counts = paint_classes(one.regions, one.size, values, len(names) - 1), np.zeros(256, np.int64)
    inside = painted == 255
    counts[1 : len(names)], counts[VOID] = inside.sum(axis=(1, 2)), (painted == OVERLAP_VOID).any(axis=0).sum()
    counts[0] = (~painted.any(axis=0)).sum()
    files = {f"{name}/{stem}.png": inference.png(mask) for name, mask in zip(names[1:], painted, strict=True)}
    return files, counts, int((inside.sum(axis=0) > 1).sum())


def _check_size(one: Annotated, file: RawFile) -> None:
    """Raises DataError for annotations of another size than the image's, as it is displayed or stored."""
    info = image_header(file)
    height, width = info[:2]
    if one.size != (height, width) and not (info.orientation > 4 and one.size == (width, height)):
        sizes = f"the image is {height}×{width}, its annotations are for {one.size[0]}×{one.size[1]}"
        raise DataError(f"{file.path}: {sizes} ({one.source}); resize the image, or export the annotations again")


def _mask_table(
    title: str, names: tuple[str, ...], objects: Mapping[int, int], images: np.ndarray, pixels: np.ndarray, total: int
) -> Table:
    """Builds the table of the classes that were painted; `objects`, `images` and `pixels` are by mask value."""
    rows = [
        (name, i, objects.get(i, 0), int(images[i]), f"{100 * pixels[i] / max(1, total):.3g} %")
        for i, name in enumerate(names)
    ]
    return Table(title, ("class", "value", "objects", "images", "pixels"), rows)


def _class_file(names: tuple[str, ...]) -> bytes:
    """Returns a file for `labels.read_class_file`: the name and the mask value of each class.

    Raises: DataError if it would be read as other classes, because a name means void there, or begins a comment.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("name", "id"), *((name, i) for i, name in enumerate(names))])
    found = parse_classes(text.getvalue(), Path("classes.csv"))
    read = dict(zip(found["class_names"], found["mask_values"], strict=True))
    for i, name in enumerate(names):
        if read.get(name) != i:
            remedy = "rename it in the annotations, or leave it out with --classes"
            reason = "means void, begins a comment, has spaces at its ends, or is the name of another class"
            raise DataError(f"the class {name!r} cannot be stored in classes.csv: its name {reason}; {remedy}")
    return text.getvalue().encode()


def _palette_png(mask: np.ndarray, names: tuple[str, ...]) -> bytes:
    """Returns a mask as a PNG of indices, with the colours of the classes as its palette."""
    image, data = Image.fromarray(mask, "P"), io.BytesIO()
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(names)], palette[VOID] = numbered_classes(names).palette, (224, 224, 192)
    image.putpalette(palette.tobytes())
    image.save(data, "PNG")
    return data.getvalue()


_COMMANDS = {
    "check": cli.Subcommand(check_folder, ("config", "output")),
    "show": cli.Subcommand(show_folder, ("config", "output", "images_per_class")),
    "masks": cli.Subcommand(
        write_masks,
        ("output", "images", "split", "classes", "overlap", "crowd_is_void", "rest_is_void", "line_width"),
    ),
}

if __name__ == "__main__":
    cli.define_config("config", default="folder_unet")
    flags.DEFINE_string("output", None, "Python file of the suggested config, page of show, or folder of masks.")
    cli.define_number("images_per_class", 4, COUNT, "Number of images for each class.")
    flags.DEFINE_string("images", None, "Folder of the images; default: that of the annotations.")
    flags.DEFINE_string("split", None, "Write into ROOT/SPLIT, such as train or val; run once per split.")
    flags.DEFINE_list("classes", [], "Classes to paint, in the order of their values; default: all.")
    flags.DEFINE_enum(
        "overlap",
        OVERLAPS[0],
        (*OVERLAPS, _KEEP),
        "Object that wins where several overlap: the last one listed (of the highest z_order), the first, the "
        "one of the fewest pixels, or none: void; keep writes a mask per class, for data.multilabel.",
    )
    flags.DEFINE_bool("crowd_is_void", False, "COCO's crowds (iscrowd) are void, and not of their class.")
    flags.DEFINE_bool("rest_is_void", False, "Pixels without an object are void, and not background.")
    cli.define_number(
        "line_width", float, POSITIVE, "Width in pixels of lines and points; without it, they are an error."
    )
    cli.define_overwrite()
    cli.run(main, required=[], subcommands=_COMMANDS)
