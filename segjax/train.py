"""Trains what a config describes: `python -m segjax.train --config=configs/camvid_unet.py --workdir=runs/camvid`."""

import rich.console
from absl import app, flags
from ml_collections import config_flags

from segjax import cli
from segjax.reporting import per_class_table, show, summary_line
from segjax.training import train


def main(argv: list[str]) -> None:
    """Trains, then prints the per-class table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    console, config = rich.console.Console(), flags.FLAGS.config
    scores = train(config, flags.FLAGS.workdir, console=console)
    show(per_class_table(scores, f"{config.data.name}, {config.data.eval_split}, step {scores['steps']}"), console)
    console.print(summary_line(scores))


if __name__ == "__main__":
    # Here and not above: the commands share names of flags, and importing two of them must work.
    config_flags.DEFINE_config_file("config", None, "The experiment; --config.objective.gamma=2 changes a field.")
    flags.DEFINE_string("workdir", None, "The run's folder; the same command again carries on from there.")
    cli.run(main, required=["config", "workdir"])
