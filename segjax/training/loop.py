"""`train(config, workdir)`: the whole of a run, read top to bottom."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from segjax.data import Source, TrainLoader, open_split, skipped_lines, train_loader
from segjax.training import parallel
from segjax.training.checkpoint import Checkpoints
from segjax.training.defaults import ConfigError, check_not_renamed, leaves
from segjax.training.evaluation import contact_sheet, evaluate
from segjax.training.feed import feed
from segjax.training.networks import make_model
from segjax.training.objective import hyper_from_config
from segjax.training.optimizer import hyper_at, phases
from segjax.training.prediction import make_eval_step, make_predictor
from segjax.training.provenance import provenance
from segjax.training.step import TrainState, init_state, make_train_step
from segjax.training.storage import path_of, write_text
from segjax.training.termination import Cut, Terminated, Termination
from segjax.training.tracker import Tracker
from segjax.training.validation import validate
from segjax.training.watch import Watch

CONFIG_FILE = "config.json"
SCORES_FILE = "scores.json"
# What the device reads of a training batch; file names stay on the host.
DEVICE_KEYS = ("image", "label", "index")
_UNSCORED = "unscored"  # saved beside the loader's position: this step is to be scored yet


def train(
    config: ConfigDict, workdir: str | os.PathLike, *, console: rich.console.Console | None = None
) -> dict[str, Any]:
    """Trains what `config` describes, in `workdir`; called again, it carries on from the newest checkpoint.

    Writes `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/` (the last two and the best by validation mean
    IoU, or by average precision for two classes) and, at the end, `scores.json`.

    Args:
      config: a complete config, see `segjax.training.defaults`.
      workdir: the run's folder, of this machine or `gs://BUCKET/…`.
      console: where to print, default standard output.

    Returns:
      The final scores of the evaluation split, as `evaluation.evaluate` gives them, with "steps",
      "skipped_in_training" (bad images of the training split, left out) and "provenance" (where the wall time is that
      of this call, which began at step "wall_seconds_from_step").

    Raises:
      ConfigError, DataError: the config or the data do not fit; raised before the first step.
      StorageError: the bucket cannot be read or written, or gcsfs is not installed.
      CheckpointError: every checkpoint is damaged, the newest is of another network, or one cannot be written.
      NonFiniteLoss: a step is not finite.
      Terminated: SIGTERM came; the state is saved.
    """
    workdir, begun = path_of(workdir), time.monotonic()
    validate(config)
    console = console or rich.console.Console(quiet=not parallel.is_first_host())
    origin = provenance()  # at the end the checkout may hold other code than this process runs
    mesh = parallel.make_mesh()
    parallel.check_batch(config, mesh)
    train_source = open_split(config.data, config.data.train_split)
    eval_source = open_split(config.data, config.data.eval_split)
    for source, split in ((train_source, config.data.train_split), (eval_source, config.data.eval_split)):
        check_channels(config, source)
        for line in skipped_lines(source, split):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    names = train_source.label_set.names
    machine = _build(config, mesh, len(names))
    hyper, plan, steps = hyper_from_config(config), phases(config), config.training.steps
    with contextlib.ExitStack() as stack:
        termination = stack.enter_context(Termination())
        checkpoints = stack.enter_context(Checkpoints(workdir))
        for line in checkpoints.damaged:
            console.print(f"warning: {line}. It is set aside.", markup=False)
        _report_changes(config, workdir, console)
        batches = stack.enter_context(contextlib.closing(train_batches(config, train_source)))
        start = checkpoints.latest_step() or 0
        state = parallel.everywhere(init_state(config, machine.model, pretrained=not start), mesh)
        position: dict[str, Any] = {}
        if start:
            state, position = checkpoints.restore(state, start)
            batches.set_state(position)
            console.print(f"resumed at step {start} of {steps}")
        _write_config(config, workdir)
        console.print(_summary(config, train_source, eval_source, state, mesh))
        state, scores = parallel.replicate(state, config, mesh), None
        tracker = stack.enter_context(
            Tracker(
                workdir if parallel.is_first_host() else None,
                start=start,
                steps=steps,
                examples_per_step=config.training.global_batch,
                console=console,
            )
        )
        watch = Watch(checkpoints, tracker, config, (*names, "void"))
        scoring = _Scoring(config, machine, eval_source, mesh, tracker, termination)

        def save(position: dict[str, Any], scores: dict[str, Any] | None, *, unscored: bool) -> None:
            tracker.publish()  # a checkpoint's log is there before it is
            one = parallel.collect(state, config, mesh)
            checkpoints.save(one, {**position, _UNSCORED: unscored}, headline(scores) if scores else None)

        if position.get(_UNSCORED):  # SIGTERM came before this step was scored
            scores = scoring(start, state)
            if scores is None:
                raise Terminated(_goodbye(start, steps, workdir))
            save(position, scores, unscored=False)
        fed = feed(batches, lambda batch: parallel.shard(_for_device(batch), config, mesh), config.training.prefetch)
        for step, (batch, examples, position) in zip(range(start + 1, steps + 1), fed, strict=False):
            state, measured = machine.train_step(state, batch, hyper_at(step, hyper, plan))
            watch.dispatched(step, parallel.unreplicate(measured, config), examples)
            stopping = termination.stopping()
            evaluating = step % config.training.evaluate_every == 0 or step == steps
            if not (evaluating or stopping or step % config.training.checkpoint_every == 0):
                continue
            watch.settle()  # what is scored or saved must be finite
            scores = scoring(step, state) if evaluating and not stopping else None
            unscored = evaluating and scores is None
            save(position, scores, unscored=unscored)
            if stopping or unscored:
                raise Terminated(_goodbye(step, steps, workdir))
        if scores is None:  # the run had ended before: score what it ended with
            scores = evaluate(machine.eval_step, state, eval_source, config, mesh)
        skipped = parallel.unreplicate(state, config).skipped
    wall = {"wall_seconds": round(time.monotonic() - begun), "wall_seconds_from_step": start}
    scores = {"steps": steps, "skipped_in_training": len(train_source.skipped), **scores, "provenance": origin | wall}
    if skipped is not None:
        scores["skipped_steps"] = int(skipped)
    if parallel.is_first_host():
        write_json(workdir / SCORES_FILE, scores)
    return scores


class _Scoring:
    """Scores a state in the middle of a run, and logs the scores and a few pictures."""

    def __init__(self, config, machine, source, mesh, tracker, termination):
        self._config, self._machine, self._source, self._mesh = config, machine, source, mesh
        self._tracker, self._termination = tracker, termination

    def __call__(self, step: int, state: Any) -> dict[str, Any] | None:
        """`evaluation.evaluate`'s scores; None if SIGTERM came, which does not wait for a long evaluation."""
        eval_step = self._termination.watched(self._machine.eval_step)
        try:
            scores = evaluate(eval_step, state, self._source, self._config, self._mesh)
        except Cut:
            return None
        self._tracker.scalars(step, eval_scalars(scores))
        predict = self._machine.predictor(parallel.local(parallel.unreplicate(state, self._config)))
        sheet = contact_sheet([predict], self._source, range(min(4, len(self._source))))
        self._tracker.image(step, "eval/image_truth_prediction", sheet)
        return scores


