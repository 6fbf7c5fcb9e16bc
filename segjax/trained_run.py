"""A finished or running run, or several as one ensemble, opened for evaluation, prediction, report and export."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict

from segjax import metrics
from segjax.data import LabelSet, Source, label_set, open_split
from segjax.inference import Detector, Ensemble, PredictOptions, Predictor, Preprocessing
from segjax.inference.predictor import fingerprint
from segjax.storage import StorageError, difference, is_foreign, path_of, read_json, to_json
from segjax.training import evaluation, parallel, segmentation
from segjax.training.checkpoint import FOLDER, find_run, restore_newest, workdir_and_checkpoint
from segjax.training.config import CONFIG_FILE, ConfigError, input_shape, read_config, validate
from segjax.training.fields import INITIAL
from segjax.training.loop import SCORES_FILE
from segjax.training.network import TrainState, make_model, network_size, preprocessing_of
from segjax.training.provenance import numerics, provenance
from segjax.training.train_step import init_state, task_of

# Entries of `provenance` that a report shows.
_ORIGIN = {key: key for key in ("command", "commit", "date", "device")}
_ORIGIN |= {"cpu_threads": "CPU threads", "python": "Python", "versions": "versions"}
# Form of the provenance in `scores.json`.
_TRAINING = dict.fromkeys(_ORIGIN, object) | {"wall_seconds": float, "wall_seconds_from_step": int}
CALIBRATION_FILE = "calibration.json"
"""File of a workdir that `segjax calibrate` writes: scaling and guarantees of one checkpoint."""
# Form of its parts.
_CALIBRATED_ON = {"split": str, "images": int, "data": str}
_CALIBRATION_SCORES = dict.fromkeys(
    ("negative_log_likelihood", "expected_calibration_error", "adaptive_calibration_error"), float
)
_SCALING = {"kind": str, "scale": [float], "bias": [float], "pixels": int, **_CALIBRATED_ON}
_SCALING |= {"before": _CALIBRATION_SCORES, "after": _CALIBRATION_SCORES}
_GUARANTEE = {"risk": str, "family": str, "level": float, "class": str, **_CALIBRATED_ON}
_GUARANTEE |= {"images_with_class": int, "miss_rate": float, "smallest_level": float}
_SETS: dict[str, Any] = {"coverage": float, "mean_size": float}
_SETS |= {"classes": [{"class": str, "threshold": float, "images": int, **_SETS}]}
FAMILIES = {
    "fnr": {
        "threshold": {"threshold": float, "false_positive_rate": float},
        "dilation": {"radius": float, "false_positive_rate": float},
    },
    "miscoverage": {"threshold": _SETS, "class": _SETS, "adaptive": _SETS},
}
"""Kinds of mask or of sets per risk, and the form of their own entries of a guarantee."""


# Fields of `model` that may differ between the members of an ensemble.
_OWN = ("members", "pretrained", "remat", *(key.removeprefix("model.") for key in INITIAL if key.startswith("model.")))


class TrainedRun(NamedTuple):
    """One checkpoint of a run, with everything needed to use it, or the ensemble of several runs, see `combine`.

    Attributes:
      workdir: None for several runs.
      config: for an ensemble of runs, that of the first run.
      model: a network, or an `Ensemble` of them.
      state: one copy, not replicated. Of several runs, only the variables.
      label_set: names and colours of the classes.
      runs: the runs of an ensemble; (): it is one run.
      calibration: another file than the workdir's `CALIBRATION_FILE`; None: that one.
    """

    workdir: epath.Path | None
    config: ConfigDict
    model: Any
    state: TrainState
    label_set: LabelSet
    runs: tuple["TrainedRun", ...] = ()
    calibration: epath.Path | None = None

    @property
    def name(self) -> str:
        """The workdir, or those of several runs with commas."""
        return ",".join(str(run.workdir) for run in self.runs or (self,))

    @property
    def checkpoints(self) -> list[str]:
        """`WORKDIR/checkpoints/STEP` of this run, or of each of several runs."""
        return [str(run.workdir / FOLDER / str(run.step)) for run in self.runs or (self,)]

    @property
    def calibration_file(self) -> epath.Path | None:
        """File of the calibration, which need not exist; None for several runs without one."""
        return self.calibration or (self.workdir and self.workdir / CALIBRATION_FILE)

    @property
    def step(self) -> int | list[int]:
        """The step of the checkpoint, or those of several runs."""
        return [run.step for run in self.runs] if self.runs else int(self.state.step)

    @property
    def members(self) -> int:
        """Number of networks."""
        return self.model.members if isinstance(self.model, Ensemble) else 1

    def record(self) -> dict[str, Any]:
        """Returns the step and the parameter hash; for several runs also the step, hash and workdir of each."""
        own = {"step": self.step, "parameters": fingerprint(self.state.variables)}
        return own | ({"runs": [{"checkpoint": run.name, **run.record()} for run in self.runs]} if self.runs else {})

    def origin(self) -> dict[str, Any]:
        """Returns the checkpoint and the device and versions, which files of predictions store; ready for JSON."""
        return {"checkpoint": self.name, **self.record(), "made_by": numerics(provenance())}

    @property
    def num_outputs(self) -> int:
        """Number of outputs per pixel of each network: 1 for a sigmoid, else that of the classes."""
        return (self.model.network if isinstance(self.model, Ensemble) else self.model).num_classes

    @property
    def preprocessing(self) -> Preprocessing:
        """Input size, normalisation and classes of the network."""
        return preprocessing_of(self.config, self.label_set.num_classes)

    def predictor(self, options: PredictOptions | None = None, *, probabilities: bool = False) -> Predictor:
        """Returns a `Predictor` of the run's network; by default of the masks that evaluation scores."""
        model = self.model.clone(axis_name=None)
        return Predictor(model, self.state.variables, self.preprocessing, options, probabilities=probabilities)

    @property
    def box_classes(self) -> tuple[list[str], UInt8[np.ndarray, "classes 3"]]:
        """Names and colours of the classes whose boxes a detector finds; none for a segmentation network."""
        names = list(self.config.data.box_classes or ())
        return names, self.label_set.palette[[self.label_set.names.index(name) for name in names]]

    def detector(self, **thresholds: Any) -> Detector:
        """Returns the `Detector` of the run of a detector; `thresholds` are arguments of `segjax.boxes.detect`."""
        return task_of(self.config).make_predictor(self.config, self.model, self.state.variables, **thresholds)


