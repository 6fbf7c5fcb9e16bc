"""SIGTERM to real processes: alone, in the middle of an evaluation, and to one of two hosts."""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # starts processes

ROOT = Path(__file__).parents[2]
NEVER = 100_000


@pytest.fixture
def start(tiny_flags, process_environment):
    """Returns `start(workdir, *flags)`, which starts a training that does not end by itself."""
    steps = {f"training__{name}": NEVER for name in ("steps", "evaluate_every", "checkpoint_every")}
    return partial(_start, process_environment, tiny_flags(model__width=4, **steps))


def _start(environment, overrides, workdir, *flags, exported=None):
    command = [sys.executable, "-m", "segjax.train", "--config=configs/rare_class.py", f"--workdir={workdir}"]
    return subprocess.Popen(
        [*command, f"--config.data.data_dir={workdir.parent / 'data'}", *overrides, *flags],
        cwd=ROOT,
        env=environment | (exported or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own
    )


def wait_for_steps(workdir, count, process):
    """Waits until the log has `count` lines."""
    deadline = time.monotonic() + 300
    log = workdir / "metrics.jsonl"
    while not log.exists() or log.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_sigterm_saves_prints_the_step_and_ends_with_status_0(tmp_path, start, rehearsal):
    process = start(tmp_path / "run", exported=rehearsal)
    wait_for_steps(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    (step,) = (int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert f"SIGTERM: stopped after step {step} of 100000, which is saved in {tmp_path / 'run'}; the same" in printed
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == step


def test_ctrl_c_in_a_terminal_whose_output_is_closed_saves_and_leaves_nothing(tmp_path, start):
    process = start(tmp_path / "run", "--config.data.workers=1")
    assert "training and 4 evaluation images" in process.stdout.readline()
    process.stdout.close()  # as by `| head -1`
    wait_for_steps(tmp_path / "run", 3, process)
    os.killpg(process.pid, signal.SIGINT)  # a terminal signals the worker process too
    assert process.wait(100) == 0
    with process.stderr as errors:
        # No traceback of a worker, no warning of leaked shared memory.
        assert re.fullmatch("(segjax: preparing .*\n)?stopping after this step; .*\n", errors.read())
    (step,) = (int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == step
    deadline = time.monotonic() + 30
    with contextlib.suppress(ProcessLookupError):  # raised when Python's resource tracker has ended too, as the last
        while not os.killpg(process.pid, 0):
            assert time.monotonic() < deadline
            time.sleep(0.05)


HOWTO = "howto/tpu_vm.md"


@pytest.fixture
def rehearsal(page):
    """Returns the environment that docs/howto/tpu_vm.md exports before the command of `start`: four devices."""
    *exports, command = (shlex.split(line) for line in page(HOWTO)[0][1].splitlines())
    assert command == ["python", "-m", "segjax.train", "--config=configs/rare_class.py", "--workdir=runs/rehearsal"]
    return dict(setting.split("=", 1) for _, setting in exports)


@pytest.fixture
def two_hosts(start, page):
    """Returns `two_hosts(workdir, *flags)`, which starts the command of docs/howto/tpu_vm.md as two processes."""
    command = shlex.split(page(HOWTO)[1][1])
    assert command[:3] == ["python", "-m", "segjax.train"]
    other_flags = [flag for flag in command[3:] if not flag.startswith(("--config=", "--workdir="))]

    def begin(workdir, *flags):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            here = {"--coordinator": f"localhost:{free.getsockname()[1]}", "--hosts": "2"}
        return [start(workdir, *_with(other_flags, {**here, "--host": str(host)}), *flags) for host in range(2)]

    return begin


def _with(flags, values):
    """Returns the flags with other values; each of them has to be present."""
    names = [flag.partition("=")[0] for flag in flags]
    assert set(values) <= set(names)
    return [f"{name}={values[name]}" if name in values else flag for name, flag in zip(names, flags, strict=True)]


def test_sigterm_to_one_of_two_hosts_saves_a_run_that_one_process_reports(tmp_path, two_hosts, python, browser):
    hosts = two_hosts(tmp_path / "run")
    wait_for_steps(tmp_path / "run", 3, hosts[0])
    hosts[1].send_signal(signal.SIGTERM)
    printed = [host.communicate(timeout=100) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], printed
    (step,) = (int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert all(f"stopped after step {step} of 100000, which is saved" in output for output, _ in printed)
    reported = python("-m", "segjax.report", tmp_path / "run", "--images=1")
    assert reported.returncode == 0, reported.stderr
    report = tmp_path / "run" / "report"
    facts = json.loads((report / "report.json").read_text())["facts"]
    assert facts["checkpoint"] == f"{tmp_path}/run/checkpoints/{step}"
    for width, seen in browser((report / "report.html").read_text()).items():
        assert (all(seen["images"]), seen["wide"]) == (True, False), width


def test_sigterm_to_one_of_two_hosts_aborts_the_evaluation(tmp_path, two_hosts):
    long = ("--config.training.evaluate_every=1", "--config.data.val_examples=400")
    hosts = two_hosts(tmp_path / "run", *long)
    wait_for_steps(tmp_path / "run", 1, hosts[0])  # written before the first step is scored
    hosts[0].send_signal(signal.SIGTERM)
    printed = [host.communicate(timeout=100) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], printed
    assert all("stopped after step 1 of 100000, which is saved" in output for output, _ in printed)
    assert "eval/" not in (tmp_path / "run" / "metrics.jsonl").read_text()
