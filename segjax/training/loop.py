"""The training loop, `train(config, workdir)`, read top to bottom."""

import contextlib
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import rich.console
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from segjax import inference
from segjax.data import Source, TrainLoader, open_split, skipped_lines, train_loader
from segjax.storage import path_of, write_json
from segjax.training import parallel
from segjax.training.checkpoint import Checkpoints
from segjax.training.config import ConfigError, from_leaves, leaves, read_config, validate
from segjax.training.evaluation import contact_sheet, evaluate, make_eval_step, preprocessing_of
from segjax.training.metrics_writer import MetricsWriter
from segjax.training.objective import budget_scalars, hparams_at, hparams_from_config, phases
from segjax.training.provenance import provenance
from segjax.training.train_step import TrainState, init_state, make_model, make_train_step

CONFIG_FILE = "config.json"
SCORES_FILE = "scores.json"
# The arrays of a training batch that go to the device; file names stay on the host.
DEVICE_KEYS = ("image", "label", "index")
_UNSCORED = "unscored"  # saved beside the loader's position: the step still has to be scored
_VITAL = ("loss", "grad_norm", "param_norm")  # must be finite


class NonFiniteLoss(RuntimeError):
    """A step was not finite; the message names the step, its numbers, the files and the last good checkpoint."""


class Terminated(Exception):
    """SIGTERM ended the run, and its state is saved; the message names the step."""


class EvaluationAborted(Exception):
    """SIGTERM interrupted an evaluation, which the resumed run repeats."""


