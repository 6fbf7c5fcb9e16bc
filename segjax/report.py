"""Shows a trained run on one page: `python -m segjax.report runs/camvid [--split=test]`."""

from collections.abc import Sequence
from functools import partial

from absl import app, flags

from segjax import cli
from segjax.data.labels import LabelSet
from segjax.inference import example_tiles, head_measures, legend, png
from segjax.reporting import Picture, run_report, summary_line, write_report
from segjax.training import Shown, changed, facts_of, inspect_run, load_run, no_nan, open_split, read_log
from segjax.training.storage import output_folder, path_of, write_bytes

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Scores every image of a split once, and writes the page and the same as Markdown, CSV, LaTeX, JSON and PNG."""
    if len(argv) != 2:
        raise app.UsageError(f"expected one WORKDIR or WORKDIR/checkpoints/STEP; got {' '.join(argv[1:]) or 'none'}")
    run = load_run(argv[1])
    log, config, labels, step = read_log(run.workdir), run.config, run.label_set, int(run.state.step)
    split, output = FLAGS.split or config.data.eval_split, output_folder(FLAGS.output or run.workdir / "report")
    source, chosen = open_split(config.data, split), "its best checkpoint, " if path_of(argv[1]) == run.workdir else ""
    output.mkdir(parents=True, exist_ok=True)
    measures = partial(head_measures, num_classes=labels.num_classes, rate=config.model.dropout_rate)
    with_heads = config.model.dropout != "none"
    found = inspect_run(run, source, images=FLAGS.images, measures=measures if with_heads else None)
    numbers = {key: value for key, value in found._asdict().items() if key not in ("best", "worst")}
    report = run_report(
        f"{config.model.name} on {config.data.name}",
        f"{run.workdir}, {chosen}step {step} of {config.training.steps}, on the {len(source)} images of {split}.",
        log=log,
        step=step,
        **numbers,
        best=_pictures("best", found.best, found.scales, labels),
        worst=_pictures("worst", found.worst, found.scales, labels),
        colours=Picture("colours", "The classes and their colours.", png(legend(labels))),
        changed=changed(config),
        facts=facts_of(run, split, found.scores),
    )
    data = {"step": step, "split": split, **numbers}
    data |= {key: [[one.name, one.mean_iou] for one in getattr(found, key)] for key in ("best", "worst")}
    written = write_report(report, output, "report", no_nan(data), write=write_bytes)
    print(summary_line(found.scores))
    print(f"wrote {written[0]}, and the same as Markdown, CSV, LaTeX, JSON and PNG beside it")


def _pictures(which: str, images: Sequence[Shown], scales: dict[str, float], labels: LabelSet) -> list[Picture]:
    return [
        Picture(
            f"{which}_{i}",
            f"{one.name}: mean IoU {one.mean_iou:.3f}",
            png(example_tiles(one.image, one.truth, one.prediction, one.uncertainties, scales, labels.palette)),
            half=True,
        )
        for i, one in enumerate(images, 1)
    ]


if __name__ == "__main__":
    flags.DEFINE_string("split", None, "The split to look at; default the config's data.eval_split.")
    flags.DEFINE_string("output", None, "The folder for report.html and what lies beside it; default WORKDIR/report.")
    flags.DEFINE_integer("images", 4, "How many of the best and how many of the worst images to show.", lower_bound=0)
    cli.run(main, required=[])
