"""Predicts images: `python -m segjax.predict --checkpoint=runs/camvid --output=predictions IMAGE…`."""

from pathlib import Path

import cv2
from absl import app, flags

from segjax import cli
from segjax.data.labels import colorize
from segjax.inference import overlay
from segjax.training import load_run, predict_file, run_predictor
from segjax.training.storage import path_of, saying


def main(argv: list[str]) -> None:
    """Writes a mask and an overlay for each image, at the image's own size."""
    images = [Path(name) for name in argv[1:]]
    if not images:
        raise app.UsageError("name at least one image")
    by_stem = {path.stem: path for path in images}
    for path in images:
        if by_stem[path.stem] != path:
            raise app.UsageError(f"{path} and {by_stem[path.stem]} would both be written as {path.stem}_mask.png")
    output = path_of(flags.FLAGS.output)
    run = load_run(flags.FLAGS.checkpoint)
    predict = run_predictor(run)
    output.mkdir(parents=True, exist_ok=True)
    for path in images:
        image, mask = predict_file(run, predict, path)
        picture = overlay(image, colorize(mask, run.label_set.palette))
        for suffix, pixels in (("mask", mask), ("overlay", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))):
            target = output / f"{path.stem}_{suffix}.png"
            with saying(target):
                target.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        print(f"{path} -> {output / path.stem}_mask.png, …_overlay.png")


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A run's workdir (its best) or WORKDIR/checkpoints/STEP.")
    flags.DEFINE_string("output", "predictions", "The folder for NAME_mask.png (class indices) and NAME_overlay.png.")
    cli.run(main, required=["checkpoint"])
