"""Checkpoints by orbax: the latest and the best are kept, each with the loader's position beside the state."""

import math
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from segjax.training.step import TrainState

FOLDER = "checkpoints"
_STATE, _POSITION = "state", "loader"


class Checkpoints:
    """The checkpoints of one workdir, `WORKDIR/checkpoints/STEP/`. Use as a context: leaving waits for open saves."""

    def __init__(self, workdir: str | Path, *, read_only: bool = False):
        folder = epath.Path(workdir).resolve() / FOLDER if "://" not in str(workdir) else epath.Path(workdir) / FOLDER
        if read_only and not folder.exists():
            raise FileNotFoundError(
                f"{workdir} holds no checkpoints: expected a folder {folder}, as segjax.train writes it"
            )
        keep = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(n=1),
                checkpoint_managers.BestN(n=1, get_metric_fn=_rank, keep_checkpoints_without_metrics=False),
            ]
        )
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep,
                best_fn=_rank,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
            item_names=(_STATE, _POSITION),
        )
        self._folder = folder

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self._manager.close()

    def save(self, state: TrainState, position: dict[str, Any], score: float | None = None) -> None:
        """Saves in the background. `score` (higher is better) makes the checkpoint a candidate for the best."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                **{
                    _STATE: ocp.args.StandardSave(_storable(state)),
                    _POSITION: ocp.args.JsonSave(position),
                }
            ),
            metrics={"score": score},
        )

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def step_named(self, which: str) -> int:
        """The step that "best", "latest" or a number names."""
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise FileNotFoundError(f"{self._folder} holds no finished checkpoint")
        by_name = {"best": self._manager.best_step, "latest": self._manager.latest_step}
        step = by_name[which]() if which in by_name else which
        if str(step) not in map(str, steps):
            raise FileNotFoundError(
                f"{self._folder} holds no checkpoint {which!r}; expected best, latest or one of "
                f"{', '.join(map(str, steps))}"
            )
        return int(step)

    def restore(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """The state of `step`, with `like`'s structure, types and placement, and the loader's position."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{
                    _STATE: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, _storable(like))),
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
