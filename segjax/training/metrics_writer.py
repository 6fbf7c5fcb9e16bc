"""The log of a run: JSON lines, trackers, a progress bar and the run's page."""

import contextlib
import datetime
import importlib.util
import json
import math
import os
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.table
from etils import epath
from rich import progress

from segjax.storage import StorageError, bucket_errors, in_bucket, path_of, read_file, say, write_bytes
from segjax.training.config import ConfigError
from segjax.training.hosts import Terminated
from segjax.training.trackers import Run, Trackers

METRICS_FILE = "metrics.jsonl"
PAGE_FILE = "run.html"
_FLUSH_EVERY = 30  # seconds between two flushes of the trackers, and between two pages
_REFRESH = 15  # seconds after which the page loads itself again


class MetricsWriter:
    """A context that writes `metrics.jsonl` and `run.html` in a workdir, feeds trackers and shows a progress bar.

    A run resumed at step k drops the lines after k, as if it had not been killed. In a bucket, where nothing can be
    appended, `publish` writes the log: before every checkpoint and at the end. So a kill loses only lines after the
    last checkpoint, which the resumed run writes again.

    Args:
      workdir: the run's folder, local or `gs://BUCKET/…`; None (hosts other than the first) writes and shows nothing.
      start: first step minus 1.
      steps: last step.
      examples_per_step: images per step, for the rate shown.
      console: where to print; default standard output.
      page: "title", "fields" and "facts" of `segjax.reporting.live_page.live_report`; None: no page.
      trackers: names of `segjax.training.trackers.TRACKERS`.
      params: the config, flat, for the trackers.
      facts: the `provenance` of the run, for the trackers.
    """

    def __init__(
        self,
        workdir: str | os.PathLike | None,
        *,
        start: int,
        steps: int,
        examples_per_step: int,
        console: rich.console.Console | None = None,
        page: dict[str, Any] | None = None,
        trackers: Sequence[str] = ("tensorboard",),
        params: dict[str, Any] | None = None,
        facts: dict[str, Any] | None = None,
    ):
        self.console = console or rich.console.Console()
        self._active = workdir is not None
        if not self._active:
            return
        self._workdir, self._in_bucket, self._text = path_of(workdir), in_bucket(workdir), ""
        self._lines = self._workdir / METRICS_FILE
        with bucket_errors(workdir):
            if not self._in_bucket:
                self._workdir.mkdir(parents=True, exist_ok=True)
            rows, damaged = drop_after(self._lines, start)
            if self._in_bucket:
                self._text = self._lines.read_text(encoding="utf-8") if self._lines.exists() else ""
        for number in damaged:
            say(f"warning: {self._lines}, line {number} is damaged and is left out", self.console)
        self._page, self._page_failed, self._examples = page, False, None
        self._log: dict[str, tuple[array, array]] = {}  # steps and values by key
        for row in rows:
            self._remember(row["step"], row)
        scored = [row for row in rows if _selecting_score(row) in row]
        self._loss, self._best = "", max((row[_selecting_score(row)] for row in scored), default=-math.inf)
        self._flushed = time.monotonic()
        self._examples_per_step, self._step, self._steps = examples_per_step, start, steps
        self._started: tuple[float, int] | None = None  # when the first step had been compiled, and its number
        # A log file has lines in place of the bar; so has a notebook, which shows a bar too if it has ipywidgets.
        has_widgets = self.console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        self._bar = progress.Progress(
            progress.TextColumn("{task.description:<10}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("eta"),
            progress.TimeRemainingColumn(compact=True, elapsed_when_finished=False),
            # The only column that may wrap, so that a narrow terminal cuts none of the others.
            progress.TextColumn(
                "{task.fields[rate]}  {task.fields[loss]}  {task.fields[score]}", table_column=rich.table.Column()
            ),
            console=self.console,
            disable=not (self.console.is_terminal or has_widgets),
        )
        self._task = self._bar.add_task("compiling…", total=steps, completed=start, rate="", loss="", score="")
        self._trackers = Trackers(trackers, Run(self._workdir, start, rows, params or {}, facts or {}), self.note)

    def __enter__(self) -> "MetricsWriter":
        if self._active:
            if self._page is not None:
                say(f"page of the run, up to date while it trains: {self._workdir / PAGE_FILE}", self.console)
                self._examples = self._earlier_examples() if self._step else None
                self.write_page()
            self._bar.start()
            if not self.console.is_terminal:
                say("compiling…", self.console)
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        if not self._active:
            return
        self._bar.stop()
        self.write_page("finished" if error is None else f"ended by {error_type.__name__}: {error}".rstrip(": "))
        stopped = error_type is not None and issubclass(error_type, Terminated | KeyboardInterrupt)
        status = "finished" if error_type is None else "killed" if stopped else "failed"
        try:
            self._upload()
            self._trackers.finish(status)
        except StorageError:
            if error_type is None:  # else the user has to see that error
                raise

    def publish(self) -> None:
        """Writes the new lines to a bucket and flushes the trackers; raises StorageError for a bucket."""
        if self._active:
            self._upload()
            self._flush()

    def _upload(self) -> None:
        if self._in_bucket:
            with bucket_errors(self._workdir):
                self._lines.write_text(self._text)

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        self._trackers.flush()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs `values` (names like "train/loss") at `step`. NaN, an undefined score, is shown only."""
        if not self._active:
            return
        logged = {name: value for name, value in values.items() if not math.isnan(value)}
        if self._in_bucket:
            self._text += _line(step, logged)
        else:
            append(self._lines, step, logged)
        self._trackers.scalars(step, logged)
        self._remember(step, logged)
        if time.monotonic() - self._flushed > _FLUSH_EVERY and not self._in_bucket:
            self._flush()
            self.write_page()
        if "train/loss" in values:
            self._loss = f"loss {values['train/loss']:.4f}"
            self._bar.update(self._task, rate=self._rate(step), loss=self._loss)
        if _selecting_score(values) in values:
            score = self._score(values)
            self._bar.update(self._task, score=score)
            if not self.console.is_terminal:
                say(f"step {step}: {self._loss}{'  ' * bool(self._loss)}{score}", self.console)

    def _remember(self, step: int, values: dict[str, float | int]) -> None:
        for key, value in values.items():
            if key != "step":
                steps, column = self._log.setdefault(key, (array("q"), array("d")))
                steps.append(step)
                column.append(value)

    def write_page(self, outcome: str = "") -> None:
        """Writes `run.html`, after the run's end with its outcome; the first failure, as of a full disk, is a warning.

        The page's code is imported here because jinja2 takes a tenth of a second.
        """
        if not self._active or self._page is None:
            return
        from segjax.reporting.live_page import live_report
        from segjax.reporting.report import Progress, html

        state = outcome or f"running{self._time_left()}"
        text = f"Step {self._step} of {self._steps}, {state}. Written {datetime.datetime.now():%Y-%m-%d %H:%M:%S}."
        now = Progress(text, self._step, self._steps, None if outcome else _REFRESH, round(time.time()))
        report = live_report(self._log, now, self._examples, workdir=str(self._workdir), **self._page)
        try:
            write_bytes(self._workdir / PAGE_FILE, html(report).encode())
        except (OSError, StorageError) as error:
            if not self._page_failed:
                self.note(f"warning: {PAGE_FILE} cannot be written ({error}); {METRICS_FILE} has all values")
            self._page_failed = True

    def _earlier_examples(self) -> Any:
        """Returns the examples on the page of a run that is resumed, or was finished; None without any."""
        from segjax.reporting.live_page import earlier_examples

        with contextlib.suppress(OSError, StorageError, ValueError):  # ValueError: a damaged page
            return earlier_examples(read_file(self._workdir / PAGE_FILE, "the page of a run").decode())

    def _time_left(self) -> str:
        began, first = self._started or (0, self._step)
        if self._step == first:
            return ""
        minutes = (self._steps - self._step) * (time.monotonic() - began) / (self._step - first) / 60
        return f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"

    def _rate(self, step: int) -> str:
        began, first = self._started or (0, step)
        images = (step - first) * self._examples_per_step
        return f"{images / max(time.monotonic() - began, 1e-9):.1f} images/s" if images > 0 else ""

    def _score(self, values: dict[str, float]) -> str:
        """Returns average precision, for two classes, and mean IoU, or a detector's average precision.

        The one that selects the best checkpoint is shown with the best so far.
        """
        shown, selecting = [], _selecting_score(values)
        for name, key in (("AP", "eval/average_precision"), ("mIoU", "eval/mean_iou"), ("AP", "eval/ap")):
            value = values.get(key)
            if value is not None and math.isnan(value):
                shown.append(f"{name} n/a")
            elif value is not None and key == selecting:
                self._best = max(self._best, value)
                shown.append(f"{name} {value:.3f} (best {self._best:.3f})")
            elif value is not None:
                shown.append(f"{name} {value:.3f}")
        return "  ".join(shown)

    def advance(self, step: int) -> None:
        """Moves the bar to `step`, which has been dispatched to the devices."""
        if self._active:
            if self._started is None:
                self._started = (time.monotonic(), step)  # the rate does not count the compilation
            self._step = step
            self._bar.update(self._task, completed=step, description="training")

    def describe(self, activity: str) -> None:
        """Shows beside the bar what the run is doing, until the next step."""
        if self._active:
            self._bar.update(self._task, description=activity)

    def note(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._active:
            say(line, self.console)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs a uint8 `[H, W, 3]` image to the trackers and, the newest one, to the page."""
        if not self._active:
            return
        if self._page is not None:
            from segjax.reporting.live_page import examples_picture

            self._examples = examples_picture(image, step)
        self._trackers.image(step, name, image)


def _selecting_score(values: dict[str, float | int]) -> str:
    if "eval/ap" in values:
        return "eval/ap"
    is_defined = not math.isnan(values.get("eval/average_precision", math.nan))
    return "eval/average_precision" if is_defined else "eval/mean_iou"


def append(path: Path | epath.Path, step: int, values: dict[str, float]) -> None:
    """Adds a line to a JSON-lines file."""
    try:
        with path.open("a", encoding="utf-8") as lines:
            lines.write(_line(step, values))
    except OSError as error:  # an error of writing does not contain the file's name
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_log(workdir: str | os.PathLike, *, required: bool = True) -> list[dict[str, float | int]]:
    """Returns the lines of a run's `metrics.jsonl`: "step" and the values logged there, without a half-written line.

    Raises:
      ConfigError: a line is damaged, or the log is `required` and nothing was logged yet.
      StorageError: the file cannot be read.
    """
    path = path_of(workdir) / METRICS_FILE
    with bucket_errors(workdir):
        lines, damaged = _read_lines(path)
    if damaged:
        remedy = "Delete the line, or run the training command again, which leaves it out"
        raise ConfigError(f"{path}, line {damaged[0]}: expected a step and the values logged there as JSON. {remedy}")
    if required and not lines:
        raise ConfigError(f"{path}: nothing has been logged yet; expected one JSON line per logged step")
    return [row for _, row in lines]


def _read_lines(path: Path | epath.Path) -> tuple[list[tuple[bytes, dict[str, float | int]]], list[int]]:
    """Returns the lines of a log with their values, and the numbers of its damaged lines.

    A last line without an end, as a kill leaves it, is in neither.
    """
    *lines, _ = read_file(path, "the log of a run").split(b"\n") if path.exists() else [b""]
    good, damaged = [], []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode("utf-8-sig"))  # bytes may be taken for UTF-16
            is_row = isinstance(row["step"], int) and all(isinstance(value, int | float) for value in row.values())
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            is_row = False
        if is_row:
            good.append((line, {"step": row["step"], **row}))
        else:
            damaged.append(number)
    return good, damaged


def _line(step: int, values: dict[str, float]) -> str:
    return json.dumps({"step": step, **values}) + "\n"


def drop_after(path: Path | epath.Path, step: int) -> tuple[list[dict[str, float | int]], list[int]]:
    """Removes the lines of a log that come after `step`, and damaged ones; atomic.

    Returns:
      The values of the other lines, and the numbers of the damaged ones.

    Raises:
      ConfigError: every line is damaged, so that the file is not the log of a run; nothing was changed.
      StorageError: the file cannot be read.
    """
    lines, damaged = _read_lines(path)
    if damaged and not lines:
        raise ConfigError(f"{path}: expected the log of a run, one JSON line per logged step. Move the file away")
    kept = [(line, row) for line, row in lines if row["step"] <= step]
    if path.exists():
        write_bytes(path, b"".join(line + b"\n" for line, _ in kept))
    return [row for _, row in kept], damaged
