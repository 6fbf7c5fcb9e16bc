"""SIGTERM, which clusters send before they take a machine away: the run saves and ends."""

import signal
import threading
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils


class Terminated(Exception):
    """The run was asked to end, and has saved; the message names the step."""


class Termination:
    """Listens for SIGTERM. Use as a context: leaving gives the signal back to whoever had it.

    On several hosts JAX's own service listens: a signal to one of them is passed on, and all are told to stop after the
    same step.
    """

    def __init__(self):
        self._asked, self._before = False, None

    def __enter__(self) -> "Termination":
        # Python delivers signals to the main thread only, and lets no other listen.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._heard)
        return self

    def __exit__(self, *unused) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _heard(self, *unused) -> None:
        self._asked = True

    def after(self, step: int) -> bool:
        """Whether to stop after `step`. All hosts have to ask, after every step."""
        return self._asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)

    def watched(self, function: Callable) -> Callable:
        """`function`, which raises `Cut` once SIGTERM has come: for work that takes long and can be done again.

        On several hosts nothing is cut: they would not agree where.
        """

        def checked(*arguments):
            if self._asked:
                raise Cut
            return function(*arguments)

        return checked


class Cut(Exception):
    """Work that can be done again was left."""
