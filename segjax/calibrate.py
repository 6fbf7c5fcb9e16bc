"""Calibrates the probabilities of a trained run, and chooses thresholds with a guarantee.

Examples:
  segjax calibrate --checkpoint=runs/camvid --scaling=vector
  segjax calibrate --checkpoint=runs/debris --risk=fnr --level=0.05 --class=debris
  segjax calibrate --checkpoint=runs/a,runs/b --risk=miscoverage --level=0.1 --output=both.json
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import app, flags
from jaxtyping import Array, Bool, Float, Int, Integer

from segjax import cli, metrics
from segjax.data import VOID, Source, open_split
from segjax.inference import PredictOptions
from segjax.inference.predictor import prediction_sets
from segjax.reporting import calibration_tables, show
from segjax.storage import StorageError, check_outputs, path_of, say, to_json, write_outputs
from segjax.trained_run import (
    FAMILIES,
    TrainedRun,
    calibration_of,
    find_class,
    image_counts,
    load_run,
    positive_class,
    set_fields,
)
from segjax.training import ConfigError
from segjax.training.provenance import provenance

FLAGS = flags.FLAGS
SCALINGS = ("temperature", "class", "vector", "none")
RADII = (*range(32), *range(32, 129, 4))
"""Radii of a dilation to choose from, in pixels."""
# Pixels that a scaling is fitted to and judged by, drawn from all images. A scaling has 2C parameters at most.
_PIXELS = 2**17


def main(argv: list[str]) -> None:
    """Applies the network to every image of the split, and writes the scaling and the guarantee."""
    cli.refuse_arguments(argv)
    console = rich.console.Console()
    run = load_run(FLAGS.checkpoint, data_fields=cli.data_fields("config"), multilabel=True)
    split, scaling = FLAGS.split or run.config.data.eval_split, FLAGS.scaling
    positive = _class_of_risk(run)
    if scaling == "none" and FLAGS.risk is None:
        raise app.UsageError("--scaling=none needs --risk, or there is nothing to calibrate")
    if run.runs and FLAGS.output is None:
        raise app.UsageError(
            f"--checkpoint names {len(run.runs)} runs, so the calibration has no default file; add --output=FILE.json"
        )
    file = run.calibration_file if FLAGS.output is None else path_of(FLAGS.output)
    try:
        stored, reason = calibration_of(run._replace(calibration=file)) if file.exists() else (None, "")
    except StorageError:
        if not FLAGS.overwrite:
            raise
        stored, reason = None, ""
    if reason and not FLAGS.overwrite:
        raise ConfigError(f"{reason}; add --overwrite to replace it")
    check_outputs([file], overwrite=FLAGS.overwrite)
    source = open_split(run.config.data, split)
    for one in run.runs or (run,):
        refuse_training_images(one, split, source)
    risk = {"risk": FLAGS.risk, "family": FLAGS.family or "threshold", "level": FLAGS.level, "positive": positive}
    found = calibrate(run, source, scaling=scaling, **risk)
    calibration = merge(stored, {"split": split, **found}) | {
        "checkpoints": run.checkpoints,
        "predictor": run.predictor().record(),
        "provenance": provenance(),
    }
    write_outputs({file: to_json(calibration)}, overwrite=FLAGS.overwrite)
    for table in calibration_tables(calibration):
        show(table, console)
    used = "use it" if FLAGS.output is None else f"use it with --calibration={file}"
    say(f"wrote {file}; segjax predict and segjax export {used}", console)


def _class_of_risk(run: TrainedRun) -> int | None:
    """Returns the class of `--risk=fnr`; None for another risk, or without one."""
    name, risk, family = FLAGS["class"].value, FLAGS.risk, FLAGS.family
    if risk is None:
        for flag, value in (("level", FLAGS.level), ("class", name), ("family", family)):
            if value is not None:
                raise app.UsageError(f"--{flag}={value} needs --risk")
        return None
    if FLAGS.level is None:
        raise app.UsageError(f"--risk={risk} needs --level, such as --level=0.05")
    if family is not None and family not in FAMILIES[risk]:
        raise app.UsageError(f"--family={family} is not valid with --risk={risk}; use {' or '.join(FAMILIES[risk])}")
    if risk == "miscoverage":
        if name is not None:
            raise app.UsageError(f"--risk=miscoverage covers all classes; remove --class={name}")
        return None
    return positive_class(run, find_class(run, name), f"--risk={risk}")


def refuse_training_images(run: TrainedRun, split: str, source: Source) -> None:
    """Raises ConfigError if `split` contains images that the run was trained on."""
    training, evaluation = run.config.data.train_split, run.config.data.eval_split
    if not _may_overlap(split, training):  # image names are unique within a split only
        return
    trained = open_split(run.config.data, training)
    names = {trained.name(i) for i in range(len(trained))}
    shared = min(len(trained), sum(source.name(i) in names for i in range(len(source))))
    if shared:
        way_out = f"a split that does not overlap config.data.train_split = {training!r}"
        if evaluation != split and not _may_overlap(evaluation, training):
            way_out = f"other images, such as --split={evaluation}"
        raise ConfigError(
            f"--split={split}: {run.name} was trained on {shared} of its {len(source)} images, and a network is "
            f"overconfident on its training images; choose {way_out}"
        )


def _may_overlap(first: str, second: str) -> bool:
    """Returns whether two splits, such as "train[:50%]+val", use a split in common; "all" uses every split."""
    one, other = (set(re.findall(r"[A-Za-z_]\w*", re.sub(r"\bval\b", "validation", s))) for s in (first, second))
    return bool(one & other) or "all" in one | other


def calibrate(
    run: TrainedRun,
    source: Source,
    *,
    scaling: str = "temperature",
    risk: str | None = None,
    family: str = "threshold",
    level: float | None = None,
    positive: int | None = None,
) -> dict[str, Any]:
    """Returns the calibration of a run on a split, ready for JSON.

    It takes one pass of the network over the images, and for "miscoverage" a second one.

    Args:
      run: the run, or several.
      source: images that no run was trained on.
      scaling: `kind` of `metrics.fit_scaling`, or "none".
      risk: "fnr", the fraction of a class's pixels in an image that the mask misses; "miscoverage", the fraction of an
        image's pixels whose set of classes lacks their own; None, no guarantee.
      family: parameter that controls the risk. For "fnr": "threshold", or "dilation", the radius that the predicted
        mask grows by. For "miscoverage": "threshold", one for all classes (least ambiguous sets); "class", one per
        class, for the risk on its own pixels; or "adaptive", one for `metrics.adaptive_log_odds`.
      level: bound of the expected risk.
      positive: index of the class of "fnr".

    Of classes that overlap, each is a binary problem: "temperature" is one factor of all log odds, and "class" one per
    class.

    Returns:
      "images", their number; "data", their digest; "scaling", with the scores before and after, or None; "guarantee",
      or None.

    Raises: ConfigError if the network or the images do not determine the scaling, or do not allow the level.
    """
    if scaling in ("class", "vector") and run.num_outputs == 1:
        raise ConfigError(
            f"--scaling={scaling}: the network has one output, the log odds of {run.label_set.names[1]}, which "
            "one factor scales; use --scaling=temperature"
        )
    combinations = run.label_set.combinations
    for flag, value in (("scaling", scaling), ("risk", risk)):
        if combinations is not None and value in ("vector", "miscoverage"):
            other = {"vector": "use --scaling=class", "miscoverage": "use --risk=fnr --class=NAME"}[value]
            raise ConfigError(
                f"--{flag}={value} is for one class per pixel; the classes of {run.name} overlap: {other}"
            )
    fraction = 0.0 if scaling == "none" else min(1.0, _PIXELS / sum(height * width for height, width in source.sizes))
    options = {"fraction": fraction, "risk": risk, "family": family, "positive": positive}
    count = partial(_count_image, **options, combinations=combinations)
    counts, names = image_counts(run, source, count), run.label_set.names
    found: dict[str, Any] = {"images": len(source), "data": source.digest, "scaling": None, "guarantee": None}
    if scaling != "none":
        strips = [strip for one in counts for strip in zip(*one["sample"], strict=True)]
        where = np.concatenate([keep for _, _, keep in strips])
        logits, labels = (np.concatenate([strip[i] for strip in strips])[where] for i in (0, 1))
        logits = logits.astype(np.float32)
        if combinations is None:
            found["scaling"] = fit(logits, labels, scaling)
        else:
            found["scaling"] = fit_overlapping(logits, combinations[labels], scaling, names)
    if risk == "fnr":
        if family == "dilation":
            histograms = [
                distances(one["mask"], source[i]["label"], positive, combinations) for i, one in enumerate(counts)
            ]
        else:
            histograms = [one["histogram"].sum(axis=0) for one in counts]
        found["guarantee"] = guarantee(np.stack(histograms), level, names[positive], family)
    elif risk == "miscoverage":
        chosen = set_guarantee(np.stack([one["histogram"].sum(axis=0) for one in counts]), level, names, family)
        options = PredictOptions(run.preprocessing.size, **set_fields(chosen))
        sets = [one["sets"].sum(axis=0) for one in image_counts(run, source, partial(_count_sets, options=options))]
        found["guarantee"] = with_set_scores(chosen, np.stack(sets))
    return found


def _count_image(
    logits: Float[Array, "rows W C"],
    labels: Int[Array, "rows W"],
    where: Bool[Array, "rows W"],
    index: Int[Array, ""],
    *,
    fraction: float,
    risk: str | None,
    family: str,
    positive: int | None,
    combinations: Bool[np.ndarray, "ids C"] | None = None,
) -> dict[str, Any]:
    """Returns a sample of a `fraction` of the pixels, and a histogram, or the mask, for the risk."""
    counts = {}
    if fraction:
        pixels, size = jnp.arange(labels.size), math.ceil(fraction * labels.size)
        if fraction < 1:
            pixels = jax.random.randint(jax.random.fold_in(jax.random.key(0), index), (size,), 0, labels.size)
        flat = (logits.reshape(-1, logits.shape[-1]), labels.ravel(), where.ravel())
        counts["sample"] = tuple(values[pixels] for values in flat)
    if family == "dilation":
        overlapping = combinations is not None
        counts["mask"] = logits[..., positive] > 0 if overlapping else jnp.argmax(logits, axis=-1) == positive
    elif risk == "fnr":
        odds = (logits if combinations is not None else metrics.class_log_odds(logits))[..., positive]
        present = has_class(labels, positive, combinations)
        counts["histogram"] = metrics.score_histogram(odds, present, where=where)
    elif risk == "miscoverage":
        counts["histogram"] = own_class_histograms(logits, labels, where, family)
    return counts


def has_class(labels: Any, positive: int, combinations: Bool[np.ndarray, "ids C"] | None) -> Any:
    """Returns True for the labels of a class; `combinations` are those of `LabelSet`, whose ids the labels are."""
    if combinations is None:
        return labels == positive
    return (labels[..., None] == np.flatnonzero(combinations[:, positive])).any(axis=-1)


def own_class_histograms(
    logits: Float[Array, "*pixels C"], labels: Int[Array, "*pixels"], where: Bool[Array, "*pixels"], family: str
) -> Int[Array, "groups bins"]:
    """Returns the `metrics.score_histogram` of the log odds that sets of a family compare, of each pixel's own class.

    For the family "class", a group is the pixels of one class; for the others, one group is all pixels.
    """
    odds = metrics.adaptive_log_odds(logits) if family == "adaptive" else metrics.class_log_odds(logits)
    own = jnp.take_along_axis(odds, jnp.where(where, labels, 0)[..., None], axis=-1)[..., 0]

    def histogram(group: Bool[Array, "*pixels"]) -> Int[Array, "bins"]:
        return metrics.score_histogram(own, group, where=where)[1]

    if family != "class":
        return histogram(where)[None]
    return jax.lax.map(lambda c: histogram(labels == c), jnp.arange(logits.shape[-1]))


def _count_sets(
    logits: Float[Array, "rows W C"],
    labels: Int[Array, "rows W"],
    where: Bool[Array, "rows W"],
    index: Int[Array, ""],
    *,
    options: PredictOptions,
) -> dict[str, Any]:
    """Returns `metrics.prediction_set_counts` `[C, C + 1, 2]` of the pixels of each class."""
    del index
    sets = prediction_sets(logits, options)
    count = jax.vmap(lambda c: metrics.prediction_set_counts(sets, labels, where=where & (labels == c)))
    return {"sets": count(jnp.arange(logits.shape[-1]))}


def distances(
    strips: Bool[np.ndarray, "strips rows padded"],
    label: Integer[np.ndarray, "H W"],
    positive: int,
    combinations: Bool[np.ndarray, "ids C"] | None = None,
) -> Int[np.ndarray, "2 bins"]:
    """Returns the `metrics.distance_histogram` of a class over `RADII`, for the mask of `image_counts`."""
    mask = strips.reshape(-1, strips.shape[-1])[: label.shape[0], : label.shape[1]]
    truth = has_class(label, positive, combinations)
    return metrics.distance_histogram(mask, truth, RADII, where=label != VOID)


def fit(logits: Float[np.ndarray, "pixels C"], labels: Int[np.ndarray, "pixels"], kind: str) -> dict[str, Any]:
    """Returns the scaling of `metrics.fit_scaling`, and the calibration of the pixels before and after it."""
    try:
        scaling = metrics.fit_scaling(logits, labels, kind=kind)
    except ValueError as error:
        raise ConfigError(f"--scaling={kind}: {error}") from error
    return {
        "kind": kind,
        "scale": np.asarray(scaling.scale).tolist(),
        "bias": np.asarray(scaling.bias).tolist(),
        "pixels": len(labels),
        "before": calibration_scores(jnp.asarray(logits), labels),
        "after": calibration_scores(metrics.scale_logits(logits, scaling), labels),
    }


def fit_overlapping(
    log_odds: Float[np.ndarray, "pixels C"], present: Bool[np.ndarray, "pixels C"], kind: str, names: Sequence[str]
) -> dict[str, Any]:
    """Returns the same as `fit` for classes that overlap: one factor of the log odds of all classes, or one per class.

    Each pair of a pixel and a class counts once.
    """
    pairs, present = np.stack([np.zeros_like(log_odds), log_odds], axis=-1), present.astype(np.int32)
    groups = [(slice(None), "")] if kind == "temperature" else [([c], f" of {name}") for c, name in enumerate(names)]
    factors = []
    for group, name in groups:
        try:
            factors.append(metrics.fit_scaling(pairs[:, group].reshape(-1, 2), present[:, group].ravel()).scale[0])
        except ValueError as error:
            raise ConfigError(f"--scaling={kind}{name}: {error}") from error
    scale = np.broadcast_to(np.float32(factors), len(names))
    return {
        "kind": kind,
        "scale": scale.tolist(),
        "bias": [0.0] * len(names),
        "pixels": len(log_odds),
        "before": calibration_scores(jnp.asarray(pairs), present),
        "after": calibration_scores(jnp.asarray(pairs * scale[:, None]), present),
    }


def calibration_scores(logits: Float[Array, "*pixels C"], labels: Int[np.ndarray, "*pixels"]) -> dict[str, float]:
    """Returns the mean negative log-likelihood and the calibration errors of bins of equal width and of equal mass."""
    bins, sums, histogram = _calibration_counts(logits, labels)
    return {
        "negative_log_likelihood": metrics.negative_log_likelihood(sums),
        "expected_calibration_error": metrics.expected_calibration_error(bins),
        "adaptive_calibration_error": metrics.adaptive_calibration_error(histogram),
    }


@jax.jit
def _calibration_counts(logits: Float[Array, "*pixels C"], labels: Int[Array, "*pixels"]) -> tuple[Any, ...]:
    odds, correct = jnp.max(metrics.class_log_odds(logits), axis=-1), jnp.argmax(logits, axis=-1) == labels
    counts = (metrics.calibration_bins(logits, labels), metrics.proper_score_sums(logits, labels))
    return *counts, metrics.score_histogram(odds, correct)


def control(
    rates: Mapping[str, Float[np.ndarray, "images candidates"]], level: float, family: str
) -> tuple[list[int], float]:
    """Returns the candidates of `metrics.risk_control`, one per class, and the smallest level that all of them allow.

    `rates` are those of `metrics.false_negative_rates` by class, or with the name "" those of all pixels. The first
    candidate, which marks every pixel, is left out. It raises ConfigError for a class without images, and for a
    smaller level.
    """
    other = ", or use --family=threshold"
    if absent := [name for name, one in rates.items() if not len(one)]:
        pixel = f"a pixel of {absent[0]}" if absent[0] else "a labelled pixel"
        hint = other * (family == "class")
        raise ConfigError(f"--split: no image has {pixel}; choose a split that has some{hint}")
    smallest = {name: (one[:, 1].sum() + 1) / (len(one) + 1) for name, one in rates.items()}
    worst = max(smallest, key=smallest.get)
    if level < smallest[worst] * (1 - 1e-12):
        images = f"{len(rates[worst])} image(s)" + f" with {worst}" * bool(worst)
        raise ConfigError(
            f"--level={level:g}: {images} allow a level of {np.ceil(smallest[worst] * 1e4) / 1e4:g} or more; raise "
            f"--level, or calibrate on more images{other * (family in ('dilation', 'class'))}"
        )
    return [1 + metrics.risk_control(one[:, 1:], level) for one in rates.values()], float(smallest[worst])


def guarantee(
    histograms: Int[np.ndarray, "images 2 bins"], level: float, name: str, family: str = "threshold"
) -> dict[str, Any]:
    """Returns the threshold, or the radius, by conformal risk control for a class's miss rate.

    `histograms` are those of the class `name`, one per image: `metrics.score_histogram`, or `distances` for a dilation.
    The result includes the miss rate and the false positive rate on these images.
    """
    rates, thresholds = metrics.false_negative_rates(histograms)
    (at,), smallest = control({name: rates}, level, family)
    negatives = histograms[:, 0].sum(axis=0)
    chosen = {"radius": float(RADII[-at])} if family == "dilation" else {"threshold": float(thresholds[at])}
    return {
        "risk": "fnr",
        "family": family,
        "level": level,
        "class": name,
        **chosen,
        "images_with_class": len(rates),
        "miss_rate": float(rates[:, at].mean()),
        "false_positive_rate": float(negatives[at:].sum() / max(negatives.sum(), 1)),
        "smallest_level": smallest,
    }


def set_guarantee(
    histograms: Int[np.ndarray, "images groups bins"], level: float, names: Sequence[str], family: str = "threshold"
) -> dict[str, Any]:
    """Returns one threshold per class by conformal risk control for the fraction of pixels whose set lacks their class.

    `histograms` are the `own_class_histograms` of each image. Each group of pixels has its own risk and threshold.
    """
    groups = names if family == "class" else [""]
    rates = {
        name: metrics.false_negative_rates(np.stack([np.zeros_like(own), own], axis=1))
        for name, own in zip(groups, histograms.swapaxes(0, 1), strict=True)
    }
    chosen, smallest = control({name: one.rates for name, one in rates.items()}, level, family)
    at = list(zip(rates.values(), chosen, strict=True))
    thresholds = [float(one.thresholds[k]) for one, k in at]
    thresholds = thresholds if family == "class" else thresholds * len(names)
    return {
        "risk": "miscoverage",
        "family": family,
        "level": level,
        "class": "",
        "classes": [{"class": name, "threshold": one} for name, one in zip(names, thresholds, strict=True)],
        "images_with_class": min(len(one.rates) for one in rates.values()),
        "miss_rate": float(np.mean([one.rates[:, k].mean() for one, k in at])),
        "smallest_level": smallest,
    }


def with_set_scores(guarantee: dict[str, Any], counts: Int[np.ndarray, "images C sizes 2"]) -> dict[str, Any]:
    """Adds coverage and mean size of the sets to a `set_guarantee`: of all pixels, and of those of each class.

    `counts` are `metrics.prediction_set_counts` of the pixels of each class. "images" is the number of images with a
    class; without any, its coverage and size are NaN.
    """

    def scores(rows: Int[np.ndarray, "sizes 2"]) -> dict[str, float]:
        found = metrics.prediction_set_scores(rows)
        return {key: found[key] for key in ("coverage", "mean_size")}

    images, own = (counts.sum(axis=(2, 3)) > 0).sum(axis=0).tolist(), counts.sum(axis=0)
    rows = zip(guarantee["classes"], images, own, strict=True)
    classes = [one | {"images": with_it, **scores(counted)} for one, with_it, counted in rows]
    return guarantee | scores(own.sum(axis=0)) | {"classes": classes}


def merge(stored: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint's stored "scaling" and "guarantees" with the result of `calibrate` and its split.

    A new scaling replaces the stored one; a new guarantee replaces that of the same class, risk and level.
    """
    origin = {key: found[key] for key in ("split", "images", "data")}
    scaling, guarantees = (stored["scaling"], stored["guarantees"]) if stored else (None, [])
    if found["scaling"]:
        scaling = found["scaling"] | origin
    if new := found["guarantee"]:
        same = ("risk", "level", "class")
        guarantees = [one for one in guarantees if any(one[key] != new[key] for key in same)] + [new | origin]
    return {"scaling": scaling, "guarantees": guarantees}


