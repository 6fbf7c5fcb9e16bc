"""The training loop, `train(config, workdir)`, read top to bottom."""

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
import rich.console
from ml_collections import ConfigDict

from segjax.data import (
    Part,
    Source,
    TrainLoader,
    check_split,
    class_pixels,
    label_set,
    open_split,
    rare_class_sampling,
    train_loader,
)
from segjax.storage import reserve, say, write_json
from segjax.training import hosts, parallel
from segjax.training.checkpoint import Checkpoints, has_checkpoints, run_folder, with_pretrained
from segjax.training.config import (
    CONFIG_FILE,
    ConfigError,
    changed,
    changes_since,
    comparable,
    earlier_config,
    leaves,
    with_found_data,
    write_config,
)
from segjax.training.evaluation import Progress, Scores, eval_scalars, evaluate, headline
from segjax.training.metrics_writer import METRICS_FILE, MetricsWriter
from segjax.training.network import make_model, network_size
from segjax.training.objective import budget_scalars, hparams_at, hparams_from_config, phases
from segjax.training.provenance import differences, provenance, run_record
from segjax.training.trackers import check_trackers
from segjax.training.train_step import init_state, learning_rate_leap, make_train_step, rare_train_ids, task_of

SCORES_FILE = "scores.json"
# Saved beside the loader's position: the step still has to be scored; config, code, device and data of its training;
# where these changed during the run; and its `Progress`.
_UNSCORED, _MADE_BY, _CHANGES, _PROGRESS = "unscored", "made_by", "changes", "progress"
_VITAL = ("loss", "grad_norm", "param_norm")  # must be finite


class NonFiniteLoss(RuntimeError):
    """A step was not finite; the message names the step, its numbers, the files and the last good checkpoint."""


