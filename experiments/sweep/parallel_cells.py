"""Trains runs of one program side by side, one per device: the same batches, different hyperparameters.

Step, data, schedule, scores, log and checkpoints are those of `segjax.training.train`.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from segjax.data import Source
from segjax.storage import nan_to_none
from segjax.training import parallel
from segjax.training.checkpoint import Checkpoints, with_pretrained
from segjax.training.config import CONFIG_FILE, ConfigError, no_effect, with_found_data, write_config
from segjax.training.evaluation import count_batches, eval_scalars, headline
from segjax.training.loop import device_arrays, open_splits, train_batches
from segjax.training.metrics_writer import METRICS_FILE, append, drop_after, read_log
from segjax.training.network import TrainState, make_model
from segjax.training.objective import GradientBudget, budget_scalars, hparams_at, hparams_from_config, phases
from segjax.training.provenance import provenance
from segjax.training.train_step import init_state, make_train_step, task_of

RESULT_FILE = "cell.json"


def map_cells(step: Callable, mesh: Mesh, *, shared: Sequence[bool], donate: bool = False) -> Callable:
    """Compiles `step` for one cell per device: independent runs of one program side by side.

    Args:
      step: code of one run on one device, without an axis name.
      mesh: as many devices as cells.
      shared: per argument, True if it is the same for all cells. The others, and the result, have a leading axis of
        `mesh.size` cells.
      donate: reuse the buffers of the first argument.
    """

    def cell(*arguments: Any) -> Any:
        own = (x if same else jax.tree.map(lambda a: a[0], x) for x, same in zip(arguments, shared, strict=True))
        return jax.tree.map(lambda a: a[None], step(*own))

    specs, cells = tuple(P() if same else P(parallel.AXIS) for same in shared), P(parallel.AXIS)
    mapped = jax.shard_map(cell, mesh=mesh, in_specs=specs, out_specs=cells, check_vma=False)
    return jax.jit(mapped, donate_argnums=(0,) if donate else (), out_shardings=NamedSharding(mesh, cells))


class CompiledSweep(NamedTuple):
    """The data, devices and compiled steps that the cells of one program share."""

    train_source: Any
    eval_source: Any
    mesh: Mesh
    train_step: Callable
    eval_step: Callable
    provenance: dict[str, Any]


def compile_sweep(
    config: ConfigDict, mesh: Mesh, change_split: Callable[[Source], Source] = lambda source: source
) -> CompiledSweep:
    """Returns the sweep of the program of `config`, with one cell per device of `mesh`.

    `change_split` is that of `grid.run`.

    Raises:
      ConfigError, DataError: the config or the data are invalid.
    """
    for key in ("evaluate_examples", "patience"):
        if config.training[key] is not None:
            raise ConfigError(no_effect(f"training.{key}", config.training[key], "a sweep of parallel cells", None))
    config, *sources, lines = open_splits(config)
    for line in lines:
        print(line, file=sys.stderr, flush=True)
    classes = len(sources[0].label_set.names)
    model = make_model(config, classes)
    makers = make_train_step, task_of(config).make_eval_step
    train_step, eval_step = (make(config, model, classes, None) for make in makers)
    return CompiledSweep(
        change_split(sources[0]),
        sources[1],
        mesh,
        map_cells(train_step, mesh, shared=(False, True, False), donate=True),
        map_cells(eval_step, mesh, shared=(False, True, False)),
        provenance(),  # now, because the checkout may change before the sweep ends
    )


def train_together(
    configs: Sequence[ConfigDict],
    folders: Sequence[Path],
    sweep: CompiledSweep,
    *,
    before_step: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Trains one run per config, each in its folder; called again, they carry on from their newest checkpoints.

    A folder is the workdir of a run, which `segjax.evaluate` accepts: `config.json`, `metrics.jsonl`, `checkpoints/`.
    A run that diverges stops; the others go on.

    Args:
      configs: configs of one program and one seed, at most one per device.
      folders: their folders, whose newest checkpoints are of one step.
      sweep: `compile_sweep` of any of the configs.
      before_step: called before each step; an exception that it raises ends the training.

    Returns:
      The result of each run, ready for JSON: "status" ("done" or "diverged"), "diverged_at" (the step, or None),
      "steps", "first_loss", "curves" (scores by evaluated step), "scores" (of the last evaluation) and "provenance".
    """
    configs = [with_found_data(config, sweep.train_source) for config in configs]
    first, begun = configs[0].training, time.monotonic()
    plans, initial = [phases(config) for config in configs], [hparams_from_config(config) for config in configs]
    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(contextlib.closing(train_batches(configs[0], sweep.train_source)))
        names = sweep.train_source.label_set.names
        runs = [_Run(config, folder, names, stack) for config, folder in zip(configs, folders, strict=True)]
        (start,) = {run.start for run in runs}
        restored, positions = zip(*(run.restore() for run in runs), strict=True)
        states, hparams, unlogged = _stack(restored, sweep.mesh), None, None
        if start:
            batches.set_state(positions[0])
        if start == first.steps:  # killed after the last save
            _evaluate(runs, states, sweep, start)
        for step in range(start + 1, first.steps + 1):
            before_step()
            if hparams is None or any(step == phase.end + 1 for phase in plans[0]):
                now = [hparams_at(step, values, plan) for values, plan in zip(initial, plans, strict=True)]
                hparams = _stack(now, sweep.mesh)
            batch = next(batches)
            states, measured = sweep.train_step(states, _replicate(device_arrays(batch), sweep.mesh), hparams)
            if unlogged:  # one step late, so that the devices never wait for the host
                _log(runs, *unlogged)
            unlogged = (step, measured)
            evaluating = step % first.evaluate_every == 0 or step == first.steps
            if not (evaluating or step % first.checkpoint_every == 0):
                continue
            _log(runs, *unlogged)
            unlogged = None
            if not any(run.alive for run in runs):
                break
            if evaluating:
                _evaluate(runs, states, sweep, step)
            for i, run in enumerate(runs):
                run.save(_take(states, jnp.int32(i)), batches.get_state(), scored=evaluating)
    wall = {"wall_seconds": round(time.monotonic() - begun), "wall_seconds_from_step": start}
    return [run.result(sweep.provenance | wall) for run in runs]


