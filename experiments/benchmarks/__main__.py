"""Speed in comparison with other libraries: `python -m experiments.benchmarks` (`make benchmark`).

Every number is a ratio within one run: medians of interleaved rounds of segjax, the installed baselines (the extra
`bench` installs all) and a limit, on the same arrays and threads. Before a row is timed, its results must agree. Each
row is written once measured, and the same command resumes with the missing rows; `--only=losses,metrics` selects
sections. Times depend on the environment that `make benchmark` sets; the program warns if it differs. On a shared
machine use one thread and CPU time: `taskset -c 0 python -m experiments.benchmarks --clock=cpu`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import rich.console
from absl import flags

from experiments.benchmarks import (
    benchmarks_devices,
    benchmarks_growth,
    benchmarks_input,
    benchmarks_losses,
    benchmarks_metrics,
    benchmarks_network,
    benchmarks_pages,
    benchmarks_prediction,
    benchmarks_start,
)
from experiments.benchmarks.baselines import ENVIRONMENT, Setting, versions
from experiments.benchmarks.benchmarks_report import results, show_all, store
from experiments.benchmarks.timing import CLOCKS, threads
from segjax import cli
from segjax.reporting import write_report
from segjax.storage import say
from segjax.training import ConfigError
from segjax.training.provenance import provenance

SECTIONS = {
    "losses": benchmarks_losses,
    "metrics": benchmarks_metrics,
    "network": benchmarks_network,
    "prediction": benchmarks_prediction,
    "input": benchmarks_input,
    "start": benchmarks_start,
    "growth": benchmarks_growth,
    "devices": benchmarks_devices,
    "pages": benchmarks_pages,
}


def run(names: Sequence[str], setting: Setting, workdir: Path, console: rich.console.Console) -> dict[str, Any]:
    """Measures the rows of these sections that the workdir lacks; returns the rows of all sections.

    Raises:
      ConfigError: a section is unknown, or the workdir has rows of another setting.
    """
    if unknown := set(names) - set(SECTIONS):
        raise ConfigError(f"--only must contain sections of {', '.join(SECTIONS)}; got {', '.join(sorted(unknown))}")
    # Huge pages may halve the time of a loss, and spinning threads may add half.
    system = {name: os.environ.get(name) for name in ENVIRONMENT}
    facts = (
        setting._asdict() | {"threads": threads(), "device": provenance()["device"], "baselines": versions()} | system
    )
    measured = results(workdir, SECTIONS, facts)
    for name in names:
        for row, measure in SECTIONS[name].rows(setting).items():
            if row not in measured[name]:
                say(f"{name}: {row} …", console)
                measured[name][row] = measure() | {"provenance": provenance()}
                store(workdir, name, facts, measured[name])
                # The programs and arrays of a benchmark are large.
                jax.clear_caches()
    return measured


def main(argv: list[str]) -> None:
    """Measures, prints the tables and writes the report."""
    del argv
    options, console = flags.FLAGS, rich.console.Console()
    shape = tuple(int(size) for size in options.shape)
    setting = Setting(shape, options.classes, options.rounds, options.clock, options.compiled)
    for name, value in ENVIRONMENT.items():
        if os.environ.get(name) != value:
            say(f"warning: {name}={value} is not set, which changes times; use `make benchmark`", console)
    workdir = Path(options.workdir)
    measured = run(options.only or list(SECTIONS), setting, workdir, console)
    report = show_all(SECTIONS, measured, setting, console)
    written = write_report(report, workdir, "benchmarks", measured)
    say(f"wrote {written[0]}", console)


if __name__ == "__main__":
    flags.DEFINE_list("only", [], f"Sections; default all: {', '.join(SECTIONS)}.")
    flags.DEFINE_list(
        "shape",
        ["2", "512", "1024"],
        "Images, height and width of the logits; other sections derive their sizes from it.",
    )
    flags.DEFINE_integer("classes", 19, "Classes of the logits.", lower_bound=2)
    flags.DEFINE_integer("rounds", 11, "Number of timed rounds.", lower_bound=1)
    flags.DEFINE_enum("clock", "wall", tuple(CLOCKS), "Wall time, or CPU time of a single thread.")
    flags.DEFINE_bool("compiled", True, "Also time torch.compile, which compiles C++ for half a minute.")
    flags.DEFINE_string("workdir", "runs/benchmarks", "Folder for the rows and the report.")
    cli.run(main, required=[])
