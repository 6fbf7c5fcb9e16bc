"""Somebody's own grey pictures of different sizes, from the files to the scores and to a prediction."""

import io

import cv2
import numpy as np
import rich.console

from segjax.data.files import list_folder
from segjax.inference import Way, make_engine
from segjax.training import load_run, read_image, train

SIZES = [(40, 60), (50, 44), (33, 71), (40, 60)]


def test_grey_images_of_different_sizes_train_score_and_predict(tiny, tmp_path):
    rng = np.random.default_rng(0)
    labelled = 0
    for split in ("train", "val"):
        for i, size in enumerate(SIZES):
            mask = np.where(rng.random(size) < 0.2, 255, 0).astype(np.uint8)
            labelled += mask.size if split == "val" else 0
            for kind, pixels in (("images", rng.integers(0, 256, size).astype(np.uint8)), ("masks", mask)):
                folder = tmp_path / "data" / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(folder / f"{i}.png"), pixels)
    tiny.data.name, tiny.data.manual_dir = "folder", str(tmp_path / "data")
    tiny.data.class_names, tiny.data.mask_values = ("background", "object"), (0, 255)
    tiny.data.channels, tiny.training.steps = 1, 2
    scores = train(tiny, tmp_path / "run", console=rich.console.Console(file=io.StringIO()))
    assert np.sum(scores["confusion"]) == labelled
    run = load_run(tmp_path / "run")
    file = list_folder(tmp_path / "data" / "val" / "images")["2.png"]
    parts = {"normalise": run.normalise, "class_logits": run.class_logits}
    image = read_image(run, file)
    assert image.shape == (33, 71, 1)
    assert make_engine(run.model, run.state.variables, Way(tiny.data.size), **parts)(image).mask.shape == (33, 71)
