"""Configs of test size: the recipe's on a few tiny pictures in CamVid's layout, the sweeps' on tiny scenes."""

import io
import json

import cv2
import numpy as np
import pytest
import rich.console

from experiments.sweep import grid, paper_report
from experiments.sweep.parallel_cells import RESULT_FILE
from segjax.configs import camvid_unet_recipe, rare_class

SIZE = (24, 32)


@pytest.fixture
def tiny_recipe(tmp_path, monkeypatch):
    """Makes `camvid_unet_recipe.get_config` return a width-4 net on seven tiny images; returns that config."""
    rng, root = np.random.default_rng(0), tmp_path / "raw"
    for split, count in (("train", 4), ("val", 3)):
        for folder, shape, values in ((split, (*SIZE, 3), 256), (f"{split}annot", SIZE, 12)):
            (root / folder).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, values, shape).astype(np.uint8)
                assert cv2.imwrite(str(root / folder / f"{i}.png"), pixels)
    full_size = camvid_unet_recipe.get_config

    def tiny():
        config = full_size()
        config.data.data_dir, config.data.manual_dir = str(tmp_path / "prepared"), str(root)
        config.data.size, config.data.workers = SIZE, 0
        config.model.width, config.model.depth, config.model.padding = 4, 2, "zeros"
        config.training.global_batch = 4  # one per host device
        return config

    monkeypatch.setattr(camvid_unet_recipe, "get_config", tiny)
    return tiny()


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory):
    """Returns the base config of the sweeps for a width-4 net on eight small scenes, four steps; locked."""
    config = rare_class.get_config("smoke")
    config.data.data_dir = str(tmp_path_factory.mktemp("prepared"))
    config.data.scene_size, config.data.size = (64, 96), (32, 48)
    config.data.train_examples, config.data.val_examples = 8, 4
    config.model.width, config.model.depth = 4, 2
    config.optimizer.learning_rate = 1e-3
    config.training.global_batch, config.training.steps = 4, 4
    config.training.evaluate_every = config.training.checkpoint_every = 2
    return config.lock()


@pytest.fixture
def quiet():
    """Returns a console that prints to a string, `quiet.file.getvalue()`."""
    return rich.console.Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="session")
def trained_sweep(tiny_scenes, tmp_path_factory):
    """Returns a trained sweep: its cells (γ = 0, γ = 2, and one that diverges), its folder and its output."""
    rows = [
        {"objective.gamma": 0.0, "objective.alpha": 0.25},
        {"objective.gamma": 2.0, "objective.alpha": 0.25},
        {"objective.gamma": 0.0, "objective.alpha": 0.25, "optimizer.learning_rate": 3e38},
    ]
    cells, workdir = grid.make_cells(tiny_scenes, rows, (0,)), tmp_path_factory.mktemp("sweep")
    console = rich.console.Console(file=io.StringIO(), width=200)
    grid.run(cells, workdir, console)
    return cells, workdir, console.file.getvalue()


@pytest.fixture
def made_up(tmp_path):
    """Returns `made_up(config, precision_of, data)`: untrained results of a config's cpu preset with seeds 0 and 1.

    `precision_of(cell)` is the average precision of a cell; None makes it diverge at step 1.
    """

    def results(config, precision_of, data="road_debris"):
        cells = paper_report.make_cells(config, "cpu", data, seeds=(0, 1))
        for cell in cells:
            result = {"status": "diverged", "diverged_at": 1, "scores": None, "curves": {"step": []}, "first_loss": 9.0}
            value = precision_of(cell)
            if value is not None:
                result = {"status": "done", "first_loss": 0.5}
                result["scores"] = {
                    "ap": value,
                    "ap50": 2 * value,
                    "ar100": value,
                    "average_precision": value,
                    "best_iou": value / 2,
                    "pixel_accuracy": 0.99,
                    "recall_per_class": [1.0, 0.5],
                    "classes": ["road", "debris"],
                }
                recall = [0.9, 0.0, 0.5 * (cell.config.seed == 0), 0.5 * (cell.config.seed == 0)]
                precision = [0.0, 0.0, value, value]
                result["curves"] = {
                    "step": [1, 2, 3, 4],
                    "average_precision": precision,
                    "ap": precision,
                    "ap50": precision,
                    "recall/debris": recall,
                }
            result["provenance"] = {
                "wall_seconds": 1,
                "command": "python",
                "commit": "abc",
                "device": "cpu",
                "cpu_threads": 1,
                "python": "3",
                "versions": {},
            }
            (tmp_path / cell.name).mkdir()
            (tmp_path / cell.name / RESULT_FILE).write_text(json.dumps(result))
        return paper_report.SweepResults(cells, tmp_path)

    return results
