"""Several hosts, as threads with a coordination service in memory, and as real processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from segjax.training import ConfigError, Terminated, defaults, hosts
from segjax.training.config import comparable, leaves
from segjax.training.hosts import EvaluationAborted, Preemption


class Service:
    """The part of the client of JAX's coordination service that `hosts` uses."""

    def __init__(self, count):
        self.values, self.barrier = {}, threading.Barrier(count)

    def key_value_set(self, key, value):
        if self.values.setdefault(key, value) is not value:
            raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")

    def key_value_try_get(self, key):
        if key not in self.values:
            raise jax.errors.JaxRuntimeError("NOT_FOUND")
        return self.values[key]

    def blocking_key_value_get(self, key, timeout_in_ms):
        while key not in self.values:
            time.sleep(0.001)
        return self.values[key]

    def wait_at_barrier(self, name, timeout_in_ms):
        self.barrier.wait(0.2)


@pytest.fixture
def on_hosts(monkeypatch):
    """Returns `on_hosts(*functions)`, which calls each on a host of its own, and returns results or exceptions."""
    here = threading.local()
    monkeypatch.setattr(jax, "process_index", lambda: here.host)

    def run(*functions):
        service = Service(len(functions))
        monkeypatch.setattr(jax, "process_count", lambda: len(functions))
        monkeypatch.setattr(hosts.multihost, "get_jax_distributed_client", lambda: service)

        def call(host, function):
            here.host = host
            try:
                return function()
            except (hosts.HostError, Terminated, ValueError, threading.BrokenBarrierError) as error:
                return error

        with ThreadPoolExecutor(len(functions)) as threads:
            return list(threads.map(call, range(len(functions)), functions))

    return run


def test_refuse_differences_equal_records_pass(on_hosts):
    record = comparable(defaults()) | {"data": "12 images"}

    def twice():  # as by two calls of `train`
        hosts.refuse_differences(record)
        hosts.refuse_differences({**record, "data": "13 images"})

    assert on_hosts(twice, twice) == [None, None]


OTHER = {bool: lambda x: not x, int: lambda x: x + 1, float: lambda x: x + 0.5, str: lambda x: f"{x}2"}
OTHER |= {tuple: lambda x: (*x, 1.0), type(None): lambda x: 1.0}


def test_refuse_differences_names_each_field_that_differs(on_hosts):
    here = comparable(defaults())
    assert leaves(defaults()).keys() - {key.removeprefix("config.") for key in here} == {
        *("data.data_dir", "data.manual_dir", "data.workers"),
    }
    there = {key: OTHER[type(value)](value) for key, value in here.items()}
    first, second = on_hosts(lambda: hosts.refuse_differences(here), lambda: hosts.refuse_differences(there))
    assert isinstance(first, threading.BrokenBarrierError)  # does not start
    for key in here:
        assert f"{key} is " in str(second)


def test_refuse_differences_gives_both_values_and_missing_entries(on_hosts):
    there = {"a": [1, 2], "data": "11 images"}
    _, error = on_hosts(lambda: hosts.refuse_differences({"a": (1, 2)}), lambda: hosts.refuse_differences(there))
    assert "host 0: data is '11 images', not None." in str(error)


def test_agreed_is_the_decision_of_the_first_host(on_hosts):
    def decide(*decisions):
        return lambda: [hosts.agreed(decision) for decision in decisions]

    assert on_hosts(decide(True, False), decide(False, True)) == [[True, False]] * 2


def test_refuse_separate_workdirs_of_hosts(on_hosts, tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "_HEARTBEAT", 0)
    paths = [hosts.epath.Path(tmp_path / name) for name in "ab"]
    assert on_hosts(*[lambda: hosts.refuse_separate_workdirs(paths[0])] * 2) == [None, None]
    assert list(paths[0].iterdir()) == []
    _, error = on_hosts(*[lambda path=path: hosts.refuse_separate_workdirs(path) for path in paths])
    assert list(paths[0].iterdir()) == []
    assert re.search(f"host 1: {paths[1]} is not the folder of host 0; expected one folder", str(error))


STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.mark.parametrize("number", STOPPING)
def test_preemption_watched_raises_after_a_signal(number):
    with Preemption() as preemption:
        work = preemption.watched(lambda x: x + 1)
        assert work(1) == 2
        os.kill(os.getpid(), number)
        assert preemption.stopping()
        assert preemption.reason == number.name
        with pytest.raises(EvaluationAborted):
            work(1)


def test_preemption_second_ctrl_c_interrupts():
    with Preemption(), pytest.raises(KeyboardInterrupt):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # the first one
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGINT)


def test_preemption_ignored_signal_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not preemption.stopping()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_preemption_restores_the_handlers():
    before = [signal.getsignal(number) for number in STOPPING]
    with Preemption():
        assert not set(before) & {signal.getsignal(number) for number in STOPPING}
    assert [signal.getsignal(number) for number in STOPPING] == before