def load_run(
    path: str | os.PathLike,
    calibration: str | os.PathLike | None = None,
    data_fields: Mapping[str, Any] | None = None,
    *,
    detectors: bool = False,
    multilabel: bool = False,
) -> TrainedRun:
    """Opens `WORKDIR` (its best checkpoint) or `WORKDIR/checkpoints/STEP` (or `…/best` or `…/latest`).

    A comma-separated list of them, with or without blanks, is an ensemble, see `combine`. `calibration` is the file of
    the calibration; None: that of the workdir. `data_fields` are other values for fields of `config.data`, such as a
    `manual_dir` to which the data has moved, or another data set with the same classes. `detectors` permits the run of
    a detector, and `multilabel` one of classes that overlap.

    Raises:
      StorageError: as `path_of`.
      FileNotFoundError: the folder is not a run's, or has no such checkpoint.
      ConfigError: its config is damaged, an entry of the list is empty, the runs cannot be combined, or the run is of a
        detector and `detectors` is False, or of classes that overlap and `multilabel` is False.
    """
    calibration = None if calibration is None else path_of(calibration)
    several = _split_list(os.fspath(path))
    if len(several) > 1:
        if "" in several:
            raise ConfigError(f"{path}: entry {several.index('') + 1} of the list is empty; remove its comma")
        runs = [load_run(one, None, data_fields, multilabel=multilabel) for one in several]
        return combine(runs)._replace(calibration=calibration)
    workdir, which = find_run(path)
    config = read_config(workdir / CONFIG_FILE)
    if config.data.box_classes and not detectors:
        raise ConfigError(
            f"{path} is a run of a detector, {config.model.name}, which only segjax train, and segjax evaluate, "
            "predict, report, compare, demo and export of a single run support; name a run of a segmentation network"
        )
    if config.data.multilabel and not multilabel:
        raise ConfigError(
            f"{path} is a run of classes that overlap (config.data.multilabel), which this program does not support; "
            "name a run of one class per pixel"
        )
    labels, model = label_set(config.data), model_of(config)
    if data_fields:
        config = _with_data(config, data_fields, labels)
    state = restore_newest(workdir, which, init_state(config, model))
    return TrainedRun(workdir, config, model, state, labels, calibration=calibration)


