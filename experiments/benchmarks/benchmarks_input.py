"""Time of the loader and of the augmentation relative to the training step.

One worker process reads, decodes and batches CamVid if SEGJAX_CAMVID_DIR names it, and otherwise drawn road scenes. It
delivers many batches in a row, so that prefetched ones do not matter. The step is that of the small U-Net of
`configs/camvid_unet.py` with crop, zoom, flip, rotation and brightness; in the second row also with rare-class sampling
of images, crops on rare pixels and copy-paste. Times are wall times per batch.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.benchmarks.baselines import OURS, Setting, Target, quotient
from experiments.benchmarks.timing import Case, milliseconds
from segjax.configs import camvid_unet, rare_methods
from segjax.data.augment import example_keys
from segjax.reporting import Table
from segjax.training import DataError, open_split
from segjax.training.loop import device_arrays, train_batches
from segjax.training.network import make_model
from segjax.training.objective import hparams_at, hparams_from_config, phases
from segjax.training.train_step import init_state, make_augmentation, make_train_step

TITLE = "Input: loader and augmentation relative to the step"
LOADER, AUGMENTATION = "loader, 1 worker", "augmentation"
COLUMNS = (LOADER, AUGMENTATION)
DRAWN = 64


def rows(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns one row per kind of sampling; `OURS` is the step."""
    name = "U-Net, width 16, 192×256, batch 2"
    return {
        name: partial(_row, setting, camvid_unet.get_config()),
        f"{name}, rare classes": partial(_row, setting, camvid_unet.get_config(), rare=True),
    }


def _row(setting: Setting, config: ConfigDict, *, rare: bool = False) -> dict[str, Any]:
    config.data.workers = 1
    config.augment.scale, config.augment.rotation = (0.75, 1.5), 10.0
    config.augment.brightness, config.augment.contrast = 0.2, 0.2
    try:
        source = open_split(config.data, config.data.train_split)
    except DataError:  # CamVid is not on this machine
        config.data.name = "road_debris"
        source = open_split(config.data, config.data.train_split)
    if rare:
        config.data.sampling_temperature, config.augment.rare_crops, config.augment.copy_paste = 0.01, 1 / 3, 0.5
        if config.data.name == "camvid":
            config.augment.rare_classes = rare_methods.RARE["camvid"]
    classes = len(source.label_set.names)
    model = make_model(config, classes)
    state, hparams = init_state(config, model), hparams_at(1, hparams_from_config(config), phases(config))
    step = jax.jit(make_train_step(config, model, classes, None))
    with contextlib.closing(train_batches(config, source)) as batches:
        batch = jax.device_put(device_arrays(next(batches)))
        augmentation = make_augmentation(config, None)

        @jax.jit
        def augmented(state: Any, batch: dict[str, jax.Array], hparams: Any) -> Any:
            return augmentation(batch, example_keys(state.key, state.step, batch["index"]), hparams)

        def draw() -> None:
            for _ in range(DRAWN):
                next(batches)

        cases = [
            Case(OURS, lambda: step(state, batch, hparams)),
            Case(LOADER, draw),
            Case(AUGMENTATION, lambda: augmented(state, batch, hparams)),
        ]
        taken = milliseconds(cases, setting.rounds)
    data = f"{config.data.name}, {'×'.join(map(str, np.shape(batch['image'])))}"
    return {"ms": taken | {LOADER: taken[LOADER] / DRAWN}, "not_installed": [], "data": data}


def targets(measured: dict[str, Any]) -> list[Target]:
    """Returns target 6."""
    found = []
    for name, row in measured.items():
        ms = row["ms"]
        found.append(Target(6, f"{name}: step / loader", quotient(ms[OURS], ms[LOADER]), 4.0, least=True))
        found.append(Target(6, f"{name}: augmentation / step", quotient(ms[AUGMENTATION], ms[OURS]), 0.05))
    return found


def tables(measured: dict[str, Any]) -> list[Table]:
    """Builds the table of the data that was read."""
    return [Table("Data", ("", "data"), [(name, row["data"]) for name, row in measured.items()])]
