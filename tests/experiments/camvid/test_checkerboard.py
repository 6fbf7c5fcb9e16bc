import json
from pathlib import Path

import pytest

from experiments.camvid import checkerboard
from segjax.data import label_set
from segjax.models.upsampling import UPSAMPLINGS
from segjax.reporting import markdown
from segjax.trained_run import TrainedRun, model_of
from segjax.training import ConfigError
from segjax.training.train_step import init_state

TINY = {
    "data.scene_size": (64, 96),
    "data.size": (32, 48),
    "data.train_examples": 2,
    "data.val_examples": 3,
    "model.width": 2,
    "model.depth": 1,
    "training.global_batch": 2,
}


def test_upsamplings_are_all_of_the_u_net():
    assert set(checkerboard.UPSAMPLINGS) == set(UPSAMPLINGS)


@pytest.mark.slow
def test_command_prints_a_table_and_writes_every_seed(tmp_path, python):
    changes = [f"--config.{name}={value}" for name, value in TINY.items()]
    done = python(
        *("-m", "experiments.camvid.checkerboard", "--config=configs/rare_class.py:smoke", *changes),
        *(f"--config.data.data_dir={tmp_path / 'prepared'}", f"--output={tmp_path / 'out'}", "--seeds=2"),
        "--upsampling=max_unpool",
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out" / "checkerboard.json").read_text())["percentages"]
    assert list(written) == [checkerboard.IMAGES, "max_unpool"]
    for name, seeds in ((checkerboard.IMAGES, 1), ("max_unpool", 2)):
        assert [set(one) for one in written[name]["new"]] == [{"whole", "windows"}] * seeds
        assert all(0 < value < 100 for one in written[name]["new"] for value in one.values())
        assert name in done.stdout
    assert written["max_unpool"]["new"][0] != written["max_unpool"]["new"][1]
    assert "| max_unpool |" in (tmp_path / "out" / "checkerboard.md").read_text()


@pytest.mark.slow
def test_trained_run_is_measured_with_its_own_upsampling(tiny_scenes, monkeypatch):
    config = tiny_scenes.copy_and_resolve_references().unlock()
    config.model.depth = 1
    model = model_of(config).clone(upsample="nearest")
    before = checkerboard.new(config, "nearest", 1)
    # A run of no steps.
    config.model.upsample = "nearest"
    opened = TrainedRun(Path("run"), config, model, init_state(config, model), label_set(config.data))
    monkeypatch.setattr(checkerboard, "load_run", lambda checkpoint: opened)
    found = checkerboard.trained(["run", "run"])
    assert found == {"nearest": [pytest.approx(before[0])] * 2}


def test_new_refuses_a_network_without_upsampling_choice(tiny_scenes):
    config = tiny_scenes.copy_and_resolve_references().unlock()
    config.model.name = "segnet"
    with pytest.raises(ConfigError, match=r"config\.model\.name must be 'unet'.*got 'segnet'"):
        checkerboard.new(config, "nearest", 1)


def test_table_of_two_seeds_and_without_trained_runs():
    measured = {"nearest": {"new": [{"whole": 1.0, "windows": 2.0}, {"whole": 3.0, "windows": 2.0}]}}
    assert "| nearest | 2.000 ± 1.414 | 2.000 ± 0.000 | – | – |" in markdown(checkerboard.table(measured))