def _with_data(config: ConfigDict, fields: Mapping[str, Any], labels: LabelSet) -> ConfigDict:
    """Returns the config with other fields of `data`; raises ConfigError if they give other classes than `labels`."""
    config = config.copy_and_resolve_references()
    if fields.get("name") == "folder" and config.data.name != "folder":
        config.data.class_names, config.data.unseen_classes = labels.names, ()
    with config.unlocked():
        config.data.update(fields)
    validate(config)
    own = label_set(config.data)
    if own.names != labels.names or (own.combinations is None) != (labels.combinations is None):
        found = f"got {', '.join(own.names)} and config.data.multilabel={config.data.multilabel}"
        raise ConfigError(f"config.data must give the classes of the run, {', '.join(labels.names)}; {found}")
    return config


def _split_list(text: str) -> list[str]:
    """Splits a list at its commas, except those within the name of an existing run, such as a cell of a sweep."""
    parts, runs = text.split(","), []
    while parts:
        ends = range(len(parts), 1, -1)
        names = {end: ",".join(parts[:end]).strip() for end in ends}
        end = next((end for end in ends if workdir_and_checkpoint(path_of(names[end]))[0].exists()), 1)
        runs.append(names.get(end, parts[0].strip()))
        parts = parts[end:]
    return runs


def combine(runs: Sequence[TrainedRun]) -> TrainedRun:
    """Returns the ensemble of several runs of one network.

    They may differ in seed, training data, steps and loss, if the losses have the same number of outputs. The ensemble
    has its members in the order of their parameter hashes, so it is the same network for every order of `runs`.

    Raises:
      ConfigError: network, input or classes of two runs differ, or their parameters are the same.
    """
    first = runs[0]
    functions, prints = [_function_of(run) for run in runs], [fingerprint(run.state.variables) for run in runs]
    for i, run in enumerate(runs):
        for key, value in functions[i].items():
            if value != functions[0].get(key):
                raise ConfigError(
                    f"{run.name} and {first.name} cannot be combined: {key} is {value!r} and {functions[0].get(key)!r};"
                    " name runs of one network, input size, normalisation and set of classes"
                )
        if prints[i] in prints[:i]:
            same = runs[prints.index(prints[i])].name
            raise ConfigError(
                f"{run.name} and {same} have the same parameters; name different runs, such as those of several seeds"
            )
    stacked = [
        run.state.variables if run.members > 1 else jax.tree.map(lambda x: x[None], run.state.variables)
        for _, run in sorted(zip(prints, runs, strict=True), key=lambda pair: pair[0])
    ]
    variables = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *stacked)
    network = first.model.network if first.members > 1 else first.model
    members, classes = sum(run.members for run in runs), first.label_set.num_classes
    model = Ensemble(network, members, classes, first.config.data.multilabel)
    config = first.config.copy_and_resolve_references()
    config.model.members = model.members
    state = first.state.replace(**variables, opt_state=(), ema=None, skipped=None)
    return TrainedRun(None, config, model, state, first.label_set, tuple(runs))


def _function_of(run: TrainedRun) -> dict[str, Any]:
    """Returns the config values that must agree for networks to be combined."""
    data = {
        f"config.data.{key}": run.config.data[key]
        for key in ("size", "letterbox", "channels", "range", "mean", "std", "multilabel")
    }
    model = {f"config.model.{key}": value for key, value in run.config.model.items() if key not in _OWN}
    outputs = {"the number of outputs for config.objective.loss": run.num_outputs}
    return {"the classes": run.label_set.names} | data | model | outputs


