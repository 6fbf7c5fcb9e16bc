"""A small run watched for half an hour: `python -m experiments.fault_injection.soak --minutes=30`.

It measures whether memory grows, file handles leak, or steps get slower. The run reads through a worker process, saves
and scores all the time. At the end it gets SIGTERM and must save and end with status 0.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich.console
from absl import flags

from segjax import cli
from segjax.reporting import Chart, Report, Section, Table, show, write_report
from segjax.storage import StorageError, say
from segjax.training.provenance import provenance

OVERRIDES = {
    "data.scene_size": "(64, 96)",
    "data.train_examples": 64,
    "data.val_examples": 16,
    "data.size": "(48, 64)",
    "data.workers": 1,
    "model.width": 4,
    "model.depth": 2,
    "training.steps": 10**7,
    "training.evaluate_every": 200,
    "training.checkpoint_every": 100,
    "training.log_every": 10,
}


class Sample(NamedTuple):
    """Resources that the run and its worker processes use at one time.

    Attributes:
      minute: minutes since the first sample.
      step: last step in the log.
      megabytes: memory, summed over the processes; shared pages count in part (PSS).
      handles: open files, sockets and pipes.
      processes: number of processes.
      cpu_seconds: CPU time of the processes and of their ended children, independent of the machine's other load.
    """

    minute: float
    step: int
    megabytes: float
    handles: int
    processes: int
    cpu_seconds: float


def family(pid: int) -> list[int]:
    """Returns the ids of a process and of its living descendants."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    try:
        below = [int(child) for file in children for child in file.read_text().split()]
    except OSError:  # it has ended
        return []
    return [pid, *(one for child in below for one in family(child))]


def take_sample(pid: int, log: Path, begun: float) -> Sample:
    """Measures a running process and its descendants."""
    kilobytes, handles, ticks, pids = 0, 0, 0, family(pid)
    for one in pids:
        try:
            memory = Path(f"/proc/{one}/smaps_rollup").read_text()
            handles += len(os.listdir(f"/proc/{one}/fd"))
            # After the name in parentheses: user and system time of the process and of its ended children.
            ticks += sum(map(int, Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:15]))
        except OSError:
            continue
        kilobytes += int(next(line for line in memory.splitlines() if line.startswith("Pss:")).split()[1])
    with log.open("rb") as lines:
        lines.seek(-min(4096, log.stat().st_size), os.SEEK_END)
        whole = [line for line in lines.read().split(b"\n")[:-1] if line.startswith(b'{"step"')]
    return Sample(
        minute=(time.monotonic() - begun) / 60,
        step=json.loads(whole[-1])["step"],
        megabytes=kilobytes / 1024,
        handles=handles,
        processes=len(pids),
        cpu_seconds=ticks / os.sysconf("SC_CLK_TCK"),
    )


def soak(workdir: Path, minutes: float, interval: float) -> tuple[list[Sample], int, str]:
    """Trains for some minutes and ends the run; returns the samples, the exit status and the last printed line."""
    command = [sys.executable, "-m", "segjax.train", "--config=configs/rare_class.py", f"--workdir={workdir / 'run'}"]
    data = f"--config.data.data_dir={workdir / 'data'}"
    overrides = [f"--config.{key}={value}" for key, value in OVERRIDES.items()]
    log, samples = workdir / "run" / "metrics.jsonl", []
    with (workdir / "printed").open("w+") as printed:
        process = subprocess.Popen([*command, data, *overrides], stdout=printed, stderr=subprocess.STDOUT)
        try:
            while not log.exists() and process.poll() is None:
                time.sleep(0.1)
            begun = time.monotonic()
            while process.poll() is None and time.monotonic() - begun < 60 * minutes:
                time.sleep(interval)
                samples.append(take_sample(process.pid, log, begun))
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(timeout=120)
        printed.seek(0)
        return samples, status, printed.read().strip().splitlines()[-1]


def thirds(samples: Sequence[Sample]) -> tuple[dict[str, float], dict[str, float]]:
    """Returns means over the second and over the last third of the samples; the first third fills caches and pools."""

    def means(begin: int, end: int) -> dict[str, float]:
        part, first, last = samples[begin:end], samples[begin], samples[end - 1]
        steps = last.step - first.step
        return {
            "memory, MB": statistics.mean(sample.megabytes for sample in part),
            "open handles": statistics.mean(sample.handles for sample in part),
            "processes": statistics.mean(sample.processes for sample in part),
            "steps per second": steps / (60 * (last.minute - first.minute)),
            "CPU milliseconds per step": 1000 * (last.cpu_seconds - first.cpu_seconds) / steps,
        }

    n = len(samples)
    return means(n // 3, 2 * n // 3), means(2 * n // 3, n)


def report_of(samples: Sequence[Sample], status: int, last_line: str, facts: dict[str, Any]) -> Report:
    """Builds the report: a table of the second and the last third, and the curves."""
    middle, end = thirds(samples)
    table = Table(
        "Means over the second and the last third",
        ("", "second third", "last third", "ratio"),
        [(key, middle[key], end[key], end[key] / middle[key]) for key in middle],
    )
    first = samples[0]
    lines = {
        name: ([round(s.minute, 2) for s in samples], [[getattr(s, field) / getattr(first, field) for s in samples]])
        for name, field in (("memory", "megabytes"), ("open handles", "handles"))
    }
    chart = Chart("curves", "Memory and handles.", lines, "Relative to the first sample", "minute", "ratio", half=False)
    outcome = {"steps": samples[-1].step, "minutes": samples[-1].minute, "exit status after SIGTERM": status}
    return Report(
        "Soak",
        "A small run that reads, saves and scores all the time, watched by another process and ended by SIGTERM.",
        (Section("Resources", last_line, (table,), (chart,)),),
        outcome | facts,
    )


def main(argv: list[str]) -> None:
    """Watches a run and writes the report."""
    del argv
    options, console, origin = flags.FLAGS, rich.console.Console(), provenance()
    workdir = Path(options.workdir)
    if workdir.exists():
        raise StorageError(f"--workdir={workdir} exists; delete it, or choose another folder")
    workdir.mkdir(parents=True)
    samples, status, last_line = soak(workdir, options.minutes, options.interval)
    report = report_of(samples, status, last_line, origin)
    for table in report.sections[0].tables:
        show(table, console)
    written = write_report(report, workdir, "soak", [s._asdict() for s in samples])
    say(f"Wrote {written[0]}", console)


if __name__ == "__main__":
    flags.DEFINE_float("minutes", 30.0, "Minutes to train.", lower_bound=0.1)
    flags.DEFINE_float("interval", 10.0, "Seconds between two samples.", lower_bound=0.1)
    flags.DEFINE_string("workdir", "runs/soak", "New folder for the run and the report.")
    cli.run(main, required=[])
