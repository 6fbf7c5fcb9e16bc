"""Checkpoints by orbax: the last two and the best, each with the loader's position and one SHA-256 per file.

Pretrained weights, of other programs or of other runs, are loaded here too.

Orbax restores a flipped byte silently, with wrong values. So the files of a save are hashed before the checkpoint gets
its name, and compared before anything is restored.
"""

import math
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from segjax import models
from segjax.models.pretrained import WEIGHT_FILES
from segjax.storage import (
    StorageError,
    bucket_errors,
    in_bucket,
    is_regular,
    output_folder,
    path_of,
    read_json,
    say,
    sha256,
    to_json,
    write_bytes,
)
from segjax.training.config import CONFIG_FILE, ConfigError
from segjax.training.fields import DETECTORS
from segjax.training.network import TrainState

FOLDER = "checkpoints"
CHECKSUMS = "sha256.json"
_ATTEMPTS = 10  # at reading a checkpoint of a run that is training
_STATE, _POSITION, _METRICS = "state", "loader", "metrics"  # the last is orbax's name
_COMMITTED, _HANDLERS = "commit_success.txt", "_CHECKPOINT_METADATA"
_REMOVED = "removed"  # an old checkpoint is renamed into this folder first: half of one is never taken for a whole one
_LATE = (CHECKSUMS, _COMMITTED, _HANDLERS)  # written after the sums; the last two hold times and no data


class CheckpointError(ValueError):
    """A checkpoint is damaged, does not fit, or could not be written; the message names the file or the parameter."""


def run_folder(path: str | os.PathLike) -> epath.Path:
    """Returns `output_folder` of the workdir of a run; raises StorageError for a path that orbax cannot use."""
    folder = output_folder(path)
    if not set("[]*?").isdisjoint(str(folder)):
        raise StorageError(f"{folder}: orbax would read [, ], * and ? in its path as a pattern; rename the workdir")
    return folder


def has_checkpoints(workdir: epath.Path) -> bool:
    """Returns True if a workdir has checkpoints; damaged ones count."""
    with bucket_errors(workdir):
        return bool(_steps(workdir / FOLDER))