def model_of(config: ConfigDict) -> Any:
    """Returns the network of `config` for the classes of its data set, reading no file; raises as `make_model`."""
    return make_model(config, len(label_set(config.data).names), parallel.axis_name(config))


def training_facts(run: TrainedRun) -> dict[str, str]:
    """Returns the origin of a run's training, from `scores.json`, which exists once training has ended.

    Raises:
      StorageError: the file is damaged.
    """
    if run.runs:
        return {"training": "in the reports of these runs"}
    if not (file := run.workdir / SCORES_FILE).exists():
        return {"training": f"has not ended: there is no {SCORES_FILE}"}
    remedy = "Remove it, or repeat the training command, which writes it again"
    finished = read_json(file, {"provenance": _TRAINING}, "the scores of a run", remedy)
    origin, facts = finished["provenance"], {}
    if isinstance(changes := finished.get("changes"), list) and changes:
        facts["changed during training"] = "; ".join(map(str, changes))
    since = f", from step {origin['wall_seconds_from_step']} on" if origin["wall_seconds_from_step"] else ""
    facts["training time"] = f"{origin['wall_seconds'] / 60:.1f} minutes{since}"
    return facts | {f"training {label}": origin[key] for key, label in _ORIGIN.items()}


def facts_of(run: TrainedRun, split: str, scores: dict[str, Any]) -> dict[str, Any]:
    """Returns the origin of a checkpoint's scores, ready for JSON: data, network, training and this process.

    Raises:
      StorageError: as `training_facts`.
    """
    config, runs = run.config, run.runs or (run,)
    skipped = f"; {scores['skipped']} bad pair(s) of image and mask left out" if scores["skipped"] else ""
    facts = {
        "data": f"{config.data.name}, {split}: {scores['images']} images{skipped}",
        "network": f"{config.model.name}, {network_size(run.state.num_parameters, run.members)}",
        "input": " × ".join(map(str, input_shape(config))),
        "checkpoint": ", ".join(run.checkpoints),
        "steps": "; ".join(
            f"{one.step} of {one.config.training.steps}, of {one.config.training.global_batch} images each"
            for one in runs
        ),
    }
    here = provenance()
    return facts | training_facts(run) | {f"this page's {label}": here[key] for key, label in _ORIGIN.items()}


def score_run(run: TrainedRun, split: str, corruption: tuple[str, int] | None = None) -> dict[str, Any]:
    """Returns the scores of `run` on a split of its data set, on all devices: the dictionary of `evaluate`.

    With a `corruption`, (kind, severity) of `segjax.data.corrupt`, the images are corrupted first.
    """
    network = run.model, run.label_set.num_classes, parallel.axis_name(run.config)
    step = task_of(run.config).make_eval_step(run.config, *network, corruption)
    mapping = parallel.device_mapping(run.config)
    step, state = mapping.map_step(step, arguments=3), mapping.replicate(run.state)
    source = open_split(run.config.data, split, mark_unseen=True)
    return evaluation.evaluate(step, state, source, run.config, mapping)


def counter_of(run: TrainedRun, step: Callable) -> Callable:
    """Returns `evaluation.counter` of `step(state, batch)` on all devices; raises ConfigError as `device_mapping`."""
    mapping = parallel.device_mapping(run.config)
    return evaluation.counter(mapping.map_step(step, arguments=2), mapping.replicate(run.state), mapping)


def image_counts(run: TrainedRun, source: Source, count: Callable) -> list[Any]:
    """Returns `count(logits, labels, where, index)` of every image of `source` in order, see `make_image_step`.

    Each result is a tree of arrays `[strips, …]`, in int64 and float64. It raises ConfigError as `device_mapping`.
    """
    axis_name = parallel.axis_name(run.config)
    step = segmentation.make_image_step(run.config, run.model, run.label_set.num_classes, axis_name, count)
    images = {}
    for rows in evaluation.count_batches(counter_of(run, step), source, run.config, devices=jax.device_count()):
        for row, index in enumerate(rows["index"].tolist()):  # that of a filler is the number of images
            images[index] = jax.tree.map(lambda x, row=row: x[row], rows["counts"])
    return [images[index] for index in range(len(source))]


