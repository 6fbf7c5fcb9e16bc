"""Scores a trained run on a split: prints the table and writes a JSON file.

Examples:
  segjax evaluate --checkpoint=runs/debris
  segjax evaluate --checkpoint=runs/camvid/checkpoints/latest --split=test
"""

import rich.console
from absl import app, flags

from segjax import cli
from segjax.reporting import score_tables, show, summary_line
from segjax.storage import check_outputs, path_of, say, to_json, write_outputs
from segjax.trained_run import load_run, score_run
from segjax.training.provenance import provenance


def main(argv: list[str]) -> None:
    """Scores every image of a split once, prints the table and writes the JSON file."""
    cli.refuse_arguments(argv)
    console, run = rich.console.Console(), load_run(flags.FLAGS.checkpoint)
    split, output = flags.FLAGS.split or run.config.data.eval_split, flags.FLAGS.output
    if run.runs and output is None:
        raise app.UsageError("the scores of several runs need --output=FILE.json")
    output = path_of(output or run.workdir / f"scores_{split}_{run.step}.json")
    check_outputs([output], overwrite=flags.FLAGS.overwrite)
    scores = score_run(run, split)
    network = f"ensemble of {len(run.runs)} runs" if run.runs else f"step {run.step}"
    for table in score_tables(scores, f"{run.config.data.name}, {split}, {network}"):
        show(table, console)
    say(summary_line(scores), console)
    if scores["skipped"]:
        say(f"{scores['skipped']} bad pair(s) of image and mask were skipped", console)
    data = {"split": split, **run.record(), **scores, "provenance": provenance()}
    write_outputs({output: to_json(data)}, overwrite=flags.FLAGS.overwrite)
    say(f"wrote {output}", console)


if __name__ == "__main__":
    cli.define_checkpoint()
    flags.DEFINE_string("split", None, "Split to score; default: data.eval_split of the config.")
    flags.DEFINE_string("output", None, "JSON file for the scores; default of one run: WORKDIR/scores_SPLIT_STEP.json.")
    cli.define_overwrite()
    cli.run(main, required=["checkpoint"])
