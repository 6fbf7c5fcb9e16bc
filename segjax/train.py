"""Trains a network from a config; the same command resumes a run.

To train on several hosts, run the same command on each of them with --distributed.

Ctrl-C, SIGTERM or closing the terminal stops the run after its current step: the state is saved,
and the exit status is 0. A second Ctrl-C stops it at once, with status 130.

Examples:
  segjax train --config=road_debris_uncertainty --workdir=runs/debris
  segjax train --config=camvid_unet --workdir=runs/camvid --config.objective.loss=softmax_focal
  segjax train --data=ROOT --workdir=runs/mine
"""

import re
import shlex
import sys
from pathlib import Path

import rich.console
from absl import app, flags
from ml_collections import ConfigDict

from segjax import cli
from segjax.data import DataError
from segjax.storage import say
from segjax.training import hosts, train
from segjax.training.checkpoint import run_folder
from segjax.training.config import CONFIG_FILE, from_leaves, leaves, read_config
from segjax.training.fields import COUNT, COUNT_OR_ZERO
from segjax.training.trackers import TRACKERS


def main(argv: list[str]) -> None:
    """Trains, then prints the tables of scores and the next command."""
    cli.refuse_arguments(argv)
    options = flags.FLAGS
    if options.distributed:
        hosts.join_hosts(options.coordinator, options.hosts, options.host)
    console = rich.console.Console(quiet=not hosts.is_first_host())
    if "none" in options.tracker and len(options.tracker) > 1:
        raise app.UsageError("--tracker=none excludes other trackers; remove it, or them")
    trackers = [name for name in options.tracker if name != "none"]
    config = options.config if options.data is None else config_for_folder(Path(options.data), console)
    scores = train(config, options.workdir, console=console, trackers=trackers)
    from segjax import reporting  # after the training, which does not need it

    title = f"{config.data.name}, {config.data.eval_split}, step {scores['steps']}"
    title += ", stopped early" * ("stopped_early" in scores)
    for table in reporting.score_tables(scores, title):
        reporting.show(table, console)
    say(reporting.summary_line(scores), console)
    say(f"The run is in {options.workdir}. Next: segjax report {shlex.quote(options.workdir)}", console)


def config_for_folder(root: Path, console: rich.console.Console) -> ConfigDict:
    """Returns the config that `segjax data check` suggests for a folder, or with which the workdir was started.

    The command line decides the fields of `cli.given_fields`.
    """
    cli.check_image_folder("--data", root)
    options, given = flags.FLAGS, cli.given_fields("config")
    file = run_folder(options.workdir) / CONFIG_FILE
    if file.exists():
        values = {key: value for key, value in leaves(options.config).items() if key in given}
        return from_leaves(leaves(read_config(file)) | values | {"data.manual_dir": str(root.absolute())})
    from segjax.training.survey import survey_folder  # with --data only

    found = survey_folder(root, options.config, given, console)
    if found.refusals:
        more = f" (and {len(found.refusals) - 1} more)" * (len(found.refusals) > 1)
        raise DataError(f"{found.refusals[0]}{more}. segjax data check {root} describes the folder")
    say(f"config inferred from {root}, and saved in the workdir:", console)
    for line in found.lines():
        say(f"  {line}", console)
    for line in found.warnings:
        say(f"warning: {line}", console)
    return found.config


if __name__ == "__main__":
    # Flags are defined here because commands share names of flags, and importing two of them must work.
    with_data = any(re.match("--?data(=|$)", argument) for argument in sys.argv)
    cli.define_config("config", "folder_unet" if with_data else None)
    flags.DEFINE_string(
        "data",
        None,
        "Folder of images and masks. Classes, input size, normalization, steps and class weights are inferred from it, "
        "unless --config sets them.",
    )
    flags.DEFINE_string("workdir", None, "Folder of the run; repeat the command to resume the run.")
    flags.DEFINE_multi_enum("tracker", ["tensorboard"], [*TRACKERS, "none"], "")
    flags.FLAGS["tracker"].help = (  # absl adds half a sentence to a text of its own
        "Program that shows the curves of the run: tensorboard, mlflow (extra mlflow), wandb (Weights & Biases, extra "
        "wandb) or none. Repeat the flag for several."
    )
    flags.FLAGS["tracker"].default_as_str = "tensorboard"
    flags.DEFINE_bool("distributed", False, "Join the other hosts, which run the same command.")
    flags.DEFINE_string("coordinator", None, "ADDRESS:PORT of the first host; needed if the cluster does not set it.")
    cli.define_number("hosts", int, COUNT, "Number of processes; needed if the cluster does not set it.")
    cli.define_number(
        "host", int, COUNT_OR_ZERO, "Index of this process, from 0; needed if the cluster does not set it."
    )
    cli.run(main, required=[("config", "data"), "workdir"])
