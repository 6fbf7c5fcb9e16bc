"""Processes of a run: hosts join, compare what they are about to run, stop on a signal, and end together on failure."""

import contextlib
import faulthandler
import json
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost  # JAX has no public name for the client of its coordination service

from segjax.storage import say
from segjax.training.config import ConfigError

# In seconds: limit for joining; silence after which a host counts as lost; limit for preparing data; interval between
# checks of the other hosts; delay before a failed host exits, so that the others receive its error.
_JOIN, _HEARTBEAT, _PREPARE, _POLL, _LINGER = 300, 30, 3600, 0.5, 2.0
_FAILURE = "segjax/failure"  # key of the coordination service
_uses: Counter[tuple[int, str]] = Counter()  # see `_key`
_LOST = re.compile(r"Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|heartbeat|[Cc]onnection|Socket closed")


class HostError(RuntimeError):
    """Another host was lost, or is about to run something else; the message names the difference."""


class Terminated(Exception):
    """A signal ended the run, and its state is saved; the message names the step."""


class EvaluationAborted(Exception):
    """A signal interrupted an evaluation, which the resumed run repeats."""


def join_hosts(coordinator: str | None = None, hosts: int | None = None, host: int | None = None) -> None:
    """Joins this process to a run of several hosts, as `host` of `hosts`; call it before the first use of a device.

    `coordinator` is "ADDRESS:PORT" of the first host, any free port. TPU pods, Slurm and Open MPI need no arguments.
    The process ends with status 1 if not all hosts have joined within five minutes.

    Raises:
      ConfigError: some of the three are given and others not, or JAX found no cluster.
    """
    given = (coordinator, hosts, host)
    if any(value is None for value in given) and any(value is not None for value in given):
        raise ConfigError(
            "give all of --coordinator, --hosts and --host, or none on a cluster that sets them; got "
            f"--coordinator={coordinator}, --hosts={hosts}, --host={host}"
        )
    where = f"--host={host} of --hosts={hosts} at {coordinator}" if coordinator else "a host of this cluster"
    # JAX's own timeout would abort the process.
    timers = [
        threading.Timer(10, _print, [f"{where} waits for the others to join, for at most {_JOIN} s"]),
        threading.Timer(_JOIN, _end, [f"{where}: not all hosts joined within {_JOIN} s; start them all"]),
    ]
    for timer in timers:
        timer.daemon = True
        timer.start()
    # JAX aborts the other hosts when the first is lost; the stacks of all threads would bury its message.
    faulthandler.disable()
    try:
        jax.distributed.initialize(
            coordinator, hosts, host, initialization_timeout=2 * _JOIN, heartbeat_timeout_seconds=_HEARTBEAT
        )
    except ValueError as error:  # JAX found no cluster
        raise ConfigError(f"no cluster was found; give --coordinator, --hosts and --host ({error})") from error
    except jax.errors.JaxRuntimeError as error:
        raise HostError(
            f"the hosts cannot join {where} ({error}). If another program uses the port, choose another on all hosts"
        ) from error
    finally:
        for timer in timers:
            timer.cancel()


def is_first_host() -> bool:
    """Returns True in the process that prints and writes logs for all."""
    return jax.process_index() == 0


def agreed(decision: bool) -> bool:
    """Returns the first host's decision on all hosts; all must call it equally often."""
    if jax.process_count() == 1:
        return decision
    client, key = multihost.get_jax_distributed_client(), _key("decision")
    if is_first_host():
        client.key_value_set(key, json.dumps(decision))
    return json.loads(client.blocking_key_value_get(key, _PREPARE * 1000))


def refuse_differences(record: dict[str, Any]) -> None:
    """Waits for all hosts; raises HostError on each whose record (ready for JSON) differs from the first host's."""
    if jax.process_count() == 1:
        return
    client, host, key = multihost.get_jax_distributed_client(), jax.process_index(), _key("record")
    if is_first_host():
        client.key_value_set(key, json.dumps(record))
    first = json.loads(client.blocking_key_value_get(key, _PREPARE * 1000))
    record = json.loads(json.dumps(record))
    differing = [key for key in {**first, **record} if first.get(key) != record.get(key)]
    if differing:
        named = "; ".join(f"{key} is {record.get(key)!r}, not {first.get(key)!r}" for key in differing)
        raise HostError(f"host {host} differs from host 0: {named}. Start the same command, code and data on all hosts")
    client.wait_at_barrier(key, _PREPARE * 1000)


