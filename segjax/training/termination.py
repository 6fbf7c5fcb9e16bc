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

    On several hosts JAX's own service listens: a signal to one of them is passed on, and all are told to stop at the
    same one of the questions that all of them ask in the same order, `after` every step and within `watched` work.
    """

    def __init__(self):
        self._heard_it, self._questions, self._before = False, 0, None

    def __enter__(self) -> "Termination":
        # Python delivers signals to the main thread only, and lets no other listen.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._heard)
        return self

    def __exit__(self, *unused) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _heard(self, *unused) -> None:
        self._heard_it = True

    def stopping(self) -> bool:
        """Whether to stop here. All hosts have to ask equally often, such as after every step."""
        self._questions += 1
        if jax.process_count() == 1:
            return self._heard_it
        return multihost_utils.reached_preemption_sync_point(self._questions)

    def watched(self, function: Callable) -> Callable:
        """`function`, which raises `Cut` once SIGTERM has come: for work that takes long and can be done again.

        All hosts have to call it equally often.
        """

        def checked(*arguments):
            if self.stopping():
                raise Cut
            return function(*arguments)

        return checked


class Cut(Exception):
    """Work that can be done again was left."""
