"""Scores a trained run, or masks in files, on a split: prints the table and writes a JSON file.

Examples:
  segjax evaluate --checkpoint=runs/debris
  segjax evaluate --checkpoint=runs/camvid --split=test --corruption=fog --severity=3
  segjax evaluate --checkpoint=runs/mine --split=all --config.data.manual_dir=ROOT
  segjax evaluate --predictions=FOLDER --config.data.manual_dir=ROOT
"""

from pathlib import Path

import rich.console
from absl import app, flags

from segjax import cli
from segjax.data import CORRUPTIONS, open_split
from segjax.reporting import score_tables, show, summary_line
from segjax.storage import check_outputs, path_of, say, to_json, write_outputs
from segjax.trained_run import load_run, score_run
from segjax.training import validate
from segjax.training.evaluation import score_masks
from segjax.training.provenance import provenance


def main(argv: list[str]) -> None:
    """Scores every image of a split once, prints the table and writes the JSON file."""
    cli.refuse_arguments(argv)
    corruption = _corruption()
    cli.refuse_together("checkpoint", "predictions")
    if flags.FLAGS.predictions is not None:
        if corruption:
            raise app.UsageError(
                f"--corruption={corruption[0]} needs --checkpoint: the masks of --predictions exist already; remove it"
            )
        _score_predictions(Path(flags.FLAGS.predictions))
        return
    console, fields = rich.console.Console(), cli.data_fields("config")
    run = load_run(flags.FLAGS.checkpoint, data_fields=fields, detectors=True, multilabel=True)
    split, output = flags.FLAGS.split or run.config.data.eval_split, flags.FLAGS.output
    if run.runs and output is None:
        raise app.UsageError(
            f"--checkpoint names {len(run.runs)} runs, so the scores have no default file; add --output=FILE.json"
        )
    suffix = "_{}_{}".format(*corruption) if corruption else ""
    output = path_of(output or run.workdir / f"scores_{split}_{run.step}{suffix}.json")
    check_outputs([output], overwrite=flags.FLAGS.overwrite)
    scores = score_run(run, split, corruption)
    network = f"ensemble of {len(run.runs)} runs" if run.runs else f"step {run.step}"
    shift = ", {} of severity {}".format(*corruption) if corruption else ""
    for table in score_tables(scores, f"{run.config.data.name}, {split}, {network}{shift}"):
        show(table, console)
    say(summary_line(scores), console)
    if scores["skipped"]:
        say(f"{scores['skipped']} bad pair(s) of image and mask were skipped", console)
    shifted = dict(zip(("corruption", "severity"), corruption or (), strict=False))
    data = {"split": split, **shifted, **run.record(), **scores, "provenance": provenance()}
    write_outputs({output: to_json(data)}, overwrite=flags.FLAGS.overwrite)
    say(f"wrote {output}", console)


def _score_predictions(folder: Path) -> None:
    """Scores the masks of a folder against the split of `--config`, prints the table and writes the JSON file."""
    console, config = rich.console.Console(), flags.FLAGS.config
    split = flags.FLAGS.split or ("all" if config.data.name == "folder" else config.data.eval_split)
    output = path_of(flags.FLAGS.output or folder / f"scores_{split}.json")
    check_outputs([output], overwrite=flags.FLAGS.overwrite)
    validate(config)
    if config.data.box_classes:
        raise app.UsageError(
            f"--predictions scores masks, and config.model.name = {config.model.name!r} finds boxes; name the config "
            "of a segmentation network"
        )
    if config.data.multilabel:
        raise app.UsageError(
            "--predictions scores one mask per image, and config.data.multilabel=True has one per class; score each "
            "class on its own, with config.data.multilabel=False"
        )
    scores = score_masks(open_split(config.data, split), folder)
    for table in score_tables(scores, f"{config.data.name}, {split}, masks of {folder}"):
        show(table, console)
    say(summary_line(scores), console)
    data = {"split": split, "predictions": str(folder), **scores, "provenance": provenance()}
    write_outputs({output: to_json(data)}, overwrite=flags.FLAGS.overwrite)
    say(f"wrote {output}", console)


def _corruption() -> tuple[str, int] | None:
    kind, severity = flags.FLAGS.corruption, flags.FLAGS.severity
    if kind is None and severity is not None:
        raise app.UsageError(f"--severity={severity} needs --corruption=KIND, one of {', '.join(CORRUPTIONS)}")
    if kind is not None and severity is None:
        raise app.UsageError(f"--corruption={kind} needs a severity; add --severity=1 (weakest) to 5")
    return None if kind is None else (kind, severity)


if __name__ == "__main__":
    cli.define_checkpoint()
    help_text = (
        "Folder of masks to score, named NAME_mask or NAME after the images: masks that segjax predict wrote, or masks "
        "in the values of the labels."
    )
    flags.DEFINE_string("predictions", None, help_text)
    cli.define_data_fields("config")
    flags.FLAGS["config"].help += " With --predictions: config of the data set, --config=NAME (default folder_unet)."
    help_text = "Split to score; default: data.eval_split, or all with --predictions and a folder of images."
    flags.DEFINE_string("split", None, help_text)
    flags.DEFINE_enum("corruption", None, list(CORRUPTIONS), "Corrupt the images first, as in ImageNet-C.")
    cli.define_number("severity", int, "[1, 5]", "Severity of --corruption, 1 (weakest) to 5.")
    help_text = (
        "JSON file for the scores; default: WORKDIR/scores_SPLIT_STEP[_CORRUPTION_SEVERITY].json, or with "
        "--predictions FOLDER/scores_SPLIT.json."
    )
    flags.DEFINE_string("output", None, help_text)
    cli.define_overwrite()
    cli.run(main, required=[("checkpoint", "predictions")])
