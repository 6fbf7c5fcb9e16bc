"""Runs of one program side by side, a device each: the same data step by step, and other hyperparameters."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from segjax.storage import nan_to_none, write_json
from segjax.training import ConfigError, open_split, parallel, skipped_lines
from segjax.training.checkpoint import Checkpoints
from segjax.training.config import leaves
from segjax.training.evaluation import make_eval_step, scores, sum_counts
from segjax.training.loop import (
    CONFIG_FILE,
    DEVICE_KEYS,
    check_channels,
    eval_scalars,
    headline,
    train_batches,
)
from segjax.training.metrics_writer import METRICS_FILE, append, drop_after
from segjax.training.objective import hparams_from_config
from segjax.training.optimizer import hparams_at, phases
from segjax.training.provenance import provenance
from segjax.training.train_step import TrainState, init_state, make_model, make_train_step

RESULT_FILE = "cell.json"


class CompiledSweep(NamedTuple):
    """What the cells of one program share: the data, the devices they are laid over, and the compiled steps."""

    source: Any
    held_out: Any
    mesh: Mesh
    train_step: Callable
    eval_step: Callable
    provenance: dict[str, Any]


def compile_sweep(config: ConfigDict, mesh: Mesh) -> CompiledSweep:
    """The sweep of `config`'s program, for a cell a device of `mesh`.

    Raises:
      ConfigError, DataError: the config or the data do not fit.
    """
    if config.training.gradient_budget:
        raise ConfigError("config.training.gradient_budget is a log of single runs; a sweep keeps none")
    splits = (config.data.train_split, config.data.eval_split)
    source, held_out = (open_split(config.data, split) for split in splits)
    for split, opened in zip(splits, (source, held_out), strict=True):
        check_channels(config, opened)
        for line in skipped_lines(opened, split):
            print(line, file=sys.stderr, flush=True)
    classes = len(source.label_set.names)
    model = make_model(config, classes)
    return CompiledSweep(
        source,
        held_out,
        mesh,
        parallel.map_cells(
            make_train_step(config, model, classes, None), mesh, shared=(False, True, False), donate=True
        ),
        parallel.map_cells(make_eval_step(config, model, classes, None), mesh, shared=(False, True)),
        provenance(),  # now: by the end of a sweep the checkout may hold other code than this process runs
    )


class Orphaned(RuntimeError):
    """The process for which the cells were trained is gone."""


def train_together(
    configs: Sequence[ConfigDict],
    folders: Sequence[Path],
    sweep: CompiledSweep,
    *,
    going_on: Callable[[], bool] = lambda: True,
) -> None:
    """Trains the cells of `configs`, each in its folder, and writes the result of each as it ends.

    A folder is that of a run (`segjax.evaluate` takes it): `config.json`, `metrics.jsonl`, `checkpoints/`; and at the
    end `cell.json` with "status" ("done", or "diverged" and "diverged_at"), "first_loss", "curves" (the scores by
    evaluated step), "scores" (those of the last) and "provenance". Called again, cells carry on from their newest
    checkpoints.

    Args:
      configs: of one program and one seed; no more than `sweep` has devices.
      folders: of the cells. Their newest checkpoints must be of one step.
      sweep: `compile_sweep` of any of the configs.
      going_on: asked before each step.

    Raises:
      Orphaned: `going_on` said no.
    """
    first, begun = configs[0], time.monotonic()
    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(contextlib.closing(train_batches(first, sweep.source)))
        cells = [_Cell(config, folder, stack) for config, folder in zip(configs, folders, strict=True)]
        states, start, position = _begin(cells, sweep)
        if position is not None:
            batches.set_state(position)
        plan, hparams, pending = [phases(config) for config in configs], None, None
        for step in range(start + 1, first.training.steps + 1):
            if not going_on():
                raise Orphaned(f"asked to stop before step {step}")
            if hparams is None or any(step == phase.end + 1 for phase in plan[0]):
                now = [hparams_at(step, hparams_from_config(c), p) for c, p in zip(configs, plan, strict=True)]
                hparams = _stacked(now, sweep.mesh)
            batch = next(batches)
            states, measured = sweep.train_step(states, _everywhere(batch, DEVICE_KEYS, sweep.mesh), hparams)
            _log(cells, pending)  # one step late, so that the host does not wait for the devices
            pending = (step, measured)
            evaluating = step % first.training.evaluate_every == 0 or step == first.training.steps
            if not (evaluating or step % first.training.checkpoint_every == 0):
                continue
            _log(cells, pending)
            pending = None
            if not any(cell.alive for cell in cells):
                break
            if evaluating:
                for cell, of_cell in _scores(cells, states, sweep, step):
                    cell.evaluated(step, of_cell)
            for i, cell in enumerate(cells):
                cell.save(_taken(states, i), batches.get_state(), scored=evaluating)
    for cell in cells:
        wall = {"wall_seconds": round(time.monotonic() - begun), "wall_seconds_from_step": start}
        cell.finish(sweep.provenance | wall)


class _Cell:
    """One cell's folder: its log, its checkpoints, its result."""

    def __init__(self, config: ConfigDict, folder: Path, stack: contextlib.ExitStack):
        self.config, self.folder, self.diverged_at = config, folder, None
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG_FILE, leaves(config))
        self.checkpoints = stack.enter_context(Checkpoints(folder))
        self.start = self.checkpoints.latest_step() or 0
        drop_after(folder / METRICS_FILE, self.start)
        self.scores: dict[str, Any] | None = None

    @property
    def alive(self) -> bool:
        return self.diverged_at is None

    def begin(self, num_classes: int) -> tuple[TrainState, dict[str, Any] | None]:
        """The state to go on from, and the position in the data."""
        state = init_state(self.config, make_model(self.config, num_classes), pretrained=not self.start)
        return self.checkpoints.restore(state, self.start) if self.start else (state, None)

    def log(self, step: int, measured: dict[str, float]) -> None:
        if not all(map(math.isfinite, measured.values())):
            self.diverged_at = step
        training = self.config.training
        if not self.alive or step == 1 or step % training.log_every == 0 or step == training.steps:
            append(self.folder / METRICS_FILE, step, {f"train/{k}": v for k, v in measured.items()})

    def evaluated(self, step: int, of_cell: dict[str, Any]) -> None:
        self.scores = of_cell
        append(self.folder / METRICS_FILE, step, eval_scalars(of_cell))

    def save(self, state: TrainState, position: dict[str, Any], *, scored: bool) -> None:
        if self.alive:
            self.checkpoints.save(state, position, headline(self.scores) if scored else None)

    def finish(self, origin: dict[str, Any]) -> None:
        rows = [json.loads(line) for line in (self.folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
        evaluated = [row for row in rows if "eval/pixel_accuracy" in row]
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
        write_json(self.folder / RESULT_FILE, nan_to_none(result))


def _begin(cells: Sequence[_Cell], sweep: CompiledSweep) -> tuple[TrainState, int, dict[str, Any] | None]:
    """The stacked states, their step and their position in the data; scores what had ended before."""
    classes = len(sweep.source.label_set.names)
    (start,) = {cell.start for cell in cells}
    states, positions = zip(*(cell.begin(classes) for cell in cells), strict=True)
    stacked = _stacked(states, sweep.mesh)
    if start == cells[0].config.training.steps:  # killed between the last save and the result
        for cell, of_cell in _scores(cells, stacked, sweep, start):
            cell.scores = of_cell
    return stacked, start, positions[0]


def _scores(
    cells: Sequence[_Cell], states: TrainState, sweep: CompiledSweep, step: int
) -> Iterator[tuple[_Cell, dict[str, Any]]]:
    """The cells that are alive, each with `evaluation.evaluate`'s dictionary of its state."""

    def count(batch: dict[str, np.ndarray]) -> Any:
        return sweep.eval_step(states, _everywhere(batch, tuple(batch), sweep.mesh))

    counts, held_out = sum_counts(count, sweep.held_out, cells[0].config), sweep.held_out
    about = {"images": len(held_out), "skipped": len(held_out.skipped), "classes": list(held_out.label_set.names)}
    for i, cell in enumerate(cells):
        of_cell = jax.tree.map(lambda x, i=i: x[i], counts)
        if any((of_one < 0).any() for of_one in of_cell.values()):  # how counts say that there was a NaN
            cell.diverged_at = cell.diverged_at or step
        if cell.alive:
            yield cell, about | scores(of_cell)


def _log(cells: Sequence[_Cell], pending: tuple[int, dict[str, jax.Array]] | None) -> None:
    if pending is None:
        return
    step, measured = pending
    measured = jax.device_get({k: v for k, v in measured.items() if v.ndim == 1})
    for i, cell in enumerate(cells):
        if cell.alive:
            cell.log(step, {k: float(v[i]) for k, v in measured.items()})


def _stacked(trees: Sequence[Any], mesh: Mesh) -> Any:
    """A leading axis of cells, one a device; the devices beyond the last cell repeat it."""
    padded = [*trees, *[trees[-1]] * (mesh.size - len(trees))]
    sharding = NamedSharding(mesh, P(parallel.AXIS))
    return jax.tree.map(lambda *leaves: jax.device_put(jnp.stack(leaves), sharding), *padded)


def _taken(states: TrainState, i: int) -> TrainState:
    return _take(states, jnp.int32(i))


@jax.jit
def _take(states: TrainState, i: jax.Array) -> TrainState:
    return jax.tree.map(lambda x: x[i], states)


def _everywhere(batch: dict[str, np.ndarray], keys: Sequence[str], mesh: Mesh) -> dict[str, jax.Array]:
    return jax.device_put({k: batch[k] for k in keys}, NamedSharding(mesh, P()))
