"""The training loop, `train(config, workdir)`, read top to bottom."""

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import rich.console
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from segjax import inference
from segjax.data import Source, TrainLoader, check_split, label_set, open_split, train_loader
from segjax.storage import StorageError, output_folder, reserve, say, to_json, write_json
from segjax.training import hosts, parallel
from segjax.training.checkpoint import Checkpoints
from segjax.training.config import ConfigError, changes_since, comparable, read_config, validate, write_config
from segjax.training.evaluation import (
    Scores,
    eval_scalars,
    evaluate,
    example_sheet,
    headline,
    make_eval_step,
    preprocessing_of,
)
from segjax.training.metrics_writer import METRICS_FILE, MetricsWriter
from segjax.training.objective import budget_scalars, hparams_at, hparams_from_config, phases
from segjax.training.provenance import numerics, provenance
from segjax.training.train_step import init_state, learning_rate_at, make_model, make_train_step

CONFIG_FILE = "config.json"
SCORES_FILE = "scores.json"
# The arrays of a training batch that go to the device; file names stay on the host.
DEVICE_KEYS = ("image", "label", "index")
# Saved beside the loader's position: the step still has to be scored; config, code, device and data of its training;
# and where these changed during the run.
_UNSCORED, _MADE_BY, _CHANGES = "unscored", "made_by", "changes"
_VITAL = ("loss", "grad_norm", "param_norm")  # must be finite


class NonFiniteLoss(RuntimeError):
    """A step was not finite; the message names the step, its numbers, the files and the last good checkpoint."""


class Terminated(Exception):
    """A signal ended the run, and its state is saved; the message names the step."""


class EvaluationAborted(Exception):
    """A signal interrupted an evaluation, which the resumed run repeats."""


