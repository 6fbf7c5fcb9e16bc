"""A folder of predictions: what is there already, what is a person's and not touched, what is still to do."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.progress

from segjax.data.io import DataError
from segjax.data.labels import LabelSet
from segjax.inference.engine import Prediction
from segjax.inference.pictures import Found, ImageFile, Sheet, Wanted, encoded, text_of

ORIGIN_FILE, SHEET_FILE = "predicted_by.json", "contact_sheet.png"
# File names that are listed of what was left out; of the rest, only the number.
_SHOWN = 20


class Done(NamedTuple):
    """What became of the images.

    Attributes:
      written: how many were predicted.
      kept: how many had all their files already, of the same bytes.
      skipped: why each of the others was left out, a message an image.
    """

    written: int
    kept: int
    skipped: tuple[str, ...]


def write_predictions(
    names: Sequence[str],
    read: Callable[[str], np.ndarray],
    predict: Callable[[Sequence[np.ndarray]], Iterable[Prediction]],
    source: Callable[[str], ImageFile],
    output: Any,
    wanted: Wanted,
    label_set: LabelSet,
    origin: Mapping[str, Any],
    *,
    write: Callable[[Any, bytes], None],
    batch: int = 1,
    on_error: str = "raise",
    console: rich.console.Console | None = None,
) -> Done:
    """Predicts the images that have not all their files yet, and writes these, whole or not at all.

    Args:
      names: of the images; with slashes they come into folders of `output`.
      read: an image, uint8 `[H, W, C]`, by its name.
      predict: what is said of each of some images, such as `Engine.many`.
      source: of which file an image is, by its name. A mask of the same bytes is kept, one of other bytes at the same
        path is made anew.
      output: the folder, a `Path` or epath's; made if it is not there.
      wanted: which files.
      label_set: names and colours of the classes.
      origin: what the masks depend on, ready for JSON. It is kept in `predicted_by.json`, so that a folder is never
        completed with the masks of another network or threshold; its "checkpoint" is for people and not compared.
      write: `write(path, bytes)`, which leaves a whole file or none.
      batch: images that are predicted together.
      on_error: "raise", or "skip" images that cannot be read.
      console: where the bar goes; default standard output.

    Raises:
      DataError: the folder holds predictions of another origin, or a file of one of these names that is none of them,
        or is of another image; an image is bad, and `on_error` is "raise". None is overwritten.
      OSError: a file cannot be written. Those before it are whole, and a second call carries on.
    """
    output.mkdir(parents=True, exist_ok=True)
    if not _known_origin(output / ORIGIN_FILE, dict(origin)):
        _check_foreign(names, output, wanted)
        write(output / ORIGIN_FILE, (json.dumps(dict(origin), indent=1) + "\n").encode())
    sheet, kept, skipped = Sheet(names if wanted.sheet else (), wanted, label_set), 0, []
    waiting: list[tuple[str, np.ndarray, ImageFile]] = []

    def write_waiting() -> None:
        said_of = predict([image for _, image, _ in waiting]) if waiting else ()
        for (name, image, made_of), said in zip(waiting, said_of, strict=True):
            found = Found(image, said)
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            for suffix in wanted.suffixes:
                write(output / f"{name}{suffix}", encoded(suffix, found, wanted, label_set, made_of))
            sheet.take(name, found, made_of)
        waiting.clear()

    with _bar(console) as bar:
        for name in bar.track(names, description="predict"):
            try:
                made_of = source(name)
                if _is_done(output, name, made_of, wanted):
                    kept += 1
                    sheet.keep(name, made_of)
                    continue
                waiting.append((name, read(name), made_of))
            except DataError as error:
                if on_error == "raise" or isinstance(error, NotOurs):
                    write_waiting()
                    raise
                skipped.append(str(error))
            if len(waiting) == batch:
                write_waiting()
        write_waiting()
        if sheet.text() and text_of(output / SHEET_FILE) != sheet.text():
            # Of what an earlier call predicted there are no small pictures: it is predicted again.
            again = list(sheet.kept.items())
            for name, made_of in bar.track(again, description="contact sheet") if again else ():
                image = read(name)
                sheet.take(name, Found(image, *predict([image])), made_of)
            write(output / SHEET_FILE, sheet.drawn())
    return Done(len(names) - kept - len(skipped), kept, tuple(skipped))


def written_here(path: str, output: Any) -> bool:
    """Whether an image file is one that an earlier prediction left in `output`, and no image to predict."""
    if not (output / ORIGIN_FILE).exists() or not Path(path).resolve().is_relative_to(Path(output).resolve()):
        return False
    return Path(path).name.endswith(("_mask.png", "_overlay.png", "_uncertainty.png", SHEET_FILE))


def _bar(console: rich.console.Console | None) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("eta"),
        rich.progress.TimeRemainingColumn(),
        console=console,
    )


def done_lines(done: Done) -> list[str]:
    """What to tell a person: how many images were predicted, kept and left out, and why those were."""
    lines = [f"predicted {done.written} image(s)"]
    if done.kept:
        lines[0] += f"; {done.kept} had been predicted before and are kept"
    if done.skipped:
        lines.append(f"skipped {len(done.skipped)} bad image(s):")
        lines += [f"  {message}" for message in done.skipped[:_SHOWN]]
        lines += [f"  and {len(done.skipped) - _SHOWN} more"] * (len(done.skipped) > _SHOWN)
    return lines


class NotOurs(DataError):
    """A file that would have to be overwritten is a person's, or of another image."""


def _known_origin(file: Any, origin: dict[str, Any]) -> bool:
    """Whether the folder holds predictions of this origin; False: of none. A DataError: of another."""
    if not file.exists():
        return False
    try:
        before = json.loads(file.read_bytes())
        differing = sorted(key for key in {*before, *origin} - {"checkpoint"} if before.get(key) != origin.get(key))
    except (ValueError, TypeError) as error:
        raise DataError(f"{file}: no JSON of an earlier prediction ({error}); name another --output") from error
    if differing:
        key = differing[0]
        raise DataError(
            f"{file.parent}: holds predictions made with {key} = {before.get(key)!r}; now it is {origin.get(key)!r}. "
            "Name another --output, or remove them"
        )
    return True


def _check_foreign(names: Sequence[str], output: Any, wanted: Wanted) -> None:
    """Raises where a folder without predictions holds a file that they would overwrite."""
    targets = [output / f"{name}{suffix}" for name in names for suffix in wanted.suffixes]
    for target in (*targets, *[output / SHEET_FILE] * wanted.sheet):
        if target.exists():
            raise NotOurs(f"{target}: exists, and segjax.predict did not write it. Name another --output, or move it")


def _is_done(output: Any, name: str, source: ImageFile, wanted: Wanted) -> bool:
    """Whether all files are there and of these bytes; False: they are to be made, anew where the image has changed."""
    mask = output / f"{name}_mask.png"
    if not mask.exists():
        return False
    made_of = text_of(mask)
    if made_of is None or set(made_of) != set(ImageFile._fields):
        raise NotOurs(f"{mask}: exists, and segjax.predict did not write it. Name another --output, or move it")
    if made_of["sha256"] == source.sha256:
        return all((output / f"{name}{suffix}").exists() for suffix in wanted.suffixes)
    if made_of["path"] != source.path:
        raise NotOurs(f"{mask}: is of {made_of['path']}, and would be of {source.path}. Name another --output")
    return False
