"""Serves a page on which you drop images and see masks and uncertainties, or boxes.

Examples:
  segjax demo --checkpoint=runs/debris
  segjax demo --checkpoint=runs/debris --samples=30 --port=8000 street.jpg photos/
"""

import contextlib
import errno

from absl import app, flags

from segjax import __version__, cli, inference
from segjax.data.io import named_images
from segjax.reporting import demo_page
from segjax.storage import say
from segjax.trained_run import TrainedRun, calibration_of, guaranteed_mask, head_rate, load_run, stored_scaling
from segjax.training.fields import COUNT_OR_ZERO

FLAGS = flags.FLAGS
_OF_MASKS = ("samples", "rate", "calibrated", "calibration")  # options that a detector does not have


def main(argv: list[str]) -> None:
    """Loads a run and serves its page until Ctrl-C."""
    if not FLAGS.host:
        raise app.UsageError("--host= is empty; use 127.0.0.1, for this machine only, or 0.0.0.0, for all who reach it")
    images = named_images(argv[1:]) if argv[1:] else {}
    run = load_run(FLAGS.checkpoint, FLAGS.calibration, detectors=True, multilabel=True)
    if run.config.data.box_classes:
        cli.refuse_flags(_OF_MASKS, f"is for segmentation networks; {run.name} is a detector")
        detector = run.detector()
        record = run.origin() | {"segjax": __version__} | detector.record()
        demo = demo_page.Demo(run, [detector], images=images, record=record)
    else:
        predictors, guarantees, notes = _predictors(run)
        demo = demo_page.Demo(run, predictors, guarantees, images, notes)
    try:
        server = demo_page.make_server(demo, FLAGS.host, FLAGS.port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise
        if error.errno == errno.EACCES:
            raise app.UsageError(
                f"--port={FLAGS.port} cannot be served on ({error.strerror}): ports below 1024 may need a privilege; "
                "use a higher one"
            ) from error
        raise app.UsageError(
            f"--host={FLAGS.host} cannot be served on ({error.strerror}); use 127.0.0.1, for this machine only, or "
            "0.0.0.0, for all who reach it"
        ) from error
    host, port = server.server_address[:2]
    with server:
        if FLAGS.host not in ("127.0.0.1", "localhost", "::1"):
            say(f"--host={FLAGS.host}: everyone who reaches this machine can use the page")
        say(f"{run.name} on http://{f'[{host}]' if ':' in str(host) else host}:{port} until you press Ctrl-C")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def _predictors(run: TrainedRun) -> tuple[list[inference.Predictor], dict[str, str], list[str]]:
    """Returns the default predictor and one per stored guarantee, the texts of the guarantees by name, and notes."""
    options = _options(run)
    scaling, note = stored_scaling(run, options) if FLAGS.calibrated else (None, "")
    predictors, texts = [run.predictor(_options(run, scaling=scaling), probabilities=True)], {}
    calibration, _ = calibration_of(run)
    stored = [one for one in (calibration["guarantees"] if calibration else []) if one["risk"] == "fnr"]
    for one in [] if options.non_default() else stored:  # a guarantee holds for the default options only
        fields, _, text = guaranteed_mask(run, one["level"], run.label_set.names.index(one["class"]))
        predictors.append(run.predictor(_options(run, scaling=scaling, **fields), probabilities=True))
        texts[f"at most {one['level']:.4g} of {one['class']} missed"] = text
    return predictors, texts, [note] if note else []


def _options(run: TrainedRun, **changes) -> inference.PredictOptions:
    rate = head_rate(run, FLAGS.rate, FLAGS.samples)
    try:
        fields = {"members": run.members, "samples": FLAGS.samples} | changes
        return inference.predict_options(tuple(run.config.data.size), rate=rate, **fields)
    except ValueError as error:
        raise app.UsageError(f"--{error}") from error  # its first word is the option


if __name__ == "__main__":
    cli.define_checkpoint()
    flags.DEFINE_string("host", "127.0.0.1", "Address to serve on; 0.0.0.0: for all who reach this machine.")
    cli.define_number("port", 7860, "[0, 65535]", "Port to serve on; 0: any free one.")
    cli.define_number("samples", 0, COUNT_OR_ZERO, "Average over this many dropout masks of the head; 0: none.")
    cli.define_number("rate", float, "[0, 0.99]", "Dropout rate of the head; default: the rate of training.")
    cli.define_calibrated()
    cli.define_calibration()
    cli.run(main, required=["checkpoint"])
