"""A finished or running workdir, opened again: what evaluation and prediction start from."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Shaped, UInt8
from ml_collections import ConfigDict

from segjax import metrics
from segjax.data import LabelSet, label_set, open_split
from segjax.data.augment import normalise
from segjax.data.io import RawFile, decode_image, read_bytes
from segjax.metrics.ranking import ThresholdAtPrecision
from segjax.training import parallel
from segjax.training.checkpoint import FOLDER, Checkpoints
from segjax.training.config import ConfigError, from_leaves
from segjax.training.evaluation import add_up, counter, evaluate
from segjax.training.loop import CONFIG_FILE, SCORES_FILE
from segjax.training.prediction import class_logits, make_eval_step, make_predictor, make_ranking_step
from segjax.training.provenance import provenance
from segjax.training.storage import path_of
from segjax.training.train_step import TrainState, init_state, make_model

# What of `provenance` a report tells.
_ORIGIN = {
    "command": "command",
    "commit": "commit",
    "date": "date",
    "device": "device",
    "CPU threads": "cpu_threads",
    "Python": "python",
    "versions": "versions",
}


class Run(NamedTuple):
    """One checkpoint of a run, with all that is needed to use it.

    Attributes:
      workdir: the run's folder.
      config: the config it was trained with.
      model: its network.
      state: one copy of its state, not replicated.
      label_set: class names and palette.
    """

    workdir: epath.Path
    config: ConfigDict
    model: Any
    state: TrainState
    label_set: LabelSet

    def normalise(self, images: Shaped[Array, "..."]) -> Float[Array, "..."]:
        """Pixels 0..255 as the network takes them; nothing is resized."""
        return normalise(images, self.config.data.mean, self.config.data.std)

    def class_logits(self, outputs: Float[Array, "*pixels outputs"]) -> Float[Array, "*pixels C"]:
        """The network's outputs as a logit a class."""
        return class_logits(outputs, len(self.label_set.names))


def load_run(path: str | os.PathLike) -> Run:
    """Opens `WORKDIR` (its best checkpoint) or `WORKDIR/checkpoints/STEP` (or `…/best`, `…/latest`).

    Raises:
      StorageError: the bucket cannot be read, or gcsfs is not installed.
      FileNotFoundError: the folder is not a run's, or holds no such checkpoint.
      ConfigError: its config is damaged.
    """
    path = path_of(path)
    workdir, which = (path.parent.parent, path.name) if path.parent.name == FOLDER else (path, "best")
    config_file = workdir / CONFIG_FILE
    if not config_file.exists():
        raise FileNotFoundError(
            f"{path} is not a run: expected {config_file}. Name the --workdir that segjax.train wrote, or "
            f"WORKDIR/{FOLDER}/STEP"
        )
    config = _config_of(config_file)
    labels, model = label_set(config.data), model_of(config)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        state, _ = checkpoints.restore(init_state(config, model), checkpoints.step_named(which))
    return Run(workdir, config, model, state, labels)


def _config_of(file: epath.Path) -> ConfigDict:
    """The config of a workdir; ConfigError: it is damaged, or of another program."""
    try:
        return from_leaves(read_json(file))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        said = str(error).splitlines()[0][:200]
        raise ConfigError(
            f"{file} is not the config of a run, or is damaged ({type(error).__name__}: {said})"
        ) from error


def fingerprint(run: Run) -> str:
    """Which network it is, wherever it lies: the first 16 digits of the SHA-256 of its parameters and statistics."""
    digest = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(run.state.variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]


def read_json(file: epath.Path) -> Any:
    """What a JSON file of a workdir holds."""
    return json.loads(file.read_text(encoding="utf-8"))


def facts_of(run: Run, split: str, scores: dict[str, Any]) -> dict[str, Any]:
    """Where the scores of a checkpoint come from, by name, ready for JSON: data, network, training, and this process.

    The training's part is of `scores.json`, and missing where it has not ended.
    """
    config, file = run.config, run.workdir / SCORES_FILE
    parameters = sum(p.size for p in jax.tree.leaves(run.state.params))
    skipped = f"; {scores['skipped']} bad pair(s) of image and mask left out" if scores["skipped"] else ""
    facts = {
        "data": f"{config.data.name}, {split}: {scores['images']} images{skipped}",
        "network": f"{config.model.name}, {parameters / 1e6:.3g} M parameters",
        "input": " × ".join(map(str, (*config.data.size, config.data.channels))),
        "checkpoint": str(run.workdir / FOLDER / str(int(run.state.step))),
        "steps": f"{int(run.state.step)} of {config.training.steps}, of {config.training.global_batch} images each",
    }
    origin = read_json(file).get("provenance") if file.exists() else None
    if origin is None:
        facts["training"] = f"has not ended: there is no {SCORES_FILE}"
    else:
        since = f", from step {origin['wall_seconds_from_step']} on" if origin["wall_seconds_from_step"] else ""
        facts["training time"] = f"{origin['wall_seconds'] / 60:.1f} minutes{since}"
        facts |= {f"training {name}": origin[key] for name, key in _ORIGIN.items()}
    here = provenance()
    return facts | {f"this page's {name}": here[key] for name, key in _ORIGIN.items()}


def model_of(config: ConfigDict) -> Any:
    """The network of `config` for its data set.

    Raises:
      ConfigError: as `step.make_model`, whose classes are those of the data set; nothing is read.
    """
    return make_model(config, len(label_set(config.data).names), parallel.axis_name(config))