def refuse_separate_workdirs(workdir: epath.Path) -> None:
    """Raises HostError on each host that does not share the first host's `workdir`; saving would otherwise hang."""
    if jax.process_count() == 1:
        return
    client, key, probe = multihost.get_jax_distributed_client(), _key("workdir"), workdir / ".host0"
    if is_first_host():
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_text(token := uuid.uuid4().hex)
        client.key_value_set(key, token)
    token = client.blocking_key_value_get(key, _PREPARE * 1000)
    deadline = time.monotonic() + _HEARTBEAT  # a network file system shows new files late
    while not (shared := probe.exists() and probe.read_text() == token) and time.monotonic() < deadline:
        time.sleep(_POLL)
    client.wait_at_barrier(key, _PREPARE * 1000)
    if is_first_host():
        probe.unlink()
    if not shared:
        raise HostError(
            f"host {jax.process_index()}: {workdir} is not the folder of host 0; expected one folder that all "
            "hosts share, on a network file system or in a bucket"
        )


@contextlib.contextmanager
def failures_end_all_hosts() -> Iterator[None]:
    """Ends all hosts with status 1 and one line when an exception other than `Terminated` ends one of them.

    Without it, the others wait in a collective for the host that failed, and that host waits for them at its exit.

    Raises:
      HostError: in place of JAX's error, when another host was lost.
    """
    if jax.process_count() == 1:
        yield
        return
    client, host = multihost.get_jax_distributed_client(), jax.process_index()
    closed, ending = threading.Event(), threading.Event()

    def watch() -> None:
        while not closed.wait(_POLL):
            try:
                failure = client.key_value_try_get(_FAILURE)
            except jax.errors.JaxRuntimeError:  # nobody has failed
                continue
            if not closed.is_set():  # else it is the failure of this host
                ending.set()
                _print(f"error: {failure}")
                _end_after_the_others()
            return

    watcher = threading.Thread(target=watch, name="segjax-hosts", daemon=True)
    watcher.start()
    try:
        yield
    except Terminated:
        raise
    except BaseException as error:
        if ending.is_set():
            watcher.join()  # it ends the process
        closed.set()
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:1000]
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another host was first, or the first host is lost
            client.key_value_set(_FAILURE, f"host {host} failed: {reason}")
        threading.Thread(target=_end_after_the_others, daemon=True).start()
        if isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(reason):
            raise HostError(
                f"host {host}: another host was lost ({reason}). Start the same command on all hosts again; it resumes"
            ) from error
        raise
    finally:
        closed.set()


class Preemption:
    """Context manager that listens for the signals that stop a run, and restores the handlers at its end.

    These are SIGTERM, which clusters send before they take a machine away, Ctrl-C (SIGINT) and the closing of a
    terminal (SIGHUP). Signals that were already ignored, as SIGHUP under nohup, stay ignored. A second Ctrl-C raises
    KeyboardInterrupt.

    With several hosts, SIGINT and SIGHUP are forwarded as SIGTERM to JAX's preemption service, which notifies all
    hosts. `stopping` then becomes True at the same call on all of them, because all call it equally often: after every
    step and in `watched`.
    """

    def __init__(self):
        self._received, self._calls, self._previous = [], 0, {}

    def __enter__(self) -> "Preemption":
        listened = (signal.SIGINT, signal.SIGHUP) + (signal.SIGTERM,) * (jax.process_count() == 1)
        # Only the main thread may install a signal handler.
        for number in listened if threading.current_thread() is threading.main_thread() else ():
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not a handler of Python
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *unused) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, *unused) -> None:
        if number == signal.SIGINT in self._received:
            raise KeyboardInterrupt
        self._received.append(number)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    @property
    def reason(self) -> str:
        """The name of the signal that stops the run."""
        return signal.Signals(self._received[0]).name if self._received else "SIGTERM"

    def stopping(self) -> bool:
        """Returns True if the run has to stop here. All hosts must call it equally often."""
        self._calls += 1
        if jax.process_count() == 1:
            return bool(self._received)
        return multihost_utils.reached_preemption_sync_point(self._calls)

    def watched(self, function: Callable) -> Callable:
        """Wraps repeatable work: it raises `EvaluationAborted` after a signal. All hosts call it equally often."""

        def checked(*arguments):
            if self.stopping():
                raise EvaluationAborted
            return function(*arguments)

        return checked


def _key(name: str) -> str:
    """Returns a key of the coordination service for one use; all hosts must call this the same number of times."""
    _uses[jax.process_index(), name] += 1
    return f"segjax/{name}/{_uses[jax.process_index(), name]}"


def _end_after_the_others() -> None:
    # The first host is the last to leave, because JAX aborts the others when it does.
    time.sleep(_LINGER * (2 if is_first_host() else 1))
    os._exit(1)


def _print(line: str) -> None:
    say(line, sys.stderr)


def _end(line: str) -> None:
    _print(f"error: {line}")
    os._exit(1)