def chosen_threshold(
    run: TrainedRun, probability: float | None, precision: float | None, class_index: int | None
) -> tuple[dict[str, Any], str]:
    """Returns the fields of `PredictOptions` for a threshold, and a line of text for the user.

    The threshold is the `probability`, or the one at which the class reaches the `precision` on the evaluation split.
    The class is by default the rare one of two. It raises ConfigError for more classes without a `class_index`, for a
    precision outside (0, 1], and for one that no threshold reaches.
    """
    if probability is None and precision is None:
        return {}, ""
    split, names = run.config.data.eval_split, run.label_set.names
    class_index = positive_class(run, class_index, "--threshold and --at_precision")
    if probability is not None:  # of the probabilities as they are written
        return {"threshold": math.log(probability / (1 - probability)), "positive": class_index}, ""
    if not 0 < precision <= 1:
        raise ConfigError(f"--at_precision must be above 0 and at most 1; got {precision:g}")
    make_step = task_of(run.config).make_ranking_step
    step = make_step(run.config, run.model, len(names), class_index, parallel.axis_name(run.config))
    source = open_split(run.config.data, split)
    counts = evaluation.sum_counts(counter_of(run, step), source, run.config, devices=jax.device_count())
    found = metrics.threshold_at_precision(counts["scores"], precision)
    if np.isnan(found.precision):
        raise ConfigError(f"--at_precision: {split} has no pixel of {names[class_index]}")
    if np.isnan(found.threshold_logit):
        raise ConfigError(
            f"--at_precision={precision:g}: no threshold of {run.name} reaches it for {names[class_index]} on {split}; "
            f"the highest precision is {found.precision:.3g}, with a recall of {found.recall:.3g}"
        )
    probability = 1 / (1 + math.exp(-found.threshold_logit))
    return {"threshold": found.threshold_logit, "positive": class_index, "scale_threshold": False}, (
        f"{names[class_index]} from an uncalibrated probability of {probability:.4g} on: on {split} its precision is "
        f"{found.precision:.3f}, its recall {found.recall:.3f}"
    )


def positive_class(run: TrainedRun, class_index: int | None, flag: str) -> int:
    """Returns `class_index`, by default the rare one of two; raises ConfigError, with the flag, for more."""
    names = run.label_set.names
    if class_index is None and (len(names) != 2 or run.config.data.multilabel):
        raise ConfigError(f"{flag}: add --class=NAME, one of {', '.join(names)}")
    return run.label_set.rare if class_index is None else class_index


def calibration_of(run: TrainedRun, remedy: str = "") -> tuple[dict[str, Any] | None, str]:
    """Returns the calibration that `segjax calibrate` stored for this checkpoint; None, and the reason, for another.

    Without a `CALIBRATION_FILE` it returns None and "". It raises StorageError, with one more `remedy`, for a damaged
    file, and if `run.calibration` does not exist.
    """
    file = run.calibration_file
    if file is None or (run.calibration is None and not file.exists()):
        return None, ""
    if not file.exists():
        raise StorageError(f"--calibration={file}: no such file; write it with segjax calibrate --output={file}")
    form: dict[str, Any] = {"checkpoints": [str], "predictor": dict, "guarantees": [_GUARANTEE], "scaling": object}
    remedy = f"Remove it and run segjax calibrate again, or replace it with segjax calibrate --overwrite{remedy}"
    options = {"expected": "the calibration of a run", "remedy": remedy}
    calibration = read_json(file, form, **options)
    if calibration["scaling"] is not None:
        read_json(file, {"scaling": _SCALING}, **options)
    before, now = calibration["predictor"], json.loads(to_json(run.predictor().record()))
    if before.get("parameters") != now["parameters"]:
        others = ", ".join(calibration["checkpoints"])
        return None, f"{file} is of another checkpoint, {others}; this is {', '.join(run.checkpoints)}"
    for key in {**now, **before}:
        if before.get(key) != now.get(key):
            return None, f"{file} was made with {key} = {before.get(key)!r}; now it is {now.get(key)!r}"
    if damage := _calibration_damage(calibration, run.label_set.names):
        raise StorageError(f"{file}: expected the calibration of a run; {damage}. {remedy}")
    return calibration, ""