class Checkpoints:
    """The checkpoints of one workdir, `WORKDIR/checkpoints/STEP/`, as a context: leaving it waits for open saves.

    At the start every file is compared with its SHA-256. A damaged checkpoint is renamed to `STEP.damaged` (left as it
    is if `read_only`) and is not listed.

    Attributes:
      damaged: one line per damaged checkpoint, with the file and the damage.

    Raises:
      CheckpointError: there are checkpoints, and all are damaged; nothing was changed.
      StorageError: the bucket cannot be read or written, or gcsfs is not installed.
      FileNotFoundError: `read_only`, and there is no folder.
    """

    def __init__(self, workdir: str | os.PathLike, *, read_only: bool = False):
        workdir = path_of(workdir)
        folder = (workdir if in_bucket(workdir) else workdir.resolve()) / FOLDER
        if read_only and not folder.exists():
            raise FileNotFoundError(
                f"{workdir} holds no checkpoints: expected a folder {folder}, as segjax train writes it"
            )
        self._folder, self._saving, self._read_only = folder, None, read_only
        with bucket_errors(folder):
            steps = _steps(folder)
            damaged = {step: damage for step in steps if (damage := _damage(folder / str(step)))}
        self.damaged = [f"checkpoint {step} is damaged: {problem}" for step, problem in damaged.items()]
        if damaged and len(damaged) == len(steps):
            raise CheckpointError(
                f"all checkpoints in {folder} are damaged: {'; '.join(self.damaged)}. Nothing was changed; to start "
                "from step 0, move the folder away"
            )
        if not read_only:
            # All hosts have read before the first one renames, which it has done before orbax reads.
            multihost_utils.sync_global_devices("segjax:checkpoints_read")
            for step in damaged if jax.process_index() == 0 else ():
                with bucket_errors(folder):
                    _set_aside(folder / str(step))
            self._empty_removed()
            multihost_utils.sync_global_devices("segjax:checkpoints_set_aside")
        self._left_out = set(damaged)
        with bucket_errors(folder):
            self._manager = self._open(read_only)

    def _open(self, read_only: bool) -> ocp.CheckpointManager:
        best = checkpoint_managers.BestN(n=1, get_metric_fn=_rank, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(n=2), best]),
            best_fn=_rank,
            lightweight_initialize=read_only,  # reads no scores, because damaged checkpoints are still in their place
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            todelete_subdir=None if read_only else _REMOVED,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        handlers = {_STATE: ocp.StandardCheckpointHandler(), _POSITION: ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def __enter__(self):
        return self

    def __exit__(self, error_type, *unused):
        if error_type is not None and issubclass(error_type, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
            return  # an open save would wait for the host that was lost
        try:
            self._manager.close()
            if not self._read_only:
                self._empty_removed()
        except Exception as error:
            if error_type is None:  # else the user has to see that error
                raise self._failure(error) from error

    def wait(self) -> None:
        """Waits for the open save; raises CheckpointError if it could not be written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error

    def save(self, state: TrainState, position: dict[str, Any], score: float | None = None) -> None:
        """Saves in the background, in place of a checkpoint of the same step.

        Args:
          state: the state, in the form of `parallel.everywhere`.
          position: position of the loader, ready for JSON.
          score: higher is better; None: the checkpoint is not a candidate for the best.

        Raises:
          CheckpointError: this save, or the one before, could not be written; older ones are kept.
        """
        step = int(state.step)
        self.wait()
        try:
            self._empty_removed()
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._saving = step
            items = {_STATE: ocp.args.StandardSave(_storable(state)), _POSITION: ocp.args.JsonSave(position)}
            self._manager.save(step, args=ocp.args.Composite(**items), metrics={"score": score}, force=True)
        except Exception as error:
            raise self._failure(error) from error

    def _empty_removed(self) -> None:
        if jax.process_index() == 0 and (self._folder / _REMOVED).exists():
            shutil.rmtree(self._folder / _REMOVED)

    def _failure(self, error: Exception) -> CheckpointError:
        kept = self.latest_step()
        return CheckpointError(
            f"checkpoint {self._saving} could not be written to {self._folder}: {' '.join(str(error).split())[:300]}. "
            + (f"The last good checkpoint, step {kept}, is kept." if kept else "There is none before it.")
        )

    def _seal(self) -> None:
        """Hashes the files of the open save; orbax calls it on the first host, before the checkpoint has its name."""
        unfinished = [*self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"), self._folder / str(self._saving)]
        folder = next(path for path in unfinished if path.exists())  # a bucket has no temporary name
        sums = {name: sha256(folder / name) for name in _files(folder)}
        # Without a last newline, so that the loss of any byte is damage.
        write_bytes(folder / CHECKSUMS, to_json(sums).rstrip())

    def latest_step(self) -> int | None:
        """Returns the step of the newest whole checkpoint, or None."""
        return max(self.all_steps(), default=None)

    def all_steps(self) -> list[int]:
        """Returns the steps of the whole checkpoints in ascending order."""
        with bucket_errors(self._folder):
            return sorted(set(_steps(self._folder)) - self._left_out)

    def step_named(self, which: str) -> int:
        """Returns the step of "best", "latest" or a number; raises FileNotFoundError if there is no such checkpoint."""
        steps = self.all_steps()
        if not steps:
            raise FileNotFoundError(f"{self._folder} holds no finished checkpoint")
        if which == "best":
            return max(steps, key=lambda step: (self._rank_of(step), step))
        if which == "latest":
            return steps[-1]
        if which not in map(str, steps):
            damaged = [line for line in self.damaged if line.startswith(f"checkpoint {which} ")]
            raise FileNotFoundError(
                f"{self._folder} holds no checkpoint {which!r}{f' ({damaged[0]})' if damaged else ''}; expected best, "
                f"latest or one of {', '.join(map(str, steps))}"
            )
        return int(which)

    def _rank_of(self, step: int) -> float:
        file, remedy = self._folder / str(step) / _METRICS / _METRICS, "Name another checkpoint"
        return _rank(read_json(file, {"score": object}, "the score of a checkpoint", remedy))

    def restore(self, like: TrainState | None, step: int) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state of `step` and the loader's position.

        The state has `like`'s structure, types and placement. None: the types that were saved, on one device; the
        optimizer's state is then made of lists and dictionaries.

        Raises:
          CheckpointError: the checkpoint is of another network or optimizer; names the first difference.
        """
        try:
            saved = self._manager.item_metadata(step)[_STATE]
        except Exception as error:  # orbax's file of times and handlers has no checksum, and is not needed
            file, reason = self._folder / str(step) / _HANDLERS, " ".join(str(error).split())[:200]
            raise CheckpointError(f"{file} is damaged ({type(error).__name__}: {reason}). Delete this file") from error
        if like is None:
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), dict(saved))
        else:
            target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _storable(like))
            self._refuse_differences(step, _shapes(saved), _shapes(target))
        items = {_STATE: ocp.args.StandardRestore(target), _POSITION: ocp.args.JsonRestore()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        state = restored[_STATE] if like is not None else TrainState(**restored[_STATE])
        return state.replace(key=jax.random.wrap_key_data(state.key)), restored[_POSITION]

    def _refuse_differences(self, step: int, saved: dict[str, str], expected: dict[str, str]) -> None:
        # Parameters first: a parameter that differs makes many other arrays differ.
        for name in sorted(saved.keys() | expected.keys(), key=lambda name: (not name.startswith("params/"), name)):
            if saved.get(name) != expected.get(name):
                raise CheckpointError(
                    f"{self._folder / str(step)} is of another network or optimizer: {name} is "
                    f"{saved.get(name, 'not there')}; this config expects {expected.get(name, 'no such array')}. "
                    "Restore the config, or name another workdir"
                )


def restore_newest(workdir: epath.Path, which: str, like: TrainState | None) -> TrainState:
    """Restores the checkpoint "best", "latest" or a step of a run that may be training; `like` is that of `restore`.

    If the training removes the checkpoint while it is read, the one that has taken its place is restored.

    Raises:
      CheckpointError, FileNotFoundError: as `Checkpoints`, its `step_named` and its `restore`.
    """
    folder = workdir / FOLDER
    for _ in range(_ATTEMPTS):
        before = set(_steps(folder))
        try:
            with Checkpoints(workdir, read_only=True) as checkpoints:
                state, _ = checkpoints.restore(like, step := checkpoints.step_named(which))
            if step in _steps(folder):  # else a part of it may have been missing
                for line in checkpoints.damaged:
                    say(f"warning: {line}. It is not used.", sys.stderr)
                return state
        except Exception:
            if before <= set(_steps(folder)):
                raise
    raise CheckpointError(f"{folder}: training removes checkpoints faster than they can be read. Try again later")


def workdir_and_checkpoint(path: epath.Path) -> tuple[epath.Path, str]:
    """Splits `WORKDIR/checkpoints/STEP`; the checkpoint of a mere `WORKDIR` is "best"."""
    return (path.parent.parent, path.name) if path.parent.name == FOLDER else (path, "best")


def find_run(path: str | os.PathLike) -> tuple[epath.Path, str]:
    """Returns the workdir and the checkpoint of the run `WORKDIR` or `WORKDIR/checkpoints/STEP`.

    Raises:
      StorageError: as `path_of`.
      FileNotFoundError: the folder is not a run's.
    """
    path = path_of(path)
    workdir, which = workdir_and_checkpoint(path)
    config_file = workdir / CONFIG_FILE
    if not config_file.exists():
        raise FileNotFoundError(
            f"{path} is not a run: expected {config_file}. Name the --workdir that segjax train wrote, or "
            f"WORKDIR/{FOLDER}/STEP"
        )
    return workdir, which


def trained_variables(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the variables for evaluation of a run, for another run to start from.

    Raises:
      FileNotFoundError, CheckpointError, StorageError: as `find_run` and `restore_newest`.
    """
    workdir, which = find_run(path)
    return restore_newest(workdir, which, None).variables


def with_pretrained(state: TrainState, config: ConfigDict) -> TrainState:
    """Returns a state before the first step with the weights `config.model.pretrained`; as it is if there are none.

    Each member of an ensemble has the same weights, and a head of its own if that is not loaded.

    Raises:
      ConfigError: the file, package or run does not exist, cannot be read, or is not of this network.
    """
    if not config.model.pretrained:
        return state
    members, variables = config.model.members, {"batch_stats": state.batch_stats, "params": state.params}
    try:
        if members == 1:
            loaded = _load_pretrained(config, variables)
        else:
            each = [jax.tree.map(lambda x, i=i: x[i], variables) for i in range(members)]
            loaded = jax.tree.map(lambda *x: jnp.stack(x), *(_load_pretrained(config, one) for one in each))
    except (OSError, ImportError, ValueError) as error:
        raise ConfigError(f"config.model.pretrained: {error}") from error
    # Copies, because a buffer cannot be donated twice.
    averaged = None if state.ema is None else jax.tree.map(jnp.copy, variables | loaded)
    return state.replace(**loaded, ema=averaged)


def _load_pretrained(config: ConfigDict, variables: dict[str, Any]) -> dict[str, Any]:
    """Returns initial variables with those of the file, package or run `config.model.pretrained`."""
    source = config.model.pretrained
    if source == "package":
        return models.load_encoder(models.package_file(config.model.encoder), variables)
    if source.endswith(WEIGHT_FILES):
        return (models.load_retinanet if config.model.name in DETECTORS else models.load_encoder)(source, variables)
    try:
        return models.with_trained(variables, trained_variables(source))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _rank(metrics: dict[str, float | None]) -> float:
    """Returns the score, by which checkpoints are ranked; those without a score come last."""
    return -math.inf if metrics["score"] is None else metrics["score"]


def _storable(state: TrainState) -> TrainState:
    return state.replace(key=jax.random.key_data(state.key))


def _shapes(state: Any) -> dict[str, str]:
    """Returns the type and shape of each array of a state, or of a checkpoint's metadata, by its name."""
    named = ((jax.tree_util.keystr(p, simple=True, separator="/"), x) for p, x in jax.tree.leaves_with_path(state))
    return {name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for name, leaf in named}


def _steps(folder: epath.Path) -> list[int]:
    """Returns the steps with a checkpoint; in a bucket, where nothing can be renamed, those with a finished save."""
    found = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.exists() else []
    return sorted(int(p.name) for p in found if not in_bucket(folder) or (p / _COMMITTED).exists())


def _damage(checkpoint: epath.Path) -> str | None:
    """Returns the first difference between a checkpoint and its checksums, or None."""
    try:
        sums = read_json(checkpoint / CHECKSUMS, dict, "the SHA-256 of each file of a checkpoint")
    except StorageError as error:
        return str(error)
    if (handlers := checkpoint / _HANDLERS).exists() and not is_regular(handlers):
        return f"{handlers} is not a regular file"
    for name, expected in sums.items():
        file = checkpoint / name
        try:
            if not is_regular(file):
                return f"{file} is missing"
            if sha256(file) != expected:
                return f"{file} is not what was saved (its SHA-256 differs)"
        except PermissionError:
            raise
        except OSError as error:
            return f"{file} cannot be read ({error.strerror})"
    return None if sums else f"{checkpoint / CHECKSUMS} is empty"


def _files(folder: epath.Path) -> Iterator[str]:
    """Yields the names of the files under `folder` that are written before the checksums."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from (f"{path.name}/{name}" for name in _files(path))
        elif path.name not in _LATE:
            yield path.name


def _set_aside(checkpoint: epath.Path) -> None:
    """Renames a damaged checkpoint: it is no longer listed, and nothing is lost."""
    taken = len(list(checkpoint.parent.glob(f"{checkpoint.name}.damaged*")))
    checkpoint.rename(checkpoint.parent / f"{checkpoint.name}.damaged{taken or ''}")
