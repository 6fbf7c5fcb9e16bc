import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.camvid import selection
from experiments.sweep import grid
from segjax.data.labels import VOID
from segjax.models import Segmentation
from segjax.reporting import Spread

PROVENANCE = {"command": "python", "commit": "abc", "device": "cpu", "cpu_threads": 1, "python": "3", "versions": {}}


def frames(split):
    return [i for part in split.split("+") for i in range(*map(int, part.removeprefix("train[")[:-1].split(":")))]


def test_splits_part_the_training_split():
    kept, held_out = map(frames, selection.splits())
    assert sorted(kept + held_out) == list(range(367))
    assert len(held_out) == 50
    # Every scored frame has trained ones within five seconds.
    assert all({i - 5, i + 5} <= set(kept) for i in held_out)


def test_rows_are_trained_for_ten_epochs_without_the_validation_split():
    cells = grid.make_cells(selection.base_config(), selection.ROWS, (0,))
    for cell in cells:
        config = cell.config
        assert config.training.steps * config.training.global_batch in (3170, 3169)
        assert (config.data.train_split, config.data.eval_split) == selection.splits()
        assert "validation" not in config.data.train_split + config.data.eval_split


class Fixed:
    """A network with constant logits."""

    def __init__(self, logits):
        self.logits = jnp.asarray(logits)

    def apply(self, variables, images, *, train):
        assert not train
        return Segmentation(self.logits, None, None, self.logits)


def test_scores_of_a_network_that_is_right():
    config, rng = selection.base_config(), np.random.default_rng(0)
    config.data.size = (12, 16)
    labels = rng.integers(0, 11, (2, 12, 16)).astype(np.uint8)
    logits = 9 * np.eye(11, dtype=np.float32)[labels]
    labels[0, :3] = VOID
    batch = {"image": np.zeros((2, 12, 16, 3), np.uint8), "label": labels, "where": np.ones(2, bool)}
    batch["size"] = np.full((2, 2), (12, 16), np.int32)
    step = selection.make_counts(config, Fixed(logits), 11)
    state = type("State", (), {"variables": {}})()
    found = selection.scores(jax.device_get(jax.jit(lambda batch: step(state, batch))(batch)), 2)
    assert [found[key] for key in selection.COLUMNS.values()] == pytest.approx([1.0, 1.0, 1.0])


def test_report_names_the_best_row():
    def cell(row, value):
        scores = dict.fromkeys(selection.COLUMNS.values(), value)
        return {"row": row, "seed": 0, "iou_per_class": [value, 0.5], "classes": ["road", "pole"], **scores} | {
            "provenance": PROVENANCE
        }

    report = selection.report([cell(selection.RECIPE, 0.4), cell(selection.MULTISCALE, 0.5)])
    assert report.text.startswith("multiscale has the highest mean IoU, 0.500.")
    assert report.sections[0].tables[0].rows[1] == (selection.MULTISCALE, "1", *[Spread((0.5,))] * 3, 0.5, 0.5)
