"""Trackers: TensorBoard, MLflow and Weights & Biases, which show the numbers and images of a run.

`metrics.jsonl` has all numbers in any case, so a tracker that fails is dropped with one warning.
"""

import contextlib
import logging
import os
import queue
import re
import shlex
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from etils import epath
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from segjax import missing_extra
from segjax.storage import StorageError, bucket_errors, in_bucket, read_json, write_json
from segjax.training.config import ConfigError

_EXTRAS = ("mlflow", "wandb")  # each needs its extra, and a thread, because importing and connecting are slow
_PENDING = 1000  # calls that wait for a tracker in a thread, until it is dropped
# Seconds that the end of a run waits for trackers in threads; a signal may be followed by a kill.
_WAIT = {"finished": 60, "failed": 30, "killed": 10}

Status = Literal["finished", "failed", "killed"]


class Run(NamedTuple):
    """Description of a run for its trackers.

    Attributes:
      workdir: its folder.
      start: the step of the checkpoint from which it continues, or 0.
      rows: lines of `metrics.jsonl` up to that step.
      params: values of the config by field name, such as `objective.gamma`.
      facts: its `provenance`.
    """

    workdir: epath.Path
    start: int = 0
    rows: Sequence[Mapping[str, float]] = ()
    params: Mapping[str, Any] = {}
    facts: Mapping[str, Any] = {}

    def stored(self, tracker: str) -> str | None:
        """Returns the ID of the run in `tracker` that an earlier start stored, or None."""
        with contextlib.suppress(StorageError):  # the file is missing or damaged
            return read_json(self.workdir / f"{tracker}.json", {"run": str})["run"]
        return None

    def store(self, tracker: str, key: str) -> None:
        """Stores the ID of the run in `tracker`, which the next start continues."""
        write_json(self.workdir / f"{tracker}.json", {"run": key})

    def tags(self) -> dict[str, str]:
        """Returns command, code, versions, device and folder of the run by name."""
        tags = {"workdir": os.path.abspath(self.workdir)}
        for name, value in self.facts.items():
            flat = {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, Mapping) else {name: value}
            tags |= {key: str(one) for key, one in flat.items() if one not in ("", None)}
        return tags

    def logged(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yields step and values of each of `rows`."""
        for row in self.rows:
            yield row["step"], {key: value for key, value in row.items() if key != "step"}


class Tracker(Protocol):
    """A program that shows the numbers of a run; its constructor takes a `Run` and a function that prints a line."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds `values`, which are not NaN, at `step`; values that the tracker has from before a kill are skipped."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds a uint8 `[H, W, 3]` image."""

    def flush(self) -> None:
        """Writes or sends what was added; called before each checkpoint and when the queue is empty."""

    def finish(self, status: Status) -> None:
        """Writes or sends the remaining values and the outcome of the run."""


class TensorBoard:
    """Events in `tensorboard/`; in a bucket `flush` uploads them, because nothing can be appended there.

    TensorBoard drops the points after the step from which a run was resumed.
    """

    def __init__(self, run: Run, say: Callable[[str], None]):
        self._folder, self._in_bucket, self._uploads = run.workdir / "tensorboard", in_bucket(run.workdir), 0
        self._temporary = tempfile.TemporaryDirectory(prefix="segjax-events-") if self._in_bucket else None
        self._local = Path(self._temporary.name if self._in_bucket else self._folder)
        self._open()
        if run.start:
            self._write(step=run.start + 1, session_log=SessionLog(status=SessionLog.START))

    def _open(self) -> None:
        self._local.mkdir(exist_ok=True)
        # Files are read in the order of their names, and two of one second must differ.
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{self._uploads:06d}"
        self._events = RecordWriter(str(self._local / name))
        self._write(file_version="brain.Event:2")

    def _write(self, **fields: Any) -> None:
        # In this thread: tensorboardX's own thread would die of a full disk, and its queue would block.
        self._events.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one event per value."""
        for name, value in values.items():
            self._write(step=step, summary=summary.scalar(name, value))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image as PNG."""
        self._write(step=step, summary=summary.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        """Writes the events; raises StorageError if the bucket cannot be written."""
        if self._in_bucket:
            self._upload()
            self._open()
        else:
            self._events.flush()

    def _upload(self) -> None:
        self._events.close()
        with bucket_errors(self._folder):
            for file in self._local.iterdir():
                (self._folder / file.name).write_bytes(file.read_bytes())
                file.unlink()
        self._uploads += 1

    def finish(self, status: Status) -> None:
        """Closes the file; raises StorageError if the bucket cannot be written."""
        if self._in_bucket:
            with self._temporary:
                self._upload()
        else:
            self._events.close()


class MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI or in `mlflow.db` and `mlartifacts/` of the workdir.

    A resumed run continues it. MLflow cannot delete values, so those that it already has from steps after the
    checkpoint are not added again.
    """

    def __init__(self, run: Run, say: Callable[[str], None]):
        import mlflow
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow.store").setLevel(logging.WARNING)  # it lists the tables that it creates
        self._metric, self._metrics, self._newest = Metric, [], {}
        folder = Path(os.path.abspath(run.workdir))
        local = None if mlflow.is_tracking_uri_set() else f"sqlite:///{folder / 'mlflow.db'}"
        if local and not (folder / "mlflow.db").exists():
            # Creating the tables takes seconds, and MLflow refuses a database whose creation was interrupted.
            (partial := folder / "mlflow.db.partial").unlink(missing_ok=True)
            mlflow.MlflowClient(f"sqlite:///{partial}").search_experiments()
            partial.replace(folder / "mlflow.db")
        self._client = mlflow.MlflowClient(local)
        stored = None
        if key := run.stored("mlflow"):
            try:
                stored = self._client.get_run(key)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        self._is_new = stored is None or stored.info.lifecycle_stage == "deleted"
        if self._is_new:
            stored = self._client.create_run(self._experiment(folder, local), run_name=folder.name)
            run.store("mlflow", stored.info.run_id)
        else:
            self._client.update_run(stored.info.run_id, status="RUNNING")
        self._run = stored.info.run_id
        self._describe(run, stored.data.params)
        where = f"; {shlex.join(['mlflow', 'ui', '--backend-store-uri', local])} shows it" if local else ""
        say(f"MLflow: run {self._run}{where}")
        for step, values in run.logged():
            self.scalars(step, values)

    def _experiment(self, folder: Path, local: str | None) -> str:
        """Returns the ID of the experiment that MLFLOW_EXPERIMENT_ID or MLFLOW_EXPERIMENT_NAME selects."""
        if key := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return key
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "segjax"
        if found := self._client.get_experiment_by_name(name):
            return found.experiment_id
        return self._client.create_experiment(name, (folder / "mlartifacts").as_uri() if local else None)

    def _describe(self, run: Run, before: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        params = {key: str(value)[:6000] for key, value in run.params.items()}
        tags = run.tags()
        tags |= {"mlflow.source.name": tags.get("command", "segjax"), "mlflow.source.type": "LOCAL"}
        if "commit" in tags:
            tags["mlflow.source.git.commit"] = tags["commit"].removesuffix("-dirty")
        # MLflow cannot change a parameter, so a value that changed on resume becomes a tag.
        changes = {key: value for key, value in params.items() if key in before and before[key] != value}
        tags |= {f"{key} from step {run.start + 1}": value for key, value in changes.items()}
        new = [Param(key, value) for key, value in params.items() if key not in before]
        for i in range(0, len(new), 100):  # the limit of a server
            self._client.log_batch(self._run, params=new[i : i + 100])
        self._client.log_batch(self._run, tags=[RunTag(key, value[:5000]) for key, value in tags.items()])

    def _is_there(self, step: int, name: str) -> bool:
        if self._is_new:
            return False
        if name not in self._newest:
            history = self._client.get_metric_history(self._run, name)
            self._newest[name] = max((metric.step for metric in history), default=-1)
        return step <= self._newest[name]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Collects `values` for `flush`."""
        now = round(1000 * time.time())
        for key, value in values.items():
            name = _mlflow_name(key)
            if not self._is_there(step, name):
                self._metrics.append(self._metric(name, value, now, step))
        if len(self._metrics) >= 1000:
            self.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Sends an image, unless MLflow already had the scores of its step at the start."""
        if step > max((last for key, last in self._newest.items() if key.startswith("eval/")), default=-1):
            self._client.log_image(self._run, image, key=_mlflow_name(name), step=step)

    def flush(self) -> None:
        """Sends the collected values, at most 1000 at once, which is the limit of a server."""
        while self._metrics:
            self._client.log_batch(self._run, metrics=self._metrics[:1000])
            del self._metrics[:1000]

    def finish(self, status: Status) -> None:
        """Sends the remaining values and the outcome."""
        self.flush()
        self._client.set_terminated(self._run, status.upper())


def _mlflow_name(name: str) -> str:
    """Returns a name for a metric that MLflow accepts.

    >>> _mlflow_name("eval/iou/Sign (back), é")
    'eval/iou/Sign _back__ é'
    """
    return re.sub(r"[^\w/. :-]", "_", name)


class WeightsAndBiases:
    """A run of Weights & Biases, with its files in `wandb/` of the workdir.

    WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and wandb's other variables apply. A resumed run continues it: online,
    steps that the server already has are not sent again; offline, the new folder has all steps from the first.
    """

    def __init__(self, run: Run, say: Callable[[str], None]):
        import wandb

        offline = wandb.setup().settings.mode in ("offline", "dryrun", "disabled")
        # With prompt=True, wandb would ask for the key in the terminal.
        if not offline and not wandb.login(prompt=False):
            raise RuntimeError("not logged in; use wandb login, or WANDB_MODE=offline, which needs no account")
        key = run.stored("wandb") or uuid.uuid4().hex[:8]
        run.store("wandb", key)
        folder = Path(os.path.abspath(run.workdir))
        seconds = _WAIT["finished"] / 2
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "segjax",
            id=key,
            name=os.environ.get("WANDB_NAME") or folder.name,
            dir=folder,
            resume=None if offline else "allow",
            reinit="create_new",  # leaves a run of the user's own alone
            settings=wandb.Settings(console="off", silent=True, finish_timeout=seconds, finish_timeout_raises=True),
        )
        self._run.config.update({**run.params, "provenance": run.tags()}, allow_val_change=True)
        # wandb writes its file in blocks and loses the last one in a kill, so offline all steps are logged again.
        self._last = -1 if offline else self._run.starting_step - 1
        where = shlex.join(["wandb", "sync", str(Path(self._run.dir).parent)]) if offline else self._run.url
        say(f"Weights & Biases: {where}{' uploads the run' * offline}")
        for step, values in run.logged():
            self.scalars(step, values)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds `values` to the line of `step`."""
        if step > self._last:
            self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image to the line of `step`."""
        self.scalars(step, {name: self._image(image)})

    def flush(self) -> None:
        """Does nothing, because wandb's own process sends each line at once."""

    def finish(self, status: Status) -> None:
        """Sends the remaining values and the outcome; wandb calls a killed run preempted."""
        if status == "killed":
            self._run.mark_preempting()
        self._run.finish(exit_code=int(status != "finished"))


TRACKERS = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WeightsAndBiases}