def score_run(run: Run, split: str) -> dict[str, Any]:
    """Scores `run` on a split of its data set, on all devices: `evaluation.evaluate`'s dictionary."""
    step = make_eval_step(run.config, run.model, len(run.label_set.names), parallel.axis_name(run.config))
    step, state, mesh = _on_all_devices(run, step)
    return evaluate(step, state, open_split(run.config.data, split), run.config, mesh)


def threshold_of(run: Run, precision: float, number: int) -> ThresholdAtPrecision:
    """The threshold at which `run` reached `precision` for a class on its evaluation split, which is scored for it.

    Raises:
      ConfigError: no threshold reached it, or `precision` is not in (0, 1].
    """
    split, classes = run.config.data.eval_split, run.label_set.names
    if not 0 < precision <= 1:
        raise ConfigError(f"the precision must be above 0 and at most 1; got {precision:g}")
    step = make_ranking_step(run.config, run.model, len(classes), number, parallel.axis_name(run.config))
    step, state, mesh = _on_all_devices(run, step)
    counts = add_up(counter(step, state, run.config, mesh), open_split(run.config.data, split), run.config)
    found = metrics.threshold_at_precision(counts["scores"], precision)
    if np.isnan(found.precision):
        raise ConfigError(f"there is no {classes[number]} on {split}, to measure a precision of")
    if np.isnan(found.threshold_logit):
        raise ConfigError(
            f"no threshold of {run.workdir} reached a precision of {precision:g} for {classes[number]} on {split}; "
            f"the highest is {found.precision:.3g}, with a recall of {found.recall:.3g}"
        )
    return found


def chosen_threshold(
    run: Run, probability: float | None, precision: float | None, number: int | None
) -> tuple[dict[str, Any], str]:
    """The fields of `Way` for a threshold, {} for none, and what to tell a person of it.

    Of a probability, or of what reached a precision (`threshold_of`, with its errors), of the class `number`; None: the
    second of two.

    Raises:
      ConfigError: there are more classes than two, and none is named.
    """
    if probability is None and precision is None:
        return {}, ""
    names = run.label_set.names
    if number is None and len(names) != 2:
        raise ConfigError(
            f"a threshold or a precision is of one class: name it, --class=NAME, one of {', '.join(names)}"
        )
    number = 1 if number is None else number
    if probability is not None:
        return {"threshold": math.log(probability / (1 - probability)), "positive": number}, ""
    found = threshold_of(run, precision, number)
    return {"threshold": found.threshold_logit, "positive": number}, (
        f"{names[number]} from a probability of {1 / (1 + math.exp(-found.threshold_logit)):.4g} on: on "
        f"{run.config.data.eval_split} its precision is {found.precision:.3f}, its recall {found.recall:.3f}"
    )


def _on_all_devices(run: Run, step: Callable) -> tuple[Callable, TrainState, Any]:
    """The mapped step, the replicated state, and the devices."""
    mesh = parallel.make_mesh()
    parallel.check_batch(run.config, mesh)
    return (
        parallel.map_step(step, run.config, mesh, arguments=2),
        parallel.replicate(run.state, run.config, mesh),
        mesh,
    )


def run_predictor(run: Run) -> Callable:
    """`predict(image) -> mask` with the run's network: uint8 `[H, W, C]` to its class a pixel, uint8 `[H, W]`."""
    return make_predictor(run.config, run.model, len(run.label_set.names))(run.state)


def read_image(run: Run, file: RawFile) -> UInt8[np.ndarray, "H W channels"]:
    """An image at its own size, with as many channels as the run's network takes.

    Raises:
      DataError: it cannot be read or is no image.
    """
    return decode_image(read_bytes(file), run.config.data.channels, file.path)


def digest_of(file: RawFile) -> str:
    """The SHA-256 of an image file's bytes.

    Raises:
      DataError: it cannot be read.
    """
    return hashlib.sha256(read_bytes(file)).hexdigest()


def no_nan(value: Any) -> Any:
    """`value` with None for every number that is not finite, in dictionaries and lists too: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: no_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [no_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def head_rate(run: Run, rate: float | None, samples: int, passes: int = 0) -> float:
    """p of the dropout of the head for so many samples or passes: `rate`, or that with which the network was trained.

    Raises:
      ConfigError: for samples, none is given, and it was trained without; for passes, it was trained without any
        dropout that a pass draws.
    """
    model = run.config.model
    if passes and model.dropout != "sampled" and not model.deep_dropout:
        raise ConfigError(
            f"passes: {run.workdir} was trained without dropout deep in the network (model.deep_dropout = 0) and "
            "without sampled heads, so that all passes are alike; sample its head instead (--samples=30 --rate=0.2)"
        )
    if samples and rate is None and model.dropout == "none":
        raise ConfigError(
            f"samples of the head: {run.workdir} was trained without dropout of it (config.model.dropout = 'none'); "
            "train with 'sampled' or 'analytic', or name a rate to sample it all the same (--rate=0.2)"
        )
    return model.dropout_rate if rate is None else rate


def class_named(run: Run, name: str | None) -> int | None:
    """The number of a class; None of None.

    Raises:
      ConfigError: there is no such class.
    """
    classes = run.label_set.names
    if name is not None and name not in classes:
        raise ConfigError(f"--class: expected one of {', '.join(classes)}; got {name!r}")
    return None if name is None else classes.index(name)