def train(
    config: ConfigDict, workdir: str | os.PathLike, *, console: rich.console.Console | None = None
) -> dict[str, Any]:
    """Trains a network as `config` describes; called again, it carries on from the newest checkpoint.

    Writes `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/` (the last two and the best by `headline`) and,
    at the end, `scores.json`.

    Args:
      config: a complete config, see `segjax.training.config`.
      workdir: the run's folder, local or `gs://BUCKET/…`.
      console: where to print; default standard output.

    Returns:
      The final scores of `evaluation.evaluate` on the evaluation split, with "steps", "skipped_in_training" (the
      number of bad training images) and "provenance" (the wall time is that of this call, which began at step
      "wall_seconds_from_step").

    Raises:
      ConfigError, DataError: the config or the data are invalid; raised before the first step.
      StorageError: the bucket cannot be read or written, or gcsfs is not installed.
      CheckpointError: every checkpoint is damaged, the newest one is of another network, or one cannot be written.
      NonFiniteLoss: a step is not finite.
      Terminated: SIGTERM came; the state is saved.
    """
    workdir, begun = path_of(workdir), time.monotonic()
    validate(config)
    console = console or rich.console.Console(quiet=not parallel.is_first_host())
    origin = provenance()  # now, because the checkout may change before the run ends
    mesh = parallel.make_mesh()
    parallel.check_batch(config, mesh)
    train_source = open_split(config.data, config.data.train_split)
    eval_source = open_split(config.data, config.data.eval_split)
    for source, split in ((train_source, config.data.train_split), (eval_source, config.data.eval_split)):
        check_channels(config, source)
        for line in skipped_lines(source, split):
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    names, axis_name = train_source.label_set.names, parallel.axis_name(config)
    model = make_model(config, len(names), axis_name)
    train_step = make_train_step(config, model, len(names), axis_name)
    train_step = parallel.map_step(train_step, config, mesh, arguments=3, donate=config.training.donate)
    eval_step = parallel.map_step(make_eval_step(config, model, len(names), axis_name), config, mesh, arguments=2)
    predictor = inference.Predictor(model.clone(axis_name=None), None, preprocessing_of(config, len(names)))
    hparams, plan, steps = hparams_from_config(config), phases(config), config.training.steps

    with contextlib.ExitStack() as stack:
        preemption = stack.enter_context(Preemption())
        checkpoints = stack.enter_context(Checkpoints(workdir))
        for line in checkpoints.damaged:
            console.print(f"warning: {line}. It is set aside.", markup=False)
        _print_changes(config, workdir / CONFIG_FILE, console)
        batches = stack.enter_context(contextlib.closing(train_batches(config, train_source)))
        start = checkpoints.latest_step() or 0
        state = parallel.everywhere(init_state(config, model, pretrained=not start), mesh)
        position: dict[str, Any] = {}
        if start:
            state, position = checkpoints.restore(state, start)
            batches.set_state(position)
            console.print(f"resumed at step {start} of {steps}")
        if parallel.is_first_host():
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(workdir / CONFIG_FILE, leaves(config))
        console.print(_summary(config, train_source, eval_source, state, mesh))
        state = parallel.replicate(state, config, mesh)
        log_folder, batch_size = workdir if parallel.is_first_host() else None, config.training.global_batch
        writer = MetricsWriter(log_folder, start=start, steps=steps, examples_per_step=batch_size, console=console)
        writer = stack.enter_context(writer)

        prefetched = deque()  # (batch on the devices, file names, loader position after it)
        unchecked = deque()  # (step, its numbers, file names)
        nonfinite_in_a_row, scores = 0, None
        unscored = position.get(_UNSCORED, False)  # SIGTERM came before the last step was scored: begin with that
        for step in range(start if unscored else start + 1, steps + 1):
            if step > start:
                while len(prefetched) <= config.training.prefetch:
                    batch = next(batches)
                    placed = parallel.shard({key: batch[key] for key in DEVICE_KEYS}, config, mesh)
                    prefetched.append((placed, batch["name"].tolist(), batches.get_state()))
                placed, files, position = prefetched.popleft()
                state, measured = train_step(state, placed, hparams_at(step, hparams, plan))
                unchecked.append((step, parallel.unreplicate(measured, config), files))
            stopping = preemption.stopping()
            evaluating = step in (start, steps) or step % config.training.evaluate_every == 0
            saving = evaluating or stopping or step % config.training.checkpoint_every == 0

            # Each step is checked while the next one runs, so that the device never waits for the host. A state that is
            # scored or saved has been checked.
            while len(unchecked) > (0 if saving else 1):
                checked_step, measured, files = unchecked.popleft()
                budget = measured.pop("budget", None)
                values = {key: float(value) for key, value in measured.items()}
                finite = all(math.isfinite(values[key]) for key in _VITAL)
                nonfinite_in_a_row = 0 if finite else nonfinite_in_a_row + 1
                if not finite:
                    seen = ", ".join(f"{key} {values[key]}" for key in _VITAL)
                    message = f"step {checked_step}: {seen}; expected finite values. The batch was {', '.join(files)}."
                    if nonfinite_in_a_row >= config.training.skip_nonfinite:
                        checkpoints.wait()
                        raise NonFiniteLoss(message + _nonfinite_outcome(config, checkpoints.latest_step()))
                    writer.note(f"warning: {message} The step was skipped.")
                if not finite or checked_step % config.training.log_every == 0 or checked_step == steps:
                    logged = {f"train/{key}": value for key, value in values.items() if math.isfinite(value)}
                    if budget is not None and finite:
                        logged |= budget_scalars(jax.device_get(budget), (*names, "void"))
                    writer.scalars(checked_step, logged)
            if not saving:
                continue

            scores = None
            if evaluating and not stopping:
                try:
                    scores = evaluate(preemption.watched(eval_step), state, eval_source, config, mesh)
                except EvaluationAborted:
                    stopping = True
                else:
                    writer.scalars(step, eval_scalars(scores))
                    variables = parallel.local(parallel.unreplicate(state, config)).variables
                    shown = range(min(4, len(eval_source)))
                    sheet = contact_sheet([predictor.with_variables(variables)], eval_source, shown)
                    writer.image(step, "eval/image_truth_prediction", sheet)
            if step > start or scores is not None:  # else the checkpoint that was restored is this one
                writer.publish()  # the log of a checkpoint is written before the checkpoint
                position = {**position, _UNSCORED: evaluating and scores is None}
                checkpoints.save(parallel.collect(state, config, mesh), position, headline(scores) if scores else None)
            if stopping:
                raise Terminated(
                    f"SIGTERM: stopped after step {step} of {steps}, which is saved in {workdir}; the same command "
                    "carries on from there"
                )
        if scores is None:  # the run had already ended
            scores = evaluate(eval_step, state, eval_source, config, mesh)
        skipped = parallel.unreplicate(state, config).skipped
    wall = {"wall_seconds": round(time.monotonic() - begun), "wall_seconds_from_step": start}
    scores = {"steps": steps, "skipped_in_training": len(train_source.skipped), **scores, "provenance": origin | wall}
    if skipped is not None:
        scores["skipped_steps"] = int(skipped)
    if parallel.is_first_host():
        write_json(workdir / SCORES_FILE, scores)
    return scores


