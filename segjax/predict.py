"""Writes the masks, or with a detector the boxes, of images: files, folders and patterns.

Examples:
  segjax predict --checkpoint=runs/debris --output=predictions --uncertainty street.jpg
  segjax predict --checkpoint=runs/camvid --tile=512,512 --augment=flip aerial/ 'day/*.png'
"""

from typing import Any

from absl import app, flags

from segjax import __version__, cli, inference
from segjax.data.io import RawFile, named_images
from segjax.data.labels import LabelSet, class_values
from segjax.storage import output_folder, say
from segjax.trained_run import (
    TrainedRun,
    chosen_threshold,
    find_class,
    guaranteed_mask,
    guaranteed_sets,
    head_rate,
    load_run,
    stored_scaling,
)
from segjax.training.fields import COUNT, COUNT_OR_ZERO, FRACTION, POSITIVE, SEED

FLAGS = flags.FLAGS
# Options of masks, which a detector does not have.
_OF_MASKS = ("class", "uncertainty", "uncertainty_max", "overlay", "probabilities", "values", "palette", "threshold")
_OF_MASKS += ("contact_sheet", "at_precision", "guarantee", "sets", "calibrated", "calibration", "augment", "samples")
_OF_MASKS += ("passes", "rate", "seed", "tile", "scale", "overlap", "batch")
# Options of one class per pixel.
_EXCLUSIVE = ("sets", "values", "palette")


def main(argv: list[str]) -> None:
    """Writes a mask, and the chosen pictures, of each image, at the image's own size; or the boxes of a detector.

    Classes that overlap have a mask each.
    """
    if not argv[1:]:
        raise app.UsageError("name at least one image, folder or pattern")
    cli.refuse_together("threshold", "at_precision", "guarantee")
    output = output_folder(FLAGS.output)
    files = named_images(argv[1:])
    files = {name: file for name, file in files.items() if not inference.is_prediction_file(file.path, output)}
    run = load_run(FLAGS.checkpoint, FLAGS.calibration, detectors=True, multilabel=True)
    if run.config.data.box_classes:
        _write_detections(run, files, output)
        return
    if run.config.data.multilabel:
        cli.refuse_flags(_EXCLUSIVE, f"is for one class per pixel; the classes of {run.name} overlap")
        if FLAGS.uncertainty in inference.LOGIT_SCORES:
            raise app.UsageError(
                f"--uncertainty={FLAGS.uncertainty} is for one class per pixel; the classes of {run.name} overlap: use "
                "--uncertainty=entropy"
            )
    cli.refuse_flags(["min_score"], f"is for detectors; {run.name} is a segmentation network")
    class_index, options = find_class(run, FLAGS["class"].value), _predict_options(run)
    for name in ("at_precision", "guarantee", "sets"):
        if FLAGS[name].value is not None and (changed := options.non_default()):
            given = [f"--{option}" for option in changed if FLAGS[option].present]
            way_out = f"remove {' and '.join(given)}" + ", or use --threshold" * (name != "sets")
            raise app.UsageError(f"--{name} is measured with the default options; {way_out}")
    changes, line = chosen_threshold(run, FLAGS.threshold, FLAGS.at_precision, class_index)
    changes["scaling"], scaled = stored_scaling(run, options) if FLAGS.calibrated else (None, "")
    lines, guarantees = [line, scaled], {}
    if FLAGS.guarantee is not None:
        fields, guarantees["guarantee"], line = guaranteed_mask(run, FLAGS.guarantee, class_index)
        changes, lines = changes | fields, [*lines, line]
    if FLAGS.sets is not None:
        fields, guarantees["sets"], line = guaranteed_sets(run, FLAGS.sets)
        changes, lines = changes | fields, [*lines, line]
    for line in filter(None, lines):
        say(line)
    options = _predict_options(run, **changes)
    outputs = _output_options(class_index, options, run.label_set)
    predict = run.predictor(options, probabilities=FLAGS.probabilities)
    origin = run.origin() | {"segjax": __version__} | guarantees
    choices = {"on_error": FLAGS.on_error, "overwrite": FLAGS.overwrite}
    done = inference.write_predictions(predict, files, output, outputs, run.label_set, origin, **choices)
    for line in done.lines():
        say(line)
    say(f"in {output}: " + ", ".join(f"NAME{suffix}" for suffix in outputs.suffixes))
    if outputs.uncertainty:
        say(f"NAME_uncertainty.png, black to pale yellow: {outputs.scale(run.label_set)}")


def _write_detections(run: TrainedRun, files: dict[str, RawFile], output: Any) -> None:
    cli.refuse_flags(_OF_MASKS, f"is for segmentation networks; {run.name} is a detector")
    names, palette = run.box_classes
    origin = run.origin() | {"segjax": __version__}
    choices = {"min_score": FLAGS.min_score, "on_error": FLAGS.on_error, "overwrite": FLAGS.overwrite}
    done = inference.write_detections(run.detector(), files, output, names, palette, origin, **choices)
    for line in done.lines():
        say(line)
    say(score_line(done, FLAGS.min_score))
    say(f"in {output}: detections.json, and NAME_boxes.png with the boxes of score {FLAGS.min_score} or more")