def _calibration_damage(calibration: dict[str, Any], names: Sequence[str]) -> str:
    """Returns the first value that `segjax calibrate` cannot have stored for these classes, or an empty string."""
    limit = float(np.finfo(np.float32).max)
    if scaling := calibration["scaling"]:
        scale, bias = scaling["scale"], scaling["bias"]
        if not len(scale) == len(bias) == len(names):
            return f"its scaling has {len(scale)} factors and {len(bias)} biases for {len(names)} classes"
        if wrong := [x for x in scale if not 0 < x < limit] + [x for x in bias if not abs(x) < limit]:
            return f"its scaling has a factor or bias of {wrong[0]}"
    for i, one in enumerate(calibration["guarantees"], 1):
        item, form = f"guarantees item {i}", FAMILIES.get(one["risk"], {}).get(one["family"])
        if form is None or one["class"] not in (names if one["risk"] == "fnr" else ("",)):
            return f"its {item} is of risk {one['risk']!r}, family {one['family']!r} and class {one['class']!r}"
        if problem := difference(one, form, item):
            return problem
        classes = one["classes"] if one["risk"] == "miscoverage" else []
        if one["risk"] == "miscoverage" and [own["class"] for own in classes] != list(names):
            return f"its {item} has sets of {', '.join(own['class'] for own in classes)}"
        numbers = [("level", one["level"]), *((key, one[key]) for key in ("threshold", "radius") if key in form)]
        for key, value in (*numbers, *(("threshold", own["threshold"]) for own in classes)):
            if not abs(value) < limit or (key == "radius" and value < 0):
                return f"its {item} has {key} = {value}"
    return ""


def stored_scaling(run: TrainedRun, options: PredictOptions) -> tuple[metrics.Scaling | None, str]:
    """Returns the scaling that is stored for this checkpoint, and a line of text for the user: why there is none, too.

    The line is empty if the run was never calibrated. A scaling is of the options with which it was fitted, the default
    ones.
    """
    calibration, reason = calibration_of(run, "; to go on without it, add --nocalibrated")
    if reason or not calibration or not calibration["scaling"]:
        return None, f"the probabilities are not calibrated: {reason}" if reason else ""
    if other := options.non_default():
        flags = ", ".join(f"--{name}" for name in other)
        return None, f"the probabilities are not calibrated: the scaling was fitted without {flags}"
    stored = calibration["scaling"]
    scaling = metrics.Scaling(tuple(stored["scale"]), tuple(stored["bias"]))
    factor = f", {1 / stored['scale'][0]:.3g}," if stored["kind"] == "temperature" else ""
    images = f"{stored['images']} images of {stored['split']}"
    return scaling, f"the probabilities are calibrated: {stored['kind']} scaling{factor} fitted to {images}"