@hosts.failures_end_all_hosts(unless=Terminated)
def train(
    config: ConfigDict, workdir: str | os.PathLike, *, console: rich.console.Console | None = None
) -> dict[str, Any]:
    """Trains a network as `config` describes; called again, it resumes from the newest checkpoint.

    Writes `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/` (the last two and the best by `headline`) and,
    at the end, `scores.json`.

    Args:
      config: a complete config, see `segjax.training.config`.
      workdir: the run's folder, local or `gs://BUCKET/…`.
      console: where to print; default standard output.

    Returns:
      The final `Scores` on the evaluation split, with "steps", "skipped_in_training" (the number of bad training
      images), "changes" (a line per change of config, code, device or data at a resume) and "provenance" (the wall time
      is that of this call, which began at step "wall_seconds_from_step").

    Raises:
      ConfigError, DataError: the config or the data are invalid, or the workdir contains files of another program;
        raised before the first step.
      StorageError: the workdir is a file, or in use by another training; the bucket cannot be read or written, or
        gcsfs is not installed.
      CheckpointError: every checkpoint is damaged, the newest one is of another network, or one cannot be written.
      NonFiniteLoss: loss, gradient norm or parameter norm of a step is not finite.
      Terminated: SIGTERM, SIGHUP or Ctrl-C was received; the state is saved.
      KeyboardInterrupt: Ctrl-C was pressed twice; the steps since the last checkpoint are lost.
    """
    workdir, begun = output_folder(workdir), time.monotonic()
    if not set("[]*?").isdisjoint(str(workdir)):
        raise StorageError(f"{workdir}: orbax would read [, ], * and ? in its path as a pattern; rename the workdir")
    validate(config)
    config_file = workdir / CONFIG_FILE
    earlier = read_config(config_file) if config_file.exists() else config
    for file in (workdir / METRICS_FILE, workdir / SCORES_FILE):
        if file.exists() and not config_file.exists():
            raise ConfigError(
                f"{file}: exists, and {workdir} is not a run: it has no {CONFIG_FILE}. Choose another --workdir, or "
                "move the file away"
            )
    console = console or rich.console.Console(quiet=not hosts.is_first_host())
    origin = provenance()  # now, because the checkout may change before the run ends
    mapping = parallel.device_mapping(config)
    # Before the data set is opened, and perhaps prepared, because the model checks the config against the classes.
    names, axis_name = label_set(config.data).names, parallel.axis_name(config)
    model = make_model(config, len(names), axis_name)
    train_source = open_split(config.data, config.data.train_split)
    eval_source = open_split(config.data, config.data.eval_split, mark_unseen=True)
    made_by = comparable(config) | numerics(origin)
    made_by |= {"training data": _facts(train_source), "evaluation data": _facts(eval_source)}
    made_by = json.loads(to_json(made_by))  # as it is read from a checkpoint: lists for tuples
    hosts.refuse_differences(made_by | {"devices of a host": jax.local_device_count()})
    hosts.refuse_separate_workdirs(workdir)
    for source, split in ((train_source, config.data.train_split), (eval_source, config.data.eval_split)):
        for line in check_split(source, split):
            say(line, console)
    if config.data.eval_split == config.data.train_split:
        say(
            f"warning: config.data.eval_split = {config.data.eval_split!r} is the training split, so its scores are "
            "too optimistic; choose another split",
            console,
        )

    train_step = make_train_step(config, model, len(names), axis_name)
    train_step = mapping.map_step(train_step, arguments=3, donate=config.training.donate)
    eval_step = mapping.map_step(make_eval_step(config, model, len(names), axis_name), arguments=3)
    predictor = inference.Predictor(model.clone(axis_name=None), None, preprocessing_of(config, len(names)))
    hparams, plan, steps = hparams_from_config(config), phases(config), config.training.steps

    if config.model.pretrained and not workdir.exists():
        init_state(config, model, pretrained=True)  # raises ConfigError, before anything is written, for a wrong file
    with contextlib.ExitStack() as stack:
        preemption = stack.enter_context(Preemption())
        if hosts.is_first_host():
            stack.enter_context(reserve(workdir))
        checkpoints = stack.enter_context(Checkpoints(workdir))
        for line in checkpoints.damaged:
            say(f"warning: {line}. It is set aside.", console)
        start = checkpoints.latest_step() or 0
        for line in changes_since(earlier, config):
            say(line, console)
        if start > steps:
            raise ConfigError(
                f"config.training.steps = {steps}, but {workdir} has been trained for {start} steps already; expected "
                f"at least {start}, or another --workdir"
            )
        if line := _rate_change(start, earlier, config):
            say(line, console)
        batches = stack.enter_context(contextlib.closing(train_batches(config, train_source)))
        state = mapping.everywhere(init_state(config, model, pretrained=not start))
        position, changes = {}, []
        if start:
            state, position = checkpoints.restore(state, start)
            batches.set_state(position)
            before = position.get(_MADE_BY, made_by)
            for key in (key for key in made_by if made_by[key] != before.get(key)):
                line = f"{key} is now {made_by[key]!r}; step {start} was trained with {before.get(key)!r}"
                changes.append(line)
                if not key.startswith("config."):
                    say(line, console)
            say(f"resumed at step {start} of {steps}", console)
        changes = [*position.get(_CHANGES, ()), *changes]
        # After the last step nothing is trained with another config, which would describe the network wrongly.
        if hosts.is_first_host() and (start < steps or not config_file.exists()):
            write_config(config_file, config)
        parameters, batch_size = sum(p.size for p in jax.tree.leaves(state.params)), config.training.global_batch
        say(
            f"{config.data.name}: {len(train_source)} training and {len(eval_source)} evaluation images; "
            f"{config.model.name} with {parameters / 1e6:.2f} M parameters; {steps} steps = "
            f"{steps * batch_size / len(train_source):.1f} epochs of batch {batch_size} on {mapping}",
            console,
        )
        state = mapping.replicate(state)
        log_folder = workdir if hosts.is_first_host() else None
        writer = MetricsWriter(log_folder, start=start, steps=steps, examples_per_step=batch_size, console=console)
        writer = stack.enter_context(writer)

        prefetched = deque()  # (batch on the devices, file names, loader position after it)
        unchecked = deque()  # (step, its numbers, file names)
        nonfinite_in_a_row, scores = 0, None
        unscored = position.get(_UNSCORED, False)  # stopped before the last step was scored: begin with that
        for step in range(start if unscored else start + 1, steps + 1):
            if step > start:
                while len(prefetched) <= config.training.prefetch:
                    batch = next(batches)
                    placed = mapping.shard({key: batch[key] for key in DEVICE_KEYS})
                    prefetched.append((placed, batch["name"].tolist(), batches.get_state()))
                placed, files, position = prefetched.popleft()
                state, measured = train_step(state, placed, hparams_at(step, hparams, plan))
                unchecked.append((step, mapping.unreplicate(measured), files))
                writer.advance(step)
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
                        allowed, good = config.training.skip_nonfinite, checkpoints.latest_step()
                        limit = f" It is the last of {allowed} skipped in a row." if allowed else ""
                        kept = (
                            f"The last good checkpoint, step {good}, is kept."
                            if good
                            else "No checkpoint was saved yet."
                        )
                        raise NonFiniteLoss(f"{message}{limit} {kept}")
                    writer.note(f"warning: {message} The step was skipped.")
                if not finite or checked_step % config.training.log_every == 0 or checked_step == steps:
                    logged = {f"train/{key}": value for key, value in values.items() if math.isfinite(value)}
                    if budget is not None and finite:
                        logged |= budget_scalars(jax.device_get(budget), (*names, "void"))
                    writer.scalars(checked_step, logged)
            if not saving:
                continue

            scores, rank = None, None
            if evaluating and not stopping:
                writer.describe("scoring")
                try:
                    scores = evaluate(preemption.watched(eval_step), state, eval_source, config, mapping)
                except EvaluationAborted:
                    stopping = True
                else:
                    variables = parallel.local(mapping.unreplicate(state)).variables
                    shown = range(min(4, len(eval_source)))
                    sheet = example_sheet({"prediction": predictor.with_variables(variables)}, eval_source, shown)
                    logged, rank = eval_scalars(scores), headline(scores)
                    writer.scalars(step, logged)
                    writer.image(step, "eval/image_truth_prediction", sheet)
            if step > start or scores is not None:  # else the checkpoint that was restored is this one
                writer.publish()  # the log of a checkpoint is written before the checkpoint
                position = {**position, _UNSCORED: evaluating and scores is None, _MADE_BY: made_by, _CHANGES: changes}
                checkpoints.save(mapping.collect(state), position, rank)
            if stopping:
                raise Terminated(
                    f"{preemption.reason}: stopped after step {step} of {steps}, which is saved in {workdir}; the same "
                    "command carries on from there"
                )
        if scores is None:  # the run had already ended
            try:
                scores = evaluate(preemption.watched(eval_step), state, eval_source, config, mapping)
            except EvaluationAborted as error:
                raise Terminated(f"{preemption.reason}: the finished run in {workdir} was not scored again") from error
        skipped = mapping.unreplicate(state).skipped
    wall = {"wall_seconds": round(time.monotonic() - begun), "wall_seconds_from_step": start}
    scores = {"steps": steps, "skipped_in_training": len(train_source.skipped), **scores}
    scores |= {"changes": changes, "provenance": origin | wall}
    if skipped is not None:
        scores["skipped_steps"] = int(skipped)
    if hosts.is_first_host():
        write_json(workdir / SCORES_FILE, scores)
    return Scores(scores)