def score_line(done: inference.WriteSummary, min_score: float) -> str:
    """Returns a line about the number of detections that reach `min_score`."""
    if not done.detections:
        return "no object was detected"
    line = f"{done.drawn} of {done.detections} detections reach --min_score={min_score:g}"
    return line if done.drawn else f"{line}; the highest score is {done.highest_score:.3f}: lower --min_score"


def _predict_options(run: TrainedRun, **changes) -> inference.PredictOptions:
    rate = head_rate(run, FLAGS.rate, FLAGS.samples, FLAGS.passes)
    names = ("tile", "scale", "overlap", "batch", "augment", "samples", "passes", "seed")
    fields = {name: FLAGS[name].value for name in names} | {"members": run.members} | changes
    if FLAGS.uncertainty in inference.LOGIT_SCORES:
        fields["logit_score"] = FLAGS.uncertainty
    try:
        return inference.predict_options(tuple(run.config.data.size), rate=rate, **fields)
    except ValueError as error:
        raise app.UsageError(f"--{error}") from error  # its first word is the option


def _output_options(
    class_index: int | None, options: inference.PredictOptions, label_set: LabelSet
) -> inference.OutputOptions:
    measure = FLAGS.uncertainty or options.uncertainties[0]
    if measure not in options.uncertainties:
        raise app.UsageError(
            f"--uncertainty={measure} needs several samples; add --samples=30 or --passes=30, or give several runs in "
            "--checkpoint"
        )
    if FLAGS.palette and FLAGS["values"].value == "dataset":
        if label_set.threshold is not None:
            raise app.UsageError(
                "--palette would replace the grey values that config.data.mask_threshold compares; remove it, or "
                "--values=dataset"
            )
        if class_values(label_set).max() > 255:
            raise app.UsageError("--palette has 256 entries, and --values=dataset needs larger ids; remove one of them")
    return inference.OutputOptions(
        only=class_index,
        uncertainty=FLAGS.uncertainty is not None,
        sets=FLAGS.sets is not None,
        measure=measure,
        maximum=FLAGS.uncertainty_max,
        sheet=FLAGS.contact_sheet,
        classes=() if label_set.combinations is None else label_set.names,
        **{name: FLAGS[name].value for name in ("overlay", "probabilities", "values", "palette")},
    )


if __name__ == "__main__":
    cli.define_checkpoint()
    flags.DEFINE_string(
        "output",
        "predictions",
        "Folder for NAME_mask.png, or boxes and detections.json.",
    )
    flags.DEFINE_bool("overlay", True, "Write NAME_overlay.png, the image tinted by class.")
    flags.DEFINE_string("class", None, "Class for --threshold; overlays then show this class only.")
    measures = (*inference.UNCERTAINTIES, *inference.LOGIT_SCORES)
    cli.define_bare_or_one_of("uncertainty", measures, "Write NAME_uncertainty.png.")
    cli.define_number(
        "uncertainty_max", float, POSITIVE, "Uncertainty shown in the lightest colour; the value used is printed."
    )
    flags.DEFINE_bool("probabilities", False, "Write NAME_probabilities.npz: float32 [H, W, C], and the uncertainties.")
    help_text = "Class indices, or the data set's values."
    flags.DEFINE_enum("values", "index", ["index", "dataset"], help_text)
    flags.DEFINE_bool("palette", False, "Store the colours of the classes in the masks as a palette.")
    flags.DEFINE_bool("contact_sheet", False, "Write contact_sheet.png, thumbnails of up to 24 images.")
    cli.define_number(
        "threshold", float, "(0, 1)", "Assign --class (of two: the rare one) to pixels of at least this probability."
    )
    cli.define_number(
        "at_precision", float, FRACTION, "Use the threshold at which --class reached this precision in evaluation."
    )
    cli.define_guarantee("guarantee", "Use the mask rule of segjax calibrate --risk=fnr; =LEVEL if several exist.")
    cli.define_guarantee("sets", "Write NAME_set.png, set sizes: segjax calibrate --risk=miscoverage; =LEVEL.")
    cli.define_calibrated()
    cli.define_calibration()
    cli.define_min_score()
    flags.DEFINE_enum("on_error", "raise", ["raise", "skip"], "Stop at a bad image file, or skip it.")
    flags.DEFINE_enum("augment", "none", list(inference.AUGMENTATIONS), "Average over copies of the image.")
    cli.define_number("samples", 0, COUNT_OR_ZERO, "Average over this many dropout masks of the head; 0: none.")
    cli.define_number(
        "passes", 0, COUNT_OR_ZERO, "Average over this many forward passes with dropout as in training; 0: none."
    )
    cli.define_number("rate", float, "[0, 0.99]", "Dropout rate of the head; default: the rate of training.")
    cli.define_number("seed", 0, SEED, "Seed of the dropout masks.")
    cli.define_size("tile", "Size of the tiles, after --scale; default: no tiles.")
    cli.define_number("scale", float, "(0, 64]", "Factor to resize images before cutting them into tiles; default: 1.")
    cli.define_number("overlap", int, COUNT_OR_ZERO, "Pixels that tiles share; default: a quarter of the shorter side.")
    cli.define_number("batch", 1, COUNT, "Number of tiles, or of whole images, per forward pass.")
    cli.define_overwrite()
    cli.run(main, required=["checkpoint"])
