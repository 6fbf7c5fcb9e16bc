"""Speed beside other libraries: `python -m experiments.benchmarks` (`make benchmark`).

Every figure is a ratio in one run: medians of interleaved rounds of ours, of the peers that are installed (the extra
`bench` brings all) and of a limit, on the same arrays and as many threads. Before a row is timed its ways must agree.
A row is written as it is done: the same command carries on with what is missing, `--only=losses,metrics` takes some.
It wants the environment that `make benchmark` sets, and says so. A machine that others use too:
`taskset -c 0 python -m experiments.benchmarks --clock=cpu`, one thread, CPU time.
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
    """Measures the rows of these sections that the workdir does not hold yet; of all sections what it holds then.

    Raises:
      ConfigError: there is no such section, or the workdir holds rows of another setting.
    """
    if unknown := set(names) - set(SECTIONS):
        raise ConfigError(f"--only must be of {', '.join(SECTIONS)}; got {', '.join(sorted(unknown))}")
    # With huge pages a loss may take half the time, and beside threads that spin one and a half of it.
    system = {name: os.environ.get(name) for name in ENVIRONMENT}
    facts = setting._asdict() | {"threads": threads(), "device": provenance()["device"], "peers": versions()} | system
    measured = results(workdir, SECTIONS, facts)
    for name in names:
        for row, measure in SECTIONS[name].rows(setting).items():
            if row not in measured[name]:
                console.print(f"{name}: {row} …")
                measured[name][row] = measure() | {"provenance": provenance()}
                store(workdir, name, facts, measured[name])
                # A benchmark's programs and arrays are large, and the next row needs none of them.
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
            console.print(f"{name}={value} is not in the environment: `make benchmark` sets it, and times depend on it")
    workdir = Path(options.workdir)
    measured = run(options.only or list(SECTIONS), setting, workdir, console)
    report = show_all(SECTIONS, measured, setting, console)
    written = write_report(report, workdir, "benchmarks", measured)
    console.print(f"Wrote {written[0]}")


if __name__ == "__main__":
    flags.DEFINE_list("only", [], f"Sections, all if none is named: {', '.join(SECTIONS)}.")
    flags.DEFINE_list("shape", ["2", "512", "1024"], "Images, height and width of the logits; other sections derive.")
    flags.DEFINE_integer("classes", 19, "Classes of the logits.", lower_bound=2)
    flags.DEFINE_integer("rounds", 11, "How often each way is timed.", lower_bound=1)
    flags.DEFINE_enum("clock", "wall", tuple(CLOCKS), "The time that passes, or the CPU's; cpu: of one thread only.")
    flags.DEFINE_bool("compiled", True, "Also torch.compile, which first compiles C++ for a while.")
    flags.DEFINE_string("workdir", "runs/benchmarks", "Where rows are kept while it runs, and the report goes.")
    cli.run(main, required=[])