@hosts.failures_end_all_hosts()
def train(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    console: rich.console.Console | None = None,
    trackers: Sequence[str] = ("tensorboard",),
) -> dict[str, Any]:
    """Trains a network as `config` describes; called again, it resumes from the newest checkpoint.

    Writes `config.json`, `metrics.jsonl`, `run.html` (the page of the run), `checkpoints/` (the last
    two and the best by `headline`) and, at the end, `scores.json`.

    Args:
      config: a complete config, see `segjax.training.config`.
      workdir: the run's folder, local or `gs://BUCKET/…`.
      console: where to print; default standard output.
      trackers: programs that show the numbers of the run: "tensorboard", "mlflow", "wandb".

    Returns:
      The final `Scores` on the evaluation split, with "steps", "skipped_in_training" (the number of bad training
      images), "changes" (a line per change of config, code, device or data at a resume) and "provenance" (the wall time
      is that of this call, which began at step "wall_seconds_from_step"). With `training.patience`, a run that ended
      before its last step has "stopped_early", a line with the reason; "steps" is then the step at which it ended.

    Raises:
      ConfigError, DataError: the config or the data are invalid, the workdir contains files of another program, or a
        tracker is not installed; raised before the first step.
      StorageError: the workdir is a file, or in use by another training; the bucket cannot be read or written, or
        gcsfs is not installed.
      CheckpointError: every checkpoint is damaged, the newest one is of another network, or one cannot be written.
      NonFiniteLoss: loss, gradient norm or parameter norm of a step is not finite.
      Terminated: SIGTERM, SIGHUP or Ctrl-C was received; the state is saved.
      KeyboardInterrupt: Ctrl-C was pressed twice; the steps since the last checkpoint are lost.
    """
    begun, workdir = time.monotonic(), run_folder(workdir)
    check_trackers(trackers, workdir)
    earlier = earlier_config(workdir, config, others=(METRICS_FILE, SCORES_FILE))
    if earlier.model.members != config.model.members and has_checkpoints(workdir):
        raise ConfigError(
            f"config.model.members = {config.model.members}, but {workdir} was started with {earlier.model.members}; "
            "expected the same, or another --workdir"
        )
    origin = provenance()  # now, because the checkout may change before the run ends
    console = console or rich.console.Console(quiet=not hosts.is_first_host())

    mapping, axis_name = parallel.device_mapping(config), parallel.axis_name(config)
    # Before the data set is opened, and perhaps prepared, because the model checks the config against the classes.
    names = label_set(config.data).names
    model = make_model(config, len(names), axis_name)
    found, train_source, eval_source, lines = open_splits(config)
    earlier, config = found if earlier is config else earlier, found
    settings, config_changes = comparable(config), changes_since(earlier, config)
    made_by = run_record(settings, origin, {"training data": train_source, "evaluation data": eval_source})
    hosts.refuse_differences(made_by | {"devices of a host": jax.local_device_count()})
    hosts.refuse_separate_workdirs(workdir)
    for line in lines:
        say(line, console)

    state, task = init_state(config, model), task_of(config)
    train_step = make_train_step(config, model, len(names), axis_name)
    train_step = mapping.map_step(train_step, arguments=3, donate=config.training.donate)
    part, patience, steps = eval_source, config.training.patience, config.training.steps
    if config.training.evaluate_examples is not None and config.training.evaluate_examples < len(eval_source):
        part = Part(eval_source, config.training.evaluate_examples)
    predictor = task.make_predictor(config, model, None)
    eval_step = mapping.map_step(task.make_eval_step(config, model, len(names), axis_name), arguments=3)
    preemption = hosts.Preemption()
    eval_step = preemption.watched(eval_step)
    # Before anything is written, because the file of pretrained weights may be wrong.
    if not has_checkpoints(workdir):
        state = with_pretrained(state, config)

    with contextlib.ExitStack() as stack:
        stack.enter_context(preemption)
        if hosts.is_first_host():
            stack.enter_context(reserve(workdir))
        checkpoints = stack.enter_context(Checkpoints(workdir))
        start = checkpoints.latest_step() or 0
        for line in [*(f"warning: {damage}. It is set aside." for damage in checkpoints.damaged), *config_changes]:
            say(line, console)
        if start > steps:
            raise ConfigError(
                f"config.training.steps = {steps}, but {workdir} has been trained for {start} steps already; expected "
                f"at least {start}, or another --workdir"
            )
        state, position, changes = mapping.everywhere(state), {}, []
        batches = stack.enter_context(contextlib.closing(train_batches(config, train_source)))
        if start:
            state, position = checkpoints.restore(state, start)
            batches.set_state(position)
            changes = differences(made_by, position.get(_MADE_BY, made_by), start)
            for line in changes:
                if not line.startswith("config."):  # printed already
                    say(line, console)
            say(f"resumed at step {start} of {steps}", console)
        changes, progress = [*position.get(_CHANGES, ()), *changes], Progress(*position.get(_PROGRESS, ()))
        step, ended = start, start == steps or progress.has_stalled(patience)
        # After the last step nothing is trained with another config, which would describe the network wrongly.
        if hosts.is_first_host() and not (ended and (workdir / CONFIG_FILE).exists()):
            write_config(workdir / CONFIG_FILE, config)
        if leap := learning_rate_leap(start, earlier, config):
            say(leap, console)
        hparams, plan = hparams_from_config(config), phases(config)
        batch_size = config.training.global_batch
        say(
            f"{config.data.name}: {len(train_source)} training and {len(eval_source)} evaluation images"
            f"{_described_pixels(train_source)}; "
            f"{config.model.name} with {network_size(state.num_parameters, config.model.members)}; {steps} steps = "
            f"{steps * batch_size / len(train_source):.1f} epochs of batch {batch_size} on {mapping}",
            console,
        )
        state = mapping.replicate(state)
        log_folder = workdir if hosts.is_first_host() else None
        page = {"title": f"{config.model.name} on {config.data.name}", "fields": changed(config), "facts": origin}
        options = {"examples_per_step": batch_size, "console": console, "page": page}
        options |= {"trackers": trackers, "params": leaves(config), "facts": origin}
        writer = stack.enter_context(MetricsWriter(log_folder, start=start, steps=steps, **options))

        prefetched = deque()  # (batch on the devices, file names, loader position after it)
        unchecked = deque()  # (step, its numbers, file names)
        nonfinite_in_a_row, scores = 0, None
        unscored = position.get(_UNSCORED, False)  # stopped before the last step was scored: begin with that
        for step in () if ended and not unscored else range(start if unscored else start + 1, steps + 1):
            if step > start:
                while len(prefetched) <= config.training.prefetch:
                    batch = next(batches)
                    placed = mapping.shard(device_arrays(batch))
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
                        kept = f"The last good checkpoint, step {good}, is kept." if good else ""
                        raise NonFiniteLoss(f"{message}{limit} {kept or 'No checkpoint was saved yet.'}")
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
                    scores = of_part = evaluate(eval_step, state, part, config, mapping)
                    rank = headline(of_part)
                    now = progress.after(step, rank)
                    ended = step == steps or (patience is not None and hosts.agreed(now.has_stalled(patience)))
                    if ended and part is not eval_source:
                        scores = evaluate(eval_step, state, eval_source, config, mapping)
                except hosts.EvaluationAborted:
                    stopping, scores, rank, ended = True, None, None, False
                else:
                    progress = now
                    variables = parallel.local(mapping.unreplicate(state)).variables
                    shown = range(min(4, len(eval_source)))
                    predictor = predictor.with_variables(variables)
                    sheet = task.example_sheet({"prediction": predictor}, eval_source, config, shown)
                    waited = {} if patience is None else {"eval/evaluations_since_best": float(progress.since)}
                    writer.scalars(step, eval_scalars(of_part) | waited)
                    writer.image(step, "eval/image_truth_prediction", sheet)
                    writer.write_page()
            if step > start or scores is not None:  # else the checkpoint that was restored is this one
                writer.publish()  # the log of a checkpoint is written before the checkpoint
                position = {**position, _UNSCORED: evaluating and scores is None, _MADE_BY: made_by, _CHANGES: changes}
                position[_PROGRESS] = list(progress)
                checkpoints.save(mapping.collect(state), position, rank)
            if stopping:
                raise hosts.Terminated(
                    f"{preemption.reason}: stopped after step {step} of {steps}, which is saved in {workdir}; the same "
                    "command carries on from there"
                )
            if ended:
                break
        if scores is None:  # the run had already ended
            try:
                scores = evaluate(eval_step, state, eval_source, config, mapping)
            except hosts.EvaluationAborted as error:
                reason = f"{preemption.reason}: the finished run in {workdir} was not scored again"
                raise hosts.Terminated(reason) from error
        skipped = mapping.unreplicate(state).skipped
    wall = {"wall_seconds": round(time.monotonic() - begun), "wall_seconds_from_step": start}
    scores = {"steps": step, "skipped_in_training": len(train_source.skipped), **scores}
    scores |= {"changes": changes, "provenance": origin | wall}
    if step < steps:
        scores["stopped_early"] = (
            f"stopped early after step {step} of {steps}: the score, {progress.best:.4f} at step {progress.step}, did "
            f"not improve in {progress.since} evaluations (config.training.patience = {patience})"
        )
        say(scores["stopped_early"], console)
    if skipped is not None:
        scores["skipped_steps"] = int(skipped)
    if hosts.is_first_host():
        write_json(workdir / SCORES_FILE, scores)
    return Scores(scores)


