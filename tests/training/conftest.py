"""One tiny prepared data set, the config that trains on it, and one trained run, for every test of this folder."""

import contextlib
import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import rich.console
from ml_collections import ConfigDict

from segjax.training import defaults, train
from segjax.training.network import make_model
from segjax.training.train_step import init_state, make_train_step


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Returns the folder of the prepared data set."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def config(data_dir):
    """Returns the config of a network of width 4 on 32×48 pixels, four steps. Tests change the copy `tiny`."""
    config = defaults()
    config.data.data_dir = str(data_dir)
    config.data.scene_size = (64, 96)
    config.data.train_examples, config.data.val_examples = 12, 6
    config.data.size = (32, 48)
    config.data.workers = 0
    config.model.width, config.model.depth = 4, 2
    config.model.padding = "zeros"  # compiles three times as fast as reflection
    config.objective.loss = "sigmoid_focal"
    config.training.steps = 4
    config.training.global_batch = 4
    config.training.log_every = 1
    config.training.evaluate_every = 2
    config.training.checkpoint_every = 1
    return config


@pytest.fixture
def tiny(config):
    """Returns a copy of `config` for each test to change."""
    return config.copy_and_resolve_references()


@pytest.fixture(scope="session")
def quiet():
    """Returns `quiet()`, a console that prints to memory."""
    return lambda: rich.console.Console(file=io.StringIO(), width=400)


@pytest.fixture(scope="session")
def record_reads():
    """Returns a context `record_reads()`: the names of the config fields read within, except by config.py itself."""

    @contextlib.contextmanager
    def record():
        names, original = set(), ConfigDict.__getitem__

        def spy(config, key):
            frame = sys._getframe(1)
            while "ml_collections" in frame.f_code.co_filename:
                frame = frame.f_back
            if not frame.f_code.co_filename.endswith("config.py"):
                names.add(key)
            return original(config, key)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ConfigDict, "__getitem__", spy)
            yield names

    return record


@pytest.fixture(scope="session")
def run_config(config):
    """Returns the config of `trained`: phases, dropout and a moving average make each step differ from the next."""
    config = config.copy_and_resolve_references()
    config.training.phases = ((0.6, 1, 2e-3), (0.75, 2, 2e-3), (1.0, 1, 1e-3))
    config.training.ema_decay, config.training.gradient_budget = 0.9, True
    config.model.dropout, config.model.dropout_mask = "sampled", "channel"
    config.objective.uncertainty_weight, config.objective.background = 1.0, 0
    return config


@pytest.fixture(scope="session")
def trained(run_config, tmp_path_factory, record_reads, quiet):
    """Returns one finished run, not to be changed: workdir, traces (one per trace of its step), fields_read."""
    traces, workdir = [], tmp_path_factory.mktemp("trained") / "run"

    def counting(*arguments):
        step = make_train_step(*arguments)

        def counted(*operands):
            traces.append(operands)
            return step(*operands)

        return counted

    with pytest.MonkeyPatch.context() as patch, record_reads() as fields_read:
        patch.setattr("segjax.training.loop.make_train_step", counting)
        train(run_config.copy_and_resolve_references(), workdir, console=quiet())
    return SimpleNamespace(workdir=workdir, traces=traces, fields_read=fields_read)


@pytest.fixture(scope="session")
def detector_config(config):
    """Returns the config of a RetinaNet of width 4 on scenes of 64×96 pixels. Tests change the copy `detector`."""
    config = config.copy_and_resolve_references()
    config.data.box_classes, config.data.max_boxes, config.data.size = ("debris",), 20, (64, 96)
    config.model.name, config.model.width, config.model.hidden = "retinanet", 4, 8
    config.model.depth, config.model.padding = 4, "reflect"  # those of a U-Net
    config.model.levels, config.model.anchor_base = (2, 3, 4, 5), 1.0
    config.model.prior, config.objective.normalizer = (0.01,), "positives"
    return config


@pytest.fixture
def detector(detector_config):
    """Returns a copy of `detector_config` for each test to change."""
    return detector_config.copy_and_resolve_references()


@pytest.fixture(scope="session")
def trained_detector(detector_config, tmp_path_factory, quiet):
    """Returns the workdir of one finished run of a detector on letterboxed images, not to be changed."""
    config, workdir = detector_config.copy_and_resolve_references(), tmp_path_factory.mktemp("trained_detector") / "run"
    config.training.steps, config.data.size, config.data.letterbox = 2, (64, 64), True
    train(config, workdir, console=quiet())
    return workdir


@pytest.fixture(scope="session")
def tiny_flags():
    """Returns `tiny_flags(**changes)`: flags of `segjax.train` for a tiny run."""

    def flags(**changes):
        fields = {
            "data.scene_size": (64, 96),
            "data.train_examples": 8,
            "data.val_examples": 4,
            "data.size": (32, 48),
            "model.depth": 1,
            "training.global_batch": 4,
            "training.log_every": 1,
        }
        fields |= {key.replace("__", "."): value for key, value in changes.items()}
        return [f"--config.{key}={value}" for key, value in fields.items()]

    return flags


@pytest.fixture
def parts(tiny):
    """Returns the tiny config, its network and a fresh state."""
    model = make_model(tiny, 2)
    return tiny, model, init_state(tiny, model)


@pytest.fixture
def batch():
    """Returns `batch(examples, size)`: noise in the form of the loader's batches, with a band of void at the top."""

    def make(examples=4, size=(40, 56)):
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 2, (examples, *size)).astype(np.uint8)
        labels[:, :4] = 255
        return {
            "image": rng.integers(0, 256, (examples, *size, 3)).astype(np.uint8),
            "label": labels,
            "index": np.arange(examples, dtype=np.int32),
        }

    return make