def _facts(source: Source) -> str:
    """Returns the number of images, and a hash of the names and contents, of a split."""
    return f"{len(source)} images, {source.digest}"


def _rate_change(start: int, earlier: ConfigDict, config: ConfigDict) -> str:
    """Returns a warning if the learning rate leaps at a resumed step; "" if it does not."""
    if not start:
        return ""
    old, new = (learning_rate_at(start, each) for each in (earlier, config))
    if math.isclose(old, new, rel_tol=1e-3):
        return ""
    keep = "config.optimizer.schedule=constant --config.optimizer.warmup_fraction=0 --config.optimizer.learning_rate"
    return (
        f"warning: the learning rate of step {start} was {old:.3g}, and is {new:.3g} under the changed config. To "
        f"carry on at the old rate: --{keep}={old:.3g}"
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


class Preemption:
    """Context manager that listens for the signals that stop a run, and restores the handlers at its end.

    These are SIGTERM, which clusters send before they take a machine away, Ctrl-C (SIGINT) and the end of a terminal
    (SIGHUP). Signals that were already ignored, as SIGHUP under nohup, stay ignored. A second Ctrl-C raises
    KeyboardInterrupt.

    With several hosts, SIGINT and SIGHUP are forwarded as SIGTERM to JAX's preemption service, which notifies all
    hosts. `stopping` then becomes True at the same call on all of them, because all call it equally often: after every
    step and in `watched`.
    """

    def __init__(self):
        self._received, self._calls, self._previous = [], 0, {}

    def __enter__(self) -> "Preemption":
        listened = (signal.SIGINT, signal.SIGHUP) + (signal.SIGTERM,) * (jax.process_count() == 1)
        # Only the main thread may install a signal handler.
        for number in listened if threading.current_thread() is threading.main_thread() else ():
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not a handler of Python
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *unused) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, *unused) -> None:
        if number == signal.SIGINT in self._received:
            raise KeyboardInterrupt
        self._received.append(number)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    @property
    def reason(self) -> str:
        """The name of the signal that stops the run."""
        return signal.Signals(self._received[0]).name if self._received else "SIGTERM"

    def stopping(self) -> bool:
        """Returns True if the run has to stop here. All hosts must call it equally often."""
        self._calls += 1
        if jax.process_count() == 1:
            return bool(self._received)
        return multihost_utils.reached_preemption_sync_point(self._calls)

    def watched(self, function: Callable) -> Callable:
        """Wraps repeatable work: it raises `EvaluationAborted` after a signal. All hosts call it equally often."""

        def checked(*arguments):
            if self.stopping():
                raise EvaluationAborted
            return function(*arguments)

        return checked
