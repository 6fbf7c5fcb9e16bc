"""Preparing a TFDS data set once, whoever asks first, and reading what was prepared."""

import contextlib
import fcntl
import io
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from segjax.data.errors import DataError
from segjax.data.files import RawFile
from segjax.data.labels import LabelSet
from segjax.data.pairs import Sizes, image_header, merge, summarize
from segjax.data.source import Example, make_example


def prepare(builder: tfds.core.DatasetBuilder, manual_dir: Path | None) -> Path:
    """Prepares a data set unless it is there, and returns its folder.

    TFDS writes to a folder beside it and renames that at the end, so a failed or killed preparing leaves nothing that
    looks prepared. Of several processes that ask at once, one prepares and the others wait.

    Args:
      builder: the data set.
      manual_dir: its raw files; None for a set that needs none.

    Raises:
      DataError: the raw files are damaged or incomplete, or hold a label id outside the classes.
    """
    target = Path(builder.data_dir)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / f".{target.name}.lock"):
        if target.exists():
            return target
        for remains in target.parent.glob(f"incomplete.*_{target.name}"):  # of a process that was killed
            shutil.rmtree(remains)
        source = f" from {manual_dir}" if manual_dir else ""
        print(f"segjax: preparing {builder.name}{source} in {target}, once", file=sys.stderr, flush=True)
        tfds.disable_progress_bar()
        options = tfds.download.DownloadConfig(manual_dir=manual_dir and str(manual_dir), try_download_gcs=False)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints that it is "downloading"
                builder.download_and_prepare(download_config=options)
        finally:
            tfds.enable_progress_bar()
    return target


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The kernel lets the lock go when its holder dies, so a killed process blocks nobody.
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def damage_named(folder: str | Path) -> Iterator[None]:
    """Raises `DataError` for whatever damaged files of the prepared set in `folder` lead their readers into."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{folder}: a prepared set that is damaged or incomplete ({error}). Delete this folder, and the next run "
            "prepares it again"
        ) from error


class PreparedSource:
    """A split of a prepared TFDS data set, ours or the catalogue's; see `segjax.data.source.Source`."""

    def __init__(self, folder: str, split: str, label_set: LabelSet):
        self._folder, self._split, self.label_set = folder, split, label_set
        with damage_named(self._folder):
            builder = tfds.builder_from_directory(folder)
        self._image = next((key for key in ("image", "image_left") if key in builder.info.features), None)
        if self._image is None or not {"segmentation_label", "image_id"} <= set(builder.info.features):
            raise DataError(
                f"{folder}: expected the features image or image_left, segmentation_label and image_id; "
                f"got {', '.join(builder.info.features)}"
            )
        parts = re.findall(r"[A-Za-z_]\w*", split)
        for part in parts:
            if part not in builder.info.splits:
                raise DataError(
                    f"{folder}: no split {part!r}; prepared are {', '.join(builder.info.splits)}. If its raw files "
                    f"were added since, delete this folder and run again"
                )
        if not builder.info.splits[split].num_examples:
            raise DataError(f"{folder}: the split {split!r} is empty; expected at least one image")
        with damage_named(self._folder):
            self._records = self._open(builder)
            for index in {
                0,
                len(self._records) - 1,
            }:  # before training, since a file is opened when it is read
                self._records[index]
        self._describe(builder, parts)
        self.skipped = tuple(
            message for part in parts for message in (builder.info.metadata or {}).get("skipped", {}).get(part, ())
        )

    def _open(self, builder: tfds.core.DatasetBuilder):
        raw = {key: tfds.decode.SkipDecoding() for key in (self._image, "segmentation_label")}
        try:
            return builder.as_data_source(self._split, decoders=raw)
        except NotImplementedError as error:
            raise DataError(
                f"{self._folder}: prepared as {builder.info.file_format.value}, which has no random access; "
                f"prepare it with file_format='array_record'"
            ) from error

    def _describe(self, builder: tfds.core.DatasetBuilder, parts: list[str]) -> None:
        metadata = builder.info.metadata or {}
        height, width, channels = builder.info.features[self._image].shape
        if "splits" in metadata:  # ours
            sizes = merge(map(_from_json, (metadata["splits"][part] for part in parts)))
            self.channels = metadata["channels"]
        elif height and width:  # the catalogue's, whose features have a fixed shape
            sizes = Sizes((height, width), (height, width), channels)
            self.channels = channels
        else:
            read = (RawFile(self.name(i), 0, lambda i=i: self._records[i][self._image]) for i in range(len(self)))
            sizes = summarize(map(image_header, read))
            self.channels = sizes.channels
        self.native_size, self.largest_size = sizes.native_size, sizes.largest_size

    def __reduce__(self):
        """A worker process opens the files for itself."""
        return PreparedSource, (self._folder, self._split, self.label_set)

    def __len__(self) -> int:
        """The number of images."""
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes example `index`."""
        with damage_named(self._folder):
            record = self._records[index]
            name = _text(record["image_id"])
        files = (f"image of {name} in {self._folder}", f"mask of {name} in {self._folder}")
        image, mask = record[self._image], record["segmentation_label"]
        return make_example(image, mask, name, self.channels, self.label_set, files)

    def name(self, index: int) -> str:
        """The `image_id` of example `index`."""
        with damage_named(self._folder):
            return _text(self._records[index]["image_id"])


def _from_json(sizes: dict) -> Sizes:
    native = sizes["native_size"]
    return Sizes(native and tuple(native), tuple(sizes["largest_size"]), sizes["channels"])


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
