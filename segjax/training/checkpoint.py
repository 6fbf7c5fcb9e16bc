"""Checkpoints by orbax: the last two and the best are kept, each with the loader's position and a SHA-256 a file.

Orbax restores a flipped byte silently, with wrong values; so what a save wrote is summed up before the checkpoint gets
its name, and looked at before anything is restored.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from segjax.storage import bucket_errors, in_bucket, path_of, to_json, write_bytes
from segjax.training.train_step import TrainState

FOLDER = "checkpoints"
CHECKSUMS = "sha256.json"
_STATE, _POSITION, _METRICS = "state", "loader", "metrics"  # the last is orbax's name
_COMMITTED = "commit_success.txt"
_LATE = (CHECKSUMS, _COMMITTED, "_CHECKPOINT_METADATA")  # written after the sums; the last two hold times and no data


class CheckpointError(ValueError):
    """A checkpoint is damaged, does not fit, or could not be written; the message names the file or the parameter."""


class Checkpoints:
    """The checkpoints of one workdir, `WORKDIR/checkpoints/STEP/`. Use as a context: leaving waits for open saves.

    Only whole checkpoints are known by their steps: at the start every file is compared with the SHA-256 that its save
    wrote last. A damaged one is set aside as `STEP.damaged` (left where it is if `read_only`).

    Attributes:
      damaged: a line for each damaged checkpoint: which file, and what is wrong with it.

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
                f"{workdir} holds no checkpoints: expected a folder {folder}, as segjax.train writes it"
            )
        self._folder, self._saving = folder, None
        with bucket_errors(folder):
            damaged = _damaged(folder)
        self.damaged = [f"checkpoint {step} is damaged: {problem}" for step, problem in damaged.items()]
        if damaged and len(damaged) == len(_steps(folder)):
            raise CheckpointError(
                f"no checkpoint in {folder} is whole. {'; '.join(self.damaged)}. Nothing was changed; to begin anew, "
                "move the folder away"
            )
        if not read_only:
            # All hosts have looked before the first one changes anything, and it has before orbax looks.
            multihost_utils.sync_global_devices("segjax:checkpoints_looked_at")
            if jax.process_index() == 0:
                for step in damaged:
                    with bucket_errors(folder):
                        _set_aside(folder / str(step))
            multihost_utils.sync_global_devices("segjax:checkpoints_set_aside")
        self._left_out = set(damaged)
        with bucket_errors(folder):
            self._manager = self._open(read_only)

    def _open(self, read_only: bool) -> ocp.CheckpointManager:
        keep = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(n=2),
                checkpoint_managers.BestN(n=1, get_metric_fn=_rank, keep_checkpoints_without_metrics=False),
            ]
        )
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep,
                best_fn=_rank,
                lightweight_initialize=read_only,  # scores unread: those of a damaged checkpoint are not set aside here
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
            item_handlers={_STATE: ocp.StandardCheckpointHandler(), _POSITION: ocp.JsonCheckpointHandler()},
        )

    def __enter__(self):
        return self

    def __exit__(self, error_type, *unused):
        try:
            self._manager.close()
        except Exception as error:
            if error_type is None:  # else that error is what people have to see
                raise self._failure(error) from error

    def save(self, state: TrainState, position: dict[str, Any], score: float | None = None) -> None:
        """Saves in the background. `score` (higher is better) makes the checkpoint a candidate for the best.

        A checkpoint of the same step is replaced.

        Raises:
          CheckpointError: this save, or the one before, could not be written; what was saved before it is kept.
        """
        step = int(state.step)
        try:
            self._manager.wait_until_finished()
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._saving = step
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        _STATE: ocp.args.StandardSave(_storable(state)),
                        _POSITION: ocp.args.JsonSave(position),
                    }
                ),
                metrics={"score": score},
                force=True,
            )
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> CheckpointError:
        kept = self.latest_step()
        return CheckpointError(
            f"checkpoint {self._saving} could not be written to {self._folder}: {' '.join(str(error).split())[:300]}. "
            + (f"The last good checkpoint, step {kept}, is kept." if kept else "There is none before it.")
        )

    def _seal(self) -> None:
        """Sums up the files of the open save; orbax calls it on the first host, before the checkpoint has its name."""
        unfinished = [*self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"), self._folder / str(self._saving)]
        folder = next(path for path in unfinished if path.exists())  # a bucket has no temporary name
        sums = {name: _sha256(folder / name) for name in _files(folder)}
        # Without a last newline, so that the loss of any byte is damage.
        write_bytes(folder / CHECKSUMS, to_json(sums).rstrip())

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, None if there is none."""
        return max(self.all_steps(), default=None)

    def all_steps(self) -> list[int]:
        """The steps of the whole checkpoints that are on the disk, in their order."""
        with bucket_errors(self._folder):
            return sorted(set(_steps(self._folder)) - self._left_out)

    def step_named(self, which: str) -> int:
        """The step that "best", "latest" or a number names."""
        steps = self.all_steps()
        if not steps:
            raise FileNotFoundError(f"{self._folder} holds no finished checkpoint")
        if which == "best":
            return max(steps, key=lambda step: (_rank(self._metrics(step)), step))
        if which == "latest":
            return steps[-1]
        if which not in map(str, steps):
            damaged = [line for line in self.damaged if line.startswith(f"checkpoint {which} ")]
            raise FileNotFoundError(
                f"{self._folder} holds no checkpoint {which!r}{f' ({damaged[0]})' if damaged else ''}; expected best, "
                f"latest or one of {', '.join(map(str, steps))}"
            )
        return int(which)

    def _metrics(self, step: int) -> dict[str, float | None]:
        return json.loads((self._folder / str(step) / _METRICS / _METRICS).read_bytes())

    def restore(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """The state of `step`, with `like`'s structure, types and placement, and the loader's position.

        Raises:
          CheckpointError: the checkpoint is that of another network or optimizer; names the first difference.
        """
        like = _storable(like)
        _check_fit(_shapes(self._manager.item_metadata(step)[_STATE]), _shapes(like), f"{self._folder / str(step)}")
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{
                    _STATE: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like)),
                    _POSITION: ocp.args.JsonRestore(),
                }
            ),
        )
        state = restored[_STATE]
        return state.replace(key=jax.random.wrap_key_data(state.key)), restored[_POSITION]


def _rank(metrics: dict[str, float | None]) -> float:
    """The order of checkpoints: by score, and those that were not scored (None) below all that were."""
    return -math.inf if metrics["score"] is None else metrics["score"]


def _storable(state: TrainState) -> TrainState:
    return state.replace(key=jax.random.key_data(state.key))


def _shapes(state: Any) -> dict[str, str]:
    """What each array of a state, or of a checkpoint's description of one, is: its type and shape by its name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    described = ((jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves)
    return {name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for name, leaf in described}


def _check_fit(saved: dict[str, str], expected: dict[str, str], where: str) -> None:
    # Parameters first: of what follows from a parameter that differs there is much.
    for name in sorted(saved.keys() | expected.keys(), key=lambda name: (not name.startswith("params/"), name)):
        if saved.get(name) != expected.get(name):
            raise CheckpointError(
                f"{where} is of another network or optimizer: {name} is {saved.get(name, 'not there')}; this config "
                f"expects {expected.get(name, 'no such array')}. Restore the config, or name another workdir"
            )


def _steps(folder: epath.Path) -> list[int]:
    """The steps that have a checkpoint; in a bucket, where nothing can be renamed, those whose save came to its end."""
    if not folder.exists():
        return []
    found = [path for path in folder.iterdir() if path.name.isdecimal()]
    return sorted(int(p.name) for p in found if not in_bucket(folder) or (p / _COMMITTED).exists())


def _damaged(folder: epath.Path) -> dict[int, str]:
    """What is wrong with each step that is not as it was saved."""
    problems = {step: _damage(folder / str(step)) for step in _steps(folder)}
    return {step: problem for step, problem in problems.items() if problem is not None}


def _damage(checkpoint: epath.Path) -> str | None:
    listed = checkpoint / CHECKSUMS
    try:
        sums = dict(json.loads(listed.read_bytes()))
    except FileNotFoundError:
        return f"{listed} is missing"
    except ValueError:  # also of bytes that are no text
        return f"{listed} is no list of checksums"
    present = set(_files(checkpoint))
    for name, expected in sums.items():
        if name not in present:
            return f"{checkpoint / name} is missing"
        if _sha256(checkpoint / name) != expected:
            return f"{checkpoint / name} is not what was saved (its SHA-256 differs)"
    return None


def _files(folder: epath.Path) -> Iterator[str]:
    """The names of the files under `folder` that a save has written by the time it sums them up."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from (f"{path.name}/{name}" for name in _files(path))
        elif path.name not in _LATE:
            yield path.name


def _sha256(file: epath.Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _set_aside(checkpoint: epath.Path) -> None:
    """Renames a damaged checkpoint, so that nothing takes it for one and nothing is lost."""
    taken = len(list(checkpoint.parent.glob(f"{checkpoint.name}.damaged*")))
    checkpoint.rename(checkpoint.parent / f"{checkpoint.name}.damaged{taken or ''}")
