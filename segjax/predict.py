"""Predicts images: `python -m segjax.predict --checkpoint=runs/camvid --output=predictions IMAGE_FOLDER_OR_GLOB…`."""

import math

from absl import app, flags

from segjax import cli
from segjax.inference import Found, Wanted, done_lines, write_predictions
from segjax.training import check_two_classes, load_run, named_images, run_prediction, threshold_of
from segjax.training.storage import path_of, write_bytes

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Writes a mask, and the pictures that are wanted, of each image, at the image's own size."""
    if not argv[1:]:
        raise app.UsageError("name at least one image, folder or pattern")
    files, output = named_images(argv[1:]), path_of(FLAGS.output)
    run = load_run(FLAGS.checkpoint)
    classes, chosen, threshold = run.label_set.names, FLAGS["class"].value, None
    if chosen is not None and chosen not in classes:
        raise app.UsageError(f"--class: expected one of {', '.join(classes)}; got {chosen!r}")
    if FLAGS.threshold is not None:
        check_two_classes(run)
        threshold = math.log(FLAGS.threshold / (1 - FLAGS.threshold))
    if FLAGS.at_precision is not None:
        found = threshold_of(run, FLAGS.at_precision)
        threshold = found.threshold_logit
        print(
            f"{classes[1]} from a probability of {1 / (1 + math.exp(-threshold)):.4g} on: on "
            f"{run.config.data.eval_split} its precision is {found.precision:.3f}, its recall {found.recall:.3f}"
        )
    wanted = Wanted(
        overlay=FLAGS.overlay,
        only=None if chosen is None else classes.index(chosen),
        uncertainty=FLAGS.uncertainty,
        probabilities=FLAGS.probabilities,
        palette=FLAGS.palette,
        sheet=FLAGS.contact_sheet,
    )
    predict = run_prediction(run, threshold)

    def named(name: str) -> Found:
        image, prediction = predict(files[name])
        return Found(image, *prediction)

    origin = {"checkpoint": str(run.workdir), "step": int(run.state.step), "threshold_log_odds": threshold}
    origin |= {"class": chosen, "palette": FLAGS.palette}
    done = write_predictions(
        list(files), named, output, wanted, run.label_set, origin, write=write_bytes, on_error=FLAGS.on_error
    )
    print("\n".join(done_lines(done)))
    print(f"in {output}: " + ", ".join(f"NAME{suffix}" for suffix in wanted.suffixes))


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A run's workdir (its best) or WORKDIR/checkpoints/STEP.")
    flags.DEFINE_string("output", "predictions", "The folder for NAME_mask.png (class indices) and the pictures.")
    flags.DEFINE_bool("overlay", True, "Write NAME_overlay.png, the image under the colours of its classes.")
    flags.DEFINE_string("class", None, "The only class that overlays show; default all.")
    flags.DEFINE_bool("uncertainty", False, "Write NAME_uncertainty.png, the entropy from 0 to log C.")
    flags.DEFINE_bool("probabilities", False, "Write NAME_probabilities.npz, float32 [H, W, C].")
    flags.DEFINE_bool("palette", False, "Give the masks the classes' colours as a palette; the indices stay.")
    flags.DEFINE_bool("contact_sheet", False, "Write contact_sheet.png, up to 24 of the images in small.")
    flags.DEFINE_float("threshold", None, "Two classes: the probability from which on a pixel is the second.")
    flags.DEFINE_float("at_precision", None, "Two classes: the threshold that reached this precision in evaluation.")
    flags.DEFINE_enum("on_error", "raise", ["raise", "skip"], "At a file that is no image: stop, or leave it out.")
    flags.register_validator("threshold", lambda p: p is None or 0 < p < 1, "expected a probability in (0, 1)")
    flags.register_validator("at_precision", lambda p: p is None or 0 < p <= 1, "expected a precision in (0, 1]")
    flags.register_multi_flags_validator(
        ["threshold", "at_precision"], lambda f: None in f.values(), "--threshold and --at_precision exclude each other"
    )
    cli.run(main, required=["checkpoint"])