def _nonfinite_outcome(config: ConfigDict, last_good: int | None) -> str:
    allowed = config.training.skip_nonfinite  # a state with NaN parameters cannot recover
    return (f" It is the last of {allowed} skipped in a row." if allowed else "") + (
        f" The last good checkpoint, step {last_good}, is kept." if last_good else " No checkpoint was saved yet."
    )


def train_batches(config: ConfigDict, source: Source) -> TrainLoader:
    """Returns the endless stream of this host's training batches."""
    return train_loader(
        source,
        global_batch_size=config.training.global_batch,
        seed=config.seed,
        # If all images have one size, the device crops from the original pixels.
        size=None if source.native_size else tuple(config.data.size),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
    )


def eval_scalars(scores: dict[str, Any]) -> dict[str, float]:
    """Returns the finite scalars among the scores, and IoU and recall per class, for TensorBoard."""
    scalars = {f"eval/{key}": value for key, value in scores.items() if isinstance(value, float)}
    for key in ("iou", "recall"):
        named = zip(scores["classes"], scores[f"{key}_per_class"], strict=True)
        scalars |= {f"eval/{key}/{name}": value for name, value in named}
    return {key: value for key, value in scalars.items() if not math.isnan(value)}


def headline(scores: dict[str, Any]) -> float:
    """Returns the score that selects the best checkpoint: average precision for two classes, else mean IoU."""
    value = scores.get("average_precision", scores["mean_iou"])
    return value if np.isfinite(value) else -1.0


def check_channels(config: ConfigDict, source: Source) -> None:
    """Raises `ConfigError` if the images of `source` do not have `config.data.channels` channels."""
    if source.channels != config.data.channels:
        raise ConfigError(
            f"config.data.channels = {config.data.channels}, but the images of {config.data.name} have "
            f"{source.channels} channel(s)"
        )


def _print_changes(config: ConfigDict, started_with: epath.Path, console: rich.console.Console) -> None:
    """Prints the fields that differ from the config that the run was started with."""
    if started_with.exists():
        now, before = leaves(from_leaves(leaves(config))), leaves(read_config(started_with))
        for key in sorted(now):
            if before[key] != now[key]:
                console.print(f"config.{key} is now {now[key]!r}; the run was started with {before[key]!r}")


def _summary(config: ConfigDict, train_source: Source, eval_source: Source, state: TrainState, mesh) -> str:
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    steps, batch = config.training.steps, config.training.global_batch
    return (
        f"{config.data.name}: {len(train_source)} training and {len(eval_source)} evaluation images; "
        f"{config.model.name} with {parameters / 1e6:.2f} M parameters; {steps} steps "
        f"= {steps * batch / len(train_source):.1f} epochs of batch {batch} on {mesh.size} "
        f"{mesh.devices.flat[0].platform} device(s), {config.parallel}"
    )


class Preemption:
    """Listener for SIGTERM, which clusters send before they take a machine away. A context: it restores the handler.

    On several hosts JAX's own service listens and passes the signal of one host on to all. `stopping` then becomes True
    on all hosts at the same call, because all of them call it equally often: after every step and in `watched`.
    """

    def __init__(self):
        self._received, self._calls, self._previous = False, 0, None

    def __enter__(self) -> "Preemption":
        # Only the main thread may install a signal handler.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *unused) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, *unused) -> None:
        self._received = True

    def stopping(self) -> bool:
        """Returns True if the run has to stop here. All hosts must call it equally often."""
        self._calls += 1
        if jax.process_count() == 1:
            return self._received
        return multihost_utils.reached_preemption_sync_point(self._calls)

    def watched(self, function: Callable) -> Callable:
        """Wraps repeatable work: it raises `EvaluationAborted` after SIGTERM. All hosts call it equally often."""

        def checked(*arguments):
            if self.stopping():
                raise EvaluationAborted
            return function(*arguments)

        return checked
