"""Preemption: clusters send SIGTERM before they take a machine away; the run then saves and ends."""

import signal
import threading
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils


class Terminated(Exception):
    """SIGTERM ended the run, and its state is saved; the message names the step."""


class EvaluationAborted(Exception):
    """SIGTERM interrupted an evaluation, which the resumed run repeats."""


class Preemption:
    """Listener for SIGTERM. Use as a context: leaving restores the previous handler.

    On several hosts JAX's own service listens and passes a signal to one host on to all. `stopping` then becomes True
    on all hosts at the same call, because all of them call it equally often: after every step and in `watched`.
    """

    def __init__(self):
        self._received, self._calls, self._previous = False, 0, None

    def __enter__(self) -> "Preemption":
        # Only the main thread may install a signal handler.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *unused) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, *unused) -> None:
        self._received = True

    def stopping(self) -> bool:
        """Returns True if the run has to stop here. All hosts must call it equally often."""
        self._calls += 1
        if jax.process_count() == 1:
            return self._received
        return multihost_utils.reached_preemption_sync_point(self._calls)

    def watched(self, function: Callable) -> Callable:
        """Wraps `function` so that it raises `EvaluationAborted` after SIGTERM: for long work that can be repeated.

        All hosts must call the result equally often.
        """

        def checked(*arguments):
            if self.stopping():
                raise EvaluationAborted
            return function(*arguments)

        return checked
