"""Trains what a config describes: `python -m segjax.train --config=configs/camvid_unet.py --workdir=runs/camvid`.

On several hosts the same command runs on each, with `--distributed`.
"""

import rich.console
from absl import app, flags
from ml_collections import config_flags

from segjax import cli, reporting
from segjax.training import parallel, train


def main(argv: list[str]) -> None:
    """Trains, then prints the per-class table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    options = flags.FLAGS
    if options.distributed:
        parallel.join_hosts(options.coordinator, options.hosts, options.host)
    # The first host speaks for all.
    console, config = rich.console.Console(quiet=not parallel.is_first_host()), options.config
    scores = train(config, options.workdir, console=console)
    reporting.show(
        reporting.per_class_table(scores, f"{config.data.name}, {config.data.eval_split}, step {scores['steps']}"),
        console,
    )
    console.print(reporting.summary_line(scores))


if __name__ == "__main__":
    # Here and not above: the commands share names of flags, and importing two of them must work.
    config_flags.DEFINE_config_file("config", None, "The experiment; --config.objective.gamma=2 changes a field.")
    flags.DEFINE_string("workdir", None, "The run's folder; the same command again carries on from there.")
    flags.DEFINE_bool("distributed", False, "Join the other hosts, on which the same command runs.")
    flags.DEFINE_string("coordinator", None, "ADDRESS:PORT of the first host, where the cluster does not say it.")
    flags.DEFINE_integer("hosts", None, "How many processes there are; likewise.")
    flags.DEFINE_integer("host", None, "Which of them this is, from 0; likewise.")
    cli.run(main, required=["config", "workdir"])
