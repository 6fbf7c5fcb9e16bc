"""Resources of a process, and how they grow over a run."""

import os
import subprocess
import sys
import time

import pytest

from experiments.fault_injection import soak
from experiments.fault_injection.soak import Sample


@pytest.fixture
def log(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 10, "train/loss": 1.0}\n{"step": 20, "train/loss": 0.9}\n{"step": 30, "tra')
    return log


def test_take_sample_measures_memory_handles_children_and_the_last_whole_line(log):
    before = soak.take_sample(os.getpid(), log, time.monotonic())
    with (
        log.open(),
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        after = soak.take_sample(os.getpid(), log, time.monotonic())
        child.communicate(b"\n")
    assert before.step == 20
    assert before.megabytes > 50
    assert after.cpu_seconds >= before.cpu_seconds > 0.5
    assert after.processes == before.processes + 1
    assert after.handles > before.handles


def test_family_of_an_ended_process_is_empty():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert soak.family(child.pid) in ([], [child.pid])


def test_thirds_leave_out_the_start():
    samples = [Sample(minute, 600 * minute, 500.0, 40, 3, cpu_seconds=30.0 * minute) for minute in range(9)]
    samples[0] = samples[0]._replace(megabytes=100.0)  # caches that fill at the start are not a leak
    middle, end = soak.thirds(samples)
    expected = {"memory, MB": 500.0, "open handles": 40, "processes": 3, "steps per second": 10.0}
    assert middle == end == expected | {"CPU milliseconds per step": 50.0}


def test_report_of_a_leak():
    samples = [Sample(minute, 600 * minute, 500.0 + 50 * minute, 40 + 10 * minute, 3, minute**2) for minute in range(9)]
    report = soak.report_of(samples, 0, "SIGTERM: stopped after step 4800", {})
    rows = {row[0]: row[-1] for row in report.sections[0].tables[0].rows}
    assert rows["memory, MB"] > 1.1
    assert rows["open handles"] > 1.2
    assert rows["steps per second"] == pytest.approx(1.0)
    assert rows["CPU milliseconds per step"] > 1.5
    assert report.facts["exit status after SIGTERM"] == 0
