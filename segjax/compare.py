"""Compares trained runs on one page: scores, classes, curves, configs, and the images that differ.

Runs whose configs differ in the seed only share one row, with mean and standard deviation.

Examples:
  segjax compare runs/cross_entropy runs/focal
  segjax compare runs/cross_entropy_* runs/focal_* --output=focal_or_not --images=20
"""

import rich.console
from absl import app, flags

from segjax import cli
from segjax.data import open_split
from segjax.reporting import check_report, comparison, show, write_report
from segjax.storage import nan_to_none, output_folder, say
from segjax.trained_run import load_run, training_facts
from segjax.training.fields import COUNT_OR_ZERO


def main(argv: list[str]) -> None:
    """Scores every run on the images of a split, prints the tables, and writes the page and its other files."""
    if len(argv) < 3:
        raise app.UsageError(
            f"expected two or more RUNs, each WORKDIR or WORKDIR/checkpoints/STEP; got {' '.join(argv[1:]) or 'none'}"
        )
    console, fields = rich.console.Console(), cli.data_fields("config")
    runs = [load_run(path, data_fields=fields, detectors=True, multilabel=True) for path in argv[1:]]
    for run in runs:  # a damaged file ends the command before the runs are scored, not after
        comparison.log_of(run)
        training_facts(run)
    groups = comparison.group_runs(runs)
    split = flags.FLAGS.split or runs[0].config.data.eval_split
    sources = {run.name: open_split(run.config.data, split, mark_unseen=True) for run in runs}
    comparison.check_same_images(groups, sources, split)
    output = output_folder(flags.FLAGS.output)
    check_report(output, "comparison", overwrite=flags.FLAGS.overwrite)
    compared = comparison.compare(groups, sources)
    report = comparison.comparison_report(compared, sources, split, images=flags.FLAGS.images)
    first = sources[runs[0].name]
    data = comparison.comparison_data(compared, [first.name(i) for i in range(len(first))], split)
    written = write_report(report, output, "comparison", nan_to_none(data), overwrite=flags.FLAGS.overwrite)
    for section in report.sections[:2]:
        show(section.tables[0], console)
    say(comparison.finding(compared), console)
    say(f"wrote {written[0]}, and the same as Markdown, CSV, LaTeX, JSON and PNG next to it", console)


if __name__ == "__main__":
    flags.DEFINE_string("split", None, "Split to score; default: data.eval_split of the first run.")
    flags.DEFINE_string("output", "comparison", "Folder for comparison.html and its other files.")
    cli.define_number("images", 8, COUNT_OR_ZERO, "Number of images to show: those whose scores differ most.")
    cli.define_data_fields("config")
    cli.define_overwrite()
    cli.run(main, required=[])