def open_splits(config: ConfigDict) -> tuple[ConfigDict, Source, Source, list[str]]:
    """Returns the config `with_found_data`, the training and the evaluation split, and lines about them for the user.

    Raises: ConfigError, DataError as `open_split` and `with_found_data`.
    """
    rare_train_ids(config)  # refuses unknown names before a data set is opened
    train_split, eval_split = config.data.train_split, config.data.eval_split
    train = open_split(config.data, train_split)
    found = with_found_data(config, train)
    evaluation = open_split(found.data, eval_split, mark_unseen=True)
    lines = [*train.notes, *check_split(train, train_split), *check_split(evaluation, eval_split)]
    if eval_split == train_split:
        lines.append(
            f"warning: config.data.eval_split = {eval_split!r} is the training split, so its scores are too "
            "optimistic; choose another split"
        )
    return found, train, evaluation, lines


def _described_pixels(source: Source) -> str:
    """Returns the number of channels and the range of values for the user; "" for RGB of 8 bits."""
    channels = f" of {source.channels} channel{'s' * (source.channels > 1)}"
    if source.value_range is None:
        return "" if source.channels == 3 else channels
    low, high = source.value_range
    return f"{channels}, values {low:g} to {high:g} scaled to 0 to 1"


def train_batches(config: ConfigDict, source: Source) -> TrainLoader:
    """Returns the endless stream of this host's training batches."""
    temperature = config.data.sampling_temperature
    return train_loader(
        source,
        global_batch_size=config.training.global_batch,
        seed=config.seed,
        # If all images have one size, the device crops from the original pixels.
        size=None if source.native_size else tuple(config.data.size),
        letterbox=config.data.letterbox,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
        probabilities=None if temperature is None else rare_class_sampling(class_pixels(source), temperature),
    )


def device_arrays(batch: dict[str, Any]) -> dict[str, Any]:
    """Returns the arrays of a training batch that go to the device: all but the file names."""
    return {key: values for key, values in batch.items() if key != "name"}
