"""Predicts images: `python -m segjax.predict --checkpoint=runs/camvid --output=predictions IMAGE_FOLDER_OR_GLOB…`."""

from pathlib import Path

import numpy as np
from absl import app, flags

from segjax import cli, inference, training
from segjax.training.storage import output_folder, scratch, write_bytes

FLAGS = flags.FLAGS

# Flags that are fields of `inference.Way`, as they are.
_OF_WAY = ("tile", "scale", "overlap", "batch", "augment", "samples", "passes", "seed")


def main(argv: list[str]) -> None:
    """Writes a mask, and the pictures that are wanted, of each image, at the image's own size."""
    if not argv[1:]:
        raise app.UsageError("name at least one image, folder or pattern")
    given = FLAGS.flag_values_dict()
    output = output_folder(FLAGS.output)
    files = {n: f for n, f in training.named_images(argv[1:]).items() if not inference.written_here(f.path, output)}
    run = training.load_run(FLAGS.checkpoint)
    only = training.class_named(run, given["class"])
    rate = training.head_rate(run, FLAGS.rate, FLAGS.samples, FLAGS.passes)
    try:
        way = inference.chosen_way(tuple(run.config.data.size), **{name: given[name] for name in _OF_WAY}, rate=rate)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    measure = FLAGS.uncertainty or way.uncertainties[0]
    if measure not in way.uncertainties:
        raise app.UsageError(
            f"--uncertainty={measure} is what samples disagree on, and one clean pass is one sample: ask for some "
            "(--samples=30, --passes=30), or for an augmentation (--augment=flip)"
        )
    if FLAGS.at_precision is not None and way.differing():
        raise app.UsageError(f"--at_precision is of evaluation's way of predicting; got also {way.differing()}")
    threshold, said = training.chosen_threshold(run, FLAGS.threshold, FLAGS.at_precision, only)
    print(said, end="\n" * bool(said), flush=True)
    pictures = {name: given[name] for name in ("overlay", "probabilities", "palette")}
    wanted = inference.Wanted(**pictures, only=only, uncertainty=FLAGS.uncertainty is not None, measure=measure)
    wanted = wanted._replace(maximum=FLAGS.uncertainty_max, sheet=FLAGS.contact_sheet)
    engine = inference.make_engine(
        run.model,
        run.state.variables,
        way._replace(**threshold),
        normalise=run.normalise,
        class_logits=run.class_logits,
        probabilities=wanted.probabilities,
        empty=scratch,
    )

    def read(name: str) -> np.ndarray:
        return training.read_image(run, files[name])

    def source(name: str) -> inference.ImageFile:
        return inference.ImageFile(str(Path(files[name].path).resolve()), training.digest_of(files[name]))

    origin = {"checkpoint": str(run.workdir), "step": int(run.state.step), "network": training.fingerprint(run)}
    origin |= {"threshold_log_odds": threshold.get("threshold")} | {name: given[name] for name in ("class", "palette")}
    origin |= {"uncertainty": measure, "uncertainty_max": FLAGS.uncertainty_max} | way.differing()
    options = {"write": write_bytes, "batch": 1 if way.scale else way.batch, "on_error": FLAGS.on_error}
    done = inference.write_predictions(
        list(files), read, engine.many, source, output, wanted, run.label_set, origin, **options
    )
    print("\n".join(inference.done_lines(done)))
    print(f"in {output}: " + ", ".join(f"NAME{suffix}" for suffix in wanted.suffixes))
    print(f"NAME_uncertainty.png, black to pale yellow: {wanted.scale(run.label_set)}\n" * wanted.uncertainty, end="")


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A run's workdir (its best) or WORKDIR/checkpoints/STEP.")
    flags.DEFINE_string("output", "predictions", "The folder for NAME_mask.png (class indices) and the pictures.")
    flags.DEFINE_bool("overlay", True, "Write NAME_overlay.png, the image under the colours of its classes.")
    flags.DEFINE_string("class", None, "The class of a threshold, and the only one that overlays show.")
    cli.define_bare_or_one_of("uncertainty", inference.UNCERTAINTIES, "Write NAME_uncertainty.png.")
    flags.DEFINE_float("uncertainty_max", None, "What it shows lightest; default: see the end of the output.", 1e-9)
    flags.DEFINE_bool("probabilities", False, "Write NAME_probabilities.npz: float32 [H, W, C], and uncertainties.")
    flags.DEFINE_bool("palette", False, "Give the masks the classes' colours as a palette; the indices stay.")
    flags.DEFINE_bool("contact_sheet", False, "Write contact_sheet.png, up to 24 of the images in small.")
    flags.DEFINE_float("threshold", None, "The probability from which on a pixel is --class, or the 2nd of 2.")
    flags.DEFINE_float("at_precision", None, "The threshold at which --class reached this precision in evaluation.")
    flags.DEFINE_enum("on_error", "raise", ["raise", "skip"], "At a file that is no image: stop, or leave it out.")
    flags.DEFINE_enum("augment", "none", list(inference.AUGMENTATIONS), "Mean over mirrored, turned or resized images.")
    flags.DEFINE_integer("samples", 0, "Mean over so many dropout masks of the head; 0: the clean pass.")
    flags.DEFINE_integer("passes", 0, "Mean over so many whole passes with the network's own dropout on; 0: none.")
    flags.DEFINE_float("rate", None, "Of the head's dropout; default: what the network was trained with.", 0, 0.99)
    flags.DEFINE_integer("seed", 0, "Of the dropout masks.")
    cli.define_size("tile", "Predict in tiles of this size, at --scale; default: the whole, resized as in training.")
    flags.DEFINE_float("scale", None, "Resize images by this factor, for tiles; default 1.")
    flags.DEFINE_integer("overlap", None, "Pixels that tiles share; default a quarter of the shorter side.")
    flags.DEFINE_integer("batch", 1, "Tiles, or whole images, at a time.", lower_bound=1)
    flags.register_validator("threshold", lambda p: p is None or 0 < p < 1, "expected a probability in (0, 1)")
    flags.mark_flags_as_mutual_exclusive(["threshold", "at_precision"])
    cli.run(main, required=["checkpoint"])
