"""`train(config, workdir)`: the whole of a run, read top to bottom."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
from jax.sharding import Mesh
from ml_collections import ConfigDict

from segjax.data import Source, TrainLoader, open_split, skipped_lines, train_loader
from segjax.training import parallel
from segjax.training.budget import budget_scalars
from segjax.training.checkpoint import Checkpoints
from segjax.training.defaults import ConfigError, leaves
from segjax.training.evaluation import contact_sheet, evaluate
from segjax.training.objective import hyper_from_config
from segjax.training.optimizer import hyper_at, phases
from segjax.training.prediction import make_eval_step, make_predictor
from segjax.training.provenance import provenance
from segjax.training.step import TrainState, init_state, make_model, make_train_step
from segjax.training.tracker import Tracker
from segjax.training.validation import validate

CONFIG_FILE = "config.json"
SCORES_FILE = "scores.json"
# What the device reads of a training batch; file names stay on the host.
DEVICE_KEYS = ("image", "label", "index")


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message names the step, the files and the last good checkpoint."""


def train(config: ConfigDict, workdir: str | Path, *, console: rich.console.Console | None = None) -> dict[str, Any]:
    """Trains what `config` describes, in `workdir`; called again, it carries on from the newest checkpoint.

    Writes `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/` (the latest and the best by validation mean
    IoU, or by average precision for two classes) and, at the end, `scores.json`.

    Args:
      config: a complete config, see `segjax.training.defaults`.
      workdir: the run's folder.
      console: where to print, default standard output.

    Returns:
      The final scores of the evaluation split, as `evaluation.evaluate` gives them, with "steps",
      "skipped_in_training" (bad images of the training split, left out) and "provenance" (where the wall time is that
      of this call, which began at step "wall_seconds_from_step").

    Raises:
      ConfigError, DataError: the config or the data do not fit; raised before the first step.
      NonFiniteLoss: the loss is no longer finite.
    """
    workdir, console, begun = Path(workdir), console or rich.console.Console(), time.monotonic()
    validate(config)
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
    machine, outputs = _build(config, mesh, len(names)), (*names, "void")
    hyper, plan, steps = hyper_from_config(config), phases(config), config.training.steps
    with Checkpoints(workdir) as checkpoints, contextlib.closing(train_batches(config, train_source)) as batches:
        state, start = init_state(config, machine.model), checkpoints.latest_step() or 0
        if start:
            state, position = checkpoints.restore(state, start)
            batches.set_state(position)
            console.print(f"resumed at step {start} of {steps}")
        _write_config(config, workdir, console)
        console.print(_summary(config, train_source, eval_source, state, mesh))
        state, scores = parallel.replicate(state, config, mesh), None
        with Tracker(
            workdir if jax.process_index() == 0 else None,
            start=start,
            steps=steps,
            examples_per_step=config.training.global_batch,
            console=console,
        ) as tracker:
            watch = _LossWatch(checkpoints, tracker, config, outputs)
            for step in range(start + 1, steps + 1):
                batch = next(batches)
                placed = parallel.shard({k: batch[k] for k in DEVICE_KEYS}, config, mesh)
                state, measured = machine.train_step(state, placed, hyper_at(step, hyper, plan))
                watch.dispatched(step, parallel.unreplicate(measured, config), batch["name"].tolist())
                evaluating = step % config.training.evaluate_every == 0 or step == steps
                if not (evaluating or step % config.training.checkpoint_every == 0):
                    continue
                watch.settle()  # what is scored or saved must be finite
                score = None
                if evaluating:
                    scores = evaluate(machine.eval_step, state, eval_source, config, mesh)
                    score = headline(scores)
                    tracker.scalars(step, eval_scalars(scores))
                    predict = machine.predictor(parallel.unreplicate(state, config))
                    sheet = contact_sheet([predict], eval_source, range(min(4, len(eval_source))))
                    tracker.image(step, "eval/image_truth_prediction", sheet)
                checkpoints.save(parallel.unreplicate(state, config), batches.get_state(), score)
        if scores is None:  # the run had ended before: score what it ended with
            scores = evaluate(machine.eval_step, state, eval_source, config, mesh)
    wall = {"wall_seconds": round(time.monotonic() - begun), "wall_seconds_from_step": start}
    scores = {"steps": steps, "skipped_in_training": len(train_source.skipped), **scores, "provenance": origin | wall}
    if jax.process_index() == 0:
        write_json(workdir / SCORES_FILE, scores)
    return scores


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
        parallel.map_step(train_step, config, mesh, arguments=3, donate=True),
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


class _LossWatch:
    """Looks at each step's loss one step late, so that the host never waits for the device that it should feed."""

    def __init__(self, checkpoints: Checkpoints, tracker: Tracker, config: ConfigDict, outputs: Sequence[str]):
        self._checkpoints, self._tracker, self._config, self._outputs = checkpoints, tracker, config, outputs
        self._pending: tuple[int, dict[str, Any], list[str]] | None = None

    def dispatched(self, step: int, measured: dict[str, Any], names: list[str]) -> None:
        self.settle()
        self._pending = (step, measured, names)

    def settle(self) -> None:
        """Waits for the pending step and logs it, or raises `NonFiniteLoss`."""
        if self._pending is None:
            return
        step, measured, names = self._pending
        self._pending = None
        budget = measured.pop("budget", None)
        values = {f"train/{k}": float(v) for k, v in measured.items()}
        if not np.isfinite(values["train/loss"]) or not np.isfinite(values["train/grad_norm"]):
            kept = self._checkpoints.latest_step()
            raise NonFiniteLoss(
                f"step {step}: loss {values['train/loss']}, gradient norm {values['train/grad_norm']}; expected finite "
                f"values. The batch was {', '.join(map(str, names))}. "
                + (f"The last good checkpoint, step {kept}, is kept." if kept else "No checkpoint was saved yet.")
            )
        if step % self._config.training.log_every == 0 or step == self._config.training.steps:
            if budget is not None:
                outputs = self._outputs[: len(budget.gradient)]
                values |= budget_scalars(jax.device_get(budget), outputs)
            self._tracker.scalars(step, values)


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


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader finds the old file or the new one, never half of one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1, allow_nan=True) + "\n", encoding="utf-8")
    os.replace(partial, path)


def check_channels(config: ConfigDict, source: Source) -> None:
    """Raises `ConfigError` if the images of `source` have not the channels that the config says."""
    if source.channels != config.data.channels:
        raise ConfigError(
            f"config.data.channels = {config.data.channels}, but the images of {config.data.name} have "
            f"{source.channels} channel(s)"
        )


def _write_config(config: ConfigDict, workdir: Path, console: rich.console.Console) -> None:
    """Records the config; says what differs from the one the run was started with."""
    now = json.loads(json.dumps(leaves(config)))
    path = workdir / CONFIG_FILE
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        for key in sorted(now):
            if before.get(key) != now[key]:
                console.print(f"config.{key} is now {now[key]!r}; the run was started with {before.get(key)!r}")
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, now)


def _summary(config: ConfigDict, train_source: Source, eval_source: Source, state: TrainState, mesh) -> str:
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    examples = config.training.steps * config.training.global_batch
    return (
        f"{config.data.name}: {len(train_source)} training and {len(eval_source)} evaluation images; "
        f"{config.model.name} with {parameters / 1e6:.2f} M parameters; {config.training.steps} steps "
        f"= {examples / len(train_source):.1f} epochs of batch {config.training.global_batch} on {mesh.size} "
        f"{mesh.devices.flat[0].platform} device(s), {config.parallel}"
    )