def guaranteed_mask(
    run: TrainedRun, level: float | bool, class_index: int | None
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Returns the fields of `PredictOptions` for a stored guarantee, the guarantee, and a line of text for the user.

    `level`, if it is not True, and `class_index` select one of several guarantees. It raises ConfigError if not exactly
    one remains.
    """
    names = run.label_set.names
    one = _stored_guarantee(run, "fnr", level, "" if class_index is None else names[class_index])
    fields, by = {"threshold": one.get("threshold"), "scale_threshold": False}, ""
    if one["family"] == "dilation":
        fields, by = {"radius": one["radius"]}, f" by dilating the mask by {one['radius']:g} pixels"
    images = f"the {one['images_with_class']} images of {one['split']} with {one['class']}"
    line = (
        f"guarantee{by}: at most {one['level']:.2%} of the {one['class']} pixels of an image are missed, on average "
        f"over images exchangeable with {images}; its false positive rate there is {one['false_positive_rate']:.2%}"
    )
    return fields | {"positive": names.index(one["class"])}, one, line


def guaranteed_sets(run: TrainedRun, level: float | bool) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Returns the same as `guaranteed_mask` for sets of classes."""
    one = _stored_guarantee(run, "miscoverage", level, "")
    pixels = "pixels of each class in" if one["family"] == "class" else "pixels of"
    rows = [own for own in one["classes"] if own["images"]]
    classes = "; ".join(f"{own['class']} {own['coverage']:.3f}, {own['mean_size']:.3f}" for own in rows)
    line = (
        f"sets: at most {one['level']:.2%} of the {pixels} an image have a set without their class, on average over "
        f"images exchangeable with the {one['images']} images of {one['split']}; coverage and mean size there: all "
        f"{one['coverage']:.3f}, {one['mean_size']:.3f}; {classes}"
    )
    return set_fields(one), one, line


def set_fields(guarantee: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of `PredictOptions` for the sets of a guarantee."""
    thresholds = tuple(one["threshold"] for one in guarantee["classes"])
    return {"set_thresholds": thresholds, "adaptive_sets": guarantee["family"] == "adaptive"}


def _stored_guarantee(run: TrainedRun, risk: str, level: float | bool, name: str) -> dict[str, Any]:
    """Returns the only guarantee of a risk, a level (True: any) and a class ("": any); else raises ConfigError."""
    flag = {"fnr": "--guarantee", "miscoverage": "--sets"}[risk]
    calibration, reason = calibration_of(run)
    stored = [one for one in (calibration["guarantees"] if calibration else []) if one["risk"] == risk]
    chosen = [one for one in stored if level in (True, one["level"]) and name in ("", one["class"])]
    if len(chosen) == 1:
        return chosen[0]
    found = ", ".join(f"{flag}={one['level']:g}" + f" --class={one['class']}" * (risk == "fnr") for one in stored)
    if chosen:
        raise ConfigError(f"{flag}: several are stored; choose one of {found}")
    found = f"stored are {found}" if found else reason or f"{run.name} was not calibrated for it"
    command = f"segjax calibrate --checkpoint={','.join(run.checkpoints)}{' --scaling=none' * bool(calibration)}"
    command += f" --risk={risk}"
    command += f" --level={0.05 if level is True else level:g}"
    names = run.label_set.names
    default = stored[0]["class"] if stored else names[run.label_set.rare if len(names) == 2 else -1]
    command += f" --class={name or default}" * (risk == "fnr")
    file = run.calibration_file
    if run.calibration or not file:
        command += f" --output={file or 'FILE.json'}"
    command += " --overwrite" * bool(reason or (file and is_foreign(file)))
    command += "; then add --calibration=FILE.json" * (not file)
    raise ConfigError(f"{flag}: {found}. To add it: {command}")


def head_rate(run: TrainedRun, rate: float | None, samples: int, passes: int = 0) -> float:
    """Returns the dropout rate of the head: `rate`, or by default the one that the network was trained with.

    It raises ConfigError for samples without a rate, or passes, if the network was trained without the dropout.
    """
    model = run.config.model
    if passes and model.dropout != "sampled" and not model.deep_dropout:
        raise ConfigError(
            f"--passes={passes}: {run.name} was trained without dropout deep in the network (model.deep_dropout = "
            "0) and without sampled heads, so all passes are alike; sample its head instead: --samples=30 --rate=0.2"
        )
    if samples and rate is None and model.dropout == "none":
        raise ConfigError(
            f"--samples={samples}: {run.name} was trained without dropout of the head (config.model.dropout = "
            "'none'); add --rate=0.2 to sample it all the same, or train with 'sampled' or 'analytic'"
        )
    return model.dropout_rate if rate is None else rate


def find_class(run: TrainedRun, name: str | None) -> int | None:
    """Returns the index of a class, None for None; raises ConfigError if no class has that name."""
    classes = run.label_set.names
    if name is not None and name not in classes:
        unseen = ", which the training left out (config.data.unseen_classes)"
        reason = unseen if name in run.config.data.unseen_classes else ""
        raise ConfigError(f"--class: expected one of {', '.join(classes)}; got {name!r}{reason}")
    return None if name is None else classes.index(name)