if __name__ == "__main__":
    cli.define_checkpoint()
    cli.define_data_fields("config")
    flags.DEFINE_string(
        "split", None, "Split to calibrate on, of images that were not trained on; default: data.eval_split."
    )
    flags.DEFINE_enum(
        "scaling",
        SCALINGS[0],
        SCALINGS,
        "Scaling of the logits: one factor, one per class, or a factor and bias per class.",
    )
    flags.DEFINE_enum(
        "risk",
        None,
        ["fnr", "miscoverage"],
        "fnr: bound the fraction of --class pixels that is missed. miscoverage: bound the fraction of pixels whose "
        "prediction set lacks the true class.",
    )
    families = sorted({family for each in FAMILIES.values() for family in each})
    flags.DEFINE_enum(
        "family",
        None,
        families,
        "Kind of mask or set: threshold (the default); --risk=fnr: dilation; --risk=miscoverage: class, adaptive.",
    )
    cli.define_number("level", float, "(0, 1)", "Bound of the expected risk, in (0, 1); required with --risk.")
    flags.DEFINE_string("class", None, "Class for --risk=fnr; default: the rare one of two; required for more classes.")
    flags.DEFINE_string("output", None, "JSON file; default for one run: WORKDIR/calibration.json.")
    cli.define_overwrite()
    cli.run(main, required=["checkpoint"])
