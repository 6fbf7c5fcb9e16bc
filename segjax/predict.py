"""Predicts images: `python -m segjax.predict --checkpoint=runs/camvid --output=predictions IMAGE…`."""

from pathlib import Path

import cv2
import jax
import numpy as np
from absl import app, flags

from segjax import cli
from segjax.data import colorize
from segjax.data.source import decode_image
from segjax.inference import overlay
from segjax.training import load_run
from segjax.training.step import classify, make_predict

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's workdir (its best checkpoint) or WORKDIR/checkpoints/STEP."
)
_OUTPUT = flags.DEFINE_string(
    "output", "predictions", "The folder for NAME_mask.png (class indices) and NAME_overlay.png."
)


def main(argv: list[str]) -> None:
    """Writes a mask and an overlay for each image, at the image's own size."""
    images = [Path(name) for name in argv[1:]]
    if not images:
        raise app.UsageError("name at least one image")
    run = load_run(_CHECKPOINT.value)
    predict = jax.jit(make_predict(run.config, run.model), static_argnames="canvas")
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    for path in images:
        image = decode_image(path.read_bytes(), run.config.data.channels, str(path))
        size = image.shape[:2]
        logits = predict(run.state, image[None], np.array([size], np.int32), size)
        mask = np.asarray(classify(logits)[0], np.uint8)
        picture = overlay(image, colorize(mask, run.label_set.palette))
        for suffix, pixels in (("mask", mask), ("overlay", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))):
            target = output / f"{path.stem}_{suffix}.png"
            if not cv2.imwrite(str(target), pixels):
                raise OSError(f"{target}: could not be written")
        print(f"{path} -> {output / path.stem}_mask.png, …_overlay.png")


if __name__ == "__main__":
    cli.run(main, required=["checkpoint"])