class _Run:
    """The folder of one run: its log, its checkpoints and its last scores."""

    def __init__(self, config: ConfigDict, folder: Path, label_names: Sequence[str], stack: contextlib.ExitStack):
        self.config, self.folder, self.label_names = config, folder, label_names
        self.diverged_at: int | None = None
        self.scores: dict[str, Any] | None = None
        write_config(epath.Path(folder) / CONFIG_FILE, config)
        self.checkpoints = stack.enter_context(Checkpoints(folder))
        self.start = self.checkpoints.latest_step() or 0
        drop_after(folder / METRICS_FILE, self.start)

    @property
    def alive(self) -> bool:
        return self.diverged_at is None

    def restore(self) -> tuple[TrainState, dict[str, Any] | None]:
        """Returns the state to continue from, and its position in the data."""
        state = init_state(self.config, make_model(self.config, len(self.label_names)))
        if self.start:
            return self.checkpoints.restore(state, self.start)
        return with_pretrained(state, self.config), None

    def log(self, step: int, values: dict[str, float], budget: GradientBudget | None) -> None:
        if not all(map(math.isfinite, values.values())):
            self.diverged_at = step
        training = self.config.training
        if not self.alive or step == 1 or step % training.log_every == 0 or step == training.steps:
            logged = {f"train/{key}": value for key, value in values.items()}
            if budget is not None and self.alive:
                logged |= budget_scalars(budget, (*self.label_names, "void")[: len(budget.gradient)])
            append(self.folder / METRICS_FILE, step, logged)

    def save(self, state: TrainState, position: dict[str, Any], *, scored: bool) -> None:
        if self.alive:
            self.checkpoints.save(state, position, headline(self.scores) if scored else None)

    def result(self, origin: dict[str, Any]) -> dict[str, Any]:
        rows = read_log(self.folder)
        evaluated = [row for row in rows if any(key.startswith("eval/") for key in row)]
        keys = sorted({key for row in evaluated for key in row} - {"step"})
        curves = {"step": [row["step"] for row in evaluated]}
        curves |= {key.removeprefix("eval/"): [row.get(key) for row in evaluated] for key in keys}
        result = {
            "status": "done" if self.alive else "diverged",
            "diverged_at": self.diverged_at,
            "steps": self.config.training.steps,
            "first_loss": rows[0]["train/loss"],
            "curves": curves,
            "scores": self.scores,
            "provenance": origin,
        }
        return nan_to_none(result)


def _evaluate(runs: Sequence[_Run], states: TrainState, sweep: CompiledSweep, step: int) -> None:
    """Scores the states and logs the scores of the runs that have not diverged."""

    def count(batch: dict[str, np.ndarray]) -> Any:
        return sweep.eval_step(states, _replicate(batch, sweep.mesh), hparams)

    hparams = _stack([hparams_from_config(run.config) for run in runs], sweep.mesh)
    batches = list(count_batches(count, sweep.eval_source, runs[0].config, devices=1))
    for i, run in enumerate(runs):
        batches_of_run = [jax.tree.map(lambda x, i=i: x[i], counts) for counts in batches]
        # Counts of NaN logits are negative.
        if any((array < 0).any() for array in jax.tree.leaves(batches_of_run) if array.dtype.kind == "i"):
            run.diverged_at = run.diverged_at or step
        if run.alive:
            run.scores = task_of(run.config).score_batches(batches_of_run, sweep.eval_source, run.config)
            if step > run.start:
                defined = {key: value for key, value in eval_scalars(run.scores).items() if not math.isnan(value)}
                append(run.folder / METRICS_FILE, step, defined)


def _log(runs: Sequence[_Run], step: int, measured: dict[str, Any]) -> None:
    measured = jax.device_get(measured)
    budget = measured.pop("budget", None)
    for i, run in enumerate(runs):
        if run.alive:
            budget_of_run = None if budget is None else jax.tree.map(lambda x, i=i: x[i], budget)
            run.log(step, {key: float(value[i]) for key, value in measured.items()}, budget_of_run)


def _stack(trees: Sequence[Any], mesh: Mesh) -> Any:
    """Stacks one tree per device along a new first axis; the last tree is repeated for the remaining devices."""
    padded = [*trees, *[trees[-1]] * (mesh.size - len(trees))]
    sharding = NamedSharding(mesh, P(parallel.AXIS))
    return jax.tree.map(lambda *leaves: jax.device_put(jnp.stack(leaves), sharding), *padded)


@jax.jit
def _take(states: TrainState, i: jax.Array) -> TrainState:
    return jax.tree.map(lambda x: x[i], states)


def _replicate(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    return jax.device_put(batch, NamedSharding(mesh, P()))
