"""Trains a network from a config; the same command resumes a run.

On several hosts the same command runs on each, with --distributed.

Ctrl-C, SIGTERM and the end of the terminal stop the run after its current step: the state is saved,
and the exit status is 0. A second Ctrl-C stops it at once, with status 130.

Examples:
  segjax train --config=road_debris_uncertainty --workdir=runs/debris
  segjax train --config=camvid_unet --workdir=runs/camvid --config.objective.loss=softmax_focal
"""

import rich.console
from absl import flags

from segjax import cli, reporting
from segjax.storage import say
from segjax.training import hosts, train
from segjax.training.config import COUNT, COUNT_OR_ZERO


def main(argv: list[str]) -> None:
    """Trains, then prints the tables of scores and the next command."""
    cli.refuse_arguments(argv)
    options = flags.FLAGS
    if options.distributed:
        hosts.join_hosts(options.coordinator, options.hosts, options.host)
    console, config = rich.console.Console(quiet=not hosts.is_first_host()), options.config
    scores = train(config, options.workdir, console=console)
    title = f"{config.data.name}, {config.data.eval_split}, step {scores['steps']}"
    for table in reporting.score_tables(scores, title):
        reporting.show(table, console)
    say(reporting.summary_line(scores), console)
    say(f"The run is in {options.workdir}. Its report: segjax report {options.workdir}", console)


if __name__ == "__main__":
    # Flags are defined here because commands share names of flags, and importing two of them must work.
    cli.define_config("config")
    flags.DEFINE_string("workdir", None, "Folder of the run; repeat the command to resume the run.")
    flags.DEFINE_bool("distributed", False, "Join the other hosts, which run the same command.")
    flags.DEFINE_string("coordinator", None, "ADDRESS:PORT of the first host, where the cluster does not set it.")
    cli.define_number("hosts", int, COUNT, "Number of processes, where the cluster does not set it.")
    cli.define_number("host", int, COUNT_OR_ZERO, "Index of this process, from 0, where the cluster does not set it.")
    cli.run(main, required=["config", "workdir"])
