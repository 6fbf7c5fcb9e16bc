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


def test_a_look_sees_memory_handles_children_and_the_last_whole_line(log):
    before = soak.look(os.getpid(), log, time.monotonic())
    with (
        log.open(),
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        after = soak.look(os.getpid(), log, time.monotonic())
        child.communicate(b"\n")
    assert before.step == 20
    assert before.megabytes > 50
    assert after.cpu_seconds >= before.cpu_seconds > 0.5
    assert after.processes == before.processes + 1
    assert after.handles > before.handles


def test_a_process_that_has_ended_has_no_family():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert soak.family(child.pid) in ([], [child.pid])


def test_the_thirds_compare_steady_states():
    samples = [Sample(minute, 600 * minute, 500.0, 40, 3, cpu_seconds=30.0 * minute) for minute in range(9)]
    samples[0] = samples[0]._replace(megabytes=100.0)  # what fills caches at the start is no leak
    middle, end = soak.thirds(samples)
    expected = {"memory, MB": 500.0, "open handles": 40, "processes": 3, "steps a second": 10.0}
    assert middle == end == expected | {"CPU milliseconds a step": 50.0}


def test_a_leak_is_seen_in_the_table():
    samples = [Sample(minute, 600 * minute, 500.0 + 50 * minute, 40 + 10 * minute, 3, minute**2) for minute in range(9)]
    report = soak.report_of(samples, 0, "SIGTERM: stopped after step 4800", {})
    rows = {row[0]: row[-1] for row in report.sections[0].tables[0].rows}
    assert rows["memory, MB"] > 1.1
    assert rows["open handles"] > 1.2
    assert rows["steps a second"] == pytest.approx(1.0)
    assert rows["CPU milliseconds a step"] > 1.5
    assert report.facts["exit status after SIGTERM"] == 0
