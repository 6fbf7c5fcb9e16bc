"""What a run tells the people who watch it: JSON lines always, TensorBoard events, a progress bar."""

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import rich.console
from etils import epath
from rich import progress
from tensorboardX import SummaryWriter

from segjax.storage import StorageError, bucket_errors, in_bucket, path_of, write_bytes
from segjax.training.config import ConfigError

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes `metrics.jsonl` and `tensorboard/` in a workdir and shows a progress bar. Use as a context.

    A run resumed at step k drops what was logged after k before it was killed, so the files read as if nothing had
    happened. Nothing can be appended to what is in a bucket: there both are written as far as they have come by
    `publish`, which the loop calls before every checkpoint, and at the end. So a kill loses the lines after the last
    checkpoint, which the resumed run writes again, and none before it.

    Args:
      workdir: the run's folder, of this machine or `gs://BUCKET/…`; None (hosts other than the first) writes and shows
        nothing.
      start: the step the run starts from.
      steps: the step it ends at.
      examples_per_step: images a step, for the rate shown.
      console: where to print; default standard output.
    """

    def __init__(
        self,
        workdir: str | os.PathLike | None,
        *,
        start: int,
        steps: int,
        examples_per_step: int,
        console: rich.console.Console | None = None,
    ):
        self.console = console or rich.console.Console()
        self._active = workdir is not None
        if not self._active:
            return
        self._log = (_BucketLog if in_bucket(workdir) else _FolderLog)(path_of(workdir), start)
        self._examples_per_step = examples_per_step
        self._started = (time.monotonic(), start)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("eta"),
            progress.TimeRemainingColumn(compact=True, elapsed_when_finished=False),
            progress.TextColumn("{task.fields[rate]}  {task.fields[loss]}  {task.fields[score]}"),
            console=self.console,
        )
        self._task = self._bar.add_task("train", total=steps, completed=start, rate="", loss="", score="")

    def __enter__(self) -> "MetricsWriter":
        if self._active:
            self._bar.start()
        return self

    def __exit__(self, error_type, *unused) -> None:
        if not self._active:
            return
        self._bar.stop()
        try:
            self._log.close()
        except StorageError:
            if error_type is None:  # else that error is what people have to see
                raise

    def publish(self) -> None:
        """Writes to a bucket what was logged since the last time. A folder has it already.

        Raises:
          StorageError: the bucket cannot be written.
        """
        if self._active:
            self._log.publish()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs `values` (names like "train/loss") at `step`."""
        if not self._active:
            return
        self._log.line(step, values)
        for name, value in values.items():
            self._log.events.add_scalar(name, value, step)
        if "train/loss" in values:
            seconds = time.monotonic() - self._started[0]
            rate = (step - self._started[1]) * self._examples_per_step / max(seconds, 1e-9)
            self._bar.update(
                self._task, completed=step, rate=f"{rate:.1f} images/s", loss=f"loss {values['train/loss']:.4f}"
            )
        if "eval/mean_iou" in values:
            score = f"mIoU {values['eval/mean_iou']:.3f}"
            self._bar.update(self._task, score=score)
            if not self.console.is_terminal:  # a log file has no bar
                self.console.print(f"step {step}: {score}")

    def note(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._active:
            self.console.print(line, markup=False)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs a uint8 `[H, W, 3]` picture to TensorBoard."""
        if self._active:
            self._log.events.add_image(name, image, step, dataformats="HWC")


class _FolderLog:
    """A log that grows in place."""

    def __init__(self, workdir: epath.Path, start: int):
        workdir.mkdir(parents=True, exist_ok=True)
        self._lines = workdir / METRICS_FILE
        drop_after(self._lines, start)
        self.events = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1 if start else None)

    def line(self, step: int, values: dict[str, float]) -> None:
        append(self._lines, step, values)

    def publish(self) -> None:
        pass

    def close(self) -> None:
        self.events.close()


class _BucketLog:
    """A log that is kept here and published: the lines as one object, the events since the last time as a new one."""

    def __init__(self, workdir: epath.Path, start: int):
        self._workdir, self._published = workdir, 0
        lines = workdir / METRICS_FILE
        with bucket_errors(workdir):
            drop_after(lines, start)
            self._text = lines.read_text(encoding="utf-8") if lines.exists() else ""
        self._folder = tempfile.TemporaryDirectory(prefix="segjax-events-")
        self.events = self._writer(start + 1 if start else None)

    def _writer(self, purge_step: int | None = None) -> SummaryWriter:
        # Names are read in their order, and two of one second must differ.
        return SummaryWriter(self._folder.name, purge_step=purge_step, filename_suffix=f".{self._published:06d}")

    def line(self, step: int, values: dict[str, float]) -> None:
        self._text += _line(step, values)

    def publish(self) -> None:
        self._upload()
        self._published += 1
        self.events = self._writer()

    def _upload(self) -> None:
        write_bytes(self._workdir / METRICS_FILE, self._text.encode())
        self.events.close()
        for file in Path(self._folder.name).iterdir():
            with bucket_errors(self._workdir):
                (self._workdir / "tensorboard" / file.name).write_bytes(file.read_bytes())
            file.unlink()

    def close(self) -> None:
        with self._folder:
            self._upload()


def append(path: Path | epath.Path, step: int, values: dict[str, float]) -> None:
    """Adds a line to a JSON-lines file."""
    with path.open("a", encoding="utf-8") as lines:
        lines.write(_line(step, values))


def read_log(workdir: str | os.PathLike) -> list[dict[str, float | int]]:
    """The lines of a run's `metrics.jsonl`: "step" and what was logged there. A half-written last line is left out.

    Raises:
      ConfigError: nothing was logged yet, or the file is not a log.
    """
    path = path_of(workdir) / METRICS_FILE
    with bucket_errors(workdir):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows, lines = [], text.split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
            rows.append({"step": row["step"], **row})
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}, line {number}: expected a step and what was logged there as JSON") from error
    if not rows:
        raise ConfigError(f"{path}: expected what training logged, a line a step; there is none yet")
    return rows


def _line(step: int, values: dict[str, float]) -> str:
    return json.dumps({"step": step, **values}) + "\n"


def drop_after(path: Path | epath.Path, step: int) -> None:
    """Removes the lines of a JSON-lines file that come after `step`, and a half-written last one; atomic."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except (json.JSONDecodeError, KeyError):
            break
        kept.append(line + "\n")
    write_bytes(path, "".join(kept).encode())