def test_preemption_in_a_thread_does_not_listen():
    stopping = []

    def run():
        with Preemption() as preemption:
            stopping.append(preemption.stopping())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert stopping == [False]


@pytest.fixture
def ended(monkeypatch):
    """Returns the events of hosts that would have ended by `os._exit`: "host" and what was printed before it."""
    printed = []
    monkeypatch.setattr(hosts, "_POLL", 0.005)
    monkeypatch.setattr(hosts, "_print", printed.append)
    monkeypatch.setattr(hosts, "_end_after_the_others", lambda: printed.append("ends"))
    return printed


def test_failures_end_all_hosts_ends_the_others_too(on_hosts, ended):
    waits = threading.Event()

    def failing():
        with hosts.failures_end_all_hosts():
            raise ValueError("a.png: cannot be decoded")

    def waiting():
        with hosts.failures_end_all_hosts():
            while ended.count("ends") < 2:
                waits.wait(0.005)

    assert [str(each) for each in on_hosts(waiting, failing)] == ["None", "a.png: cannot be decoded"]
    assert sorted(ended) == ["ends", "ends", "error: host 1 failed: ValueError: a.png: cannot be decoded"]


def test_failures_end_all_hosts_names_a_lost_host(on_hosts, ended):
    @hosts.failures_end_all_hosts()
    def train():
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer\nframes")

    error, _ = on_hosts(train, train)
    assert isinstance(error, hosts.HostError)
    assert "Connection reset by peer). Start the same command" in str(error)


def test_failures_end_all_hosts_leaves_sigterm_alone(on_hosts, ended):
    @hosts.failures_end_all_hosts()
    def train():
        raise Terminated("SIGTERM: stopped after step 3")

    on_hosts(train, train)
    assert ended == []


def test_join_hosts_needs_all_of_its_arguments_or_none():
    message = r"give all of --coordinator, --hosts and --host, or none .*--coordinator=localhost:1, --hosts=None"
    with pytest.raises(ConfigError, match=message):
        hosts.join_hosts("localhost:1")


def test_join_hosts_ends_the_process_if_the_others_do_not_join(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(hosts, "_JOIN", 0.01)
    monkeypatch.setattr(hosts.faulthandler, "disable", lambda: None)
    monkeypatch.setattr(hosts, "_end", lambda line: ended.set())
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **options: ended.wait(10))
    hosts.join_hosts("localhost:1", 2, 1)
    assert ended.is_set()


@pytest.mark.slow
def test_join_hosts_without_a_cluster_names_the_flags(python):
    done = python("-c", "from segjax.training import hosts; hosts.join_hosts()")
    assert "ConfigError: no cluster was found; give --coordinator, --hosts and --host" in done.stderr


@pytest.fixture
def start(tiny_flags, process_environment, tmp_path):
    """Returns `start(*flags of each host)`, which starts two processes that train forever in `tmp_path / "run"`."""
    shared = tiny_flags(model__width=4, training__steps=100_000, training__evaluate_every=100_000)

    def begin(*own):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "segjax.train", "--config=rare_class", f"--workdir={tmp_path / 'run'}"]
        command += [*shared, "--distributed", f"--coordinator=localhost:{port}", "--hosts=2"]
        command += [f"--config.data.data_dir={tmp_path / 'data'}", "--config.data.workers=0"]
        options = {"env": process_environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return [subprocess.Popen([*command, f"--host={host}", *flags], **options) for host, flags in enumerate(own)]

    return begin


@pytest.mark.slow
def test_two_processes_that_differ_end_with_one_line_each(start, tmp_path):
    running = start([], ["--config.optimizer.learning_rate=0.01", "--config.seed=1"])
    for process in running:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 1, errors
        (line,) = [line for line in errors.splitlines() if "preparing" not in line]
        assert re.search(
            r"host 1 differs from host 0: config.optimizer.learning_rate is 0.01, not .*seed is 1, not 0", line
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_killed_host_ends_the_other_with_one_line(start, tmp_path):
    first, second = start([], [])
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 100
    while not log.exists() or log.read_text().count("\n") < 3:
        assert (first.poll(), second.poll()) == (None, None), first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    _, errors = first.communicate(timeout=25)  # JAX's heartbeat would take 30 s
    assert first.returncode == 1, errors
    (line,) = [line for line in errors.splitlines() if "preparing" not in line]
    assert "another host was lost" in line
    assert json.loads(log.read_text().splitlines()[0])["step"] == 1
    second.communicate()


def test_join_hosts_whose_port_is_in_use_names_it(monkeypatch):
    def fail(*arguments, **options):
        raise jax.errors.JaxRuntimeError("UNKNOWN: Failed to start RPC server")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setattr(hosts.faulthandler, "disable", lambda: None)
    with pytest.raises(hosts.HostError, match=r"127\.0\.0\.1:45881.*choose another"):
        hosts.join_hosts("127.0.0.1:45881", 2, 0)
