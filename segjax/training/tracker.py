"""What a run tells the people who watch it: JSON lines always, TensorBoard events, a progress bar."""

import json
import os
import time
from pathlib import Path

import numpy as np
import rich.console
from rich import progress
from tensorboardX import SummaryWriter

METRICS_FILE = "metrics.jsonl"


class Tracker:
    """Writes `metrics.jsonl` and `tensorboard/` in a workdir and shows a progress bar. Use as a context.

    A run resumed at step k drops what was logged after k before it was killed, so the files read as if nothing had
    happened.

    Args:
      workdir: the run's folder; None (hosts other than the first) writes and shows nothing.
      start: the step the run starts from.
      steps: the step it ends at.
      examples_per_step: images a step, for the rate shown.
      console: where to print; default standard output.
    """

    def __init__(
        self,
        workdir: str | Path | None,
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
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        drop_after(workdir / METRICS_FILE, start)
        self._lines_file = workdir / METRICS_FILE
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1 if start else None)
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

    def __enter__(self) -> "Tracker":
        if self._active:
            self._bar.start()
        return self

    def __exit__(self, *unused) -> None:
        if self._active:
            self._bar.stop()
            self._events.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs `values` (names like "train/loss") at `step`."""
        if not self._active:
            return
        append(self._lines_file, step, values)
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
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
            self._events.add_image(name, image, step, dataformats="HWC")


def append(path: Path, step: int, values: dict[str, float]) -> None:
    """Adds a line to a JSON-lines file."""
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"step": step, **values}) + "\n")


def drop_after(path: Path, step: int) -> None:
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
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)