def _goodbye(step: int, steps: int, workdir: epath.Path) -> str:
    return (
        f"SIGTERM: stopped after step {step} of {steps}, which is saved in {workdir}; the same command carries on from "
        "there"
    )


def _for_device(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: batch[key] for key in DEVICE_KEYS}


class _Machine(NamedTuple):
    """The network and its compiled functions."""

    model: Any
    train_step: Callable
    eval_step: Callable
    predictor: Callable


def _build(config: ConfigDict, mesh: Mesh, num_classes: int) -> _Machine:
    axis_name = parallel.axis_name(config)
    model = make_model(config, num_classes, axis_name)
    train_step, eval_step = (
        make_train_step(config, model, num_classes, axis_name),
        make_eval_step(config, model, num_classes, axis_name),
    )
    return _Machine(
        model,
        parallel.map_step(train_step, config, mesh, arguments=3, donate=config.training.donate),
        parallel.map_step(eval_step, config, mesh, arguments=2),
        make_predictor(config, model, num_classes),
    )


def train_batches(config: ConfigDict, source: Source) -> TrainLoader:
    """The endless stream of this host's training batches."""
    return train_loader(
        source,
        global_batch_size=config.training.global_batch,
        seed=config.seed,
        # Native resolution where it is one for all: the crop is then cut from the original pixels, on the device.
        size=None if source.native_size else tuple(config.data.size),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
    )


def eval_scalars(scores: dict[str, Any]) -> dict[str, float]:
    """What TensorBoard can draw of the scores: the single numbers, and IoU and recall by class."""
    by_class = {
        f"eval/{short}/{name}": value
        for short in ("iou", "recall")
        for name, value in zip(scores["classes"], scores[f"{short}_per_class"], strict=True)
    }
    single = {f"eval/{k}": v for k, v in scores.items() if isinstance(v, float)}
    return {k: v for k, v in (single | by_class).items() if not math.isnan(v)}


def headline(scores: dict[str, Any]) -> float:
    """The one number that "best" is judged by: average precision for two classes, else mean IoU; higher is better."""
    value = scores.get("average_precision", scores["mean_iou"])
    return value if np.isfinite(value) else -1.0


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes JSON so that a reader finds the old file or the new one, never half of one."""
    write_text(path, json.dumps(value, indent=1, allow_nan=True) + "\n")


def check_channels(config: ConfigDict, source: Source) -> None:
    """Raises `ConfigError` if the images of `source` have not the channels that the config says."""
    if source.channels != config.data.channels:
        raise ConfigError(
            f"config.data.channels = {config.data.channels}, but the images of {config.data.name} have "
            f"{source.channels} channel(s)"
        )


def _report_changes(config: ConfigDict, workdir: epath.Path, console: rich.console.Console) -> None:
    """Says what differs from the config that the run was started with, before anything is made of it."""
    path = workdir / CONFIG_FILE
    if not path.exists():
        return
    now, before = _jsonable(config), json.loads(path.read_text(encoding="utf-8"))
    for key in before:
        check_not_renamed(key)
    for key in sorted(now):
        if before.get(key) != now[key]:
            console.print(f"config.{key} is now {now[key]!r}; the run was started with {before.get(key)!r}")


def _write_config(config: ConfigDict, workdir: epath.Path) -> None:
    if parallel.is_first_host():
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / CONFIG_FILE, _jsonable(config))


def _jsonable(config: ConfigDict) -> dict[str, Any]:
    return json.loads(json.dumps(leaves(config)))


def _summary(config: ConfigDict, train_source: Source, eval_source: Source, state: TrainState, mesh) -> str:
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    examples = config.training.steps * config.training.global_batch
    return (
        f"{config.data.name}: {len(train_source)} training and {len(eval_source)} evaluation images; "
        f"{config.model.name} with {parameters / 1e6:.2f} M parameters; {config.training.steps} steps "
        f"= {examples / len(train_source):.1f} epochs of batch {config.training.global_batch} on {mesh.size} "
        f"{mesh.devices.flat[0].platform} device(s), {config.parallel}"
    )