class _Direct:
    """A tracker that writes local files, in this thread."""

    def __init__(self, connect: Callable[[], Tracker], warn: Callable[[Exception], None]):
        self._tracker, self._warn = None, warn
        try:
            self._tracker = connect()
        except OSError as error:
            warn(error)

    def send(self, call: Callable[[Tracker], None]) -> None:
        """Calls `call`; after an error, such as a full disk, the tracker gets no more calls."""
        if self._tracker is None:
            return
        try:
            call(self._tracker)
        except OSError as error:
            tracker, self._tracker = self._tracker, None
            with contextlib.suppress(OSError, StorageError):
                tracker.finish("failed")
            self._warn(error)

    def wait(self, seconds: float) -> None:
        """Does nothing, because each call has ended."""


class _Background:
    """A tracker in a thread of its own, so that a server that is slow or gone does not delay the training."""

    def __init__(self, connect: Callable[[], Tracker], warn: Callable[[Exception], None]):
        self._connect, self._warn, self._over = connect, warn, False
        self._calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        # A daemon, because the process must not wait for a server at its end.
        self._thread = threading.Thread(target=self._work, name="segjax-tracker", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            tracker = self._connect()
            while (call := self._calls.get()) is not None:
                call(tracker)
                if self._calls.empty():
                    tracker.flush()
        except Exception as error:
            self._end(error)

    def _end(self, error: Exception) -> None:
        if not self._over:
            self._over = True
            self._warn(error)

    def send(self, call: Callable[[Tracker], None]) -> None:
        """Queues `call`; after an error the tracker gets no more calls."""
        if self._calls.qsize() >= _PENDING:
            self._end(TimeoutError(f"{_PENDING} calls are waiting for it"))
        if not self._over:
            self._calls.put(call)

    def wait(self, seconds: float) -> None:
        """Waits until all calls have ended; after `seconds` the tracker is dropped."""
        self._calls.put(None)
        if not self._over:
            self._thread.join(seconds)
            if self._thread.is_alive():
                self._end(TimeoutError("no answer at the end of the run"))


class Trackers:
    """The trackers of a run: each gets every call, until it fails or the run ends.

    Args:
      names: some of `TRACKERS`.
      run: the run.
      say: prints a line, from any thread.
    """

    def __init__(self, names: Sequence[str], run: Run, say: Callable[[str], None]):
        self._links: list[_Direct | _Background] = []
        for name in dict.fromkeys(names):
            link = _Background if name in _EXTRAS else _Direct
            warn = partial(_warn, name, run.workdir, say)
            self._links.append(link(partial(TRACKERS[name], run, say), warn))

    def _send(self, call: Callable[[Tracker], None]) -> None:
        for link in self._links:
            link.send(call)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values at a step, as `Tracker.scalars`."""
        self._send(lambda tracker: tracker.scalars(step, values))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image, as `Tracker.image`."""
        self._send(lambda tracker: tracker.image(step, name, image))

    def flush(self) -> None:
        """Writes or sends what was added; raises StorageError if a bucket cannot be written."""
        self._send(lambda tracker: tracker.flush())

    def finish(self, status: Status) -> None:
        """Finishes all trackers, within `_WAIT[status]`; raises StorageError if a bucket cannot be written."""
        self._send(lambda tracker: tracker.finish(status))
        deadline = time.monotonic() + _WAIT[status]
        for link in self._links:
            link.wait(max(0.0, deadline - time.monotonic()))


def _warn(name: str, workdir: epath.Path, say: Callable[[str], None], error: Exception) -> None:
    """Prints that a tracker is dropped."""
    if name == "tensorboard":
        say(f"warning: {workdir / name} cannot be written ({error}); metrics.jsonl has all values")
        return
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".")
    say(
        f"warning: tracker {name} is given up ({reason}); metrics.jsonl has all values, and the same command, run "
        "again, sends them"
    )


def check_trackers(names: Sequence[str], workdir: str | os.PathLike) -> None:
    """Raises ConfigError for an unknown tracker, one that is not installed, and one that cannot use a bucket."""
    for name in names:
        if name not in TRACKERS:
            valid = ", ".join(TRACKERS)
            raise ConfigError(f"trackers = {names!r}: expected a tuple of {valid}; () for none")
        if name in _EXTRAS and (message := missing_extra(name, f"the tracker {name}")):
            raise ConfigError(message)
        if name in _EXTRAS and in_bucket(workdir):
            raise ConfigError(
                f"the tracker {name} needs a workdir on this machine; got {os.fspath(workdir)}; use a "
                "local folder, or the tracker tensorboard"
            )
