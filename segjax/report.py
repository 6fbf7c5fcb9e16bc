"""Writes a one-page report of a trained run: curves, scores, calibration, best and worst images.

For a detector: COCO's average precision and recall, and precision and recall per threshold.
For classes that overlap: scores and reliability per class.

Examples:
  segjax report runs/debris
  segjax report runs/camvid/checkpoints/latest --split=test --output=page --severity=3
"""

from absl import app, flags

from segjax import cli
from segjax.data import open_split
from segjax.reporting import (
    check_report,
    detector_report,
    inspect_detector,
    inspect_multilabel,
    inspect_run,
    multilabel_report,
    run_report,
    summary_line,
    write_report,
)
from segjax.storage import nan_to_none, output_folder, path_of, say
from segjax.trained_run import load_run, training_facts
from segjax.training import read_log
from segjax.training.fields import COUNT_OR_ZERO


def main(argv: list[str]) -> None:
    """Scores every image of a split once, and writes the page, also as Markdown, CSV, LaTeX, JSON and PNG."""
    if len(argv) != 2:
        raise app.UsageError(f"expected one WORKDIR or WORKDIR/checkpoints/STEP; got {' '.join(argv[1:]) or 'nothing'}")
    run = load_run(argv[1], flags.FLAGS.calibration, cli.data_fields("config"), detectors=True, multilabel=True)
    inspect, make_report = inspect_run, run_report
    if run.config.data.box_classes:
        cli.refuse_flags(["calibration"], f"is for segmentation networks; {run.name} is a detector")
        inspect, make_report = inspect_detector, detector_report
    elif run.config.data.multilabel:
        inspect, make_report = inspect_multilabel, multilabel_report
    split, output = flags.FLAGS.split or run.config.data.eval_split, flags.FLAGS.output
    if run.runs and output is None:
        raise app.UsageError(
            f"{argv[1]} names {len(run.runs)} runs, so the report has no default folder; add --output=FOLDER"
        )
    log, output = [] if run.runs else read_log(run.workdir), output_folder(output or run.workdir / "report")
    training_facts(run)  # a damaged file ends the command before the run is scored, not after
    source = open_split(run.config.data, split, mark_unseen=True)
    check_report(output, "report", overwrite=flags.FLAGS.overwrite)
    inspection = inspect(run, source, images=flags.FLAGS.images, severity=flags.FLAGS.severity)
    report = make_report(run, log, split, inspection, is_best=path_of(argv[1]) == run.workdir)
    data = {"step": run.step, "split": split, **inspection._asdict()}
    data |= {key: [list(one[:2]) for one in data[key]] for key in ("best", "worst")}
    for large in ("overlaps", "detected"):  # those of every image
        data.pop(large, None)
    written = write_report(report, output, "report", nan_to_none(data), overwrite=flags.FLAGS.overwrite)
    say(summary_line(inspection.scores))
    say(f"wrote {written[0]}, and the same as Markdown, CSV, LaTeX, JSON and PNG next to it")


if __name__ == "__main__":
    flags.DEFINE_string("split", None, "Split to inspect; default: data.eval_split of the config.")
    flags.DEFINE_string(
        "output", None, "Folder for report.html and its other files; default for one run: WORKDIR/report."
    )
    cli.define_number("images", 4, COUNT_OR_ZERO, "Number of best images to show, and of worst images.")
    cli.define_number(
        "severity", int, "[1, 5]", "Also score the images under each of eight corruptions, at this severity."
    )
    cli.define_calibration()
    cli.define_data_fields("config")
    cli.define_overwrite()
    cli.run(main, required=[])
