"""Each step's numbers, looked at one step late, so that the host never waits for the device that it should feed."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from segjax.training.budget import budget_scalars
from segjax.training.checkpoint import Checkpoints
from segjax.training.tracker import Tracker

# A step is sound if these are finite: NaN or infinity anywhere ends up in one of them.
VITAL = ("loss", "grad_norm", "param_norm")


class NonFiniteLoss(RuntimeError):
    """A step was not finite; the message names the step, its numbers, the files and the last good checkpoint."""


class Watch:
    """Logs the steps, and stops the run at one that is not finite.

    With `config.training.skip_nonfinite` = n the step function leaves such a step out, and the n-th in a row stops the
    run: a state that makes every batch fail does not mend itself.
    """

    def __init__(self, checkpoints: Checkpoints, tracker: Tracker, config: ConfigDict, outputs: Sequence[str]):
        self._checkpoints, self._tracker, self._config, self._outputs = checkpoints, tracker, config, outputs
        self._pending: tuple[int, dict[str, Any], list[str]] | None = None
        self._in_a_row = 0

    def dispatched(self, step: int, measured: dict[str, Any], names: list[str]) -> None:
        """Settles the step before, and keeps this one's numbers, which the device may still be working on."""
        self.settle()
        self._pending = (step, measured, names)

    def settle(self) -> None:
        """Waits for the pending step and logs it.

        Raises:
          NonFiniteLoss: it is not finite, and may not be skipped.
        """
        if self._pending is None:
            return
        (step, measured, names), self._pending = self._pending, None
        budget = measured.pop("budget", None)
        values = {key: float(value) for key, value in measured.items()}
        sound = all(math.isfinite(values[key]) for key in VITAL)
        self._in_a_row = 0 if sound else self._in_a_row + 1
        if not sound:
            self._tell(step, values, names)
        if not sound or step % self._config.training.log_every == 0 or step == self._config.training.steps:
            logged = {f"train/{key}": value for key, value in values.items() if math.isfinite(value)}
            if budget is not None and sound:
                outputs = self._outputs[: len(budget.gradient)]
                logged |= budget_scalars(jax.device_get(budget), outputs)
            self._tracker.scalars(step, logged)

    def _tell(self, step: int, values: dict[str, float], names: list[str]) -> None:
        seen = ", ".join(f"{key} {values[key]}" for key in VITAL)
        what = f"step {step}: {seen}; expected finite values. The batch was {', '.join(names)}."
        allowed = self._config.training.skip_nonfinite
        if self._in_a_row < allowed:
            self._tracker.note(f"warning: {what} The step was left out.")
            return
        kept = self._checkpoints.latest_step()
        raise NonFiniteLoss(
            f"{what} "
            + (f"It is the last of {allowed} in a row that were left out. " if allowed else "")
            + (f"The last good checkpoint, step {kept}, is kept." if kept else "No checkpoint was saved yet.")
        )
